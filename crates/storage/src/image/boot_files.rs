//! Finds kernel, initial RAM disk and root file system on a disk that somebody else has made, since a guest of ours gets the first two from its host.
//!
//! Partitions are those of a GUID partition table (UEFI specification, chapter 5) or of a master boot record; a disk may also be one file system. ext4 is
//! read by `debugfs`, which knows the file system, by its place on the disk, and needs no right to mount anything.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::command::{Stream, command, run};
use super::store::Image;
use super::{ImageError, Progress};

const SECTOR_BYTES: u64 = 512;
/// Where the table of a master boot record begins, its entries' length and number, and what is at its end.
const MBR_TABLE: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
const MBR_ENTRIES: usize = 4;
const MBR_END: [u8; 2] = [0x55, 0xaa];
/// The partition that says that the table is another one.
const MBR_PROTECTIVE: u8 = 0xee;
const GPT_MAGIC: &[u8] = b"EFI PART";
/// Most entries of a GUID partition table that are looked at, and longest ones.
const GPT_ENTRIES_MAX: u32 = 128;
const GPT_ENTRY_BYTES: std::ops::RangeInclusive<u32> = 128..=4096;
/// The magic number of ext2 and its successors, and where it is in the file system.
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];
const EXT_MAGIC_AT: u64 = 1024 + 56;
/// What kernels are called, before their release.
const KERNEL_PREFIX: &str = "vmlinuz-";
/// What `ls -p` of debugfs calls a regular file and a folder, in the first digits of the mode.
const REGULAR: &str = "10";
const FOLDER: &str = "04";

/// What a disk boots with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The kernel's release, by its file's name; `None` if there is none with its initial RAM disk.
    pub release: Option<String>,
    /// The device of the root file system in a guest that has the disk as its first.
    pub root: Option<String>,
}

/// A part of a disk that may hold a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    device: String,
}

/// A kernel on a disk.
struct Kernel<'a> {
    place: &'a Place,
    folder: &'static str,
    release: String,
    initrd: String,
}

/// Looks at the raw disk `root.img` in `folder`, and copies kernel and initial RAM disk beside it if they are on it and `wanted`.
pub(super) fn take(folder: &Path, wanted: bool, progress: &mut dyn Progress) -> Result<Found, ImageError> {
    let disk = folder.join(Image::ROOT_DISK);
    let file = File::open(&disk).map_err(ImageError::at(&disk))?;
    let places = places(&file).map_err(ImageError::at(&disk))?;
    let (mut root, mut newest) = (None, None::<Kernel>);
    for place in &places {
        if !is_ext(&file, place) {
            continue;
        }
        let top = list(folder, place, "/", progress)?;
        let has = |name: &str| top.iter().any(|(mode, entry)| mode.starts_with(FOLDER) && entry == name);
        if root.is_none() && has("etc") && has("usr") {
            root = Some(place.device.clone());
        }
        for (inside, entries) in [("/boot", list(folder, place, "/boot", progress)?), ("/", top)] {
            for (release, initrd) in kernels(&entries) {
                let is_newer = |kernel: &Kernel| compare_releases(&kernel.release, &release) == Ordering::Less;
                if newest.as_ref().is_none_or(is_newer) {
                    newest = Some(Kernel { place, folder: inside, release, initrd });
                }
            }
        }
    }
    // Of a file system that is not read here, the first partition is as good a guess as any.
    let root = root.or_else(|| places.first().map(|place| place.device.clone()));
    let Some(kernel) = newest.filter(|_| wanted) else { return Ok(Found { release: None, root }) };
    let Kernel { place, folder: inside, release, initrd } = kernel;
    for (name, to) in [(format!("{KERNEL_PREFIX}{release}"), Image::KERNEL), (initrd, Image::INITRD)] {
        let from = format!("{}/{name}", inside.trim_end_matches('/'));
        debugfs(folder, place, &format!("dump \"{from}\" {to}"), progress)?;
        if !folder.join(to).is_file() {
            return Err(ImageError::Program {
                program: "debugfs".to_owned(),
                reason: format!("{from} cannot be read"),
            });
        }
    }
    Ok(Found { release: Some(release), root })
}

/// The kernels in a folder that have an initial RAM disk, by their releases.
fn kernels(entries: &[(String, String)]) -> Vec<(String, String)> {
    let is_there = |name: &String| entries.iter().any(|(mode, entry)| mode.starts_with(REGULAR) && entry == name);
    let releases = entries.iter().filter_map(|(mode, name)| {
        let release = name.strip_prefix(KERNEL_PREFIX).filter(|_| mode.starts_with(REGULAR))?;
        // It becomes part of a command, and of what is shown.
        let is_plain = release.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte));
        (is_plain && !release.contains("rescue")).then_some(release)
    });
    let with_initrd = releases.filter_map(|release| {
        // As Debian, Fedora and SUSE call it.
        let names = [format!("initrd.img-{release}"), format!("initramfs-{release}.img"), format!("initrd-{release}")];
        Some((release.to_owned(), names.into_iter().find(is_there)?))
    });
    with_initrd.collect()
}

/// By their numbers, then by what is between them.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let parts = |release: &str| {
        let parts = release.split(|c: char| !c.is_ascii_alphanumeric());
        parts.map(|part| (part.parse::<u64>().ok(), part.to_owned())).collect::<Vec<_>>()
    };
    parts(a).cmp(&parts(b))
}

/// The entries of a folder on a file system, each with its mode in octal digits; none if there is no such folder.
fn list(
    folder: &Path,
    place: &Place,
    path: &str,
    progress: &mut dyn Progress,
) -> Result<Vec<(String, String)>, ImageError> {
    let lines = debugfs(folder, place, &format!("ls -p {path}"), progress)?;
    // /INODE/MODE/UID/GID/NAME/SIZE/
    let entry = |line: &String| {
        let mut fields = line.strip_prefix('/')?.split('/').skip(1);
        let mode = fields.next()?.to_owned();
        Some((mode, fields.nth(2)?.to_owned()))
    };
    Ok(lines.iter().filter_map(entry).collect())
}

/// What debugfs says to a command. It says so elsewhere when there is nothing of that name, and ends well.
fn debugfs(
    folder: &Path,
    place: &Place,
    request: &str,
    progress: &mut dyn Progress,
) -> Result<Vec<String>, ImageError> {
    let mut debugfs = command("debugfs");
    debugfs.env("DEBUGFS_PAGER", "cat").current_dir(folder).arg("-R").arg(request);
    debugfs.arg(format!("{}?offset={}", Image::ROOT_DISK, place.offset));
    let mut lines = Vec::new();
    run(debugfs, "e2fsprogs", progress, |_, stream, line| {
        if stream == Stream::Stdout {
            lines.push(line.to_owned());
        }
    })?;
    Ok(lines)
}

fn is_ext(disk: &File, place: &Place) -> bool {
    let mut magic = [0; 2];
    let at = place.offset.saturating_add(EXT_MAGIC_AT);
    disk.read_exact_at(&mut magic, at).is_ok() && magic == EXT_MAGIC
}

/// Whether a raw disk begins like one: with a table of partitions, or with a file system that is known here.
pub(super) fn is_disk(disk: &File) -> bool {
    let whole = Place { offset: 0, device: String::new() };
    let mut end = [0; 2];
    is_ext(disk, &whole) || disk.read_exact_at(&mut end, SECTOR_BYTES - 2).is_ok() && end == MBR_END
}

/// Where file systems may be.
fn places(disk: &File) -> io::Result<Vec<Place>> {
    let mut boot_record = [0; SECTOR_BYTES as usize];
    disk.read_exact_at(&mut boot_record, 0)?;
    let whole = || vec![Place { offset: 0, device: "/dev/vda".to_owned() }];
    let (_, rest) = boot_record.split_at(MBR_TABLE);
    let (entries, end) = rest.split_at(MBR_ENTRY_BYTES * MBR_ENTRIES);
    if end != MBR_END {
        return Ok(whole());
    }
    let place = |number: usize, sector: u64| {
        let offset = sector.checked_mul(SECTOR_BYTES).filter(|&offset| offset > 0)?;
        Some(Place { offset, device: format!("/dev/vda{}", number + 1) })
    };
    let entries: Vec<_> = entries.chunks_exact(MBR_ENTRY_BYTES).map(|entry| (entry.get(4), number(entry, 8))).collect();
    let found: Vec<Place> = if entries.iter().any(|(kind, _)| *kind == Some(&MBR_PROTECTIVE)) {
        let starts = guid_partitions(disk)?;
        starts.into_iter().filter_map(|(number, sector)| place(number, sector)).collect()
    } else {
        let used = entries.into_iter().enumerate().filter(|(_, (kind, _))| *kind != Some(&0));
        used.filter_map(|(number, (_, sector))| place(number, u64::from(sector?))).collect()
    };
    // The first sector of a file system may end like a boot record.
    Ok(if found.is_empty() { whole() } else { found })
}

/// The numbers of the partitions in a GUID partition table, from 0, and their first sectors.
fn guid_partitions(disk: &File) -> io::Result<Vec<(usize, u64)>> {
    let mut header = [0; SECTOR_BYTES as usize];
    disk.read_exact_at(&mut header, SECTOR_BYTES)?;
    let (Some(first), Some(count), Some(bytes)) = (long_number(&header, 72), number(&header, 80), number(&header, 84))
    else {
        return Ok(Vec::new());
    };
    let Some(at) = first.checked_mul(SECTOR_BYTES).filter(|_| header.starts_with(GPT_MAGIC)) else {
        return Ok(Vec::new());
    };
    if !GPT_ENTRY_BYTES.contains(&bytes) {
        return Ok(Vec::new());
    }
    let mut partitions = Vec::new();
    let mut entry = vec![0; bytes as usize];
    for number in 0..count.min(GPT_ENTRIES_MAX) {
        let offset = at.saturating_add(u64::from(number) * u64::from(bytes));
        if disk.read_exact_at(&mut entry, offset).is_err() {
            break;
        }
        let is_used = entry.iter().take(16).any(|&byte| byte != 0);
        partitions.extend(long_number(&entry, 32).filter(|_| is_used).map(|sector| (number as usize, sector)));
    }
    Ok(partitions)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn long_number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::image::NoProgress;

    const MIB: u64 = 1 << 20;

    /// A disk of 64 MiB with an ext4 file system of this content at an offset.
    fn disk(folder: &Path, offset: u64, files: &[&str]) {
        let content = folder.join("content");
        let _ = fs::remove_dir_all(&content);
        for file in files {
            let path = content.join(file);
            if file.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("content of {file}")).unwrap();
        }
        let disk = folder.join(Image::ROOT_DISK);
        File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
        let options = format!("offset={offset}");
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-E", &options, "-d"])
            .args([content.as_os_str(), disk.as_os_str()])
            .arg("40M")
            .status()
            .unwrap();
        assert!(made.success());
    }

    fn write(folder: &Path, at: u64, bytes: &[u8]) {
        let disk = File::options().write(true).open(folder.join(Image::ROOT_DISK)).unwrap();
        disk.write_all_at(bytes, at).unwrap();
    }

    /// A master boot record whose partitions are of this kind and begin there.
    fn boot_record(folder: &Path, partitions: &[(u8, u32)]) {
        for (number, (kind, sector)) in partitions.iter().enumerate() {
            let at = (MBR_TABLE + number * MBR_ENTRY_BYTES) as u64;
            write(folder, at + 4, &[*kind]);
            write(folder, at + 8, &sector.to_le_bytes());
            write(folder, at + 12, &1000u32.to_le_bytes());
        }
        write(folder, SECTOR_BYTES - 2, &MBR_END);
    }

    const DEBIAN: [&str; 7] = [
        "etc/fstab",
        "usr/",
        "boot/vmlinuz-6.1.0-9-amd64",
        "boot/initrd.img-6.1.0-9-amd64",
        "boot/vmlinuz-6.1.0-10-amd64",
        "boot/initrd.img-6.1.0-10-amd64",
        "boot/vmlinuz-6.2.0-without-initrd",
    ];

    #[track_caller]
    fn finds(folder: &Path, release: Option<&str>, root: &str) {
        let found = take(folder, true, &mut NoProgress).unwrap();
        assert_eq!((found.release.as_deref(), found.root.as_deref()), (release, Some(root)));
    }

    #[test]
    fn the_newest_kernel_with_its_initial_ram_disk_is_found_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        // Without partitions,
        disk(folder, 0, &DEBIAN);
        finds(folder, Some("6.1.0-10-amd64"), "/dev/vda");
        assert_eq!(read(Image::KERNEL), "content of boot/vmlinuz-6.1.0-10-amd64");
        assert_eq!(read(Image::INITRD), "content of boot/initrd.img-6.1.0-10-amd64");
        // in the second partition of a master boot record,
        disk(folder, 2 * MIB, &DEBIAN);
        boot_record(folder, &[(0x82, 2048), (0x83, 4096)]);
        finds(folder, Some("6.1.0-10-amd64"), "/dev/vda2");
        // and of a GUID partition table, with a file system of its own for the kernel.
        disk(folder, 3 * MIB, &["vmlinuz-6.5.6-300.fc39.x86_64", "initramfs-6.5.6-300.fc39.x86_64.img", "grub2/x"]);
        boot_record(folder, &[(MBR_PROTECTIVE, 1)]);
        write(folder, SECTOR_BYTES, GPT_MAGIC);
        write(folder, SECTOR_BYTES + 72, &2u64.to_le_bytes());
        write(folder, SECTOR_BYTES + 80, &[128u32.to_le_bytes(), 128u32.to_le_bytes()].concat());
        for (number, sector) in [(0, 2048u64), (4, 6144)] {
            let at = 2 * SECTOR_BYTES + number * 128;
            write(folder, at, &[7; 16]);
            write(folder, at + 32, &sector.to_le_bytes());
        }
        finds(folder, Some("6.5.6-300.fc39.x86_64"), "/dev/vda1");
        assert_eq!(read(Image::INITRD), "content of initramfs-6.5.6-300.fc39.x86_64.img");
    }

    #[test]
    fn a_disk_without_a_kernel_has_a_root_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        disk(folder.path(), 0, &["etc/fstab", "usr/", "boot/vmlinuz-6.1.0", "boot/vmlinuz-x y", "boot/initrd.img-x y"]);
        finds(folder.path(), None, "/dev/vda");
        assert!(!folder.path().join(Image::KERNEL).exists());
        // One that nobody wants is left where it is.
        disk(folder.path(), 0, &DEBIAN);
        assert_eq!(take(folder.path(), false, &mut NoProgress).unwrap().release, None);
        assert!(!folder.path().join(Image::KERNEL).exists());
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        let mut releases = ["6.1.0-10-amd64", "6.1.0-9-amd64", "5.10.0-30-amd64", "6.12.5-amd64"];
        releases.sort_by(|a, b| compare_releases(a, b));
        assert_eq!(releases, ["5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.5-amd64"]);
    }

    proptest! {
        #[test]
        fn no_table_of_partitions_is_too_strange(start in prop::collection::vec(any::<u8>(), 512..2048), is_gpt in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            let mut start = start;
            start[510..512].copy_from_slice(&MBR_END);
            if is_gpt && start.len() > 1024 {
                start[450] = MBR_PROTECTIVE;
                start[512..520].copy_from_slice(GPT_MAGIC);
            }
            fs::write(&path, &start).unwrap();
            let found = places(&File::open(&path).unwrap()).unwrap_or_default();
            prop_assert!(found.len() <= GPT_ENTRIES_MAX as usize);
        }
    }
}
