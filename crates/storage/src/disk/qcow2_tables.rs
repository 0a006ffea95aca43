//! A look at all tables of a qcow2 image before it is written to.
//!
//! The library allocates clusters by the refcounts that it finds. On tables that contradict each other it may recurse without
//! end or hand out a cluster that is in use, the header's included. So an image is written to only if every cluster that
//! it uses is inside the file and used once.
//!
//! A writer that was killed, or whose host lost power, can leave two harmless faults, because the library writes a new entry of
//! the first-level table at once but refcounts later: clusters that are counted but not used, and clusters that are used but
//! not counted. The latter are counted here; the tables that use them are what is right. QEMU leaves the same in images with lazy
//! refcounts, which it marks as dirty meanwhile; with everything counted, the mark goes.
//!
//! This reads the metadata once: about 10 MiB for each 64 GiB in use.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;

use super::qcow2_header::{Header, INCOMPATIBLE_AT, INCOMPATIBLE_DIRTY, Refusal};

/// Bits of an entry that hold an offset (qcow2.txt, "L1 table entry", "Standard Cluster Descriptor").
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Second-level entry: the cluster is compressed.
const L2_COMPRESSED: u64 = 1 << 62;
/// Compressed data is addressed and counted in these units.
const COMPRESSED_SECTOR_BYTES: u64 = 512;

/// Checks the tables of the image in `file`, which is `file_bytes` long. Nothing is written yet.
///
/// # Errors
/// The outer error is one of reading, the inner one says what is wrong with the image.
pub(super) fn check<'a>(
    file: &'a File,
    file_bytes: u64,
    header: &'a Header,
) -> io::Result<Result<Tables<'a>, Refusal>> {
    if header.snapshots != 0 {
        return Ok(Err(Refusal::Unsupported(
            "images with internal snapshots can only be opened read-only; `qemu-img snapshot -l` lists them, `-d` deletes one",
        )));
    }
    let mut tables = match Tables::load(file, file_bytes, header)? {
        Ok(tables) => tables,
        Err(refusal) => return Ok(Err(refusal)),
    };
    Ok(tables.check_all()?.map(|()| tables))
}

/// Takes the mark off that refcounts may be missing.
fn unmark_dirty(file: &File, header: &Header) -> io::Result<()> {
    if header.incompatible & INCOMPATIBLE_DIRTY == 0 {
        return Ok(());
    }
    let features = header.incompatible & !INCOMPATIBLE_DIRTY;
    file.write_all_at(&features.to_be_bytes(), INCOMPATIBLE_AT)?;
    file.sync_all()
}

/// Tables that were found to agree.
pub(super) struct Tables<'a> {
    file: &'a File,
    file_bytes: u64,
    header: &'a Header,
    /// Offsets of the refcount blocks; 0 where there is none.
    refcount_blocks: Vec<u64>,
    /// The refcount block read last, and its place in the table.
    block: Option<(u64, Vec<u8>)>,
    /// One bit for each cluster of the file: whether a use of it has been seen.
    used: Vec<u64>,
    /// Clusters that are used but not counted.
    uncounted: Vec<u64>,
}

impl<'a> Tables<'a> {
    fn load(file: &'a File, file_bytes: u64, header: &'a Header) -> io::Result<Result<Self, Refusal>> {
        let clusters = file_bytes.div_ceil(header.cluster_bytes);
        let Ok(words) = usize::try_from(clusters.div_ceil(64)) else {
            return Ok(Err(Refusal::Corrupt("bigger than this host can address".to_owned())));
        };
        let (offset, entries) = header.refcount_table;
        let Some(refcount_blocks) = read_entries(file, file_bytes, offset, entries)? else {
            return Ok(Err(Refusal::Corrupt("the refcount table ends beyond the file".to_owned())));
        };
        Ok(Ok(Self {
            file,
            file_bytes,
            header,
            refcount_blocks,
            block: None,
            used: vec![0; words],
            uncounted: Vec::new(),
        }))
    }

    fn check_all(&mut self) -> io::Result<Result<(), Refusal>> {
        let cluster_bytes = self.header.cluster_bytes;
        let (l1_offset, l1_entries) = self.header.l1_table;
        let (refcount_offset, refcount_entries) = self.header.refcount_table;
        let Some(l1_table) = read_entries(self.file, self.file_bytes, l1_offset, l1_entries)? else {
            return Ok(Err(Refusal::Corrupt("the first-level table ends beyond the file".to_owned())));
        };
        for (what, offset, bytes) in [
            ("the header", 0, cluster_bytes),
            ("the refcount table", refcount_offset, refcount_entries * 8),
            ("the first-level table", l1_offset, l1_entries * 8),
        ] {
            for cluster in 0..bytes.div_ceil(cluster_bytes) {
                if let Some(refusal) = self.claim(what, offset + cluster * cluster_bytes)? {
                    return Ok(Err(refusal));
                }
            }
        }
        for index in 0..self.refcount_blocks.len() {
            let offset = self.refcount_blocks.get(index).copied().unwrap_or(0);
            if offset != 0
                && let Some(refusal) = self.claim("a refcount block", offset)?
            {
                return Ok(Err(refusal));
            }
        }
        for l2_offset in l1_table.iter().map(|entry| entry & OFFSET_MASK).filter(|&offset| offset != 0) {
            if let Some(refusal) = self.claim("a second-level table", l2_offset)? {
                return Ok(Err(refusal));
            }
            let Some(l2_table) = read_entries(self.file, self.file_bytes, l2_offset, cluster_bytes / 8)? else {
                return Ok(Err(Refusal::Corrupt("a second-level table ends beyond the file".to_owned())));
            };
            for entry in l2_table {
                let refusal = if entry & L2_COMPRESSED != 0 {
                    self.check_compressed(entry)?
                } else if entry & OFFSET_MASK != 0 {
                    self.claim("data", entry & OFFSET_MASK)?
                } else {
                    None
                };
                if let Some(refusal) = refusal {
                    return Ok(Err(refusal));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Notes that `what` uses the cluster at `offset`, and says what is wrong with that.
    fn claim(&mut self, what: &str, offset: u64) -> io::Result<Option<Refusal>> {
        let corrupt = |reason: &str| Ok(Some(Refusal::Corrupt(format!("{what} at {offset} {reason}"))));
        if !offset.is_multiple_of(self.header.cluster_bytes) {
            return corrupt("does not begin at a cluster");
        }
        let cluster = offset / self.header.cluster_bytes;
        // `used` covers the file, so a cluster without a bit is beyond it.
        let word = usize::try_from(cluster / 64).ok().and_then(|index| self.used.get_mut(index));
        let Some(word) = word.filter(|_| offset < self.file_bytes) else {
            return corrupt("is beyond the file");
        };
        let bit = 1 << (cluster % 64);
        if *word & bit != 0 {
            return corrupt("is in use for something else");
        }
        *word |= bit;
        match self.is_counted(cluster)? {
            Some(true) => Ok(None),
            // The header is written first and never freed.
            Some(false) if cluster != 0 => {
                self.uncounted.push(cluster);
                Ok(None)
            }
            _ => corrupt("has no refcount"),
        }
    }

    /// Compressed clusters share host clusters, so a second use of one is fine; it must not be one of another kind, which
    /// its refcount does not tell. Only place and refcount are checked.
    fn check_compressed(&mut self, entry: u64) -> io::Result<Option<Refusal>> {
        // "Compressed Clusters Descriptor": the offset takes x = 62 - (cluster_bits - 8) bits, the number of further sectors
        // the ones above.
        let offset_bits = 62 - (self.header.cluster_bytes.trailing_zeros() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (L2_COMPRESSED - 1)) >> offset_bits;
        let end = (offset / COMPRESSED_SECTOR_BYTES + sectors + 1).saturating_mul(COMPRESSED_SECTOR_BYTES);
        // The last sector may be cut off by the end of the file.
        if offset >= self.file_bytes || end > self.file_bytes.next_multiple_of(self.header.cluster_bytes) {
            return Ok(Some(Refusal::Corrupt(format!("compressed data at {offset} is beyond the file"))));
        }
        for cluster in offset / self.header.cluster_bytes..end.div_ceil(self.header.cluster_bytes) {
            if self.is_counted(cluster)? != Some(true) {
                return Ok(Some(Refusal::Corrupt(format!("compressed data at {offset} has no refcount"))));
            }
        }
        Ok(None)
    }

    /// Counts what is used but not counted: once each.
    pub(super) fn repair(&mut self) -> io::Result<()> {
        for cluster in mem::take(&mut self.uncounted) {
            let bits = self.header.refcount_bits;
            let (index, place) = self.place_of_count(cluster);
            let (byte, shift) = (place / 8, place % 8);
            let Some(offset) = self.block_offset(index) else { continue };
            // Big-endian, and the least significant bits first below a byte: either way the last byte holds the 1.
            let last = offset + byte + (bits / 8).saturating_sub(1);
            let mut value = [0];
            self.file.read_exact_at(&mut value, last)?;
            value[0] |= 1 << shift;
            self.file.write_all_at(&value, last)?;
        }
        self.file.sync_all()?;
        unmark_dirty(self.file, self.header)
    }

    /// Whether the refcount of `cluster` is not zero; `None` if there is no place for it.
    fn is_counted(&mut self, cluster: u64) -> io::Result<Option<bool>> {
        let bits = self.header.refcount_bits;
        let (index, place) = self.place_of_count(cluster);
        if self.block.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
            let Some(offset) = self.block_offset(index) else { return Ok(None) };
            let mut block = vec![0; self.header.cluster_bytes as usize];
            self.file.read_exact_at(&mut block, offset)?;
            self.block = Some((index, block));
        }
        let Some((_, block)) = &self.block else { return Ok(None) };
        let count = block.get((place / 8) as usize..).unwrap_or_default();
        Ok(Some(if bits < 8 {
            count.first().is_some_and(|byte| u64::from(*byte) >> (place % 8) & ((1 << bits) - 1) != 0)
        } else {
            count.iter().take(bits as usize / 8).any(|byte| *byte != 0)
        }))
    }

    /// Where the refcount of `cluster` is: the index of its block, and the bit in the block at which it begins. Counts narrower
    /// than a byte begin at the byte's least significant bit.
    fn place_of_count(&self, cluster: u64) -> (u64, u64) {
        let bits = self.header.refcount_bits;
        let per_block = self.header.cluster_bytes * 8 / bits;
        (cluster / per_block, cluster % per_block * bits)
    }

    /// Offset of a refcount block, if it is there and inside the file.
    fn block_offset(&self, index: u64) -> Option<u64> {
        let offset = self.refcount_blocks.get(usize::try_from(index).ok()?).copied()?;
        let end = offset.checked_add(self.header.cluster_bytes)?;
        (offset != 0 && offset.is_multiple_of(self.header.cluster_bytes) && end <= self.file_bytes).then_some(offset)
    }
}

/// Reads a table of big-endian 64-bit entries; `None` if the file ends before it does.
fn read_entries(file: &File, file_bytes: u64, offset: u64, entries: u64) -> io::Result<Option<Vec<u64>>> {
    let end = entries.checked_mul(8).and_then(|bytes| bytes.checked_add(offset));
    if end.is_none_or(|end| end > file_bytes) {
        return Ok(None);
    }
    // Bounded by the header's limits: 32 MiB.
    let mut bytes = vec![0; entries as usize * 8];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Some(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect()))
}
