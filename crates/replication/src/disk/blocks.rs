//! Which blocks of a disk need a look.

use std::ops::Range;

use storage::disk::{Allocation, BaseIdentity};

use super::DiskSyncError;
use super::set::Disk;

/// Unit in which disks are compared and copied, in bytes. The last block of a disk may be shorter.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// BLAKE3 digest of a block. The guest decides what is in a block, so nothing weaker will do: it must not be able to
/// make two blocks pass for the same.
pub(super) type BlockDigest = [u8; 32];

/// Blocks that lie together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Their numbers; not empty.
    pub blocks: Range<u64>,
    /// All of them are known to be zeros.
    pub is_zeros: bool,
}

/// Number of blocks of a disk.
pub(super) fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

/// Offset and length of a block in bytes.
pub(super) fn block_range(block: u64, size_bytes: u64) -> (u64, u64) {
    let offset = block.saturating_mul(BLOCK_BYTES).min(size_bytes);
    (offset, (size_bytes - offset).min(BLOCK_BYTES))
}

/// The blocks of a disk that its own image holds something of, or, with `all`, every block; in order. The rest shows `base`.
///
/// The image is not locked throughout: a block may be written meanwhile.
pub(super) fn spans(disk: &Disk, number: u32, base: BaseIdentity, all: bool) -> Result<Vec<Span>, DiskSyncError> {
    let mut spans: Vec<Span> = Vec::new();
    // Blocks below are in `spans` or left out.
    let mut next_block = 0;
    let mut push = |blocks: Range<u64>, is_zeros: bool| {
        let blocks = blocks.start.max(next_block)..blocks.end;
        if blocks.is_empty() {
            return;
        }
        next_block = blocks.end;
        match spans.last_mut() {
            Some(last) if last.is_zeros == is_zeros && last.blocks.end == blocks.start => last.blocks.end = blocks.end,
            _ => spans.push(Span { blocks, is_zeros }),
        }
    };
    let mut offset = 0;
    while offset < disk.size_bytes {
        let extent = disk.lock_patiently().extent_at(offset).map_err(DiskSyncError::image(number))?;
        let end = offset.saturating_add(extent.length).min(disk.size_bytes);
        let touched = offset / BLOCK_BYTES..block_count(end);
        let is_zeros = match extent.allocation {
            Allocation::Data => Some(false),
            Allocation::Zeros => Some(true),
            Allocation::Absent => all.then_some(base == BaseIdentity::Zeros),
        };
        match is_zeros {
            Some(true) => {
                // Only whole blocks; those at the edges hold something else too.
                let whole_end = if end == disk.size_bytes { touched.end } else { end / BLOCK_BYTES };
                let whole = offset.div_ceil(BLOCK_BYTES)..whole_end;
                if whole.start < whole.end {
                    push(touched.start..whole.start, false);
                    push(whole.clone(), true);
                    push(whole.end..touched.end, false);
                } else {
                    push(touched, false);
                }
            }
            Some(false) => push(touched, false),
            None => {}
        }
        offset = end;
    }
    Ok(spans)
}

/// Whether all bytes are zero.
pub(super) fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
