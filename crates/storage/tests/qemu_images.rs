//! Images that `qemu-img` makes: opened rightly, or refused in one sentence and left as they were.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use spec::DiskFormat;
use storage::disk::{DiskError, DiskImage, DiskOptions, make_backing_absolute};
use tempfile::TempDir;

const SIZE: usize = 4 << 20;

/// A folder with images, which is the current one of QEMU's programs.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace().map(|word| word.replace('~', " "));
        let mut program = Command::new(words.next().unwrap());
        program.args(words).current_dir(self.0.path());
        program.output().expect("qemu-utils is installed by `make setup`")
    }

    /// Runs a program, in whose words `~` stands for a space.
    #[track_caller]
    fn qemu(&self, command: &str) {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A qcow2 image called `disk`, with `options`.
    #[track_caller]
    fn create(&self, options: &str) -> PathBuf {
        self.qemu(&format!("qemu-img create -f qcow2 {options} disk {SIZE}"));
        self.path("disk")
    }

    /// The image must be refused with these words, and not be changed.
    #[track_caller]
    fn refused(&self, name: &str, format: Option<DiskFormat>, read_only: bool, expected: &str) {
        let path = self.path(name);
        let before = fs::read(&path).unwrap();
        let error = match DiskImage::open(&path, DiskOptions { format, read_only, direct: false }) {
            Ok(_) => panic!("{name} was opened"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected) && error.contains(name) && error.lines().count() == 1, "{error}");
        assert!(fs::read(&path).unwrap() == before, "a refused image was changed: {error}");
    }
}

fn open(path: &Path, read_only: bool) -> Result<DiskImage, DiskError> {
    DiskImage::open(path, DiskOptions { format: Some(DiskFormat::Qcow2), read_only, direct: false })
}

fn content(image: &mut DiskImage) -> Vec<u8> {
    let mut content = vec![0xee; image.size_bytes() as usize];
    image.read_at(0, &mut content).unwrap();
    content
}

/// What the image holds, is written over in part here, is what QEMU then finds.
#[track_caller]
fn is_shared_with_qemu(folder: &Folder, expected: &mut [u8]) {
    let mut image = open(&folder.path("disk"), false).unwrap();
    assert!(content(&mut image) == expected);
    for at in [0, 70_000, 1 << 20, SIZE - 512] {
        image.write_at(at as u64, &[0x77; 512]).unwrap();
        expected[at..at + 512].fill(0x77);
    }
    image.write_zeroes(2 << 20, 100_000, true).unwrap();
    expected[2 << 20..][..100_000].fill(0);
    image.flush().unwrap();
    drop(image);
    let check = folder.run("qemu-img check -f qcow2 disk");
    assert!(matches!(check.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&check.stdout));
    folder.qemu("qemu-img convert -f qcow2 -O raw disk raw");
    assert!(fs::read(folder.path("raw")).unwrap() == expected);
    let copy = content(&mut open(&folder.path("disk"), true).unwrap());
    assert!(copy == expected);
}

/// What QEMU writes to a new image in these tests.
const WRITES: &str = "-c write~-P~0x5a~65024~200k -c write~-z~1M~64k -c write~-P~1~4194000~300";

fn written() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    content[65_024..65_024 + (200 << 10)].fill(0x5a);
    content[4_194_000..4_194_300].fill(1);
    content
}

#[test]
fn row_11_images_with_the_options_of_qemu_img_are_opened_and_written() {
    for options in [
        "",
        "-o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o refcount_bits=1",
        "-o refcount_bits=64",
        "-o lazy_refcounts=on",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-o preallocation=full",
    ] {
        let folder = Folder::new();
        folder.create(options);
        folder.qemu(&format!("qemu-io -f qcow2 {WRITES} disk"));
        is_shared_with_qemu(&folder, &mut written());
    }
}

#[test]
fn row_11_compressed_images_are_opened_and_written() {
    let folder = Folder::new();
    folder.qemu(&format!("qemu-img create -f raw plain {SIZE}"));
    folder.qemu(&format!("qemu-io -f raw {WRITES} plain"));
    folder.qemu("qemu-img convert -c -f raw -O qcow2 plain disk");
    is_shared_with_qemu(&folder, &mut written());
}

/// Said "feature(s) 0", after the file had been changed.
#[test]
fn row_11_an_image_with_lazy_refcounts_whose_writer_was_killed_is_repaired() {
    let folder = Folder::new();
    folder.create("-o lazy_refcounts=on");
    folder.qemu("qemu-img bitmap --add -f qcow2 disk b0");
    let killed = folder.run("qemu-io -f qcow2 -c write~0~1M -c sigraise~9 disk");
    assert!(!killed.status.success());
    folder.refused("disk", Some(DiskFormat::Qcow2), true, "`qemu-img check -r all` does it");
    let mut expected = vec![0; SIZE];
    expected[..1 << 20].fill(0xcd);
    is_shared_with_qemu(&folder, &mut expected);
    let info = String::from_utf8(folder.run("qemu-img info disk").stdout).unwrap();
    assert!(info.contains("corrupt: false") && !info.contains("dirty"), "{info}");
}

#[test]
fn an_overlay_whose_writer_was_killed_is_unchanged_if_its_base_is_missing() {
    let folder = Folder::new();
    folder.qemu(&format!("qemu-img create -f raw base {SIZE}"));
    folder.create("-o lazy_refcounts=on -b base -F raw");
    folder.qemu("qemu-img bitmap --add -f qcow2 disk b0");
    folder.run("qemu-io -f qcow2 -c write~0~1M -c sigraise~9 disk");
    fs::rename(folder.path("base"), folder.path("away")).unwrap();
    folder.refused("disk", Some(DiskFormat::Qcow2), false, "its backing file");
    fs::rename(folder.path("away"), folder.path("base")).unwrap();
    let mut expected = vec![0; SIZE];
    expected[..1 << 20].fill(0xcd);
    is_shared_with_qemu(&folder, &mut expected);
}

/// Bitmaps count writes of QEMU's; after others they must not be trusted, which QEMU then knows.
#[test]
fn row_11_bitmaps_are_marked_as_out_of_date_by_the_first_writer_and_by_no_reader() {
    let folder = Folder::new();
    folder.create("");
    folder.qemu("qemu-img bitmap --add -f qcow2 disk b0");
    folder.qemu(&format!("qemu-io -f qcow2 {WRITES} disk"));
    let before = fs::read(folder.path("disk")).unwrap();
    assert!(content(&mut open(&folder.path("disk"), true).unwrap()) == written());
    assert!(fs::read(folder.path("disk")).unwrap() == before);
    is_shared_with_qemu(&folder, &mut written());
    let inconsistent = folder.run("qemu-img info disk");
    let text = String::from_utf8_lossy(&inconsistent.stderr) + String::from_utf8_lossy(&inconsistent.stdout);
    assert!(text.contains("inconsistent") || !text.contains("b0"), "{text}");
}

#[test]
fn row_11_what_is_not_supported_is_refused_in_one_sentence_and_unchanged() {
    // The other format derives its key by the processor's time, which not every machine tells well enough.
    let secret = "--object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s";
    for (options, expected) in [
        ("-o extended_l2=on", "extended_l2=on"),
        ("-o compression_type=zstd", "compression by zstd"),
        ("-o data_file=outside", "external data file"),
        (secret, "encrypted images"),
    ] {
        let folder = Folder::new();
        folder.create(options);
        for read_only in [false, true] {
            folder.refused("disk", Some(DiskFormat::Qcow2), read_only, expected);
            folder.refused("disk", Some(DiskFormat::Qcow2), read_only, "`qemu-img convert -O qcow2`");
        }
    }
}

/// Entries were read in the middle: "data at 4294966784 does not begin at a cluster".
#[test]
fn row_11_extended_entries_are_refused_with_data_in_them_as_well() {
    let folder = Folder::new();
    folder.create("-o extended_l2=on");
    folder.qemu(&format!("qemu-io -f qcow2 {WRITES} disk"));
    folder.refused("disk", Some(DiskFormat::Qcow2), false, "extended_l2=on");
}

#[test]
fn row_11_an_image_with_snapshots_is_read_and_not_written() {
    let folder = Folder::new();
    folder.create("");
    folder.qemu(&format!("qemu-io -f qcow2 {WRITES} disk"));
    folder.qemu("qemu-img snapshot -c one disk");
    folder.qemu("qemu-io -f qcow2 -c write~-P~9~0~512 disk");
    folder.refused("disk", Some(DiskFormat::Qcow2), false, "`qemu-img snapshot -l`");
    let mut expected = written();
    expected[..512].fill(9);
    assert!(content(&mut open(&folder.path("disk"), true).unwrap()) == expected);
    folder.qemu("qemu-img snapshot -d one disk");
    is_shared_with_qemu(&folder, &mut expected);
}

#[test]
fn row_11_images_of_other_programs_are_not_taken_for_raw_ones() {
    for format in ["vmdk", "vdi", "vhdx", "qed", "vpc", "parallels"] {
        let folder = Folder::new();
        let name = format!("disk.{format}");
        folder.qemu(&format!("qemu-img create -f {format} {name} {SIZE}"));
        folder.refused(&name, None, false, "`qemu-img convert -O qcow2` makes one that is");
    }
}

/// Those that begin like raw ones were opened, and a guest had the other program's own data at the end of its disk.
#[test]
fn row_11_images_that_tell_what_they_are_at_their_end_or_in_a_second_file_are_not_taken_for_raw_ones() {
    let folder = Folder::new();
    folder.qemu(&format!("qemu-img create -f vpc -o subformat=fixed disk.vhd {SIZE}"));
    folder.refused("disk.vhd", None, false, "VHD images are not supported; `qemu-img convert -O qcow2` makes one");
    folder.qemu(&format!("qemu-img create -f vmdk -o subformat=monolithicFlat disk.vmdk {SIZE}"));
    folder.refused("disk.vmdk", None, false, "VMDK images are not supported");
    folder.refused("disk-flat.vmdk", None, false, "named like a part of a VMDK image");
    folder.qemu(&format!("qemu-img create -f vmdk -o subformat=twoGbMaxExtentFlat parts.vmdk {SIZE}"));
    folder.refused("parts-f001.vmdk", None, false, "format = \"raw\"");
    // Who says that it is raw has it as it is.
    let options = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() };
    assert_eq!(DiskImage::open(&folder.path("disk-flat.vmdk"), options).unwrap().size_bytes(), SIZE as u64);
}

#[test]
fn row_11_an_image_of_the_first_qcow_is_refused_whatever_it_is_called() {
    let folder = Folder::new();
    for name in ["disk.qcow", "disk.qcow2"] {
        folder.qemu(&format!("qemu-img create -f qcow {name} {SIZE}"));
        folder.refused(name, Some(DiskFormat::Qcow2), false, "only versions 2 and 3 of qcow2");
    }
    folder.refused("disk.qcow2", None, false, "only versions 2 and 3 of qcow2");
    folder.refused("disk.qcow", None, false, "begins like a qcow2 image");
}

/// A guest may have encrypted its whole disk itself, which is raw for its host.
#[test]
fn row_11_a_disk_that_is_encrypted_as_a_whole_is_its_guests_and_stays_as_it_is() {
    let folder = Folder::new();
    fs::write(folder.path("disk.img"), [b"LUKS\xba\xbe".to_vec(), vec![7; SIZE - 6]].concat()).unwrap();
    let before = fs::read(folder.path("disk.img")).unwrap();
    let disk = DiskImage::open(&folder.path("disk.img"), DiskOptions::default()).unwrap();
    assert_eq!(disk.size_bytes(), before.len() as u64);
    drop(disk);
    assert!(fs::read(folder.path("disk.img")).unwrap() == before);
}

#[test]
fn a_raw_image_with_the_name_of_another_format_is_opened_when_that_is_said() {
    let folder = Folder::new();
    folder.qemu(&format!("qemu-img create -f raw disk.qcow2 {SIZE}"));
    folder.refused("disk.qcow2", None, false, "format = \"raw\"");
    folder.refused("disk.qcow2", Some(DiskFormat::Qcow2), false, "does not begin with the magic number");
    let options = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() };
    assert_eq!(DiskImage::open(&folder.path("disk.qcow2"), options).unwrap().size_bytes(), SIZE as u64);
    folder.create("");
    folder.refused("disk", None, false, "format = \"raw\" or format = \"qcow2\"");
}

/// A folder with `bases/base`, and `disk` based on it by a relative name through `bases/middle`.
fn chain(folder: &Folder) {
    fs::create_dir(folder.path("bases")).unwrap();
    folder.qemu(&format!("qemu-img create -f qcow2 bases/base {SIZE}"));
    folder.qemu(&format!("qemu-io -f qcow2 {WRITES} bases/base"));
    folder.qemu("qemu-img create -f qcow2 -b base -F qcow2 bases/middle");
    folder.qemu("qemu-img create -f qcow2 -b bases/middle -F qcow2 disk");
}

#[test]
fn row_9_a_relative_backing_name_is_relative_to_its_images_folder() {
    let folder = Folder::new();
    chain(&folder);
    is_shared_with_qemu(&folder, &mut written());
}

#[test]
fn row_9_a_copy_of_an_image_is_based_on_what_the_original_is() {
    for options in ["", "-o compat=0.10", "-o cluster_size=512"] {
        let (folder, other) = (Folder::new(), Folder::new());
        chain(&folder);
        folder.qemu(&format!("qemu-img create -f qcow2 {options} -b bases/middle -F qcow2 disk"));
        let (original, copy) = (folder.path("disk"), other.path("disk"));
        fs::copy(&original, &copy).unwrap();
        assert!(open(&copy, false).is_err());
        make_backing_absolute(&copy, &original).unwrap();
        is_shared_with_qemu(&other, &mut written());
        // Once more changes nothing, and neither does it change names that are absolute.
        let before = fs::read(&copy).unwrap();
        make_backing_absolute(&copy, &other.path("elsewhere/disk")).unwrap();
        assert!(fs::read(&copy).unwrap() == before);
    }
    let folder = Folder::new();
    folder.create("");
    let before = fs::read(folder.path("disk")).unwrap();
    make_backing_absolute(&folder.path("disk"), &folder.path("disk")).unwrap();
    assert!(fs::read(folder.path("disk")).unwrap() == before);
}

#[test]
fn row_9_a_path_that_is_too_long_for_a_header_is_refused() {
    let folder = Folder::new();
    let long = "long".repeat(50);
    fs::create_dir_all(folder.path(&long).join(&long)).unwrap();
    folder.qemu(&format!("qemu-img create -f raw {long}/{long}/base {SIZE}"));
    let output = Command::new("qemu-img")
        .args(["create", "-f", "qcow2", "-o", "cluster_size=512", "-b", "base", "-F", "raw", "disk"])
        .current_dir(folder.path(&long).join(&long))
        .output();
    assert!(output.unwrap().status.success());
    let original = folder.path(&long).join(&long).join("disk");
    fs::copy(&original, folder.path("copy")).unwrap();
    let before = fs::read(&original).unwrap();
    let error = make_backing_absolute(&folder.path("copy"), &original).unwrap_err().to_string();
    assert!(error.contains("too long to be recorded"), "{error}");
    assert!(fs::read(folder.path("copy")).unwrap() == before);
}

#[test]
fn row_9_a_backing_name_that_is_no_file_is_refused() {
    for name in ["json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"base\"}}", "nbd://127.0.0.1/x"]
    {
        let folder = Folder::new();
        folder.qemu(&format!("qemu-img create -f raw base {SIZE}"));
        folder.create("");
        folder.qemu(&format!("qemu-img rebase -u -f qcow2 -b {name} -F raw disk"));
        folder.refused("disk", Some(DiskFormat::Qcow2), false, "is not the name of a file; `qemu-img rebase -u");
    }
}

/// All of these tests with the QEMU of Debian 13 that `scripts/setup` has unpacked: its programs come before the installed ones.
#[test]
fn row_11_the_images_of_the_next_debian_are_no_others() {
    const SELF: &str = "row_11_the_images_of_the_next_debian_are_no_others";
    let home = std::env::var_os("TWINVM_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.twinvm"));
    let programs = home.join("tools/qemu/usr/bin");
    if !programs.join("qemu-img").exists() {
        // `scripts/setup` unpacks it where the installed QEMU is older.
        let _ = writeln!(std::io::stderr(), "SKIPPED {SELF}: the installed QEMU is all there is");
        return;
    }
    let installed = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([programs].into_iter().chain(std::env::split_paths(&installed))).unwrap();
    let tests =
        Command::new(std::env::current_exe().unwrap()).args(["--skip", SELF]).env("PATH", path).output().unwrap();
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&tests.stdout));
}
