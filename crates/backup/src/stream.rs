//! What a process that reads a guest's disks says to the one that has the repository's key.
//!
//! Disks are read by a process that is confined, as they are a guest's work. What it says is not trusted either: at worst the recovery point of that one VM
//! is wrong.

use std::io::{self, Read, Write};

use storage::disk::{Allocation, DiskError, DiskImage, DiskOptions};

use super::backup::Backup;
use super::error::BackupError;

/// A volume follows: length of its name (1 byte), name, size (8 bytes).
const VOLUME: u8 = 1;
/// Data follows: offset (8 bytes), length (4 bytes), content.
const DATA: u8 = 2;
/// There is no more.
const END: u8 = 3;
/// Most data at a time, in bytes.
const DATA_BYTES_MAX: usize = 256 << 10;
/// Longest chain of images, each based on the next.
const CHAIN_LENGTH_MAX: usize = 32;

/// Why disks could not be told.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The one who listens has gone away.
    #[error("cannot pass on what the disks hold: {0}")]
    Io(#[from] io::Error),
    /// A disk cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A chain that may have no end.
    #[error("the disk is based on more than {CHAIN_LENGTH_MAX} others")]
    Chain,
    /// A name that is too long.
    #[error("volume {0} has a name that is too long")]
    Name(String),
}

/// Tells what disks hold.
pub struct StreamWriter<W: Write> {
    out: W,
}

impl<W: Write> StreamWriter<W> {
    /// To this one.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Tells a file.
    ///
    /// # Errors
    /// [`StreamError::Io`] also if the file cannot be read, or is not as long as it was.
    pub fn file(&mut self, name: &str, bytes: u64, mut content: impl Read) -> Result<(), StreamError> {
        self.volume(name, bytes)?;
        let (mut buffer, mut at) = (vec![0; DATA_BYTES_MAX], 0);
        while at < bytes {
            let length = (bytes - at).min(DATA_BYTES_MAX as u64) as usize;
            let piece = buffer.get_mut(..length).unwrap_or_default();
            content.read_exact(piece)?;
            self.data(at, buffer.get(..length).unwrap_or_default())?;
            at += length as u64;
        }
        Ok(())
    }

    /// Tells all of a disk that may not be zero, with what it is based on.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn disk(&mut self, name: &str, disk: &mut DiskImage) -> Result<(), StreamError> {
        let bases = bases(disk)?;
        let bytes = disk.size_bytes();
        self.volume(name, bytes)?;
        let (mut buffer, mut at) = (vec![0; DATA_BYTES_MAX], 0);
        while at < bytes {
            let (is_data, length) = stretch(disk, &bases, at)?;
            let end = at.saturating_add(length).min(bytes);
            while is_data && at < end {
                // Up to where chunks end: those that are zero need not be told.
                let to_border = DATA_BYTES_MAX as u64 - at % DATA_BYTES_MAX as u64;
                let length = (end - at).min(to_border) as usize;
                let piece = buffer.get_mut(..length).unwrap_or_default();
                disk.read_at(at, piece)?;
                if piece.iter().any(|&byte| byte != 0) {
                    self.data(at, buffer.get(..length).unwrap_or_default())?;
                }
                at += length as u64;
            }
            at = end;
        }
        Ok(())
    }

    fn volume(&mut self, name: &str, bytes: u64) -> Result<(), StreamError> {
        let length = u8::try_from(name.len()).map_err(|_| StreamError::Name(name.to_owned()))?;
        self.out.write_all(&[VOLUME, length])?;
        self.out.write_all(name.as_bytes())?;
        Ok(self.out.write_all(&bytes.to_le_bytes())?)
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), StreamError> {
        self.out.write_all(&[DATA])?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&(data.len() as u32).to_le_bytes())?;
        Ok(self.out.write_all(data)?)
    }

    /// Says that this was all.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn end(mut self) -> Result<(), StreamError> {
        self.out.write_all(&[END])?;
        Ok(self.out.flush()?)
    }
}

/// The images that a disk is based on, the nearest first.
fn bases(disk: &DiskImage) -> Result<Vec<DiskImage>, StreamError> {
    let (mut bases, mut next): (Vec<DiskImage>, _) = (Vec::new(), disk.backing().cloned());
    while let Some(backing) = next {
        if bases.len() >= CHAIN_LENGTH_MAX {
            return Err(StreamError::Chain);
        }
        let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
        let base = DiskImage::open(&backing.path, options)?;
        next = base.backing().cloned();
        bases.push(base);
    }
    Ok(bases)
}

/// Whether there may be data from `at` on, and how far that holds at least.
fn stretch(disk: &DiskImage, bases: &[DiskImage], at: u64) -> Result<(bool, u64), StreamError> {
    let mut shortest = u64::MAX;
    for image in std::iter::once(disk).chain(bases) {
        if at >= image.size_bytes() {
            break;
        }
        let extent = image.extent_at(at)?;
        shortest = shortest.min(extent.length);
        match extent.allocation {
            Allocation::Data => return Ok((true, shortest)),
            Allocation::Zeros => return Ok((false, shortest)),
            Allocation::Absent => {}
        }
    }
    Ok((false, shortest))
}

/// Backs up what comes. `progress` is told of bytes that have come, and answers whether to go on.
///
/// # Errors
/// [`BackupError::Source`] for what makes no sense, or ends before its time; [`BackupError::Cancelled`]; those of writing.
pub fn back_up_stream(
    mut from: impl Read,
    backup: &mut Backup<'_>,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<(), BackupError> {
    let (mut buffer, mut bytes) = (vec![0; DATA_BYTES_MAX], 0);
    loop {
        let [tag] = take(&mut from)?;
        match tag {
            VOLUME => {
                let [length] = take(&mut from)?;
                let mut name = vec![0; usize::from(length)];
                from.read_exact(&mut name).map_err(cut_short)?;
                let name = String::from_utf8(name).map_err(|_| BackupError::Source("a name is no text".to_owned()))?;
                backup.begin_volume(&name, u64::from_le_bytes(take(&mut from)?))?;
            }
            DATA => {
                let offset = u64::from_le_bytes(take(&mut from)?);
                let length = u32::from_le_bytes(take(&mut from)?) as usize;
                let piece = buffer.get_mut(..length);
                let piece = piece.ok_or_else(|| BackupError::Source("too much comes at a time".to_owned()))?;
                from.read_exact(piece).map_err(cut_short)?;
                backup.data(offset, piece)?;
                bytes += length as u64;
                if !progress(bytes) {
                    return Err(BackupError::Cancelled);
                }
            }
            END => return Ok(()),
            _ => return Err(BackupError::Source("something comes that is neither a volume nor data".to_owned())),
        }
    }
}

fn take<const N: usize>(from: &mut impl Read) -> Result<[u8; N], BackupError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(cut_short)?;
    Ok(bytes)
}

fn cut_short(error: io::Error) -> BackupError {
    BackupError::Source(format!("it was not told to its end: {error}"))
}
