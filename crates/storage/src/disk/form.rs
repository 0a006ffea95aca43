//! What an image is besides its content, and images made of that.

use std::fs::File;
use std::path::Path;

use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};
use spec::DiskFormat;

use super::qcow2_header::BACKING_NAME_BYTES_MAX;
use super::{DiskError, check_size};

/// Clusters of a qcow2 image (qcow2.txt, `cluster_bits`).
const CLUSTER_BYTES_MIN: u64 = 512;
const CLUSTER_BYTES_MAX: u64 = 2 << 20;

/// An image without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageForm {
    /// Size of the disk.
    pub size_bytes: u64,
    /// How it is stored.
    pub shape: ImageShape,
}

/// How an image stores its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageShape {
    /// As it is.
    Raw,
    /// In clusters.
    Qcow2 {
        /// Length of one.
        cluster_bytes: u64,
        /// What it is based on, as it is recorded in it.
        base: Option<RecordedBase>,
    },
}

impl ImageShape {
    /// The format.
    pub fn format(&self) -> DiskFormat {
        match self {
            Self::Raw => DiskFormat::Raw,
            Self::Qcow2 { .. } => DiskFormat::Qcow2,
        }
    }
}

/// The file that an image is based on, by the words that are in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedBase {
    /// Its name, which may be relative.
    pub name: String,
    /// Its format.
    pub format: String,
}

impl ImageForm {
    /// Makes an image of this form, without any content of its own, in `file`, which is empty. `path` is for messages.
    ///
    /// # Errors
    /// [`DiskError::BadSize`], [`DiskError::Unsupported`] for a form that no image has, [`DiskError::Io`].
    pub fn create(&self, file: &File, path: &Path) -> Result<(), DiskError> {
        check_size(path, self.size_bytes)?;
        let io = |action| move |source| DiskError::Io { path: path.to_path_buf(), action, source };
        let ImageShape::Qcow2 { cluster_bytes, base } = &self.shape else {
            return file.set_len(self.size_bytes).map_err(io("set the size"));
        };
        let unsupported = |reason: &str| DiskError::Unsupported { path: path.to_path_buf(), reason: reason.to_owned() };
        if !cluster_bytes.is_power_of_two() || !(CLUSTER_BYTES_MIN..=CLUSTER_BYTES_MAX).contains(cluster_bytes) {
            return Err(unsupported(&format!("clusters of {cluster_bytes} bytes")));
        }
        if base.as_ref().is_some_and(|base| base.name.len() > BACKING_NAME_BYTES_MAX as usize) {
            return Err(unsupported("the name of its backing file is too long"));
        }
        let file = file.try_clone().map_err(io("create"))?;
        let options = StorageOpenOptions::new().filename(path).write(true);
        let storage = imago::file::File::from_open_file(file, options).map_err(io("create"))?;
        let builder = Qcow2::<imago::file::File>::create_builder(storage).size(self.size_bytes);
        let mut builder = builder.cluster_size(*cluster_bytes as usize);
        if let Some(RecordedBase { name, format }) = base {
            builder = builder.backing(name.clone(), format.clone());
        }
        builder.create().map_err(io("create"))
    }
}
