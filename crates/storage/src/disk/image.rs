//! An open disk image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::lock::open_locked;
use super::qcow2_header::{self, Refusal};
use super::{DiskError, DiskFormat, check_size};

/// Longest chain of backing files.
const CHAIN_LENGTH_MAX: usize = 32;

/// How to open an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// The image's format. `None` takes it from the file's name and content, and refuses if they do not agree.
    pub format: Option<DiskFormat>,
    /// Refuse writes, and share the image with other readers.
    pub read_only: bool,
    /// Go past the host's page cache.
    pub direct: bool,
}

type Storage = imago::file::File;
type Format = FormatAccess<Storage>;

/// A disk image that is open, and locked as long as it is. All methods block until done; offsets and lengths are in bytes.
pub struct DiskImage {
    path: PathBuf,
    format: DiskFormat,
    read_only: bool,
    access: Format,
}

impl DiskImage {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// Any [`DiskError`] except `OutOfRange` and `ReadOnly`.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let file = open_locked(path, !options.read_only, options.direct)?;
        let format = match options.format {
            Some(format) => format,
            None if options.direct => DiskFormat::guess(path, &reopen(path)?)?,
            None => DiskFormat::guess(path, &file)?,
        };
        let access = open_format(path, file, format, options, CHAIN_LENGTH_MAX)?;
        let image = Self { path: path.to_path_buf(), format, read_only: options.read_only, access };
        check_size(path, image.size_bytes())?;
        Ok(image)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format.
    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// Size of the disk (not of the file) in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.access.size()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Io`].
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.check_range(offset, buffer.len() as u64)?;
        self.access.read(buffer, offset).map_err(|e| self.io("read", e))
    }

    /// Writes `data` at `offset`. It survives a power failure only after the next [`Self::flush`].
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_writable(offset, data.len() as u64)?;
        self.access.write(data, offset).map_err(|e| self.io("write", e))
    }

    /// Returns when everything written is on stable storage.
    ///
    /// # Errors
    /// [`DiskError::Io`]: what had been written since the last successful flush may be lost.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        // First the format's own tables go to the file, then the file to the medium.
        self.access.flush().and_then(|()| self.access.sync()).map_err(|e| self.io("flush", e))
    }

    /// Gives the range's space back where the host can. It reads as zeros afterwards: leaving its content open would let the
    /// copies of a replicated disk differ.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_writable(offset, length)?;
        match self.access.discard_to_zero(offset, length) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.access.write_zeroes(offset, length),
            other => other,
        }
        .map_err(|e| self.io("discard", e))
    }

    /// Makes the range read as zeros. With `may_unmap` it need not keep its space.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> Result<(), DiskError> {
        if may_unmap {
            return self.discard(offset, length);
        }
        self.check_writable(offset, length)?;
        self.access.write_zeroes(offset, length).map_err(|e| self.io("write zeroes", e))
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let size_bytes = self.size_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(DiskError::OutOfRange { path: self.path.clone(), offset, length, size_bytes }),
        }
    }

    fn check_writable(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.path.clone() });
        }
        self.check_range(offset, length)
    }

    fn io(&self, action: &'static str, source: io::Error) -> DiskError {
        DiskError::Io { path: self.path.clone(), action, source }
    }
}

/// The same image once more, through the page cache: its first bytes are read at no alignment.
fn reopen(path: &Path) -> Result<File, DiskError> {
    File::open(path).map_err(|source| DiskError::Open { path: path.to_path_buf(), source })
}

/// Opens the image in `file`, and for qcow2 what it is based on.
fn open_format(
    path: &Path,
    file: File,
    format: DiskFormat,
    options: DiskOptions,
    chain_length_left: usize,
) -> Result<Format, DiskError> {
    let writable = !options.read_only;
    let io = |action| move |source| DiskError::Io { path: path.to_path_buf(), action, source };
    if format == DiskFormat::Qcow2 {
        check_header(path, &if options.direct { reopen(path)? } else { file.try_clone().map_err(io("open"))? })?;
    }
    let storage_options = StorageOpenOptions::new().filename(path).write(writable).direct(options.direct);
    let storage = Storage::from_open_file(file, storage_options).map_err(io("open"))?;
    match format {
        DiskFormat::Raw => {
            let builder = Raw::builder(storage).write(writable);
            Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).map_err(io("open"))?))
        }
        DiskFormat::Qcow2 => {
            let corrupt = |e: io::Error| DiskError::Corrupt { path: path.to_path_buf(), format, reason: e.to_string() };
            // What the image refers to is opened here, read-only and locked, and by nobody else.
            let builder = Qcow2::<Storage>::builder(storage).write(writable).backing(None).data_file(None);
            let mut qcow2 = builder.open(DenyImplicitOpenGate::default()).map_err(corrupt)?;
            let backing = qcow2.implicit_backing_file().cloned();
            if let Some(name) = backing {
                let format = qcow2.implicit_backing_format().cloned();
                let backing = open_backing(path, &name, format.as_deref(), options, chain_length_left)?;
                qcow2.set_backing(Some(backing));
            }
            Ok(FormatAccess::new(qcow2))
        }
    }
}

fn open_backing(
    path: &Path,
    name: &str,
    format: Option<&str>,
    options: DiskOptions,
    chain_length_left: usize,
) -> Result<Format, DiskError> {
    let unsupported = |reason: String| DiskError::Unsupported { path: path.to_path_buf(), reason };
    let chain_length_left = chain_length_left
        .checked_sub(1)
        .ok_or_else(|| unsupported("too many backing files, or a loop of them".into()))?;
    let format = format.ok_or_else(|| {
        unsupported(format!(
            "the format of its backing file {name:?} is not recorded; record it with qemu-img rebase -u"
        ))
    })?;
    let format = format.parse::<DiskFormat>().map_err(|e| unsupported(format!("backing file {name:?}: {e}")))?;
    let name = name.strip_prefix("file:").unwrap_or(name);
    let backing_path = path.parent().unwrap_or(Path::new("")).join(name);
    let options = DiskOptions { format: Some(format), read_only: true, ..options };
    let file = open_locked(&backing_path, false, options.direct)?;
    open_format(&backing_path, file, format, options, chain_length_left)
}

fn check_header(path: &Path, file: &File) -> Result<(), DiskError> {
    let io = |source| DiskError::Io { path: path.to_path_buf(), action: "read", source };
    let mut prefix = [0; qcow2_header::PREFIX_BYTES];
    let mut filled = 0;
    while let Some(rest) = prefix.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
    let file_bytes = file.metadata().map_err(io)?.len();
    qcow2_header::check(prefix.get(..filled).unwrap_or_default(), file_bytes).map_err(|refusal| match refusal {
        Refusal::Corrupt(reason) => DiskError::Corrupt { path: path.to_path_buf(), format: DiskFormat::Qcow2, reason },
        Refusal::Unsupported(reason) => DiskError::Unsupported { path: path.to_path_buf(), reason: reason.to_owned() },
    })
}
