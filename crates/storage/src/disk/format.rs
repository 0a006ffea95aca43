//! Which format an image has, when nobody says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use spec::DiskFormat;

use super::DiskError;
use super::qcow2_header::MAGIC;

/// Bytes that tell a format.
const START_BYTES: usize = 512;

/// Images of other programs, by what is at an offset in them. To take them for raw ones would show a guest garbage.
const OTHERS: [(usize, &[u8], &str); 8] = [
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"WithouFreSpacExt", "Parallels"),
];

/// What a VHD image of fixed size ends with, in its last sector: before that it is like a raw one.
const VHD_END: &[u8] = b"conectix";
const SECTOR_BYTES: u64 = 512;

/// Names of images of other programs. A file of that name without their magic number may be one part of several.
const OTHER_NAMES: [(&str, &str); 3] = [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX")];

/// The format of an image for which none was given.
///
/// The content alone must not decide: the guest of a raw disk could write a qcow2 header to it and get any file of the
/// host as its backing file when it is next started. So a file that looks like qcow2 is one only if its name says so too.
pub(super) fn guess(path: &Path, file: &File) -> Result<DiskFormat, DiskError> {
    let looks_qcow2 = format_of_content(path, file)? == DiskFormat::Qcow2;
    let named_qcow2 = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("qcow2"));
    let unclear = |reason: &str| DiskError::UnclearFormat { path: path.to_path_buf(), reason: reason.to_owned() };
    let is_named = |(name, _): &&(&str, &str)| path.extension().is_some_and(|end| end.eq_ignore_ascii_case(name));
    if let (Some((_, format)), false) = (OTHER_NAMES.iter().find(is_named), looks_qcow2) {
        return Err(unclear(&format!("named like a part of a {format} image but does not begin like one")));
    }
    match (named_qcow2, looks_qcow2) {
        (true, true) => Ok(DiskFormat::Qcow2),
        (false, false) => Ok(DiskFormat::Raw),
        (true, false) => Err(unclear("named like a qcow2 image but does not begin like one")),
        (false, true) => Err(unclear("begins like a qcow2 image but is not named like one")),
    }
}

/// The format by the content alone: for an image that no guest has written to.
pub(crate) fn format_of_content(path: &Path, file: &File) -> Result<DiskFormat, DiskError> {
    let io = |source| DiskError::Io { path: path.to_path_buf(), action: "read", source };
    let unsupported = |name: &str| DiskError::Unsupported {
        path: path.to_path_buf(),
        reason: format!("{name} images are not supported; `qemu-img convert -O qcow2` makes one that is"),
    };
    let start = start(file).map_err(io)?;
    let begins = |(at, magic, _): &&(usize, &[u8], &str)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, name)) = OTHERS.iter().find(begins) {
        return Err(unsupported(name));
    }
    if ends_with(file, VHD_END).map_err(io)? {
        return Err(unsupported("VHD"));
    }
    Ok(if start.starts_with(&MAGIC) { DiskFormat::Qcow2 } else { DiskFormat::Raw })
}

/// Whether the last sector begins so.
fn ends_with(file: &File, magic: &[u8]) -> io::Result<bool> {
    // A block device has no length of its own here, and is no image of another program.
    let Some(at) = file.metadata()?.len().checked_sub(SECTOR_BYTES) else { return Ok(false) };
    let mut found = vec![0; magic.len()];
    match file.read_exact_at(&mut found, at) {
        Ok(()) => Ok(found == magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The file's first bytes; fewer of them only if it is shorter.
fn start(file: &File) -> io::Result<Vec<u8>> {
    let mut start = vec![0; START_BYTES];
    let mut filled = 0;
    while let Some(rest) = start.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    start.truncate(filled);
    Ok(start)
}
