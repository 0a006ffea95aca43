//! Whether two disks show the same where nothing has been written to them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Allocation, Backing, DiskError, DiskImage, DiskOptions, FileStamps};

/// What a disk shows where its image holds nothing of its own.
///
/// It depends on content alone: neither on paths, nor on the format of the images, nor on how they are stored. Images with equal
/// identities show the same bytes; with different ones they may still do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseIdentity {
    /// Zeros: there is no backing image.
    Zeros,
    /// A backing image with this [`ContentDigest`].
    Content(ContentDigest),
}

/// Digest of a disk's content: BLAKE3 over its size in bytes (u64, little-endian) and, for each block of 64 KiB that is not all
/// zeros, its number (likewise) and the BLAKE3 digest of its bytes.
pub type ContentDigest = [u8; 32];

/// Unit of a [`ContentDigest`] in bytes.
const BLOCK_BYTES: u64 = 64 << 10;
/// Bytes read at once.
const READ_BYTES: u64 = 1 << 20;
/// Longest file with a kept digest that is read.
const CACHE_BYTES_MAX: u64 = 64 << 10;

/// A digest that is kept beside the image.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The image and those it is based on.
    files: FileStamps,
    /// Hexadecimal.
    blake3: String,
}

impl BaseIdentity {
    /// The identity of a disk without content of its own over `backing`.
    ///
    /// Reading everything takes about a second for each GiB in use, so the digest is kept in a file beside the image (`NAME.identity`),
    /// with what tells whether one of the files that it depends on has been changed since. Where that file cannot be written the
    /// digest is computed each time.
    ///
    /// # Errors
    /// Those of opening and reading the backing image, which nobody may be writing to.
    pub fn of(backing: Option<&Backing>) -> Result<Self, DiskError> {
        let Some(backing) = backing else { return Ok(Self::Zeros) };
        let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
        content_digest(&mut DiskImage::open(&backing.path, options)?).map(Self::Content)
    }

    /// The file that keeps the digest of an image.
    pub fn kept_at(image: &Path) -> Option<PathBuf> {
        let mut name = image.file_name()?.to_os_string();
        name.push(".identity");
        Some(image.with_file_name(name))
    }
}

/// The digest of what an image shows that is open read-only.
fn content_digest(image: &mut DiskImage) -> Result<ContentDigest, DiskError> {
    let stamps = FileStamps::of(image.files());
    let path = image.path().to_path_buf();
    let stamps = stamps.map_err(|source| DiskError::Io { path, action: "look at", source })?;
    let kept_at = BaseIdentity::kept_at(image.path());
    let kept_at = kept_at.zip(stamps);
    if let Some((path, stamps)) = &kept_at
        && let Some(digest) = load(path, stamps)
    {
        return Ok(digest);
    }
    let digest = compute(image)?;
    if let Some((path, stamps)) = kept_at
        && stamps.are_settled()
    {
        // Only time is lost if it cannot be kept: the folder may well be read-only.
        let _ = store(&path, Kept { files: stamps, blake3: hex(&digest) });
    }
    Ok(digest)
}

fn compute(image: &mut DiskImage) -> Result<ContentDigest, DiskError> {
    let size_bytes = image.size_bytes();
    let has_backing = image.backing().is_some();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size_bytes.to_le_bytes());
    let mut buffer = vec![0; READ_BYTES as usize];
    let mut offset = 0;
    while offset < size_bytes {
        let extent = image.extent_at(offset)?;
        let is_zeros = match extent.allocation {
            Allocation::Data => false,
            Allocation::Zeros => true,
            Allocation::Absent => !has_backing,
        };
        // Blocks that are wholly within the extent; the digest leaves them out.
        let zeros = if is_zeros { extent.length / BLOCK_BYTES * BLOCK_BYTES } else { 0 };
        if zeros > 0 {
            offset += zeros;
            continue;
        }
        let length = if is_zeros { BLOCK_BYTES } else { READ_BYTES }.min(size_bytes - offset);
        let piece = buffer.get_mut(..length as usize).unwrap_or_default();
        image.read_at(offset, piece)?;
        for (number, block) in (offset / BLOCK_BYTES..).zip(piece.chunks(BLOCK_BYTES as usize)) {
            if block.iter().any(|&byte| byte != 0) {
                hasher.update(&number.to_le_bytes());
                hasher.update(blake3::hash(block).as_bytes());
            }
        }
        offset += length;
    }
    Ok(*hasher.finalize().as_bytes())
}

fn load(path: &Path, files: &FileStamps) -> Option<ContentDigest> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(CACHE_BYTES_MAX).read_to_end(&mut text).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    let digest = blake3::Hash::from_hex(kept.blake3).ok()?;
    (kept.files == *files).then_some(*digest.as_bytes())
}

fn store(path: &Path, kept: Kept) -> io::Result<()> {
    // Several processes may be at it: each has a name of its own, and the last one stays.
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let written = serde_json::to_vec(&kept).map_err(io::Error::from).and_then(|text| {
        File::create(&new)?.write_all(&text)?;
        fs::rename(&new, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
