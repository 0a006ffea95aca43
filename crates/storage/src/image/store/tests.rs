use super::*;
use crate::disk::{DiskImage, DiskOptions};
use crate::image::{BuiltFile, KernelInfo};

/// Makes an image's files in `dir`, whose root disk holds `content` everywhere.
fn fill(dir: &Path, name: &str, content: u8) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(Image::ROOT_DISK), [content; 4096]).unwrap();
    let kernel = KernelInfo { package: "linux".into(), version: "1".into(), release: "6.1".into() };
    let file = BuiltFile { name: Image::ROOT_DISK.into(), size_bytes: 4096, sha256: format!("{content}") };
    let spec = ImageSpec::new(name);
    Manifest::new(spec, "inputs".into(), kernel, "console=ttyS0".into(), vec![], vec![file]).store(dir).unwrap();
}

/// An image of twinvm before there were versions.
fn add_old(store: &ImageStore, name: &str) -> PathBuf {
    let dir = store.dir().join(name);
    fill(&dir, name, 1);
    dir
}

/// What a build does at its end.
fn add(store: &ImageStore, name: &str, content: u8) -> PathBuf {
    let new = store.dir().join(".build-test");
    fill(&new, name, content);
    let version = store.versions().publish(&new, name, false).unwrap();
    let _ = fs::remove_dir_all(new);
    version
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("images"));
    fs::create_dir(store.dir()).unwrap();
    (dir, store)
}

/// The first byte that a disk shows.
fn shown(disk: &Path) -> u8 {
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), read_only: true, direct: false };
    let mut byte = [0];
    DiskImage::open(disk, options).unwrap().read_at(0, &mut byte).unwrap();
    byte[0]
}

fn kept(removal: &Removal) -> &str {
    match removal {
        Removal::Kept { why, .. } => why,
        Removal::Removed { dir } => panic!("{} was removed", dir.display()),
    }
}

fn is_removed(removal: &Removal) -> bool {
    matches!(removal, Removal::Removed { dir } if !dir.exists())
}

#[test]
fn images_are_listed_shown_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("images"));
    assert!(store.list().unwrap().is_empty(), "a directory that is not there has no images");
    assert!(store.prune(true).unwrap().is_empty());
    for name in ["b", ".build-x"] {
        add_old(&store, name);
    }
    add(&store, "a", 1);
    fs::create_dir(store.dir().join("no-image")).unwrap();
    let names: Vec<_> = store.list().unwrap().into_iter().map(|i| i.manifest().spec.name.clone()).collect();
    assert_eq!(names, ["a", "b"]);
    let image = store.get("a").unwrap();
    assert!(image.is_complete() && image.root_disk().is_some_and(|path| path.is_file()));
    assert!(is_removed(&store.remove("a").unwrap()));
    assert!(matches!(store.get("a"), Err(ImageError::NotFound { .. })));
    assert!(matches!(store.remove("a"), Err(ImageError::NotFound { .. })));
    assert!(matches!(store.remove("../images"), Err(ImageError::InvalidSpec { .. })));
}

/// The guest's kernel panicked: blocks of one file system over those of another.
#[test]
fn row_8_a_disk_keeps_its_base_when_the_image_is_built_again() {
    let (dir, store) = store();
    let disks = ["old", "new"].map(|name| dir.path().join(name));
    let first = add(&store, "t", 1);
    store.create_disk("t", &disks[0]).unwrap();
    let second = add(&store, "t", 2);
    store.create_disk("t", &disks[1]).unwrap();
    assert_eq!(disks.clone().map(|disk| shown(&disk)), [1, 2]);
    assert_eq!(disks.clone().map(|disk| store.image_below(&disk).unwrap().dir().to_owned()), [first.clone(), second]);
    // Removing the name, or what nobody needs, does not take it away either.
    let removals = store.prune(true).unwrap();
    assert!(matches!(removals.as_slice(), [Removal::Kept { dir, .. }] if *dir == first));
    assert!(kept(&removals[0]).contains(disks[0].to_str().unwrap()), "{removals:?}");
    assert!(kept(&store.remove("t").unwrap()).contains(disks[1].to_str().unwrap()));
    assert!(store.get("t").is_err() && store.list().unwrap().is_empty());
    store.prune(true).unwrap();
    assert_eq!(disks.clone().map(|disk| shown(&disk)), [1, 2]);
    // Until the disks are gone.
    fs::remove_file(&disks[0]).unwrap();
    fs::write(&disks[1], [0; 512]).unwrap();
    assert!(store.prune(false).unwrap().iter().all(is_removed));
    assert!(store.versions().all().unwrap().is_empty());
}

#[test]
fn the_same_content_is_the_same_version() {
    let (_dir, store) = store();
    let first = add(&store, "t", 1);
    add(&store, "t", 2);
    assert_eq!(add(&store, "t", 1), first);
    assert_eq!(store.get("t").unwrap().dir(), first);
    assert_eq!(store.versions().all().unwrap().len(), 2);
    // One that lost a file is not taken again, and neither is any if it may be damaged.
    fs::remove_file(first.join(Image::ROOT_DISK)).unwrap();
    let again = add(&store, "t", 1);
    assert!(again != first && store.get("t").unwrap().is_complete());
    let new = store.dir().join(".build-test");
    fill(&new, "t", 1);
    assert!(![first, again].contains(&store.versions().publish(&new, "t", true).unwrap()));
}

#[test]
fn row_8_a_version_that_a_vm_has_open_stays() {
    let (_dir, store) = store();
    let version = add(&store, "used", 1);
    let options = DiskOptions { format: Some(DiskFormat::Raw), read_only: true, direct: false };
    let open = DiskImage::open(&version.join(Image::ROOT_DISK), options).unwrap();
    assert!(kept(&store.remove("used").unwrap()).contains("in use by"));
    assert!(kept(&store.prune(false).unwrap()[0]).contains("in use by"));
    drop(open);
    assert!(is_removed(&store.prune(false).unwrap()[0]));
}

#[test]
fn row_8_disks_that_others_made_or_moved_count_once_they_are_noted() {
    let (dir, store) = store();
    let at = |name: &str| dir.path().join(name);
    let version = add(&store, "t", 3);
    let base = Backing { path: version.join(Image::ROOT_DISK), format: DiskFormat::Raw };
    create_qcow2(&at("middle"), 4096, Some(&base)).unwrap();
    create_qcow2(&at("top"), 4096, Some(&Backing { path: at("middle"), format: DiskFormat::Qcow2 })).unwrap();
    store.note_disk(&at("top")).unwrap();
    fs::remove_file(at("top")).unwrap();
    assert!(kept(&store.remove("t").unwrap()).contains("middle"));
    fs::rename(at("middle"), at("moved")).unwrap();
    store.note_disk(&at("moved")).unwrap();
    assert!(kept(&store.prune(false).unwrap()[0]).contains("moved"));
    // Disks that have nothing to do with this store are no matter of its.
    create_qcow2(&at("alone"), 4096, None).unwrap();
    store.note_disk(&at("alone")).unwrap();
    store.note_disk(&at("missing")).unwrap();
    assert!(store.image_below(&at("alone")).is_none());
}

#[test]
fn a_folder_from_before_versions_goes_on_and_stays_where_disks_look_for_it() {
    let (dir, store) = store();
    let old = add_old(&store, "t");
    let disk = dir.path().join("disk");
    let base = Backing { path: old.join(Image::ROOT_DISK), format: DiskFormat::Raw };
    create_qcow2(&disk, 4096, Some(&base)).unwrap();
    assert_eq!(store.get("t").unwrap().dir(), old);
    // It is built again, and that image is removed: the old folder does not come back under its name.
    add(&store, "t", 2);
    assert_ne!(store.get("t").unwrap().dir(), old);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!((shown(&disk), store.image_below(&disk).unwrap().dir()), (1, fs::canonicalize(&old).unwrap().as_path()));
    assert!(is_removed(&store.remove("t").unwrap()));
    assert!(store.get("t").is_err());
    assert!(kept(&store.prune(false).unwrap()[0]).contains("image prune --all"));
    // A disk that is known is not forgotten for the sake of others.
    store.note_disk(&disk).unwrap();
    assert!(kept(&store.prune(true).unwrap()[0]).contains("the base of"));
    assert_eq!(shown(&disk), 1);
    fs::remove_file(&disk).unwrap();
    assert!(is_removed(&store.prune(true).unwrap()[0]));
    assert!(!old.exists());
}

#[test]
fn removing_a_folder_from_before_versions_keeps_its_root_disk() {
    let (_dir, store) = store();
    let old = add_old(&store, "t");
    assert!(kept(&store.remove("t").unwrap()).contains("image prune --all"));
    assert!(store.get("t").is_err() && old.join(Image::ROOT_DISK).exists());
    // One that is only an initial RAM disk is nobody's base.
    let tiny = add_old(&store, "tiny");
    fs::remove_file(tiny.join(Image::ROOT_DISK)).unwrap();
    assert!(is_removed(&store.remove("tiny").unwrap()));
}

#[test]
fn damaged_manifests_are_errors() {
    let (_dir, store) = store();
    let manifest = add(&store, "bad", 1).join(Manifest::FILE_NAME);
    let text = fs::read_to_string(&manifest).unwrap();
    for bad in ["", "{}", &text.replace("\"format\": 1", "\"format\": 2"), text.get(..text.len() / 2).unwrap()] {
        fs::write(&manifest, bad).unwrap();
        assert!(matches!(store.get("bad"), Err(ImageError::BadManifest { .. })), "{bad}");
    }
    assert!(store.list().unwrap().is_empty());
    store.remove("bad").unwrap();
}

/// `prune` took disks for gone whose file system was just not mounted.
#[test]
fn row_8_a_base_stays_while_the_folder_of_its_disk_is_another_one() {
    let (dir, store) = store();
    let mount = dir.path().join("mount");
    fs::create_dir_all(mount.join("vm")).unwrap();
    let version = add(&store, "t", 1);
    store.create_disk("t", &mount.join("vm/disk")).unwrap();
    assert!(kept(&store.remove("t").unwrap()).contains("vm/disk"));
    // As without a mount: an empty folder in its place, or none.
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&mount, &elsewhere).unwrap();
    fs::create_dir(&mount).unwrap();
    assert!(kept(&store.prune(true).unwrap()[0]).contains("may just not be mounted"));
    fs::remove_dir(&mount).unwrap();
    fs::rename(&elsewhere, &mount).unwrap();
    assert!(!kept(&store.prune(true).unwrap()[0]).contains("mounted"));
    // With its own folder it is gone for good.
    fs::remove_dir_all(mount.join("vm")).unwrap();
    assert!(is_removed(&store.prune(true).unwrap()[0]) && !version.exists());
}

#[test]
fn a_note_that_nobody_can_read_counts_until_it_is_written_again() {
    let (dir, store) = store();
    let disk = dir.path().join("disk");
    let version = add(&store, "t", 1);
    store.create_disk("t", &disk).unwrap();
    store.remove("t").unwrap();
    let note = || fs::read_dir(version.join("users")).unwrap().next().unwrap().unwrap().path();
    for damaged in ["", "{", "\0\0\0", "{}"] {
        fs::write(note(), damaged).unwrap();
        assert!(kept(&store.prune(true).unwrap()[0]).contains("damaged"), "{damaged}");
    }
    store.note_disk(&disk).unwrap();
    let whole = fs::read(note()).unwrap();
    assert!(!kept(&store.prune(true).unwrap()[0]).contains("damaged"));
    // It is the same while nothing has changed, and one of twinvm before has the path alone.
    store.note_disk(&disk).unwrap();
    assert_eq!(fs::read(note()).unwrap(), whole);
    fs::write(note(), disk.to_str().unwrap()).unwrap();
    assert!(kept(&store.prune(true).unwrap()[0]).ends_with("/disk"));
    store.note_disk(&disk).unwrap();
    assert_eq!(fs::read(note()).unwrap(), whole);
    fs::remove_file(&disk).unwrap();
    assert!(is_removed(&store.prune(true).unwrap()[0]));
}

#[test]
fn a_disk_that_cannot_be_noted_is_not_made() {
    let (dir, store) = store();
    let version = add(&store, "t", 1);
    fs::write(version.join("users"), "in the way").unwrap();
    assert!(matches!(store.create_disk("t", &dir.path().join("disk")), Err(ImageError::Io { .. })));
    assert!(!dir.path().join("disk").exists());
}

#[test]
fn row_8_a_snapshot_keeps_what_its_disks_are_based_on() {
    let (dir, store) = store();
    let at = |name: &str| dir.path().join(name);
    let version = add(&store, "t", 1);
    let root = version.join(Image::ROOT_DISK);
    create_qcow2(&at("base"), 4096, Some(&Backing { path: root.clone(), format: DiskFormat::Raw })).unwrap();
    fs::write(at("snapshot"), "a snapshot").unwrap();
    store.note_snapshot(&at("snapshot"), &[&root, &at("missing")]).unwrap();
    assert!(kept(&store.remove("t").unwrap()).ends_with("/snapshot"));
    // Or a disk, which is based on it.
    store.note_snapshot(&at("other"), &[&at("base")]).unwrap();
    fs::remove_file(at("snapshot")).unwrap();
    assert!(kept(&store.prune(true).unwrap()[0]).ends_with("/base"));
    fs::remove_file(at("base")).unwrap();
    assert!(is_removed(&store.prune(true).unwrap()[0]));
}

/// A removal that was killed left a folder by the same name.
#[test]
fn what_a_removal_left_is_not_in_the_way_of_another_one() {
    let (_dir, store) = store();
    let version = add(&store, "t", 1);
    let name = version.file_name().unwrap().to_str().unwrap();
    let left = store.dir().join(format!("{BUILD_PREFIX}removed-{name}"));
    fs::create_dir_all(left.join("folder")).unwrap();
    assert!(is_removed(&store.remove("t").unwrap()));
    assert!(!left.exists());
    store.remove_stale_builds().unwrap();
}
