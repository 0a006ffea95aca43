//! A look at a qcow2 header before it is trusted: every size in it is held against a limit, so that no image can make its reader
//! allocate without bound. Layout and limits: QEMU `docs/interop/qcow2.txt` and `block/qcow2.c`.

use super::DISK_BYTES_MAX;

/// First bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes that are enough for [`parse`].
pub(super) const PREFIX_BYTES: usize = 112;

/// Length of a version 2 header.
const V2_BYTES: usize = 72;
/// QEMU's limit on the first-level table.
const L1_TABLE_BYTES_MAX: u64 = 32 << 20;
/// QEMU's limit on the refcount table.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// The specification's limit on the name of a backing file.
const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Incompatible feature bit 1: marked as corrupt.
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature bit 2: the data is in another file.
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;

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
        return Err(Refusal::Unsupported("only versions 2 and 3 of qcow2 are supported"));
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
        return Err(Refusal::Unsupported("encrypted images are not supported"));
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
    let backing_offset = field64(8);
    let backing_bytes = field32(16);
    if backing_offset != 0 {
        let fits = backing_offset.checked_add(u64::from(backing_bytes)).is_some_and(|end| end <= cluster_bytes);
        if backing_bytes > BACKING_NAME_BYTES_MAX || !fits {
            return corrupt(format!("the name of a backing file of {backing_bytes} bytes at {backing_offset}"));
        }
    }
    Ok(Header {
        cluster_bytes,
        l1_table: (field64(40), l1_entries),
        refcount_table: (field64(48), refcount_table_bytes / 8),
        refcount_bits: if version == 3 { refcount_bits_of_version_3(prefix, cluster_bytes)? } else { 16 },
        snapshots: field32(60),
    })
}

/// Checks the fields that version 3 added, and gives the width of a refcount.
fn refcount_bits_of_version_3(prefix: &[u8], cluster_bytes: u64) -> Result<u64, Refusal> {
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
    let incompatible = be64(prefix, 72).unwrap_or(0);
    if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return corrupt("marked as corrupt; repair it with qemu-img check -r".to_owned());
    }
    if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
        return Err(Refusal::Unsupported("images with an external data file are not supported"));
    }
    Ok(1 << refcount_order)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
