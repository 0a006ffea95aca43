//! The name of the file that an image is based on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::lock::{Access, open_locked};
use super::open::{file_name, open_to_look, read_header, resolve};
use super::qcow2_header::{BACKING_NAME_BYTES_MAX, BACKING_NAME_LENGTH_AT, MAGIC};
use super::{Backing, DiskError};

/// What the image at `path` is based on, as it is recorded in it; `None` for one that is based on nothing or is no qcow2 image. Nothing is locked, and the file
/// that is named need not be there.
///
/// # Errors
/// [`DiskError::Open`], [`DiskError::NotADisk`], [`DiskError::Corrupt`], [`DiskError::Unsupported`].
pub fn recorded_backing(path: &Path) -> Result<Option<Backing>, DiskError> {
    let mut start = [0; MAGIC.len()];
    let file = open_to_look(path)?;
    if file.read_exact_at(&mut start, 0).is_err() || start != MAGIC {
        return Ok(None);
    }
    let Some(recorded) = read_header(path)?.backing else { return Ok(None) };
    let name = file_name(&recorded.name).map(|name| resolve(path, name));
    let format = recorded.format.and_then(|format| format.parse().ok());
    Ok(name.zip(format).map(|(path, format)| Backing { path, format }))
}

/// Whether the qcow2 image at `path` says that it is based on anything, whatever that is.
pub(crate) fn has_backing(path: &Path) -> Result<bool, DiskError> {
    Ok(read_header(path)?.backing.is_some())
}

/// Makes the qcow2 image at `copy` based on the same file as the one at `original` that it was copied from: a name that is relative to the folder
/// of the original is recorded as an absolute one. Other names stay as they are.
///
/// # Errors
/// [`DiskError::Unsupported`] if the absolute name cannot be recorded, and those of opening an image to write it.
pub fn make_backing_absolute(copy: &Path, original: &Path) -> Result<(), DiskError> {
    let (file, _lock) = open_locked(copy, Access::Write, false)?;
    let header = read_header(copy)?;
    let Some(recorded) = header.backing else { return Ok(()) };
    let Some(name) = file_name(&recorded.name).filter(|name| !Path::new(name).is_absolute()) else { return Ok(()) };
    let base = resolve(original, name);
    let io = |path: &Path, action, source| DiskError::Io { path: path.to_path_buf(), action, source };
    let base = fs::canonicalize(&base).map_err(|e| io(&base, "resolve the path", e))?;
    let unsupported = |reason: &str| DiskError::Unsupported { path: original.to_path_buf(), reason: reason.to_owned() };
    let name = base.to_str().ok_or_else(|| unsupported("the path of its backing file is no UTF-8"))?;
    // What follows the old name in the first cluster is nobody's ("Header extensions" in qcow2.txt).
    let end = recorded.offset.saturating_add(name.len() as u64);
    let length = u32::try_from(name.len()).ok().filter(|&length| length <= BACKING_NAME_BYTES_MAX);
    let length = length.filter(|_| end < header.cluster_bytes).ok_or_else(|| {
        unsupported("the absolute path of its backing file is too long to be recorded; move both to a shorter path")
    })?;
    file.write_all_at(name.as_bytes(), recorded.offset)
        .and_then(|()| file.write_all_at(&length.to_be_bytes(), BACKING_NAME_LENGTH_AT))
        .and_then(|()| file.sync_all())
        .map_err(|e| io(copy, "write", e))
}
