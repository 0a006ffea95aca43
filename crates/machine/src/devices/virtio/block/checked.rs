//! Which requests a disk accepts: the same whether they are done at once or queued.

use memory::DmaMemory;

use super::device::ID_LEN;
use super::metrics::BlockMetrics;
use super::request::{
    HEADER_LEN, RANGE_LEN, Request, RequestError, SECTOR_BYTES, STATUS_LEN, SectorRange, status_byte,
};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::QueueError;

/// Bytes of a segment.
pub(super) const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// Number of descriptors of the queue.
pub(super) const QUEUE_SIZE_MAX: u16 = 256;
/// Segments of a request: what a chain has room for beside header and status.
pub(super) const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Bytes of a read or write; no driver that keeps to the two limits above exceeds it.
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;

/// Ranges of a discard or write-zeroes request.
pub(super) const RANGES_MAX: usize = 16;
/// Sectors of a range to discard: 2 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Sectors of a range to zero: 32 MiB, as a backend may have to write them.
pub(super) const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 16;

/// A disk as its guest knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub capacity_sectors: u64,
    pub read_only: bool,
    pub id: [u8; ID_LEN],
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub offset: u64,
    pub len: u64,
    /// It need not keep its space.
    pub may_unmap: bool,
}

/// A request that makes sense on this disk: every range lies on it and is within the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CheckedRequest {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    GetId { len: u64 },
    Discard(Vec<ByteRange>),
    WriteZeroes(Vec<ByteRange>),
}

impl CheckedRequest {
    /// Whether a driver that knows no flushes expects it to be on stable storage when it is answered.
    pub fn is_written_through(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes(_))
    }

    /// Counts it as done.
    pub fn count(&self, metrics: &mut BlockMetrics) {
        match self {
            Self::Read { len, .. } => {
                metrics.reads += 1;
                metrics.read_bytes += len;
            }
            Self::Write { len, .. } => {
                metrics.writes += 1;
                metrics.written_bytes += len;
            }
            Self::Flush => metrics.flushes += 1,
            Self::GetId { .. } => {}
            Self::Discard(_) => metrics.discards += 1,
            Self::WriteZeroes(_) => metrics.write_zeroes += 1,
        }
    }
}

impl Geometry {
    /// Reads a request, which may write `data_bytes` beside its status.
    pub fn check(&self, chain: &Chain, memory: &DmaMemory, data_bytes: u64) -> Result<CheckedRequest, RequestError> {
        let mut header = [0; HEADER_LEN];
        chain.read(memory, 0, &mut header).map_err(|_| RequestError::Refused)?;
        let request = Request::parse(header);
        if self.read_only && matches!(request, Request::Write { .. } | Request::Discard | Request::WriteZeroes) {
            return Err(RequestError::Refused);
        }
        Ok(match request {
            Request::Read { sector } => {
                CheckedRequest::Read { offset: self.byte_offset(sector, data_bytes)?, len: data_bytes }
            }
            Request::Write { sector } => {
                let len = chain.readable_bytes().saturating_sub(HEADER_LEN as u64);
                CheckedRequest::Write { offset: self.byte_offset(sector, len)?, len }
            }
            Request::Flush => CheckedRequest::Flush,
            Request::GetId => CheckedRequest::GetId { len: data_bytes.min(ID_LEN as u64) },
            Request::Discard => {
                let ranges = self.ranges(chain, memory, DISCARD_SECTORS_MAX)?;
                // Virtio 1.2, 5.2.6.2: `unmap` means nothing to a discard and must be clear.
                if ranges.iter().any(|range| range.may_unmap) {
                    return Err(RequestError::Unsupported);
                }
                CheckedRequest::Discard(without_empty(ranges))
            }
            Request::WriteZeroes => {
                CheckedRequest::WriteZeroes(without_empty(self.ranges(chain, memory, WRITE_ZEROES_SECTORS_MAX)?))
            }
            Request::Unknown => return Err(RequestError::Unsupported),
        })
    }

    /// Writes the first `len` bytes of the disk's identity to the guest.
    pub fn write_id(&self, chain: &Chain, memory: &DmaMemory, len: u64) -> Result<(), RequestError> {
        let id = self.id.get(..len as usize).unwrap_or_default();
        chain.write(memory, 0, id).map_err(|_| RequestError::Refused)
    }

    /// The ranges of a request, all of which lie on the disk.
    fn ranges(&self, chain: &Chain, memory: &DmaMemory, sectors_max: u32) -> Result<Vec<ByteRange>, RequestError> {
        let len = chain.readable_bytes().saturating_sub(HEADER_LEN as u64);
        if len == 0 || !len.is_multiple_of(RANGE_LEN as u64) || len > (RANGES_MAX * RANGE_LEN) as u64 {
            return Err(RequestError::Refused);
        }
        let mut ranges = Vec::new();
        for offset in (0..len).step_by(RANGE_LEN) {
            let mut bytes = [0; RANGE_LEN];
            chain.read(memory, HEADER_LEN as u64 + offset, &mut bytes).map_err(|_| RequestError::Refused)?;
            let range = SectorRange::parse(bytes);
            if range.unknown_flags {
                return Err(RequestError::Unsupported);
            }
            let last = range.sector.checked_add(u64::from(range.sectors)).ok_or(RequestError::Refused)?;
            if range.sectors > sectors_max || last > self.capacity_sectors {
                return Err(RequestError::Refused);
            }
            let (offset, len) = (range.sector * SECTOR_BYTES, u64::from(range.sectors) * SECTOR_BYTES);
            ranges.push(ByteRange { offset, len, may_unmap: range.unmap });
        }
        Ok(ranges)
    }

    /// Where on the disk `len` bytes from `sector` on start, if they are whole sectors, lie on it and are not too many.
    fn byte_offset(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
        let last = sector.checked_add(len / SECTOR_BYTES).ok_or(RequestError::Refused)?;
        let sound = len.is_multiple_of(SECTOR_BYTES) && len <= REQUEST_BYTES_MAX && last <= self.capacity_sectors;
        // No overflow: the capacity in bytes is 64 bits long.
        if sound { Ok(sector * SECTOR_BYTES) } else { Err(RequestError::Refused) }
    }
}

fn without_empty(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.retain(|range| range.len > 0);
    ranges
}

/// Bytes that a request may write beside its status.
///
/// # Errors
/// [`QueueError::ShortChain`]: without room for a status there is no way to answer.
pub(super) fn data_bytes(chain: &Chain) -> Result<u64, QueueError> {
    chain.writable_bytes().checked_sub(STATUS_LEN).ok_or(QueueError::ShortChain)
}

/// Writes the status of a request that has ended, having written so many of its `data_bytes`; returns the bytes written to the guest.
pub(super) fn answer(
    chain: &Chain,
    memory: &DmaMemory,
    result: &Result<u64, RequestError>,
    metrics: &mut BlockMetrics,
) -> Result<u32, QueueError> {
    match result {
        Err(RequestError::Refused | RequestError::Unsupported) => metrics.refused += 1,
        Err(RequestError::Backend(error)) => {
            tracing::error!(%error, "disk request failed");
            metrics.backend_errors += 1;
        }
        Ok(_) => {}
    }
    let data_bytes = data_bytes(chain)?;
    chain.write(memory, data_bytes, &[status_byte(result)])?;
    // Only bytes without a gap from the start count (virtio 1.2, 2.7.8.2), and the status comes last.
    let data_written = *result.as_ref().unwrap_or(&0);
    let written = if data_written == data_bytes { data_written + STATUS_LEN } else { data_written };
    Ok(u32::try_from(written).unwrap_or(u32::MAX))
}
