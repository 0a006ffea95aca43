//! An open disk image.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, ShallowMapping, StorageOpenOptions};
use rustix::fs::SeekFrom as Find;
use rustix::io::Errno;
use spec::DiskFormat;

use super::format;
use super::lock::open_locked;
use super::qcow2_header::{self, Refusal};
use super::qcow2_tables;
use super::{Allocation, Backing, DiskError, Extent, RawFile, WriteBack, check_size};
use crate::file_lock::FileLock;

/// Longest chain of backing files.
const CHAIN_LENGTH_MAX: usize = 32;

/// Most zeros written at once.
const ZEROS_BYTES_MAX: u64 = 1 << 20;

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
    /// Whether a qcow2 image's tables may have changed since the last flush.
    tables_changed: bool,
    /// What a qcow2 image is based on.
    backing: Option<Backing>,
    /// The content of a raw image that is used through the host's page cache.
    raw: Option<Arc<RawFile>>,
    // Dropped in this order: closing the image may write to it.
    access: Format,
    /// The image's file, then those it is based on.
    locks: Vec<FileLock>,
}

impl DiskImage {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// Any [`DiskError`] except `OutOfRange` and `ReadOnly`.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let (file, lock) = open_locked(path, !options.read_only, options.direct)?;
        let mut locks = vec![lock];
        let format = match options.format {
            Some(format) => format,
            None => format::guess(path, &reopen(path, false)?)?,
        };
        let (access, backing) = open_format(path, file, format, options, &mut locks)?;
        let mut image = Self {
            path: path.to_path_buf(),
            format,
            read_only: options.read_only,
            tables_changed: false,
            backing,
            raw: None,
            access,
            locks,
        };
        check_size(path, image.size_bytes())?;
        if let Some(own) = image.locks.first().filter(|_| format == DiskFormat::Raw && !options.direct) {
            let file = own.file().try_clone().map_err(|e| image.io("open", e))?;
            let raw = RawFile::new(image.path.clone(), file, image.size_bytes(), options.read_only);
            image.raw = Some(Arc::new(raw));
        }
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

    /// The image that shows where this one holds nothing.
    pub fn backing(&self) -> Option<&Backing> {
        self.backing.as_ref()
    }

    /// Where the content at `offset` comes from, and how far that holds at least. A walk over a disk takes a step for each
    /// stretch in which data lies together, and one for each 512 MiB without any.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], also at the disk's end; [`DiskError::Io`].
    pub fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.check_range(offset, 1)?;
        let rest = self.size_bytes() - offset;
        let (allocation, length) = match self.format {
            DiskFormat::Raw => self.raw_extent(offset)?,
            DiskFormat::Qcow2 => {
                let (mapping, length) = self.access.get_shallow_mapping(offset, rest).map_err(|e| self.io("map", e))?;
                let allocation = match mapping {
                    ShallowMapping::Indirect { .. } | ShallowMapping::Zero { explicit: false, .. } => {
                        Allocation::Absent
                    }
                    ShallowMapping::Zero { explicit: true, .. } => Allocation::Zeros,
                    // Compressed, or of a kind still to come.
                    _ => Allocation::Data,
                };
                (allocation, length)
            }
        };
        Ok(Extent { allocation, length: length.clamp(1, rest) })
    }

    /// By the holes in the file. Where the file system knows of none, everything is data.
    fn raw_extent(&self, offset: u64) -> Result<(Allocation, u64), DiskError> {
        let all = Ok((Allocation::Data, u64::MAX));
        let Some(file) = self.files().next() else { return all };
        match rustix::fs::seek(file, Find::Data(offset)) {
            Ok(data) if data > offset => Ok((Allocation::Absent, data - offset)),
            Ok(_) => match rustix::fs::seek(file, Find::Hole(offset)) {
                Ok(hole) => Ok((Allocation::Data, hole.saturating_sub(offset))),
                Err(_) => all,
            },
            // No data from here on.
            Err(Errno::NXIO) => Ok((Allocation::Absent, u64::MAX)),
            Err(_) => all,
        }
    }

    /// The files that the content depends on: the image's own, then those it is based on.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.locks.iter().map(FileLock::file)
    }

    /// What reads and writes the content without this image, if its format and the way it was opened allow that.
    pub fn raw_file(&self) -> Option<&Arc<RawFile>> {
        self.raw.as_ref()
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Io`].
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if let Some(raw) = &self.raw {
            return raw.read_at(offset, buffer);
        }
        self.check_range(offset, buffer.len() as u64)?;
        self.access.read(buffer, offset).map_err(|e| self.io("read", e))
    }

    /// Fills `buffer` from `offset` on if the host can do that without a wait, as it has the content in its page cache. False if it cannot,
    /// or nobody can tell: then the buffer's content is undefined, and [`Self::read_at`] does it, or finds out why not.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.raw.as_ref().is_some_and(|raw| raw.read_cached(offset, buffer))
    }

    /// Writes `data` at `offset`. It survives a power failure only after the next [`Self::flush`].
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if let Some(raw) = &self.raw {
            return raw.write_at(offset, data);
        }
        self.check_writable(offset, data.len() as u64)?;
        self.tables_changed = self.tables_changed || !self.is_mapped(offset, data.len() as u64);
        self.access.write(data, offset).map_err(|e| self.io("write", e))
    }

    /// Returns when everything written is on stable storage.
    ///
    /// # Errors
    /// [`DiskError::Flush`]; [`DiskError::Io`] if the format's tables cannot be written, which the next flush tries again.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        // A table must not reach the medium before the data that it points to: a power failure between the two would put
        // what the new cluster happens to hold in the place of data that had been safe.
        if self.tables_changed {
            self.sync()?;
            self.access.flush().map_err(|e| self.io("write tables", e))?;
        }
        self.sync()?;
        self.tables_changed = false;
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.access.sync().map_err(|source| DiskError::Flush { path: self.path.clone(), source })
    }

    /// A handle by which what was written until then can be brought to the medium while the image goes on being used.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn write_back(&self) -> Result<WriteBack, DiskError> {
        let own = self.files().next().filter(|_| !self.read_only);
        let file = own.map(File::try_clone).transpose().map_err(|e| self.io("flush", e))?;
        let has_tables = self.format == DiskFormat::Qcow2 && !self.read_only;
        Ok(WriteBack { path: self.path.clone(), file, has_tables })
    }

    /// Makes the range read as zeros, and gives its space back where that is safe. (Its content could be left open, but
    /// then the copies of a replicated disk could differ.)
    ///
    /// A qcow2 image keeps the space for later writes to the same place: a cluster that is given to another place still holds
    /// its old content when the power fails at the wrong moment.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_writable(offset, length)?;
        let result = match self.format {
            DiskFormat::Raw => self.access.discard_to_zero(offset, length),
            DiskFormat::Qcow2 => self.access.write_zeroes(offset, length),
        };
        self.or_write_zeros(result, offset, length).map_err(|e| self.io("discard", e))
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
        let result = self.access.write_zeroes(offset, length);
        self.or_write_zeros(result, offset, length).map_err(|e| self.io("write zeroes", e))
    }

    /// Writes zeros as data where the host's file system or an old version of the format has nothing better.
    fn or_write_zeros(&mut self, result: io::Result<()>, offset: u64, length: u64) -> io::Result<()> {
        self.tables_changed = true;
        match result {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            other => return other,
        }
        let zeros = vec![0; length.min(ZEROS_BYTES_MAX) as usize];
        let mut done = 0;
        while done < length {
            let step = (length - done).min(ZEROS_BYTES_MAX);
            self.access.write(zeros.get(..step as usize).unwrap_or_default(), offset + done)?;
            done += step;
        }
        Ok(())
    }

    /// Whether the whole range can be written without a change to the format's tables.
    fn is_mapped(&self, mut offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        while offset < end {
            match self.access.get_mapping(offset, end - offset) {
                Ok((Mapping::Raw { writable: true, .. }, mapped)) if mapped > 0 => offset += mapped,
                _ => return false,
            }
        }
        true
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

/// An image that is locked already once more, through the page cache: its metadata is read at no alignment.
fn reopen(path: &Path, writable: bool) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .open(path)
        .map_err(|source| DiskError::Open { path: path.to_path_buf(), source })
}

/// Opens the image in `file`, which is locked, and for qcow2 what it is based on; the locks of that are added to `locks`.
fn open_format(
    path: &Path,
    file: File,
    format: DiskFormat,
    options: DiskOptions,
    locks: &mut Vec<FileLock>,
) -> Result<(Format, Option<Backing>), DiskError> {
    let writable = !options.read_only;
    let io = |action| move |source| DiskError::Io { path: path.to_path_buf(), action, source };
    if format == DiskFormat::Qcow2 {
        check_qcow2(path, writable)?;
    }
    let storage_options = StorageOpenOptions::new().filename(path).write(writable).direct(options.direct);
    let storage = Storage::from_open_file(file, storage_options).map_err(io("open"))?;
    match format {
        DiskFormat::Raw => {
            let builder = Raw::builder(storage).write(writable);
            Ok((FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).map_err(io("open"))?), None))
        }
        DiskFormat::Qcow2 => {
            let corrupt = |e: io::Error| DiskError::Corrupt { path: path.to_path_buf(), format, reason: e.to_string() };
            // What the image refers to is opened here, read-only and locked, and by nobody else.
            let builder = Qcow2::<Storage>::builder(storage).write(writable).backing(None).data_file(None);
            let mut qcow2 = builder.open(DenyImplicitOpenGate::default()).map_err(corrupt)?;
            let name = qcow2.implicit_backing_file().cloned();
            let mut backing = None;
            if let Some(name) = name {
                let format = qcow2.implicit_backing_format().cloned();
                let (access, opened) = open_backing(path, &name, format.as_deref(), options, locks)?;
                qcow2.set_backing(Some(access));
                backing = Some(opened);
            }
            Ok((FormatAccess::new(qcow2), backing))
        }
    }
}

fn open_backing(
    path: &Path,
    name: &str,
    format: Option<&str>,
    options: DiskOptions,
    locks: &mut Vec<FileLock>,
) -> Result<(Format, Backing), DiskError> {
    let unsupported = |reason: String| DiskError::Unsupported { path: path.to_path_buf(), reason };
    if locks.len() > CHAIN_LENGTH_MAX {
        return Err(unsupported("too many backing files, or a loop of them".to_owned()));
    }
    let format = format.ok_or_else(|| {
        unsupported(format!(
            "the format of its backing file {name:?} is not recorded; record it with qemu-img rebase -u"
        ))
    })?;
    let format = format.parse::<DiskFormat>().map_err(|e| unsupported(format!("backing file {name:?}: {e}")))?;
    let name = name.strip_prefix("file:").unwrap_or(name);
    let backing = Backing { path: path.parent().unwrap_or(Path::new("")).join(name), format };
    let options = DiskOptions { format: Some(format), read_only: true, ..options };
    let (file, lock) = open_locked(&backing.path, false, options.direct)?;
    locks.push(lock);
    let (access, _) = open_format(&backing.path, file, format, options, locks)?;
    Ok((access, backing))
}

/// Holds the metadata of a qcow2 image against its limits before anything relies on it: always the header, and all tables if
/// the image is to be written.
fn check_qcow2(path: &Path, writable: bool) -> Result<(), DiskError> {
    let file = reopen(path, writable)?;
    let io = |source| DiskError::Io { path: path.to_path_buf(), action: "read", source };
    let refused = |refusal| match refusal {
        Refusal::Corrupt(reason) => DiskError::Corrupt { path: path.to_path_buf(), format: DiskFormat::Qcow2, reason },
        Refusal::Unsupported(reason) => DiskError::Unsupported { path: path.to_path_buf(), reason: reason.to_owned() },
    };
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
    // Not the metadata's length: that of a block device is 0.
    let file_bytes = (&file).seek(SeekFrom::End(0)).map_err(io)?;
    let header = qcow2_header::parse(prefix.get(..filled).unwrap_or_default(), file_bytes).map_err(refused)?;
    if writable {
        qcow2_tables::check_and_repair(&file, file_bytes, &header).map_err(io)?.map_err(refused)?;
    }
    Ok(())
}
