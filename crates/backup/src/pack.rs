//! Packs: files of some tens of MiB that hold chunks, named by the hash of all that is in them.
//!
//! `docs/backup-format.md` has the layout. A pack is never changed: it is there, whole, or it is not there.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

use super::chunk::{ChunkId, RECORD_BYTES_MAX};
use super::error::BackupError;
use super::key::{from_hex, hex, random};
use super::seal::{Keys, SEALED_MORE_BYTES};

/// First bytes of a pack.
const MAGIC: [u8; 8] = *b"TWINVMPK";
/// Last bytes of a pack.
const END_MAGIC: [u8; 8] = *b"TWINVMPD";
/// Version that is written, and the newest that is read.
const VERSION: u32 = 1;
/// Magic, version, four zeros.
pub const HEADER_BYTES: u64 = 16;
/// Length of the directory, four zeros, magic.
const TRAILER_BYTES: u64 = 16;
/// A pack that has so many bytes gets no more chunks.
const PACK_BYTES: u64 = 64 << 20;
/// Most chunks in a pack.
const CHUNKS_MAX: usize = 8192;
/// Name and length of a chunk in the directory.
const ENTRY_BYTES: usize = 36;
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// What the name of a file begins with that is still being written.
pub const UNFINISHED: &str = ".new-";

/// The name of a pack: the BLAKE3 hash of its content, so that whoever keeps it can check it, without the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PackName(pub(crate) [u8; 32]);

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackName({self})")
    }
}

impl From<PackName> for String {
    fn from(name: PackName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PackName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_hex(&text).map(Self).ok_or("the name of a pack has 64 hexadecimal digits")
    }
}

/// Where a chunk is in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: ChunkId,
    /// From the beginning of the file, in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub length: u32,
}

/// A pack that is being written. What is not finished is removed.
pub struct PackWriter {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    length: u64,
    entries: Vec<Entry>,
}

impl PackWriter {
    /// Begins one in the folder of packs.
    pub fn begin(folder: &Path) -> Result<Self, BackupError> {
        let path = folder.join(format!("{UNFINISHED}{}", hex(&random::<16>()?)));
        let failed = BackupError::io("write", &path);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        // Tells prune that somebody writes to it.
        file.lock_shared().map_err(BackupError::io("lock", &path))?;
        let (hasher, folder) = (blake3::Hasher::new(), folder.to_owned());
        let mut writer = Self { folder, path, file, hasher, length: 0, entries: Vec::new() };
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend([0; 4]);
        writer.write(&header)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.file.write_all(bytes).map_err(BackupError::io("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Adds a chunk that was sealed.
    pub fn add(&mut self, id: ChunkId, sealed: &[u8]) -> Result<(), BackupError> {
        // Both fit: no pack is longer than some tens of MiB.
        let (offset, length) = (self.length as u32, sealed.len() as u32);
        self.write(sealed)?;
        self.entries.push(Entry { id, offset, length });
        Ok(())
    }

    /// Whether it should be finished.
    pub fn is_full(&self) -> bool {
        self.length >= PACK_BYTES || self.entries.len() >= CHUNKS_MAX
    }

    /// Ends it. It is on stable storage when this returns, and what was read back from there is what was written. Its name, and its length in bytes.
    pub fn finish(mut self, keys: &Keys) -> Result<(PackName, u64), BackupError> {
        let mut directory = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for Entry { id, length, .. } in &self.entries {
            directory.extend(id.0);
            directory.extend(length.to_le_bytes());
        }
        let directory = keys.seal_directory(directory)?;
        self.write(&directory)?;
        let mut trailer = (directory.len() as u32).to_le_bytes().to_vec();
        trailer.extend([0; 4]);
        trailer.extend(END_MAGIC);
        self.write(&trailer)?;
        let name = PackName(*self.hasher.finalize().as_bytes());
        self.file.sync_all().map_err(BackupError::io("write", &self.path))?;
        // What the page cache holds says nothing about the medium. Where it cannot be dropped, less is checked.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        if hash(&self.file, &self.path)? != name {
            return Err(BackupError::damaged(&self.path, "what was read back is not what was written"));
        }
        let target = self.folder.join(name.to_string());
        fs::rename(&self.path, &target).map_err(BackupError::io("rename", &self.path))?;
        sync_folder(&self.folder)?;
        Ok((name, self.length))
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        // When it was finished it is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Brings names in a folder to stable storage.
pub fn sync_folder(folder: &Path) -> Result<(), BackupError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(BackupError::io("write", folder))
}

/// The name that a pack with this content has.
pub fn hash(file: &File, path: &Path) -> Result<PackName, BackupError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).map_err(BackupError::io("read", path))?;
        if read == 0 {
            return Ok(PackName(*hasher.finalize().as_bytes()));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
    }
}

/// A pack that is open to be read.
pub struct Pack {
    path: PathBuf,
    file: File,
}

impl Pack {
    /// Opens the pack of that name.
    pub fn open(folder: &Path, name: &PackName) -> Result<Self, BackupError> {
        let path = folder.join(name.to_string());
        // What somebody has put in its place, such as a pipe, must not keep this process waiting.
        let file = storage::plain_file::open(&path).map_err(BackupError::io("read", &path))?;
        Ok(Self { path, file })
    }

    /// Its file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that what it holds asks for.
    pub fn hash(&self) -> Result<PackName, BackupError> {
        hash(&self.file, &self.path)
    }

    /// Reads which chunks are in it, in order.
    pub fn directory(&self, keys: &Keys) -> Result<Vec<Entry>, BackupError> {
        let damaged = |why| BackupError::damaged(&self.path, why);
        let length = self.file.metadata().map_err(BackupError::io("read", &self.path))?.len();
        let header = self.read(0, HEADER_BYTES as usize)?;
        let [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, ..] = header[..] else {
            return Err(damaged("it is too short"));
        };
        if [m0, m1, m2, m3, m4, m5, m6, m7] != MAGIC {
            return Err(damaged("it does not begin as a pack does"));
        }
        let found = u32::from_le_bytes([v0, v1, v2, v3]);
        if found > VERSION {
            return Err(BackupError::Newer { path: self.path.clone(), found, known: VERSION });
        }
        let trailer_at = length.checked_sub(TRAILER_BYTES).ok_or_else(|| damaged("it is too short"))?;
        let trailer = self.read(trailer_at, TRAILER_BYTES as usize)?;
        let (Some(&[l0, l1, l2, l3]), true) = (trailer.first_chunk::<4>(), trailer.ends_with(&END_MAGIC)) else {
            return Err(damaged("it does not end as a pack does"));
        };
        let directory_bytes = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        if directory_bytes > (CHUNKS_MAX * ENTRY_BYTES + SEALED_MORE_BYTES) as u64 {
            return Err(damaged("its directory is too long"));
        }
        let directory_at = trailer_at.checked_sub(directory_bytes).ok_or_else(|| damaged("it is too short"))?;
        let sealed = self.read(directory_at, directory_bytes as usize)?;
        let plain = keys.open_directory(&sealed).ok_or_else(|| damaged("its directory is not what was written"))?;
        entries(&plain, directory_at).ok_or_else(|| damaged("its directory does not fit"))
    }

    /// Reads a chunk, still sealed.
    pub fn chunk(&self, entry: &Entry) -> Result<Vec<u8>, BackupError> {
        if entry.length as usize > RECORD_BYTES_MAX {
            return Err(BackupError::damaged(&self.path, "a chunk is too long"));
        }
        self.read(u64::from(entry.offset), entry.length as usize)
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(BackupError::damaged(&self.path, "it is too short"))
            }
            Err(error) => Err(BackupError::io("read", &self.path)(error)),
        }
    }
}

/// The entries of a directory of a pack whose chunks end at `end`. None if they do not fill the pack, one after the other.
fn entries(plain: &[u8], end: u64) -> Option<Vec<Entry>> {
    let (mut entries, mut offset) = (Vec::with_capacity(plain.len() / ENTRY_BYTES), HEADER_BYTES);
    let mut rest = plain;
    while !rest.is_empty() {
        let (id, after) = rest.split_first_chunk::<32>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        if length as usize > RECORD_BYTES_MAX || (length as usize) < SEALED_MORE_BYTES {
            return None;
        }
        entries.push(Entry { id: ChunkId(*id), offset: u32::try_from(offset).ok()?, length });
        offset += u64::from(length);
        rest = after;
    }
    (offset == end).then_some(entries)
}

/// Reads a file that holds at most `bytes_max` bytes.
pub fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BackupError> {
    let failed = |error| BackupError::io("read", path)(error);
    let file = storage::plain_file::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > bytes_max {
        return Err(BackupError::damaged(path, "it is too long"));
    }
    Ok(content)
}
