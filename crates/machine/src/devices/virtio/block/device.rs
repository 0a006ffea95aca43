//! The disk.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::{io, mem};

use memory::DmaMemory;
use storage::disk::{FrozenDisk, Spill};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::BlockBackend;
use super::checked::{
    DISCARD_SECTORS_MAX, Geometry, QUEUE_SIZE_MAX, RANGES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX,
    WRITE_ZEROES_SECTORS_MAX, answer, data_bytes,
};
use super::metrics::BlockMetrics;
use super::queued::{Context, Queued};
use super::recorded::{DiskFailure, RecordedDisk};
use super::request::SECTOR_BYTES;
use super::state::{BlockRestoreError, BlockState};
use super::synchronous::Synchronous;
use super::workers::Workers;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::device::{Progress, VirtioDevice};
use crate::devices::virtio::mmio::{MmioTransport, NotifiedDevice};
use crate::devices::virtio::queue::{QueueError, Used, VirtQueue};
use crate::input::TakenSignal;

/// Length of a disk's identity (virtio 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID`), in bytes.
pub const ID_LEN: usize = 20;

/// Number of the queue of requests.
const REQUEST_QUEUE: usize = 0;

/// Length of `struct virtio_blk_config` up to and including the write-zeroes fields (virtio 1.2, 5.2.4).
const CONFIG_LEN: usize = 60;

/// A virtio-blk device.
pub struct Block {
    geometry: Geometry,
    config_space: [u8; CONFIG_LEN],
    features: u64,
    chain: Chain,
    execution: Execution,
    /// Requests that were under way when the state was saved from which this disk goes on. They come before all others.
    carried: VecDeque<Chain>,
    metrics: BlockMetrics,
}

/// Who does the requests.
enum Execution {
    /// The thread that notifies of them, before it goes on.
    Synchronous(Synchronous),
    /// Threads of the disk's own.
    Queued(Queued),
}

impl Block {
    /// A disk as after power-on. The first [`ID_LEN`] bytes of `id` name it to the guest (Linux: `serial`).
    pub fn new(backend: Box<dyn BlockBackend>, id: &str) -> Self {
        let mut padded = [0; ID_LEN];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let geometry = Geometry {
            capacity_sectors: backend.size_bytes() / SECTOR_BYTES,
            read_only: backend.is_read_only(),
            id: padded,
        };
        Self::assemble(geometry, 0, VecDeque::new(), backend)
    }

    /// A disk that goes on where `state` was saved, its backend's content being that of the same moment. What was under way then is
    /// done again by [`MmioTransport::carry_on`].
    ///
    /// # Errors
    /// [`BlockRestoreError`].
    pub fn restore(state: BlockState, backend: Box<dyn BlockBackend>) -> Result<Self, BlockRestoreError> {
        let BlockState { capacity_sectors, read_only, id, features, in_flight } = state;
        let found = backend.size_bytes() / SECTOR_BYTES;
        if found != capacity_sectors {
            return Err(BlockRestoreError::Capacity { saved: capacity_sectors, found });
        }
        if backend.is_read_only() && !read_only {
            return Err(BlockRestoreError::ReadOnly);
        }
        if in_flight.len() > usize::from(QUEUE_SIZE_MAX) {
            return Err(BlockRestoreError::TooManyRequests(in_flight.len()));
        }
        let carried = in_flight.iter().map(Chain::restore).collect::<Result<_, _>>()?;
        Ok(Self::assemble(Geometry { capacity_sectors, read_only, id }, features, carried, backend))
    }

    fn assemble(geometry: Geometry, features: u64, carried: VecDeque<Chain>, backend: Box<dyn BlockBackend>) -> Self {
        Self {
            geometry,
            config_space: config_space(geometry.capacity_sectors),
            features,
            chain: Chain::default(),
            execution: Execution::Synchronous(Synchronous::new(RecordedDisk::new(Arc::from(backend)))),
            carried,
            metrics: BlockMetrics::default(),
        }
    }

    /// From now on requests are only taken when the device is notified, and done by threads of the disk's own; whoever
    /// drives the device calls [`MmioTransport::answer_requests`] when the descriptor returned is readable.
    ///
    /// # Errors
    /// The host's.
    pub fn queue_requests(&mut self) -> io::Result<EventFd> {
        let ended = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        if let Execution::Synchronous(synchronous) = &self.execution {
            let workers = Workers::new(synchronous.backend.backend().clone(), ended.try_clone()?);
            self.execution = Execution::Queued(Queued::new(workers));
        }
        Ok(ended)
    }

    /// Returns when everything that the guest has written is on stable storage, requests under way included: these are done then, and
    /// still to be answered.
    ///
    /// # Errors
    /// The host's.
    pub fn flush(&self) -> io::Result<()> {
        match &self.execution {
            Execution::Synchronous(synchronous) => synchronous.backend.backend().flush(),
            Execution::Queued(queued) => queued.flush(),
        }
    }

    /// Freezes what the disk holds for a snapshot ([`BlockBackend::freeze`]). Requests under way are part of the device's state.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn freeze(&self, spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        match &self.execution {
            Execution::Synchronous(synchronous) => synchronous.backend.backend().freeze(spill),
            Execution::Queued(queued) => queued.freeze(spill),
        }
    }

    fn recorded(&mut self) -> Option<&mut RecordedDisk> {
        match &mut self.execution {
            Execution::Synchronous(synchronous) => Some(&mut synchronous.backend),
            // Only what is done at counted instructions can be recorded.
            Execution::Queued(_) => None,
        }
    }

    /// Begins to record failures for whoever `record` belongs to, or to replay them ([`Block::expect_failure`]), or both; ends what is
    /// not asked for. Operations on the image are counted from here on.
    pub(crate) fn follow(&mut self, record: Option<TakenSignal>, is_replay: bool) {
        if let Some(disk) = self.recorded() {
            disk.follow(record, is_replay);
        }
    }

    /// Failures recorded since the last call, in order.
    pub fn take_failures(&mut self) -> Vec<DiskFailure> {
        self.recorded().map(RecordedDisk::take_failures).unwrap_or_default()
    }

    /// Says what fails next, in a replay. All other operations succeed there, or it is [another run](Block::divergence).
    pub fn expect_failure(&mut self, failure: DiskFailure) {
        if let Some(disk) = self.recorded() {
            disk.expect(failure);
        }
    }

    /// Why a replay is not what was recorded, if it is not.
    pub fn divergence(&self) -> Option<&str> {
        match &self.execution {
            Execution::Synchronous(synchronous) => synchronous.backend.divergence(),
            Execution::Queued(_) => None,
        }
    }

    /// What the device did in this process.
    pub fn metrics(&self) -> BlockMetrics {
        self.metrics
    }

    fn write_through(&self) -> bool {
        self.features & 1 << VIRTIO_BLK_F_FLUSH == 0
    }

    /// Does what was under way when the state was saved, again.
    fn carry_on(&mut self, queue: &mut VirtQueue, memory: &DmaMemory) -> Result<(), QueueError> {
        let write_through = self.write_through();
        while let Some(chain) = self.carried.pop_front() {
            let Self { geometry, metrics, .. } = self;
            match &mut self.execution {
                Execution::Queued(queued) => {
                    let mut context = Context { geometry, metrics, memory, write_through };
                    queued.take_one(chain, queue, &mut context)?;
                }
                Execution::Synchronous(synchronous) => {
                    let written_bytes = handle(synchronous, geometry, metrics, &chain, memory, write_through)?;
                    queue.complete(memory, &[Used { head: chain.head(), written_bytes }])?;
                }
            }
        }
        Ok(())
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
            | if self.geometry.read_only {
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
        let write_through = self.write_through();
        let Self { geometry, metrics, chain, execution, .. } = self;
        let synchronous = match execution {
            Execution::Queued(queued) => {
                return queued.take(queue, &mut Context { geometry, metrics, memory, write_through });
            }
            Execution::Synchronous(synchronous) => synchronous,
        };
        queue.serve_until(memory, chain, |chain| {
            let failed = metrics.backend_errors;
            let written = handle(synchronous, geometry, metrics, chain, memory, write_through)?;
            // One failure for each access at most: whoever records them has to keep no more, and bounded work for a disk that is broken.
            Ok(if metrics.backend_errors == failed {
                ControlFlow::Continue(written)
            } else {
                ControlFlow::Break(written)
            })
        })
    }

    fn reset(&mut self) {
        self.features = 0;
        self.carried.clear();
        if let Execution::Queued(queued) = &mut self.execution {
            queued.reset();
        }
    }

    fn save(&self) -> BlockState {
        let Geometry { capacity_sectors, read_only, id } = self.geometry;
        let mut in_flight: Vec<_> = self.carried.iter().map(Chain::save).collect();
        if let Execution::Queued(queued) = &self.execution {
            in_flight.extend(queued.save());
        }
        BlockState { capacity_sectors, read_only, id, features: self.features, in_flight }
    }
}

/// Does one request and writes its status; returns the bytes written to the guest.
fn handle(
    synchronous: &mut Synchronous,
    geometry: &Geometry,
    metrics: &mut BlockMetrics,
    chain: &Chain,
    memory: &DmaMemory,
    write_through: bool,
) -> Result<u32, QueueError> {
    let result = geometry.check(chain, memory, data_bytes(chain)?).and_then(|request| {
        let written = synchronous.perform(&request, geometry, chain, memory, write_through)?;
        request.count(metrics);
        Ok(written)
    });
    answer(chain, memory, &result, metrics)
}

impl MmioTransport<Block> {
    /// Does again what was under way when the state was saved from which this disk goes on. To be called before the guest runs.
    pub fn carry_on(&mut self) {
        if !self.device().carried.is_empty() {
            self.with_queue(REQUEST_QUEUE, |block, queue, memory| block.carry_on(queue, memory));
        }
    }

    /// Answers requests that were queued and have been done, and takes more where there was no room for them.
    pub fn answer_requests(&mut self) {
        let Execution::Queued(queued) = &mut self.device_mut().execution else { return };
        let (mut finished, has_room) = queued.take_finished();
        if finished.is_empty() && !has_room {
            return;
        }
        // Of a device that is broken nobody wants an answer.
        let progress = self.with_queue(REQUEST_QUEUE, |block, queue, memory| {
            let write_through = block.write_through();
            let Block { geometry, metrics, execution: Execution::Queued(queued), .. } = block else {
                return Ok(Progress::Done);
            };
            let mut context = Context { geometry, metrics, memory, write_through };
            for finished in mem::take(&mut finished) {
                queued.answer(finished, queue, &mut context)?;
            }
            if has_room { queued.take(queue, &mut context) } else { Ok(Progress::Done) }
        });
        if progress == Some(Progress::Unfinished) {
            self.notified(REQUEST_QUEUE as u32);
        }
    }
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
