//! What a disk image is, without opening it for a VM.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use spec::DiskFormat;

use super::lock::{Access, is_refused};
use super::open::{length, open_to_look, read_header};
use super::{Backing, DiskError, format, holder, recorded_backing};

/// Unit in which a file says how much space it takes (`st_blocks`).
const BLOCK_BYTES: u64 = 512;

/// What is found about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// The image's format.
    pub format: DiskFormat,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// What the file takes, in bytes.
    pub allocated_bytes: u64,
    /// What it is based on.
    pub backing: Option<Backing>,
    /// Who has it, if somebody has.
    pub holder: Option<String>,
}

impl DiskInfo {
    /// Looks at the image at `path`, also at one that somebody has, which may change meanwhile. A format of `None` is found out.
    ///
    /// # Errors
    /// Those of opening an image, except [`DiskError::InUse`].
    pub fn of(path: &Path, format: Option<DiskFormat>) -> Result<Self, DiskError> {
        let file = open_to_look(path)?;
        let io = |source| DiskError::Io { path: path.to_path_buf(), action: "look at", source };
        let format = match format {
            Some(format) => format,
            None => format::guess(path, &file)?,
        };
        let (size_bytes, backing) = match format {
            DiskFormat::Raw => (length(&file).map_err(io)?, None),
            DiskFormat::Qcow2 => (read_header(path)?.size_bytes, recorded_backing(path)?),
        };
        let allocated_bytes = file.metadata().map_err(io)?.blocks().saturating_mul(BLOCK_BYTES);
        let is_held = is_refused(&file, Access::Write).map_err(io)?;
        let holder = is_held.then(|| holder::describe(&file));
        Ok(Self { format, size_bytes, allocated_bytes, backing, holder })
    }
}
