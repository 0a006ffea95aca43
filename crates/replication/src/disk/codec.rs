//! Changes of disks as bytes.
//!
//! A piece is a row of records, each as short as its kind allows; integers are little-endian.
//!
//! | kind | u8 | then |
//! | --- | --- | --- |
//! | flush | 0 | disk u32 |
//! | write | 1 | disk u32, offset u64, length u32, the data |
//! | write, LZ4 | 2 | disk u32, offset u64, length u32, compressed length u32, an LZ4 block |
//! | discard | 3 | disk u32, offset u64, length u64 |
//! | write zeroes | 4 | disk u32, offset u64, length u64 |
//! | write zeroes, may unmap | 5 | disk u32, offset u64, length u64 |
//! | lost | 6 | disk u32 |

use super::set::Shared;
use super::{DiskOp, DiskSet, DiskSyncError, DiskWrite, WRITE_BYTES_MAX};

/// Longest piece in bytes.
pub const PIECE_BYTES_MAX: usize = 256 << 10;

/// A piece ends before the record that would make its changes hold more bytes of disks than this, so that no piece of
/// compressed data makes its receiver allocate more.
const PIECE_DATA_BYTES_MAX: usize = WRITE_BYTES_MAX;
/// A piece ends before the record that would make it longer than this.
const PIECE_BYTES_AIM: usize = WRITE_BYTES_MAX;
/// Longest head of a record.
const HEAD_BYTES_MAX: usize = 21;
/// Shorter data is not worth compressing.
const COMPRESSED_FROM: usize = 256;

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const WRITE_LZ4: u8 = 2;
const DISCARD: u8 = 3;
const ZEROES: u8 = 4;
const ZEROES_UNMAP: u8 = 5;
const LOST: u8 = 6;

/// Passes `writes` to `piece` in pieces of at most [`PIECE_BYTES_MAX`] bytes, none of them empty, in order.
pub fn encode_writes(writes: &[DiskWrite], mut piece: impl FnMut(&[u8])) {
    let mut encoder = PieceEncoder::default();
    let mut out = Vec::new();
    let mut rest = writes.iter().peekable();
    while rest.peek().is_some() {
        out.clear();
        encoder.fill(&mut rest, &mut out);
        piece(&out);
    }
}

/// Makes pieces; its buffer is used again.
#[derive(Default)]
pub(super) struct PieceEncoder {
    compressed: Vec<u8>,
}

impl PieceEncoder {
    /// Appends one piece of changes to `out`, and takes them from `writes`.
    pub fn fill<'a>(
        &mut self,
        writes: &mut std::iter::Peekable<impl Iterator<Item = &'a DiskWrite>>,
        out: &mut Vec<u8>,
    ) -> usize {
        let start = out.len();
        let (mut data_bytes, mut taken) = (0, 0);
        while let Some(write) = writes.peek() {
            let data = if let DiskOp::Write { data, .. } = &write.op { data.len() } else { 0 };
            let is_full =
                out.len() - start + data + HEAD_BYTES_MAX > PIECE_BYTES_AIM || data_bytes + data > PIECE_DATA_BYTES_MAX;
            if taken > 0 && is_full {
                break;
            }
            self.encode(write, out);
            data_bytes += data;
            taken += 1;
            writes.next();
        }
        taken
    }

    fn encode(&mut self, write: &DiskWrite, out: &mut Vec<u8>) {
        let disk = write.disk.to_le_bytes();
        let mut put = |kind: u8, parts: &[&[u8]]| {
            out.push(kind);
            out.extend_from_slice(&disk);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        match &write.op {
            DiskOp::Flush => put(FLUSH, &[]),
            DiskOp::Lost => put(LOST, &[]),
            DiskOp::Discard { offset, length } => put(DISCARD, &[&offset.to_le_bytes(), &length.to_le_bytes()]),
            DiskOp::WriteZeroes { offset, length, may_unmap } => {
                let kind = if *may_unmap { ZEROES_UNMAP } else { ZEROES };
                put(kind, &[&offset.to_le_bytes(), &length.to_le_bytes()]);
            }
            DiskOp::Write { offset, data } => {
                let (offset, length) = (offset.to_le_bytes(), (data.len() as u32).to_le_bytes());
                match self.compress(data) {
                    Some(block) => {
                        put(WRITE_LZ4, &[&offset, &length, &(block.len() as u32).to_le_bytes(), block]);
                    }
                    None => put(WRITE, &[&offset, &length, data]),
                }
            }
        }
    }

    /// The data as an LZ4 block, if that is shorter by at least an eighth.
    fn compress(&mut self, data: &[u8]) -> Option<&[u8]> {
        if data.len() < COMPRESSED_FROM {
            return None;
        }
        self.compressed.resize(lz4_flex::block::get_maximum_output_size(data.len()), 0);
        let length = lz4_flex::block::compress_into(data, &mut self.compressed).ok()?;
        self.compressed.get(..length).filter(|block| block.len() <= data.len() - data.len() / 8)
    }
}

/// Decodes a piece, and holds it against the disks: each change is of a disk that exists and is writable, and within it. What
/// is returned takes memory in proportion to the piece and [`WRITE_BYTES_MAX`].
///
/// # Errors
/// [`DiskSyncError::Malformed`], [`DiskSyncError::Refused`]; [`DiskSyncError::Lost`] if the sender's log has a gap.
pub fn decode_writes(piece: &[u8], disks: &DiskSet) -> Result<Vec<DiskWrite>, DiskSyncError> {
    if piece.len() > PIECE_BYTES_MAX {
        return Err(DiskSyncError::Malformed("the piece is too long"));
    }
    let mut decoder = Decoder { rest: piece, data_bytes: 0, disks: disks.shared() };
    let mut writes = Vec::new();
    while !decoder.rest.is_empty() {
        writes.push(decoder.next()?);
    }
    Ok(writes)
}

struct Decoder<'a> {
    rest: &'a [u8],
    /// Decoded so far.
    data_bytes: usize,
    disks: &'a Shared,
}

impl Decoder<'_> {
    fn next(&mut self) -> Result<DiskWrite, DiskSyncError> {
        let [kind] = self.array()?;
        let disk = u32::from_le_bytes(self.array()?);
        let op = match kind {
            FLUSH => {
                self.check(disk, 0, 1)?;
                DiskOp::Flush
            }
            LOST => return Err(DiskSyncError::Lost { disk }),
            WRITE | WRITE_LZ4 => {
                let offset = u64::from_le_bytes(self.array()?);
                let length = u32::from_le_bytes(self.array()?) as usize;
                self.data_bytes = self.data_bytes.saturating_add(length);
                if length > WRITE_BYTES_MAX || self.data_bytes > PIECE_DATA_BYTES_MAX {
                    return Err(DiskSyncError::Malformed("too much data in one piece"));
                }
                self.check(disk, offset, length as u64)?;
                let data = if kind == WRITE { self.bytes(length)?.to_vec() } else { self.decompress(length)? };
                DiskOp::Write { offset, data }
            }
            DISCARD | ZEROES | ZEROES_UNMAP => {
                let offset = u64::from_le_bytes(self.array()?);
                let length = u64::from_le_bytes(self.array()?);
                self.check(disk, offset, length)?;
                match kind {
                    DISCARD => DiskOp::Discard { offset, length },
                    _ => DiskOp::WriteZeroes { offset, length, may_unmap: kind == ZEROES_UNMAP },
                }
            }
            _ => return Err(DiskSyncError::Malformed("unknown kind of change")),
        };
        Ok(DiskWrite { disk, op })
    }

    fn decompress(&mut self, length: usize) -> Result<Vec<u8>, DiskSyncError> {
        let compressed = u32::from_le_bytes(self.array()?) as usize;
        let block = self.bytes(compressed)?;
        let mut data = vec![0; length];
        match lz4_flex::block::decompress_into(block, &mut data) {
            Ok(decompressed) if decompressed == length => Ok(data),
            _ => Err(DiskSyncError::Malformed("data that does not decompress")),
        }
    }

    fn check(&self, disk: u32, offset: u64, length: u64) -> Result<(), DiskSyncError> {
        let refused = |reason| Err(DiskSyncError::Refused { disk, reason });
        let found = self.disks.disk(disk)?;
        if found.read_only {
            return refused("a change of a read-only disk");
        }
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > found.size_bytes) {
            return refused("a change of nothing, or beyond its end");
        }
        Ok(())
    }

    fn bytes(&mut self, length: usize) -> Result<&[u8], DiskSyncError> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(DiskSyncError::Malformed("cut short"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DiskSyncError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(DiskSyncError::Malformed("cut short"))?;
        self.rest = rest;
        Ok(*array)
    }
}
