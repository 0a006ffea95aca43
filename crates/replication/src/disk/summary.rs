//! What a secondary's disks hold, told in digests.
//!
//! A summary is a row of records in pieces; a record is never cut. Integers are little-endian.
//!
//! | kind | u8 | then |
//! | --- | --- | --- |
//! | descriptions | 0 | length u32, [`DiskDescription`]s serialized with postcard; first and only once |
//! | digests | 1 | disk u32, first block u64, count u32, a digest of 32 bytes each |
//! | zeros | 2 | disk u32, first block u64, count u64 |
//! | end | 3 | nothing; last |
//!
//! Blocks come in order. Those that are left out show the base.

use std::collections::VecDeque;
use std::mem;

use storage::disk::BaseIdentity;

use super::blocks::{BlockDigest, Span, block_count, block_range, spans};
use super::progress::span_bytes;
use super::{DiskDescription, DiskProgress, DiskSet, DiskSyncError, check_compatible};

/// Longest piece of a summary in bytes.
pub const SUMMARY_PIECE_BYTES_MAX: usize = 128 << 10;

/// A piece ends when it is so long; no record but the descriptions is much longer than a tenth of this.
const PIECE_BYTES_AIM: usize = 16 << 10;
/// Blocks summed up for one piece: some milliseconds of work, so that the caller can do other things in between.
const BLOCKS_PER_PIECE: u64 = 64;

const DESCRIPTIONS: u8 = 0;
const DIGESTS: u8 = 1;
const ZEROS: u8 = 2;
const END: u8 = 3;

/// Sums a secondary's disks up, and reads of them what is not known. Nothing may be written to them meanwhile.
pub struct SummaryWriter {
    disks: DiskSet,
    /// Not yet written.
    descriptions: Option<Vec<u8>>,
    left: VecDeque<(u32, Span)>,
    progress: DiskProgress,
    read_bytes: u64,
    buffer: Vec<u8>,
    has_ended: bool,
}

impl SummaryWriter {
    /// Begins a summary for a primary whose disks are `primary`. Where both sides' disks have the same base, only what was written
    /// to them is read; else everything is.
    ///
    /// # Errors
    /// [`DiskSyncError::Different`] if these disks cannot become copies of those; [`DiskSyncError::Image`].
    pub fn new(disks: &DiskSet, primary: &[DiskDescription]) -> Result<Self, DiskSyncError> {
        let own = disks.describe()?;
        check_compatible(primary, &own)?;
        let mut left = VecDeque::new();
        let mut progress = DiskProgress::default();
        for ((number, disk), (here, there)) in (0..).zip(disks.shared().disks()).zip(own.iter().zip(primary)) {
            if disk.read_only {
                continue;
            }
            for span in spans(disk, number, here.base, here.base != there.base)? {
                progress.total_bytes += span_bytes(&span, disk.size_bytes);
                left.push_back((number, span));
            }
        }
        let serialized = postcard::to_stdvec(&own).unwrap_or_default();
        let mut descriptions = vec![DESCRIPTIONS];
        descriptions.extend_from_slice(&(serialized.len() as u32).to_le_bytes());
        descriptions.extend_from_slice(&serialized);
        let disks = disks.clone();
        let descriptions = Some(descriptions);
        Ok(Self { disks, descriptions, left, progress, read_bytes: 0, buffer: Vec::new(), has_ended: false })
    }

    /// Appends the next piece, at most [`SUMMARY_PIECE_BYTES_MAX`] bytes, to `out`. Returns whether more will follow.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`].
    pub fn next_piece(&mut self, out: &mut Vec<u8>) -> Result<bool, DiskSyncError> {
        if self.has_ended {
            return Ok(false);
        }
        let start = out.len();
        if let Some(descriptions) = self.descriptions.take() {
            out.extend_from_slice(&descriptions);
        }
        let mut hashed = 0;
        while hashed < BLOCKS_PER_PIECE && out.len() - start < PIECE_BYTES_AIM {
            let Some((number, mut span)) = self.left.pop_front() else {
                out.push(END);
                self.has_ended = true;
                break;
            };
            let disk = self.disks.shared().disk(number)?;
            let count = span.blocks.end - span.blocks.start;
            if span.is_zeros {
                put_head(out, ZEROS, number, span.blocks.start);
                out.extend_from_slice(&count.to_le_bytes());
                self.progress.done_bytes += span_bytes(&span, disk.size_bytes);
                continue;
            }
            let count = count.min(BLOCKS_PER_PIECE - hashed);
            put_head(out, DIGESTS, number, span.blocks.start);
            out.extend_from_slice(&(count as u32).to_le_bytes());
            for block in span.blocks.start..span.blocks.start + count {
                let digest = disk.digest(block, &mut self.buffer);
                let (digest, read_bytes) = digest.map_err(DiskSyncError::image(number))?;
                out.extend_from_slice(&digest);
                self.read_bytes += read_bytes;
                self.progress.done_bytes += block_range(block, disk.size_bytes).1;
            }
            hashed += count;
            span.blocks.start += count;
            if !span.blocks.is_empty() {
                self.left.push_front((number, span));
            }
        }
        Ok(!self.has_ended)
    }

    /// How far it is.
    pub fn progress(&self) -> DiskProgress {
        self.progress
    }

    /// Bytes that were read for it so far: what is known of the rest was kept from before.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }
}

fn put_head(out: &mut Vec<u8>, kind: u8, disk: u32, first: u64) {
    out.push(kind);
    out.extend_from_slice(&disk.to_le_bytes());
    out.extend_from_slice(&first.to_le_bytes());
}

/// What a secondary's disks hold. It takes 32 bytes of memory for each block of 64 KiB that was hashed.
#[derive(Debug)]
pub struct DiskSummary {
    pub(super) disks: Vec<SummaryOfDisk>,
}

#[derive(Debug)]
pub(super) struct SummaryOfDisk {
    /// Both sides show this where they hold nothing; `None` if they do not show the same.
    pub common_base: Option<BaseIdentity>,
    /// In order.
    pub known: Vec<KnownBlocks>,
}

/// Blocks that lie together, whose content is known.
#[derive(Debug)]
pub(super) struct KnownBlocks {
    pub first: u64,
    pub content: KnownContent,
}

#[derive(Debug)]
pub(super) enum KnownContent {
    /// So many blocks of zeros.
    Zeros(u64),
    /// Of one block after the other.
    Digests(Vec<BlockDigest>),
}

impl KnownBlocks {
    pub fn end(&self) -> u64 {
        let count = match &self.content {
            KnownContent::Zeros(count) => *count,
            KnownContent::Digests(digests) => digests.len() as u64,
        };
        self.first.saturating_add(count)
    }
}

/// Puts a [`DiskSummary`] together from its pieces, on the primary.
///
/// Whatever the secondary sends, what is kept is bounded by the size of the disks (about 100 bytes for each block), and so is the
/// number of pieces that are accepted, as each must tell of a further block.
pub struct SummaryReader {
    own: Vec<DiskDescription>,
    state: ReaderState,
    /// Disk and block from which on the next record must be.
    next: (u32, u64),
}

enum ReaderState {
    /// The descriptions are to come.
    Beginning,
    /// Blocks are to come.
    Described(Vec<SummaryOfDisk>),
    /// The end has come, or an error.
    Over,
}

impl SummaryReader {
    /// A reader for a primary with these disks.
    ///
    /// # Errors
    /// Those of [`DiskSet::describe`].
    pub fn new(disks: &DiskSet) -> Result<Self, DiskSyncError> {
        Ok(Self { own: disks.describe()?, state: ReaderState::Beginning, next: (0, 0) })
    }

    /// Takes the next piece; returns the summary with the last one. After that, and after an error, all pieces are refused.
    ///
    /// # Errors
    /// [`DiskSyncError::Malformed`], [`DiskSyncError::Refused`]; [`DiskSyncError::Different`] if the secondary's disks cannot become
    /// copies of these.
    pub fn push(&mut self, piece: &[u8]) -> Result<Option<DiskSummary>, DiskSyncError> {
        // It stays like this after an error.
        let state = mem::replace(&mut self.state, ReaderState::Over);
        if piece.len() > SUMMARY_PIECE_BYTES_MAX {
            return Err(DiskSyncError::Malformed("the piece is too long"));
        }
        if piece.is_empty() {
            return Err(DiskSyncError::Malformed("a piece of nothing"));
        }
        let mut rest = piece;
        let mut disks = match state {
            ReaderState::Beginning => self.descriptions(&mut rest)?,
            ReaderState::Described(disks) => disks,
            ReaderState::Over => return Err(DiskSyncError::Malformed("something after the end")),
        };
        while !rest.is_empty() {
            let [kind] = array(&mut rest)?;
            if kind == END {
                if !rest.is_empty() {
                    return Err(DiskSyncError::Malformed("something after the end"));
                }
                return Ok(Some(DiskSummary { disks }));
            }
            let number = u32::from_le_bytes(array(&mut rest)?);
            let first = u64::from_le_bytes(array(&mut rest)?);
            let content = match kind {
                ZEROS => KnownContent::Zeros(u64::from_le_bytes(array(&mut rest)?)),
                DIGESTS => {
                    let count = u32::from_le_bytes(array(&mut rest)?) as usize;
                    let length = count.checked_mul(size_of::<BlockDigest>());
                    let length = length.ok_or(DiskSyncError::Malformed("cut short"))?;
                    KnownContent::Digests(bytes(&mut rest, length)?.as_chunks().0.to_vec())
                }
                _ => return Err(DiskSyncError::Malformed("unknown kind of record")),
            };
            let known = KnownBlocks { first, content };
            let end = known.end();
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let own = self.own.get(index).filter(|own| !own.read_only);
            let (Some(own), Some(disk)) = (own, disks.get_mut(index)) else {
                return Err(DiskSyncError::Refused { disk: number, reason: "there is no such disk to be copied" });
            };
            if (number, first) < self.next || end <= first || end > block_count(own.size_bytes) {
                return Err(DiskSyncError::Refused { disk: number, reason: "blocks out of order, or beyond its end" });
            }
            self.next = (number, end);
            match (disk.known.last_mut(), known) {
                // Spans are cut to fit into pieces; kept whole they take less memory.
                (
                    Some(last @ KnownBlocks { content: KnownContent::Digests(_), .. }),
                    KnownBlocks { first, content: KnownContent::Digests(more) },
                ) if last.end() == first => {
                    if let KnownContent::Digests(digests) = &mut last.content {
                        digests.extend(more);
                    }
                }
                (_, known) => disk.known.push(known),
            }
        }
        self.state = ReaderState::Described(disks);
        Ok(None)
    }

    fn descriptions(&self, rest: &mut &[u8]) -> Result<Vec<SummaryOfDisk>, DiskSyncError> {
        if array(rest)? != [DESCRIPTIONS] {
            return Err(DiskSyncError::Malformed("no descriptions at the beginning"));
        }
        let length = u32::from_le_bytes(array(rest)?);
        let serialized = bytes(rest, length as usize)?;
        let theirs: Vec<DiskDescription> = postcard::from_bytes(serialized)
            .map_err(|_| DiskSyncError::Malformed("descriptions that cannot be read"))?;
        check_compatible(&self.own, &theirs)?;
        let summary = |(here, there): (&DiskDescription, &DiskDescription)| SummaryOfDisk {
            common_base: (here.base == there.base).then_some(here.base),
            known: Vec::new(),
        };
        Ok(self.own.iter().zip(&theirs).map(summary).collect())
    }
}

fn bytes<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], DiskSyncError> {
    let (bytes, after) = rest.split_at_checked(length).ok_or(DiskSyncError::Malformed("cut short"))?;
    *rest = after;
    Ok(bytes)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DiskSyncError> {
    let (array, after) = rest.split_first_chunk().ok_or(DiskSyncError::Malformed("cut short"))?;
    *rest = after;
    Ok(*array)
}
