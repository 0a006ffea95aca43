//! A look at a qcow2 header before it is trusted: every size in it is held against a limit, so that no image can make its reader
//! allocate without bound. Layout and limits: QEMU `docs/interop/qcow2.txt` and `block/qcow2.c`.

use super::DISK_BYTES_MAX;

/// First bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes that are enough for [`parse`]: the largest first cluster.
pub(super) const PREFIX_BYTES: usize = 2 << 20;

/// Where the length of the backing file's name is, and its own place.
pub(super) const BACKING_NAME_LENGTH_AT: u64 = 16;
/// Where the incompatible features of version 3 are.
pub(super) const INCOMPATIBLE_AT: u64 = 72;
/// Length of a version 2 header.
const V2_BYTES: usize = 72;
/// QEMU's limit on the first-level table.
const L1_TABLE_BYTES_MAX: u64 = 32 << 20;
/// QEMU's limit on the refcount table.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// The specification's limit on the name of a backing file.
pub(super) const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Incompatible feature bit 0: refcounts may be missing.
pub(super) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature bit 1: marked as corrupt.
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible features that are not supported, by their bits.
const UNSUPPORTED: [(u64, &str); 3] = [
    (1 << 2, "images with an external data file are not supported; `qemu-img convert -O qcow2` makes one without"),
    (1 << 3, "compression by zstd is not supported; `qemu-img convert -O qcow2` makes an image without"),
    (
        1 << 4,
        "extended second-level entries (extended_l2=on) are not supported; `qemu-img convert -O qcow2` makes an image without",
    ),
];
/// Header extensions: none from here on, and those that are looked into.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Length of a feature's name with its number.
const FEATURE_NAME_BYTES: usize = 48;

/// Why a header is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It contradicts the format or itself.
    Corrupt(String),
    /// It asks for something that is not supported.
    Unsupported(&'static str),
}

/// Where an image's tables are, once that has been found possible.
#[derive(Debug)]
pub(super) struct Header {
    /// Size of a cluster.
    pub cluster_bytes: u64,
    /// First-level table: offset in the file, number of 8-byte entries.
    pub l1_table: (u64, u64),
    /// Refcount table: offset in the file, number of 8-byte entries.
    pub refcount_table: (u64, u64),
    /// Width of a refcount.
    pub refcount_bits: u64,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Incompatible features, all of which are known.
    pub incompatible: u64,
    /// What the image is based on.
    pub backing: Option<BackingName>,
}

/// The file that an image is based on, as it is recorded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BackingName {
    /// Its name.
    pub name: String,
    /// Its format, if that is recorded.
    pub format: Option<String>,
    /// Offset of the name in the file.
    pub offset: u64,
}

/// Reads the first bytes of an image (fewer than [`PREFIX_BYTES`] only if the file is shorter) in a file of `file_bytes`.
pub(super) fn parse(prefix: &[u8], file_bytes: u64) -> Result<Header, Refusal> {
    let corrupt = |reason: String| Err(Refusal::Corrupt(reason));
    let (Some(_), Some(version)) = (prefix.get(..V2_BYTES), be32(prefix, 4)) else {
        return corrupt("shorter than a header".to_owned());
    };
    if prefix.get(..4) != Some(&MAGIC[..]) {
        return corrupt("does not begin with the magic number".to_owned());
    }
    if version != 2 && version != 3 {
        return Err(Refusal::Unsupported(
            "only versions 2 and 3 of qcow2 are supported; `qemu-img convert -O qcow2` makes one of them",
        ));
    }
    let field32 = |at| be32(prefix, at).unwrap_or(0);
    let field64 = |at| be64(prefix, at).unwrap_or(0);

    let cluster_bits = field32(20);
    if !(9..=21).contains(&cluster_bits) {
        return corrupt(format!("clusters of 2^{cluster_bits} bytes"));
    }
    let cluster_bytes = 1_u64 << cluster_bits;
    let size_bytes = field64(24);
    if size_bytes > DISK_BYTES_MAX {
        return corrupt(format!("a disk of {size_bytes} bytes"));
    }
    if field32(32) != 0 {
        return Err(Refusal::Unsupported(
            "encrypted images are not supported; `qemu-img convert -O qcow2` makes one that is not",
        ));
    }
    let l1_entries = u64::from(field32(36));
    // One first-level entry maps a cluster of 8-byte entries, each of which maps a cluster.
    let l1_entries_needed = size_bytes.div_ceil(cluster_bytes * (cluster_bytes / 8));
    if l1_entries < l1_entries_needed || l1_entries * 8 > L1_TABLE_BYTES_MAX {
        return corrupt(format!("a first-level table of {l1_entries} entries for {size_bytes} bytes"));
    }
    let refcount_table_bytes = u64::from(field32(56)) * cluster_bytes;
    if refcount_table_bytes == 0 || refcount_table_bytes > REFCOUNT_TABLE_BYTES_MAX {
        return corrupt(format!("a refcount table of {refcount_table_bytes} bytes"));
    }
    for (name, offset, bytes) in
        [("first-level table", field64(40), l1_entries * 8), ("refcount table", field64(48), refcount_table_bytes)]
    {
        if offset % cluster_bytes != 0 || bytes > 0 && (offset == 0 || offset > file_bytes) {
            return corrupt(format!("a {name} at {offset}"));
        }
    }
    let (incompatible, refcount_bits, header_bytes) =
        if version == 3 { version_3(prefix, cluster_bytes)? } else { (0, 16, V2_BYTES) };
    Ok(Header {
        cluster_bytes,
        l1_table: (field64(40), l1_entries),
        refcount_table: (field64(48), refcount_table_bytes / 8),
        refcount_bits,
        snapshots: field32(60),
        size_bytes,
        incompatible,
        backing: backing(prefix, header_bytes, cluster_bytes)?,
    })
}

/// The name of the backing file, and its format from the header's extensions.
fn backing(prefix: &[u8], header_bytes: usize, cluster_bytes: u64) -> Result<Option<BackingName>, Refusal> {
    let corrupt = |reason: String| Err(Refusal::Corrupt(reason));
    let offset = be64(prefix, 8).unwrap_or(0);
    let bytes = be32(prefix, BACKING_NAME_LENGTH_AT as usize).unwrap_or(0);
    let end = offset.checked_add(u64::from(bytes)).filter(|&end| end < cluster_bytes);
    let range = usize::try_from(offset).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
    if offset != 0 && (bytes > BACKING_NAME_BYTES_MAX || range.is_none()) {
        return corrupt(format!("the name of a backing file of {bytes} bytes at {offset}"));
    }
    let format = backing_format(prefix, header_bytes, if offset == 0 { cluster_bytes } else { offset })?;
    let Some((from, to)) = range.filter(|_| offset != 0 && bytes != 0) else { return Ok(None) };
    match prefix.get(from..to).map(str::from_utf8) {
        Some(Ok(name)) => Ok(Some(BackingName { name: name.to_owned(), format, offset })),
        _ => corrupt("the name of its backing file is no text".to_owned()),
    }
}

/// Walks through the header's extensions, which lie between the header and `end`.
fn backing_format(prefix: &[u8], header_bytes: usize, end: u64) -> Result<Option<String>, Refusal> {
    let mut format = None;
    let mut at = header_bytes;
    while (at as u64) + 8 <= end {
        let (Some(kind), Some(length)) = (be32(prefix, at), be32(prefix, at + 4)) else { break };
        if kind == EXTENSION_END {
            break;
        }
        // Both are below 4 GiB.
        let data = prefix.get(at + 8..at + 8 + length as usize);
        let Some(data) = data.filter(|data| (at + 8 + data.len()) as u64 <= end) else {
            return Err(Refusal::Corrupt(format!("a header extension of {length} bytes at {at}")));
        };
        match kind {
            EXTENSION_BACKING_FORMAT if format.is_none() => {
                let text =
                    str::from_utf8(data).map_err(|_| Refusal::Corrupt("its backing format is no text".to_owned()))?;
                format = Some(text.to_owned());
            }
            EXTENSION_BACKING_FORMAT => return Err(Refusal::Corrupt("two backing formats".to_owned())),
            // The library indexes what follows a name that was cut off.
            EXTENSION_FEATURE_NAMES if data.len() % FEATURE_NAME_BYTES != 0 => {
                return Err(Refusal::Corrupt(format!("names of features of {length} bytes")));
            }
            _ => {}
        }
        at += 8 + data.len().next_multiple_of(8);
    }
    Ok(format)
}

/// Checks the fields that version 3 added; gives the incompatible features, the width of a refcount, and the header's length.
fn version_3(prefix: &[u8], cluster_bytes: u64) -> Result<(u64, u64, usize), Refusal> {
    let corrupt = |reason: String| Err(Refusal::Corrupt(reason));
    let (Some(header_bytes), Some(refcount_order)) = (be32(prefix, 100), be32(prefix, 96)) else {
        return corrupt("shorter than a version 3 header".to_owned());
    };
    if u64::from(header_bytes) > cluster_bytes || header_bytes < 104 || header_bytes % 8 != 0 {
        return corrupt(format!("a header of {header_bytes} bytes"));
    }
    if refcount_order > 6 {
        return corrupt(format!("refcounts of 2^{refcount_order} bits"));
    }
    let incompatible = be64(prefix, INCOMPATIBLE_AT as usize).unwrap_or(0);
    if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return corrupt("marked as corrupt; `qemu-img check -r all` repairs it".to_owned());
    }
    if let Some((_, reason)) = UNSUPPORTED.iter().find(|(bit, _)| incompatible & bit != 0) {
        return Err(Refusal::Unsupported(reason));
    }
    if incompatible & !INCOMPATIBLE_DIRTY != 0 {
        return Err(Refusal::Unsupported("it has features of qcow2 that this version of twinvm does not know"));
    }
    Ok((incompatible, 1 << refcount_order, header_bytes as usize))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
