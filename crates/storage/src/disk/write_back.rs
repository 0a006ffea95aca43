//! Writing to the medium beside an image's other work.

use std::fs::File;
use std::path::PathBuf;

use super::DiskError;

/// Brings data to the medium that an image has handed to its host. This alone is not a [flush](super::DiskImage::flush), which
/// also knows of tables that the image keeps; but it makes one that follows short.
#[derive(Debug)]
pub struct WriteBack {
    pub(super) path: PathBuf,
    pub(super) file: Option<File>,
}

impl WriteBack {
    /// Returns when it is done. The image can be used meanwhile.
    ///
    /// # Errors
    /// [`DiskError::Io`]: what had been written since the last successful flush may be lost, and the next flush need not say so again.
    pub fn run(&self) -> Result<(), DiskError> {
        match &self.file {
            Some(file) => {
                file.sync_data().map_err(|source| DiskError::Io { path: self.path.clone(), action: "flush", source })
            }
            None => Ok(()),
        }
    }
}
