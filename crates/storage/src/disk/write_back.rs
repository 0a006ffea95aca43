//! Writing to the medium beside an image's other work.

use std::fs::File;
use std::path::PathBuf;

use super::DiskError;

/// Brings data to the medium that an image has handed to its host. For a format with tables this alone is not a
/// [flush](super::DiskImage::flush), which also knows of those that the image keeps; but it makes one that follows short.
#[derive(Debug)]
pub struct WriteBack {
    pub(super) path: PathBuf,
    pub(super) file: Option<File>,
    pub(super) has_tables: bool,
}

impl WriteBack {
    /// Whether [`WriteBack::run`] is all that a flush has to do: the image's format has no tables.
    pub fn is_flush(&self) -> bool {
        !self.has_tables
    }

    /// Returns when it is done. The image can be used meanwhile.
    ///
    /// # Errors
    /// [`DiskError::Flush`].
    pub fn run(&self) -> Result<(), DiskError> {
        match &self.file {
            Some(file) => file.sync_data().map_err(|source| DiskError::Flush { path: self.path.clone(), source }),
            None => Ok(()),
        }
    }
}
