//! What was written over of a frozen image before its reader had it.
//!
//! A piece that held nothing, or zeros, is a bit in memory. Others are in the spill:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | how many parts there are |
//! | 4 + 4 | length of a part, and its kind ([`kind`]); for each |
//! | up to [`HEAD_BYTES`] | nothing |
//! | [`PIECE_BYTES`] | the piece |

use std::collections::BTreeMap;
use std::sync::Arc;

use super::freezer::{Content, PIECE_BYTES, Stretch, read_piece};
use super::{Allocation, DiskError, Spill};

/// Pieces that are noted together.
const GROUP_PIECES: u64 = u64::BITS as u64;
const HEAD_BYTES: usize = 4096;
/// Room of one piece in the spill.
const SLOT_BYTES: u64 = HEAD_BYTES as u64 + PIECE_BYTES;
/// A piece has no more sectors.
const PARTS_MAX: usize = (PIECE_BYTES / super::SECTOR_BYTES) as usize;

/// Pieces by number.
#[derive(Debug)]
pub(super) struct Kept {
    spill: Arc<Spill>,
    groups: BTreeMap<u64, Group>,
}

/// [`GROUP_PIECES`] in a row, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    kept: u64,
    /// Kept ones that are not in the spill.
    absent: u64,
    zeros: u64,
    /// Where the others are.
    place: Option<u64>,
}

/// What is known of a piece.
pub(super) enum Found {
    /// It is in the image still.
    Pending,
    /// It held this, by offsets in the piece.
    Kept(Vec<Stretch>),
}

fn group_of(piece: u64) -> (u64, u64) {
    (piece / GROUP_PIECES, 1 << (piece % GROUP_PIECES))
}

impl Kept {
    pub fn new(spill: Arc<Spill>) -> Self {
        Self { spill, groups: BTreeMap::new() }
    }

    pub fn forget(&mut self) {
        self.groups.clear();
    }

    /// The first piece from this one on that is kept.
    pub fn first_from(&self, piece: u64) -> Option<u64> {
        let (first, bit) = group_of(piece);
        self.groups.range(first..).find_map(|(&number, group)| {
            let kept = if number == first { group.kept & !(bit - 1) } else { group.kept };
            (kept != 0).then(|| number * GROUP_PIECES + u64::from(kept.trailing_zeros()))
        })
    }

    fn is_kept(&self, piece: u64) -> bool {
        let (number, bit) = group_of(piece);
        self.groups.get(&number).is_some_and(|group| group.kept & bit != 0)
    }

    /// Keeps the next piece of those up to `end` that is not, or several that hold nothing; returns the first piece that was not looked at.
    pub fn keep(
        &mut self,
        content: &mut dyn Content,
        mut piece: u64,
        end: u64,
        data: &mut Vec<u8>,
    ) -> Result<u64, DiskError> {
        while piece < end && self.is_kept(piece) {
            piece += 1;
        }
        let (size_bytes, offset) = (content.size_bytes(), piece * PIECE_BYTES);
        if piece >= end || offset >= size_bytes {
            return Ok(end);
        }
        let extent = content.extent_at(offset)?;
        let reaches = offset.saturating_add(extent.length).min(size_bytes);
        let whole = if reaches == size_bytes { reaches.div_ceil(PIECE_BYTES) } else { reaches / PIECE_BYTES };
        if extent.allocation != Allocation::Data && whole > piece {
            let whole = whole.min(end);
            (piece..whole).filter(|&piece| !self.is_kept(piece)).collect::<Vec<_>>().into_iter().for_each(|piece| {
                self.note(piece, extent.allocation);
            });
            return Ok(whole);
        }
        let stretches = read_piece(content, offset, (offset + PIECE_BYTES).min(size_bytes), data)?;
        self.put(piece, &stretches, data)?;
        Ok(piece + 1)
    }

    fn note(&mut self, piece: u64, allocation: Allocation) -> &mut Group {
        let (number, bit) = group_of(piece);
        let group = self.groups.entry(number).or_default();
        group.kept |= bit;
        match allocation {
            Allocation::Absent => group.absent |= bit,
            Allocation::Zeros => group.zeros |= bit,
            Allocation::Data => {}
        }
        group
    }

    fn put(&mut self, piece: u64, stretches: &[Stretch], data: &[u8]) -> Result<(), DiskError> {
        let mut slot = Vec::with_capacity(HEAD_BYTES + data.len());
        slot.extend((stretches.len() as u32).to_le_bytes());
        for stretch in stretches {
            slot.extend((stretch.length as u32).to_le_bytes());
            slot.extend(kind(stretch.allocation).to_le_bytes());
        }
        slot.resize(HEAD_BYTES, 0);
        slot.extend(data);
        let (number, _) = group_of(piece);
        let place = match self.groups.get(&number).and_then(|group| group.place) {
            Some(place) => place,
            None => self.spill.reserve(SLOT_BYTES * GROUP_PIECES).map_err(DiskError::Spill)?,
        };
        self.spill.put(place + piece % GROUP_PIECES * SLOT_BYTES, &slot).map_err(DiskError::Spill)?;
        self.note(piece, Allocation::Data).place = Some(place);
        Ok(())
    }

    /// Takes a piece of `length` bytes, which is not asked for again, nor are those before it.
    pub fn take(&mut self, piece: u64, length: u64, data: &mut Vec<u8>) -> Result<Found, DiskError> {
        let (number, bit) = group_of(piece);
        // Those of the groups before were all taken.
        while self.groups.first_key_value().is_some_and(|(&first, _)| first < number) {
            self.groups.pop_first();
        }
        let Some(group) = self.groups.get(&number).filter(|group| group.kept & bit != 0) else {
            return Ok(Found::Pending);
        };
        let uniform = |allocation| Ok(Found::Kept(vec![Stretch { offset: 0, length, allocation }]));
        if group.absent & bit != 0 {
            return uniform(Allocation::Absent);
        }
        if group.zeros & bit != 0 {
            return uniform(Allocation::Zeros);
        }
        let place = group.place.unwrap_or(0) + piece % GROUP_PIECES * SLOT_BYTES;
        let mut head = [0; HEAD_BYTES];
        self.spill.get(place, &mut head).map_err(DiskError::Spill)?;
        data.clear();
        data.resize(length as usize, 0);
        self.spill.get(place + HEAD_BYTES as u64, data).map_err(DiskError::Spill)?;
        Ok(Found::Kept(parts(&head)))
    }
}

fn parts(head: &[u8; HEAD_BYTES]) -> Vec<Stretch> {
    let (words, _) = head.as_chunks();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let count = words.next().unwrap_or(0) as usize;
    let mut stretches = Vec::new();
    let mut offset = 0;
    for _ in 0..count.min(PARTS_MAX) {
        let (Some(length), Some(kind)) = (words.next(), words.next()) else { break };
        let length = u64::from(length);
        stretches.push(Stretch { offset, length, allocation: allocation(kind) });
        offset += length;
    }
    stretches
}

fn kind(allocation: Allocation) -> u32 {
    match allocation {
        Allocation::Data => 0,
        Allocation::Zeros => 1,
        Allocation::Absent => 2,
    }
}

fn allocation(kind: u32) -> Allocation {
    match kind {
        1 => Allocation::Zeros,
        2 => Allocation::Absent,
        _ => Allocation::Data,
    }
}
