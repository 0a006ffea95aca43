//! The disk.

use std::ops::ControlFlow;

use memory::DmaMemory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::backend::BlockBackend;
use super::metrics::BlockMetrics;
use super::recorded::{DiskFailure, RecordedDisk};
use super::request::{
    HEADER_LEN, RANGE_LEN, Request, RequestError, SECTOR_BYTES, STATUS_LEN, SectorRange, status_byte,
};
use super::state::{BlockRestoreError, BlockState};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::device::{Progress, VirtioDevice};
use crate::devices::virtio::queue::{QueueError, VirtQueue};
use crate::input::TakenSignal;

/// Length of a disk's identity (virtio 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID`), in bytes.
pub const ID_LEN: usize = 20;

const QUEUE_SIZE_MAX: u16 = 256;
/// Segments of a request: what a chain has room for beside header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Bytes of a segment.
const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// Bytes of a read or write; no driver that keeps to the two limits above exceeds it.
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// Bytes moved between guest and backend at a time.
const COPY_BYTES: usize = 128 << 10;

/// Ranges of a discard or write-zeroes request.
const RANGES_MAX: usize = 16;
/// Sectors of a range to discard: 2 GiB.
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Sectors of a range to zero: 32 MiB, as a backend may have to write them.
const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 16;

/// Length of `struct virtio_blk_config` up to and including the write-zeroes fields (virtio 1.2, 5.2.4).
const CONFIG_LEN: usize = 60;

/// A virtio-blk device.
pub struct Block {
    disk: Disk,
    config_space: [u8; CONFIG_LEN],
    features: u64,
    chain: Chain,
}

/// What requests work on.
struct Disk {
    backend: RecordedDisk,
    capacity_sectors: u64,
    read_only: bool,
    id: [u8; ID_LEN],
    /// [`COPY_BYTES`] bytes.
    copy: Box<[u8]>,
    metrics: BlockMetrics,
}

impl Block {
    /// A disk as after power-on. The first [`ID_LEN`] bytes of `id` name it to the guest (Linux: `serial`).
    pub fn new(backend: Box<dyn BlockBackend>, id: &str) -> Self {
        let mut padded = [0; ID_LEN];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let state = BlockState {
            capacity_sectors: backend.size_bytes() / SECTOR_BYTES,
            read_only: backend.is_read_only(),
            id: padded,
            features: 0,
        };
        Self::assemble(state, backend)
    }

    /// A disk that goes on where `state` was saved, its backend's content being that of the same moment.
    ///
    /// # Errors
    /// [`BlockRestoreError`].
    pub fn restore(state: BlockState, backend: Box<dyn BlockBackend>) -> Result<Self, BlockRestoreError> {
        let found = backend.size_bytes() / SECTOR_BYTES;
        if found != state.capacity_sectors {
            return Err(BlockRestoreError::Capacity { saved: state.capacity_sectors, found });
        }
        if backend.is_read_only() && !state.read_only {
            return Err(BlockRestoreError::ReadOnly);
        }
        Ok(Self::assemble(state, backend))
    }

    fn assemble(state: BlockState, backend: Box<dyn BlockBackend>) -> Self {
        let BlockState { capacity_sectors, read_only, id, features } = state;
        Self {
            config_space: config_space(capacity_sectors),
            features,
            chain: Chain::default(),
            disk: Disk {
                backend: RecordedDisk::new(backend),
                capacity_sectors,
                read_only,
                id,
                copy: vec![0; COPY_BYTES].into(),
                metrics: BlockMetrics::default(),
            },
        }
    }

    /// The backend, for what is done to it while the guest does not run.
    pub fn backend_mut(&mut self) -> &mut dyn BlockBackend {
        self.disk.backend.backend_mut()
    }

    /// Begins to record failures for whoever `record` belongs to, or to replay them ([`Block::expect_failure`]), or both; ends what is
    /// not asked for. Operations on the image are counted from here on.
    pub(crate) fn follow(&mut self, record: Option<TakenSignal>, is_replay: bool) {
        self.disk.backend.follow(record, is_replay);
    }

    /// Failures recorded since the last call, in order.
    pub fn take_failures(&mut self) -> Vec<DiskFailure> {
        self.disk.backend.take_failures()
    }

    /// Says what fails next, in a replay. All other operations succeed there, or it is [another run](Block::divergence).
    pub fn expect_failure(&mut self, failure: DiskFailure) {
        self.disk.backend.expect(failure);
    }

    /// Why a replay is not what was recorded, if it is not.
    pub fn divergence(&self) -> Option<&str> {
        self.disk.backend.divergence()
    }

    /// What the device did in this process.
    pub fn metrics(&self) -> BlockMetrics {
        self.disk.metrics
    }
}

impl VirtioDevice for Block {
    type State = BlockState;

    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUE_SIZES_MAX: &'static [u16] = &[QUEUE_SIZE_MAX];

    fn offered_features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        always
            | if self.disk.read_only {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn process(
        &mut self,
        _queue_index: usize,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
    ) -> Result<Progress, QueueError> {
        let Self { disk, chain, features, .. } = self;
        let write_through = *features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        queue.serve_until(memory, chain, |chain| {
            let failed = disk.metrics.backend_errors;
            let written = disk.handle(chain, memory, write_through)?;
            // One failure for each access at most: whoever records them has to keep no more, and bounded work for a disk that is broken.
            Ok(if disk.metrics.backend_errors == failed {
                ControlFlow::Continue(written)
            } else {
                ControlFlow::Break(written)
            })
        })
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn save(&self) -> BlockState {
        let Disk { capacity_sectors, read_only, id, .. } = self.disk;
        BlockState { capacity_sectors, read_only, id, features: self.features }
    }
}

impl Disk {
    /// Does one request and writes its status; returns the bytes written to the guest.
    fn handle(&mut self, chain: &Chain, memory: &DmaMemory, write_through: bool) -> Result<u32, QueueError> {
        // Without room for a status there is no way to answer.
        let Some(data_bytes) = chain.writable_bytes().checked_sub(STATUS_LEN) else {
            return Err(QueueError::ShortChain);
        };
        let result = self.execute(chain, memory, data_bytes, write_through);
        match &result {
            Err(RequestError::Refused | RequestError::Unsupported) => self.metrics.refused += 1,
            Err(RequestError::Backend(error)) => {
                tracing::error!(%error, "disk request failed");
                self.metrics.backend_errors += 1;
            }
            Ok(_) => {}
        }
        chain.write(memory, data_bytes, &[status_byte(&result)])?;
        // Only bytes without a gap from the start count (virtio 1.2, 2.7.8.2), and the status comes last.
        let data_written = result.unwrap_or(0);
        let written = if data_written == data_bytes { data_written + STATUS_LEN } else { data_written };
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Does one request; returns how many of the `data_bytes` that it may write it wrote.
    fn execute(
        &mut self,
        chain: &Chain,
        memory: &DmaMemory,
        data_bytes: u64,
        write_through: bool,
    ) -> Result<u64, RequestError> {
        let mut header = [0; HEADER_LEN];
        chain.read(memory, 0, &mut header).map_err(|_| RequestError::Refused)?;
        let request = Request::parse(header);
        if self.read_only && matches!(request, Request::Write { .. } | Request::Discard | Request::WriteZeroes) {
            return Err(RequestError::Refused);
        }
        let written = match request {
            Request::Read { sector } => self.read(chain, memory, sector, data_bytes)?,
            Request::Write { sector } => self.write(chain, memory, sector)?,
            Request::Flush => {
                self.backend.flush().map_err(RequestError::Backend)?;
                self.metrics.flushes += 1;
                0
            }
            Request::GetId => {
                let len = data_bytes.min(ID_LEN as u64);
                let id = self.id.get(..len as usize).unwrap_or_default();
                chain.write(memory, 0, id).map_err(|_| RequestError::Refused)?;
                len
            }
            Request::Discard => self.discard(chain, memory)?,
            Request::WriteZeroes => self.write_zeroes(chain, memory)?,
            Request::Unknown => return Err(RequestError::Unsupported),
        };
        if write_through && matches!(request, Request::Write { .. } | Request::WriteZeroes) {
            self.backend.flush().map_err(RequestError::Backend)?;
        }
        Ok(written)
    }

    fn read(&mut self, chain: &Chain, memory: &DmaMemory, sector: u64, len: u64) -> Result<u64, RequestError> {
        let start = self.byte_offset(sector, len)?;
        let mut done = 0;
        while done < len {
            let piece = piece(&mut self.copy, len - done);
            self.backend.read_at(start + done, piece).map_err(RequestError::Backend)?;
            chain.write(memory, done, piece).map_err(|_| RequestError::Refused)?;
            done += piece.len() as u64;
        }
        self.metrics.reads += 1;
        self.metrics.read_bytes += len;
        Ok(len)
    }

    fn write(&mut self, chain: &Chain, memory: &DmaMemory, sector: u64) -> Result<u64, RequestError> {
        let len = chain.readable_bytes().saturating_sub(HEADER_LEN as u64);
        let start = self.byte_offset(sector, len)?;
        let mut done = 0;
        while done < len {
            let piece = piece(&mut self.copy, len - done);
            chain.read(memory, HEADER_LEN as u64 + done, piece).map_err(|_| RequestError::Refused)?;
            self.backend.write_at(start + done, piece).map_err(RequestError::Backend)?;
            done += piece.len() as u64;
        }
        self.metrics.writes += 1;
        self.metrics.written_bytes += len;
        Ok(0)
    }

    fn discard(&mut self, chain: &Chain, memory: &DmaMemory) -> Result<u64, RequestError> {
        let mut ranges = [SectorRange::default(); RANGES_MAX];
        let ranges = self.ranges(chain, memory, DISCARD_SECTORS_MAX, &mut ranges)?;
        // Virtio 1.2, 5.2.6.2: `unmap` means nothing to a discard and must be clear.
        if ranges.iter().any(|range| range.unmap) {
            return Err(RequestError::Unsupported);
        }
        for range in ranges {
            let (offset, len) = (range.sector * SECTOR_BYTES, u64::from(range.sectors) * SECTOR_BYTES);
            if len > 0 {
                self.backend.discard(offset, len).map_err(RequestError::Backend)?;
            }
        }
        self.metrics.discards += 1;
        Ok(0)
    }

    fn write_zeroes(&mut self, chain: &Chain, memory: &DmaMemory) -> Result<u64, RequestError> {
        let mut ranges = [SectorRange::default(); RANGES_MAX];
        for range in self.ranges(chain, memory, WRITE_ZEROES_SECTORS_MAX, &mut ranges)? {
            let (offset, len) = (range.sector * SECTOR_BYTES, u64::from(range.sectors) * SECTOR_BYTES);
            if len > 0 {
                self.backend.write_zeroes(offset, len, range.unmap).map_err(RequestError::Backend)?;
            }
        }
        self.metrics.write_zeroes += 1;
        Ok(0)
    }

    /// The ranges of a request, all of which lie on the disk.
    fn ranges<'a>(
        &self,
        chain: &Chain,
        memory: &DmaMemory,
        sectors_max: u32,
        ranges: &'a mut [SectorRange; RANGES_MAX],
    ) -> Result<&'a [SectorRange], RequestError> {
        let len = chain.readable_bytes().saturating_sub(HEADER_LEN as u64);
        if len == 0 || !len.is_multiple_of(RANGE_LEN as u64) {
            return Err(RequestError::Refused);
        }
        let count = usize::try_from(len).unwrap_or(usize::MAX) / RANGE_LEN;
        let ranges = ranges.get_mut(..count).ok_or(RequestError::Refused)?;
        for (index, range) in ranges.iter_mut().enumerate() {
            let mut bytes = [0; RANGE_LEN];
            let offset = HEADER_LEN + index * RANGE_LEN;
            chain.read(memory, offset as u64, &mut bytes).map_err(|_| RequestError::Refused)?;
            *range = SectorRange::parse(bytes);
            if range.unknown_flags {
                return Err(RequestError::Unsupported);
            }
            let last = range.sector.checked_add(u64::from(range.sectors)).ok_or(RequestError::Refused)?;
            if range.sectors > sectors_max || last > self.capacity_sectors {
                return Err(RequestError::Refused);
            }
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

/// As much of the buffer as `len` bytes need.
fn piece(buffer: &mut [u8], len: u64) -> &mut [u8] {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..len]
}

fn config_space(capacity_sectors: u64) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &capacity_sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    // num_queues, read only with a feature that is not offered, is 1 all the same.
    put(34, &1u16.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &(RANGES_MAX as u32).to_le_bytes());
    // discard_sector_alignment
    put(44, &1u32.to_le_bytes());
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &(RANGES_MAX as u32).to_le_bytes());
    // write_zeroes_may_unmap
    put(56, &[1]);
    space
}
