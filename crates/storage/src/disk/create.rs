//! Making new disk images.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};
use spec::DiskFormat;

use super::lock::{Access, ImageLock};
use super::{DiskError, DiskImage, DiskOptions, check_size};

/// What a new image is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The image; its absolute path is recorded.
    pub path: PathBuf,
    /// The backing image's format.
    pub format: DiskFormat,
}

/// Makes a raw image of `size_bytes` zeros at `path`, which must not exist. The file is sparse.
///
/// # Errors
/// [`DiskError::BadSize`], [`DiskError::Open`] (also when the file exists), [`DiskError::Io`]; then there is no new file.
pub fn create_raw(path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    check_size(path, size_bytes)?;
    create_with(path, |file| file.set_len(size_bytes).map_err(io(path, "set the size")))
}

/// Makes a qcow2 image at `path`, which must not exist. Without a `backing` it is `size_bytes` of zeros; with one it shows the
/// backing image until it is written to, and may be bigger.
///
/// # Errors
/// As [`create_raw`], and whatever opening the backing image gives.
pub fn create_qcow2(path: &Path, size_bytes: u64, backing: Option<&Backing>) -> Result<(), DiskError> {
    check_size(path, size_bytes)?;
    let backing = backing
        .map(|backing| {
            // Opened to be sure that it is what it is said to be.
            let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
            DiskImage::open(&backing.path, options)?;
            let absolute = fs::canonicalize(&backing.path).map_err(io(&backing.path, "resolve the path"))?;
            let name = absolute.to_str().filter(|name| name.len() <= 1023).ok_or_else(|| DiskError::Unsupported {
                path: absolute.clone(),
                reason: "a path that is not UTF-8 or longer than 1023 bytes cannot be recorded".to_owned(),
            })?;
            Ok((name.to_owned(), backing.format.to_string()))
        })
        .transpose()?;
    create_with(path, |file| {
        let options = StorageOpenOptions::new().filename(path).write(true);
        let file = file.try_clone().map_err(io(path, "create"))?;
        let storage = imago::file::File::from_open_file(file, options).map_err(io(path, "create"))?;
        let mut builder = Qcow2::<imago::file::File>::create_builder(storage).size(size_bytes);
        if let Some((name, format)) = backing {
            builder = builder.backing(name, format);
        }
        builder.create().map_err(io(path, "create"))
    })
}

/// Makes the file, fills it, and brings both the file and its name to stable storage; removes it if that fails.
fn create_with(path: &Path, fill: impl FnOnce(&File) -> Result<(), DiskError>) -> Result<(), DiskError> {
    let created = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = created.map_err(|source| DiskError::Open { path: path.to_path_buf(), source })?;
    let result = ImageLock::new(path, &file, Access::Write).and_then(|_lock| {
        fill(&file)?;
        file.sync_all().map_err(io(path, "flush"))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io(parent, "flush"))
    });
    if result.is_err() {
        // The error that is returned says more than one about this.
        let _ = fs::remove_file(path);
    }
    result
}

fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io { path: path.to_path_buf(), action, source }
}
