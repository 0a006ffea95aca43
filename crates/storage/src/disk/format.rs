//! Which format an image has, when nobody says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use spec::DiskFormat;

use super::DiskError;
use super::qcow2_header::MAGIC;

/// The format of an image for which none was given.
///
/// The content alone must not decide: the guest of a raw disk could write a qcow2 header to it and get any file of the
/// host as its backing file when it is next started. So a file that looks like qcow2 is one only if its name says so too.
pub(super) fn guess(path: &Path, file: &File) -> Result<DiskFormat, DiskError> {
    let mut start = [0; MAGIC.len()];
    let looks_qcow2 = match file.read_exact_at(&mut start, 0) {
        Ok(()) => start == MAGIC,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(source) => return Err(DiskError::Io { path: path.to_path_buf(), action: "read", source }),
    };
    let named_qcow2 = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("qcow2"));
    let unclear = |reason: &str| DiskError::UnclearFormat { path: path.to_path_buf(), reason: reason.to_owned() };
    match (named_qcow2, looks_qcow2) {
        (true, true) => Ok(DiskFormat::Qcow2),
        (false, false) => Ok(DiskFormat::Raw),
        (true, false) => Err(unclear("named like a qcow2 image but does not begin like one")),
        (false, true) => Err(unclear("begins like a qcow2 image but is not named like one")),
    }
}
