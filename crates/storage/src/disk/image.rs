//! An open disk image.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping, ShallowMapping};
use spec::DiskFormat;

use super::freezer::{Content as Readable, Freezer};
use super::lock::{Access, ImageLock};
use super::open::{Content, open_image};
use super::raw_file::raw_extent;
use super::stamp::SETTLED_AFTER;
use super::{
    Allocation, Backing, DiskError, DiskFreezer, Extent, FileStamps, ImageForm, ImageShape, RawFile, WriteBack,
    check_size,
};

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

impl DiskOptions {
    pub(super) fn access(&self) -> Access {
        if self.read_only { Access::Read } else { Access::Write }
    }
}

/// A disk image that is open, and locked as long as it is. All methods block until done; offsets and lengths are in bytes.
pub struct DiskImage {
    path: PathBuf,
    shape: ImageShape,
    read_only: bool,
    /// Keeps what a snapshot has not read yet.
    freezer: Arc<Freezer>,
    /// Whether a qcow2 image's tables may have changed since the last flush.
    tables_changed: bool,
    /// What a qcow2 image is based on.
    backing: Option<Backing>,
    /// The content of a raw image that is used through the host's page cache.
    raw: Option<Arc<RawFile>>,
    // Dropped in this order: closing the image may write to it.
    access: FormatAccess<imago::file::File>,
    /// The image's file, then those it is based on.
    locks: Vec<ImageLock>,
    /// As those were when they had just been locked.
    found: Option<FileStamps>,
}

impl DiskImage {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// Any [`DiskError`] except `OutOfRange` and `ReadOnly`.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        Self::open_as(path, path, options)
    }

    /// As [`Self::open`], for an image that lies at `at` until it is open and then becomes what `path` leads to. Relative names in it are those of files in the
    /// folder of `path`, where a link may be that leads to another one.
    ///
    /// # Errors
    /// As [`Self::open`], which name `at`.
    pub fn open_as(at: &Path, path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let Content { access, shape, backing, locks, found } = open_image(at, path, options)?;
        let mut image = Self {
            path: path.to_path_buf(),
            shape,
            read_only: options.read_only,
            freezer: Freezer::new(path),
            tables_changed: false,
            backing,
            raw: None,
            access,
            locks,
            found,
        };
        if let Some(own) = image.locks.first().filter(|_| image.format() == DiskFormat::Raw && !options.direct) {
            let file = own.file().try_clone().map_err(|e| image.io("open", e))?;
            let freezer = image.freezer.clone();
            let raw = RawFile::new(image.path.clone(), file, image.size_bytes(), options.read_only, freezer);
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
        self.shape.format()
    }

    /// What the image is besides its content.
    pub fn form(&self) -> ImageForm {
        ImageForm { size_bytes: self.size_bytes(), shape: self.shape.clone() }
    }

    /// What freezes the content without a wait for the image.
    pub fn freezer(&self) -> DiskFreezer {
        DiskFreezer(self.freezer.clone())
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
        let (allocation, length) = match self.format() {
            DiskFormat::Raw => {
                self.files().next().map_or((Allocation::Data, u64::MAX), |file| raw_extent(file, offset))
            }
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

    /// The files that the content depends on: the image's own, then those it is based on.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.locks.iter().map(ImageLock::file)
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
        let freezer = self.freezer.clone();
        let _change = freezer.begin_change(self, offset, data.len() as u64);
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

    /// As the files that the content depends on were when the image was opened and locked, before anything was written to them. None if time stamps say
    /// nothing about one of them.
    pub fn found(&self) -> Option<&FileStamps> {
        self.found.as_ref()
    }

    /// Brings everything to stable storage, and answers by what it shows later whether anything was written since, by whomever: so soon as at once. None
    /// if time stamps say nothing about one of the files.
    ///
    /// The time of the file's last change is set back a little for that, as a change right now could get the same one.
    ///
    /// # Errors
    /// As [`Self::flush`]; [`DiskError::ReadOnly`].
    pub fn seal(&mut self) -> Result<Option<FileStamps>, DiskError> {
        self.check_writable(0, 0)?;
        self.flush()?;
        if FileStamps::of(self.files()).map_err(|e| self.io("look at", e))?.is_none() {
            return Ok(None);
        }
        let Some(own) = self.files().next() else { return Ok(None) };
        let Some(before) = SystemTime::now().checked_sub(2 * SETTLED_AFTER) else { return Ok(None) };
        own.set_modified(before).and_then(|()| own.sync_all()).map_err(|e| self.io("set the time of", e))?;
        let stamps = FileStamps::of(self.files()).map_err(|e| self.io("look at", e))?;
        Ok(stamps.filter(FileStamps::are_bases_settled))
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
        let has_tables = self.format() == DiskFormat::Qcow2 && !self.read_only;
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
        let freezer = self.freezer.clone();
        let _change = freezer.begin_change(self, offset, length);
        let result = match self.format() {
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
        let freezer = self.freezer.clone();
        let _change = freezer.begin_change(self, offset, length);
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

    /// Makes the disk bigger. What is new reads as zeros; the size is on stable storage when this returns.
    ///
    /// # Errors
    /// [`DiskError::BadSize`] for a size that is less than its own, or that no disk has; [`DiskError::ReadOnly`], [`DiskError::Flush`], [`DiskError::Io`],
    /// the latter also for a block device.
    pub fn grow(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        self.check_writable(0, 0)?;
        check_size(&self.path, size_bytes)?;
        if size_bytes < self.size_bytes() {
            let reason = "it is not made smaller, as what is at its end would be lost";
            return Err(DiskError::BadSize { path: self.path.clone(), size_bytes, reason });
        }
        let reason = "it was made bigger while a snapshot of it was taken";
        self.freezer.give_up(|| DiskError::Unsupported { path: self.path.clone(), reason: reason.to_owned() });
        self.access.resize_grow(size_bytes, PreallocateMode::Zero).map_err(|e| self.io("grow", e))?;
        self.tables_changed = true;
        self.flush()?;
        if let Some(raw) = self.raw.take() {
            self.raw = Some(Arc::new(raw.with_size(size_bytes).map_err(|e| self.io("grow", e))?));
        }
        Ok(())
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

impl Readable for DiskImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn extent_at(&mut self, offset: u64) -> Result<Extent, DiskError> {
        DiskImage::extent_at(self, offset)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        DiskImage::read_at(self, offset, buffer)
    }
}
