use super::*;
use crate::config::HostConfig;
use crate::folder::HostFolder;

/// Everything in a folder.
fn files(folder: &Path) -> VmFiles {
    let text = "name = \"a\"\nlisten = \"127.0.0.1:1\"\nmetrics = \"\"\nstore = \"/s\"\nimages = \"/i\"\n";
    let config = HostConfig { vm_folders: vec![folder.to_owned()], ..toml::from_str(text).unwrap() };
    VmFiles::of(&HostFolder::find(Some(&folder.join("host"))).unwrap(), &config)
}

fn spec(folder: &Path) -> VmSpec {
    fs::write(folder.join("vmlinuz"), b"kernel").unwrap();
    let mut disk = vec![0u8; 8 << 20];
    disk[5 << 20] = 7;
    fs::write(folder.join("data.raw"), &disk).unwrap();
    let mut spec = VmSpec::parse(
        "name = \"v\"\nmemory = \"128M\"\nkernel = \"vmlinuz\"\n[[disk]]\npath = \"data.raw\"\nformat = \"raw\"\n",
    )
    .unwrap();
    spec.kernel = Some(folder.join("vmlinuz"));
    spec.disks[0].path = folder.join("data.raw");
    spec
}

#[test]
fn a_vm_gets_copies_and_the_originals_stay() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let spec = spec(temporary.path());
    let folder = VmFolder::new(temporary.path().join("vm"));
    let kept = folder.create(&spec, &images, &files).unwrap();
    assert_eq!(kept.cmdline.as_deref(), Some("console=ttyS0"));
    assert_eq!(folder.contents().unwrap().disk_bytes, [8 << 20]);
    let local = folder.local_spec(&kept, &files).unwrap();
    let copy = &local.disks[0].path;
    assert_eq!(fs::read(copy).unwrap(), fs::read(&spec.disks[0].path).unwrap());
    assert!(fs::metadata(copy).unwrap().blocks() * 512 <= 2 << 20, "zeros take space");
    assert_eq!(local.initrd, None);
    assert!(folder.create(&spec, &images, &files).unwrap_err().to_string().contains("earlier VM"));
    folder.remove().unwrap();
    folder.remove().unwrap();
    assert!(spec.disks[0].path.exists());
}

/// The copy in the VM's folder was based on a file of that folder, which is not there: the VM was created, and did not start.
#[test]
fn a_disk_that_is_based_on_another_by_a_relative_name_keeps_its_base() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let mut spec = spec(temporary.path());
    let qemu_img = |arguments: &[&str]| {
        let mut command = std::process::Command::new("qemu-img");
        let output = command.args(arguments).current_dir(temporary.path()).output();
        assert!(output.expect("qemu-utils is installed by `make setup`").status.success(), "{arguments:?}");
    };
    fs::create_dir(temporary.path().join("disks")).unwrap();
    qemu_img(&["create", "-f", "qcow2", "base.qcow2", "8M"]);
    qemu_img(&["create", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "disks/top.qcow2"]);
    spec.disks[0] = DiskSpec { path: temporary.path().join("disks/top.qcow2"), format: None, ..spec.disks[0].clone() };
    let folder = VmFolder::new(temporary.path().join("vm"));
    let kept = folder.create(&spec, &images, &files).unwrap();
    let copy = &folder.local_spec(&kept, &files).unwrap().disks[0];
    let options = DiskOptions { format: copy.format, ..DiskOptions::default() };
    let image = DiskImage::open(&copy.path, options).unwrap();
    assert_eq!(image.backing().unwrap().path, temporary.path().join("base.qcow2").canonicalize().unwrap());
    drop(image);
    // Without it the VM is not created at all.
    folder.remove().unwrap();
    fs::remove_file(temporary.path().join("base.qcow2")).unwrap();
    let refused = format!("{:#}", folder.create(&spec, &images, &files).unwrap_err());
    assert!(refused.contains("its backing file") && refused.contains("base.qcow2"), "{refused}");
    assert!(!folder.path().exists());
}

#[test]
fn what_cannot_be_created_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let mut spec = spec(temporary.path());
    spec.disks[0].path = temporary.path().join("missing");
    let folder = VmFolder::new(temporary.path().join("vm"));
    assert!(format!("{:#}", folder.create(&spec, &images, &files).unwrap_err()).contains("missing"));
    assert!(!folder.path().exists());
}

#[test]
fn disks_of_a_vm_grow_all_or_none() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let mut spec = spec(temporary.path());
    spec.disks.push(DiskSpec { readonly: true, ..spec.disks[0].clone() });
    spec.disks[1].path = temporary.path().join("shared.raw");
    fs::write(&spec.disks[1].path, [0; 4096]).unwrap();
    let folder = VmFolder::new(temporary.path().join("vm"));
    let kept = folder.create(&spec, &images, &files).unwrap();
    folder.grow_disks(&BTreeMap::from([(0, 16 << 20)])).unwrap();
    let size = || fs::metadata(&folder.local_spec(&kept, &files).unwrap().disks[0].path).unwrap().len();
    assert_eq!((folder.contents().unwrap().disk_bytes, size()), (vec![16 << 20, 4096], 16 << 20));
    for (sizes, expected) in [
        (BTreeMap::from([(0, 8 << 20)]), "not made smaller"),
        (BTreeMap::from([(0, 32 << 20), (1, 8192)]), "disk 1: the VM has no disk of this number that it may write"),
        (BTreeMap::from([(0, 32 << 20), (7, 8192)]), "disk 7"),
    ] {
        let refused = format!("{:#}", folder.grow_disks(&sizes).unwrap_err());
        assert!(refused.contains(expected), "{refused}");
        assert_eq!((folder.contents().unwrap().disk_bytes, size()), (vec![16 << 20, 4096], 16 << 20));
    }
}

#[test]
fn a_folder_is_copied_and_moved_whole_or_not_at_all() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let spec = spec(temporary.path());
    let [folder, copy, moved] = ["vm", "copy", "moved"].map(|name| VmFolder::new(temporary.path().join(name)));
    let kept = folder.create(&spec, &images, &files).unwrap();
    folder.copy_to(&copy, &images).unwrap();
    let disk = |folder: &VmFolder| folder.local_spec(&kept, &files).unwrap().disks[0].path.clone();
    assert_eq!(fs::read(disk(&folder)).unwrap(), fs::read(disk(&copy)).unwrap());
    assert!(copy.kernel().exists() && folder.copy_to(&copy, &images).is_err());
    copy.move_to(&moved, &images).unwrap();
    assert!(!copy.path().exists() && disk(&moved).starts_with(moved.path()));
    assert!(folder.move_to(&moved, &images).unwrap_err().to_string().contains("there already"));
    // While somebody writes to it there is no copy of it.
    let _writer = DiskImage::open(&disk(&folder), DiskOptions::default()).unwrap();
    assert!(format!("{:#}", folder.copy_to(&copy, &images).unwrap_err()).contains("in use"));
    assert!(!copy.path().exists());
}

#[test]
fn a_secondary_keeps_copies_that_fit_and_no_others() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let files = files(temporary.path());
    let spec = spec(temporary.path());
    let folder = VmFolder::new(temporary.path().join("vms/vm"));
    fs::create_dir(temporary.path().join("vms")).unwrap();
    let disk = folder.path().join("disk0.qcow2");
    let contents = |created_unix_ms, size| VmContents { created_unix_ms, disk_bytes: vec![size], boot_changes: 0 };
    let fetched = std::cell::Cell::new(0);
    let prepare = |contents: &VmContents| {
        folder.prepare(&spec, contents, &images, &files, |_| {
            fetched.set(fetched.get() + 1);
            Ok(b"kernel".to_vec())
        })
    };
    let identity = || fs::metadata(&disk).unwrap().ino();
    prepare(&contents(1, 8 << 20)).unwrap();
    let before = identity();
    // Keeps its number from being used again.
    fs::hard_link(&disk, temporary.path().join("first")).unwrap();
    prepare(&contents(1, 8 << 20)).unwrap();
    assert_eq!((identity(), fetched.get()), (before, 1));
    prepare(&contents(1, 16 << 20)).unwrap();
    assert_eq!(DiskImage::open(&disk, DiskOptions::default()).unwrap().size_bytes(), 16 << 20);
    fs::write(&disk, b"garbage").unwrap();
    prepare(&contents(1, 8 << 20)).unwrap();
    assert_eq!(fetched.get(), 1);
    let before = identity();
    prepare(&contents(2, 8 << 20)).unwrap();
    assert_eq!(fetched.get(), 2, "the kernel of an earlier VM was kept");
    // The disks of that VM may be the only ones.
    let set_aside: Vec<_> = fs::read_dir(temporary.path().join("set-aside")).unwrap().map(Result::unwrap).collect();
    assert_eq!(set_aside.len(), 1);
    assert_eq!(fs::metadata(set_aside[0].path().join("disk0.qcow2")).unwrap().ino(), before);
    assert!(prepare(&VmContents { created_unix_ms: 2, disk_bytes: vec![], boot_changes: 0 }).is_err());
    folder.remove().unwrap();
    assert!(folder.local_spec(&spec, &files).unwrap_err().to_string().contains("no copy"));
}

/// Its disks were under the new name then, and no VM had that: it was lost.
#[test]
fn a_folder_that_cannot_be_moved_stays_where_it_is() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let [folder, moved] = ["vm", "moved"].map(|name| VmFolder::new(temporary.path().join(name)));
    folder.create(&spec(temporary.path()), &images, &files(temporary.path())).unwrap();
    create_qcow2(&folder.path().join("disk1.qcow2"), 8192, None).unwrap();
    // A store in which nothing can be noted.
    fs::write(temporary.path().join("images"), "").unwrap();
    folder.move_to(&moved, &images).unwrap_err();
    assert!(folder.contents().is_some() && !moved.path().exists());
    // Not even one with nothing in it is replaced: another operation may have just made it.
    fs::remove_file(temporary.path().join("images")).unwrap();
    fs::create_dir(moved.path()).unwrap();
    assert!(folder.move_to(&moved, &images).unwrap_err().to_string().contains("there already"));
    assert!(folder.copy_to(&moved, &images).unwrap_err().to_string().contains("there already"));
    assert!(folder.contents().is_some() && moved.path().exists());
}

/// `ft off` removed the folder with the snapshots of the time when the VM was at home there.
#[test]
fn snapshots_stay_when_the_copies_of_disks_are_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let folder = VmFolder::new(temporary.path().join("vms/vm"));
    fs::create_dir(temporary.path().join("vms")).unwrap();
    let make = || folder.create(&spec(temporary.path()), &images, &files(temporary.path())).unwrap();
    make();
    let snapshots = folder.path().join("snapshots");
    fs::create_dir(&snapshots).unwrap();
    fs::write(snapshots.join("s.snapshot"), "x").unwrap();
    let created_unix_ms = folder.contents().unwrap().created_unix_ms;
    folder.clear_of_others(created_unix_ms, &images).unwrap();
    folder.remove_copies().unwrap();
    assert!(snapshots.join("s.snapshot").exists() && folder.kernel().exists() && folder.contents().is_some());
    assert!(folder.found_disk(0).is_none());
    let mark = CopyMark::of(folder.path()).read().unwrap().unwrap();
    assert_eq!(mark.copy(), CopyState::incomplete(Generation::NONE).copy());
    // Nor are they lost where nobody can say any more whose they are, and another VM's never.
    fs::write(folder.contents_file(), "?").unwrap();
    folder.clear_of_others(created_unix_ms, &images).unwrap();
    assert!(!folder.path().exists());
    make();
    folder.clear_of_others(folder.contents().unwrap().created_unix_ms + 1, &images).unwrap();
    assert_eq!(fs::read_dir(temporary.path().join("set-aside")).unwrap().count(), 2);
    // Without any, nothing stays.
    make();
    folder.remove_copies().unwrap();
    assert!(!folder.path().exists());
    folder.remove_copies().unwrap();
}

/// A disk that was made bigger after the snapshot was taken: the VM could not be protected any more.
#[test]
fn what_disks_are_after_a_restore_is_noted() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let folder = VmFolder::new(temporary.path().join("vm"));
    folder.create(&spec(temporary.path()), &images, &files(temporary.path())).unwrap();
    let (disk, _) = folder.found_disk(0).unwrap();
    File::options().write(true).open(&disk).unwrap().set_len(4 << 20).unwrap();
    let _replica = DiskImage::open(&disk, DiskOptions::default()).unwrap();
    folder.note_restored(&images).unwrap();
    assert_eq!(folder.contents().unwrap().disk_bytes, [4 << 20]);
}

/// What lay beside a disk was removed, or took its name, before it was looked whether a VM may be given that disk at all.
#[test]
fn nothing_is_touched_where_no_vm_may_have_a_file() {
    let temporary = tempfile::tempdir().unwrap();
    let images = ImageStore::new(temporary.path().join("images"));
    let elsewhere = tempfile::tempdir().unwrap();
    let mut spec = spec(temporary.path());
    let folder = VmFolder::new(temporary.path().join("vm"));
    let mut create = |place: &Path| {
        fs::write(place.join("d.raw"), [0; 4096]).unwrap();
        fs::write(place.join("d.raw.restoring-18ecb567c4518986-30987-1"), "").unwrap();
        spec.disks[0].path = place.join("d.raw");
        let created = folder.create(&spec, &images, &files(temporary.path())).map(drop);
        (created, place.join("d.raw.restoring-18ecb567c4518986-30987-1").exists())
    };
    let (refused, is_left) = create(elsewhere.path());
    assert!(format!("{:#}", refused.unwrap_err()).contains("is in no folder") && is_left);
    let (created, is_left) = create(temporary.path());
    created.unwrap();
    assert!(!is_left);
}

/// A VM of two disks and a read-only one, in a folder of VMs, with what it is to become: without the first, with another one and another kernel.
struct Changing {
    temporary: tempfile::TempDir,
    images: ImageStore,
    files: VmFiles,
    folder: VmFolder,
    before: VmSpec,
    after: VmSpec,
}

impl Changing {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let images = ImageStore::new(temporary.path().join("images"));
        let files = files(temporary.path());
        let mut before = spec(temporary.path());
        let disk = |name: &str, byte: u8| {
            let path = temporary.path().join(name);
            fs::write(&path, [byte; 4096]).unwrap();
            DiskSpec { path, format: Some(DiskFormat::Raw), ..before.disks[0].clone() }
        };
        let [first, second, third] = [("first", 1), ("second", 2), ("third", 3)].map(|(name, byte)| disk(name, byte));
        let shared = DiskSpec { readonly: true, ..disk("shared", 4) };
        before.disks = vec![first, shared.clone(), second.clone()];
        fs::create_dir(temporary.path().join("vms")).unwrap();
        let folder = VmFolder::new(temporary.path().join("vms/shop"));
        let before = folder.create(&before, &images, &files).unwrap();
        let kernel = temporary.path().join("newer");
        fs::write(&kernel, "newer").unwrap();
        let after = VmSpec { disks: vec![second, third, shared], kernel: Some(kernel), ..before.clone() };
        Self { temporary, images, files, folder, before, after }
    }

    fn propose(&self) -> Result<()> {
        let text = spec::to_toml(&self.after).unwrap();
        self.folder.propose((&self.before, &self.after), &text, [true, false], &self.images, &self.files)
    }

    fn settle(&self, spec: &VmSpec) -> Result<Vec<PathBuf>> {
        let aside = self.temporary.path().join("aside");
        self.folder.settle_change(&spec::to_toml(spec).unwrap(), &aside, &self.images)
    }

    /// What a VM that starts with this spec sees: its kernel, and the first byte of each disk.
    fn seen(&self, spec: &VmSpec) -> (Vec<u8>, Vec<u8>) {
        let local = self.folder.local_spec(spec, &self.files).unwrap();
        let disks = local.disks.iter().map(|disk| fs::read(&disk.path).unwrap()[0]).collect();
        (fs::read(local.kernel.unwrap()).unwrap(), disks)
    }

    fn is_as_before(&self) {
        assert_eq!(self.seen(&self.before).1, [1, 4, 2]);
        assert!(!self.temporary.path().join("changes/shop").exists() && !self.temporary.path().join("aside").exists());
    }

    fn is_changed(&self) {
        assert_eq!(self.seen(&self.after), (b"newer".to_vec(), vec![2, 3, 4]));
        let aside: Vec<_> = fs::read_dir(self.temporary.path().join("aside")).unwrap().flatten().collect();
        assert_eq!(fs::read(aside[0].path()).unwrap()[0], 1);
        assert_eq!((aside.len(), self.folder.contents().unwrap().disk_bytes), (1, vec![4096; 3]));
        assert_eq!(self.folder.contents().unwrap().boot_changes, 1);
        assert!(!self.temporary.path().join("changes/shop").exists());
    }
}

#[test]
fn a_vm_has_the_disks_and_the_kernel_that_the_store_says() {
    let vm = Changing::new();
    vm.propose().unwrap();
    assert!(vm.propose().unwrap_err().to_string().contains("there already"), "one at a time");
    assert_eq!(vm.settle(&vm.before).unwrap(), Vec::<PathBuf>::new());
    vm.is_as_before();
    vm.propose().unwrap();
    fs::write(vm.folder.path().join("digests-0"), "of the first").unwrap();
    let aside = vm.settle(&vm.after).unwrap();
    assert_eq!(fs::read(&aside[0]).unwrap()[0], 1);
    assert!(!vm.folder.path().join("digests-0").exists());
    vm.is_changed();
    // Nobody has to know that it was done.
    vm.settle(&vm.after).unwrap();
    vm.is_changed();
}

#[test]
fn a_change_that_cannot_be_leaves_a_vm_as_it_is() {
    let mut vm = Changing::new();
    vm.after.disks[1].path = vm.temporary.path().join("missing");
    assert!(format!("{:#}", vm.propose().unwrap_err()).contains("missing"));
    vm.is_as_before();
}

/// A daemon may be killed between any two changes of names: after the first `done` of them.
#[test]
fn a_change_that_was_cut_short_anywhere_is_carried_through() {
    for done in 0.. {
        let vm = Changing::new();
        vm.propose().unwrap();
        if change::tests::stopping_after(done, || vm.settle(&vm.after)).is_ok() {
            assert!(done > 8, "it was never cut short");
            break;
        }
        // From when it was decided, whatever the store says: the names of disks are no longer those of before.
        vm.settle(&vm.after).unwrap_or_else(|error| panic!("after {done}: {error:#}"));
        vm.is_changed();
    }
}
