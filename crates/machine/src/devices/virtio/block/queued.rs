//! Requests done by others than the vCPU that asks for them, several at a time.
//!
//! A request is *taken*: its chain is read and checked, and what it writes is copied out of guest memory. It is *done* by one of the disk's
//! threads, which touch nothing of the guest's. It is *answered*: what it read is written to guest memory, with the status, and its chain goes
//! back. Taking and answering are calls of the transport's, so nothing happens to the guest while nobody calls: a paused VM
//! stands still though its disks work on. A read of what the host has in memory is done and answered as it is taken: to wake a thread for it would
//! take longer than the read.
//!
//! What was taken and not answered is saved as that. Whoever goes on from there does it again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use memory::DmaMemory;
use storage::disk::{FrozenDisk, Spill};

use super::buffers::Buffers;
use super::checked::{CheckedRequest, Geometry, answer, data_bytes};
use super::metrics::BlockMetrics;
use super::operation::{Operation, OperationKind};
use super::request::{HEADER_LEN, RequestError};
use super::workers::Workers;
use crate::devices::virtio::chain::{Chain, ChainState};
use crate::devices::virtio::device::Progress;
use crate::devices::virtio::queue::{QueueError, Used, VirtQueue};

/// Bytes of data of requests under way, beyond which no more are taken. The last one taken may go beyond by its own length.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a read that is looked for in the host's memory before a thread is woken for it.
const CACHED_READ_BYTES_MAX: usize = 64 << 10;
/// Bytes that such reads may come to before the device is left alone again.
const CACHED_BYTES_MAX: u64 = 4 << 20;

/// A request under way.
pub(super) struct InFlight {
    chain: Chain,
    request: CheckedRequest,
    bytes: u64,
}

/// A request that was done, and how that ended.
pub(super) struct Finished {
    in_flight: InFlight,
    result: io::Result<()>,
    /// What was read, or written.
    data: Vec<u8>,
}

/// What taking and answering requests needs of the device.
pub(super) struct Context<'a> {
    pub geometry: &'a Geometry,
    pub metrics: &'a mut BlockMetrics,
    pub memory: &'a DmaMemory,
    pub write_through: bool,
}

/// The requests of a disk that are under way.
pub(super) struct Queued {
    workers: Workers,
    /// By tag, hence in the order in which they were taken.
    in_flight: BTreeMap<u64, InFlight>,
    next_tag: u64,
    /// Data of the requests under way.
    bytes: u64,
    /// Requests from before a reset whose operations have begun. None is taken until they have ended, as an old write must not overtake a
    /// new one.
    abandoned: usize,
    /// Requests were left in the queue though there may be some.
    is_stalled: bool,
    /// Bytes read without a wait since requests began to be taken.
    cached_bytes: u64,
    /// Kept for their allocations.
    spare: Vec<Chain>,
    buffers: Buffers,
}

impl Queued {
    pub fn new(workers: Workers) -> Self {
        Self {
            workers,
            in_flight: BTreeMap::new(),
            next_tag: 0,
            bytes: 0,
            abandoned: 0,
            is_stalled: false,
            cached_bytes: 0,
            spare: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Flushes the disk, when all that is under way has been done.
    pub fn flush(&self) -> io::Result<()> {
        self.workers.wait_until_idle();
        self.workers.backend().flush()
    }

    /// Freezes what the disk holds, whatever is under way.
    pub fn freeze(&self, spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        self.workers.backend().freeze(spill)
    }

    /// The chains of the requests under way, in the order in which they were taken.
    pub fn save(&self) -> impl Iterator<Item = ChainState> {
        self.in_flight.values().map(|in_flight| in_flight.chain.save())
    }

    /// The driver wants no answers any more.
    pub fn reset(&mut self) {
        self.abandoned += self.in_flight.len() - self.workers.forget_waiting().min(self.in_flight.len());
        self.in_flight.clear();
        self.bytes = 0;
        self.is_stalled = false;
    }

    /// Takes what the queue holds, as far as there is room.
    pub fn take(&mut self, queue: &mut VirtQueue, context: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.is_stalled = false;
        self.cached_bytes = 0;
        for _ in 0..queue.size() {
            let is_full = self.in_flight.len() >= usize::from(queue.size()) || self.bytes >= IN_FLIGHT_BYTES_MAX;
            if is_full || self.abandoned > 0 {
                // The end of another request calls again.
                self.is_stalled = true;
                return Ok(Progress::Done);
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            if queue.pop(context.memory, &mut chain)? {
                self.take_one(chain, queue, context)?;
            } else {
                self.spare.push(chain);
                if !queue.enable_notification(context.memory)? {
                    return Ok(Progress::Done);
                }
            }
        }
        Ok(if queue.enable_notification(context.memory)? { Progress::Unfinished } else { Progress::Done })
    }

    /// Begins a request, or answers it at once if there is nothing to wait for.
    pub fn take_one(
        &mut self,
        chain: Chain,
        queue: &mut VirtQueue,
        context: &mut Context<'_>,
    ) -> Result<(), QueueError> {
        let checked = context.geometry.check(&chain, context.memory, data_bytes(&chain)?);
        if let Ok(CheckedRequest::GetId { len }) = checked {
            let result = context.geometry.write_id(&chain, context.memory, len).map(|()| len);
            return self.answer_one(chain, &result, queue, context);
        }
        let prepared = checked.and_then(|request| {
            let mut data = self.buffers.take(data_len(&request)?);
            Ok((prepare(&request, &chain, context.memory, &mut data)?, data, request))
        });
        let (kind, mut data, request) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.answer_one(chain, &Err(error), queue, context),
        };
        if let OperationKind::Read { offset } = kind
            && self.read_cached(offset, &mut data)
        {
            let in_flight = InFlight { chain, request, bytes: 0 };
            return self.answer(Finished { in_flight, result: Ok(()), data }, queue, context);
        }
        let bytes = chain.readable_bytes().saturating_add(chain.writable_bytes());
        let then_flush = context.write_through && request.is_written_through();
        let tag = self.next_tag;
        self.next_tag += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.in_flight.insert(tag, InFlight { chain, request, bytes });
        self.workers.submit(tag, Operation { kind, data, then_flush });
        Ok(())
    }

    /// Does a read that need not wait for the host; false if it has to.
    fn read_cached(&mut self, offset: u64, data: &mut [u8]) -> bool {
        if data.len() > CACHED_READ_BYTES_MAX || self.cached_bytes > CACHED_BYTES_MAX {
            return false;
        }
        self.cached_bytes += data.len() as u64;
        self.workers.read_cached(offset, data)
    }

    /// What was done since the last call and is to be answered, and whether requests may have been left in the queue for which there is
    /// room now.
    pub fn take_finished(&mut self) -> (Vec<Finished>, bool) {
        let mut finished = Vec::new();
        for done in self.workers.take_done() {
            match self.in_flight.remove(&done.tag) {
                Some(in_flight) => {
                    self.bytes = self.bytes.saturating_sub(in_flight.bytes);
                    finished.push(Finished { in_flight, result: done.result, data: done.data });
                }
                None => {
                    self.buffers.give(done.data);
                    self.abandoned = self.abandoned.saturating_sub(1);
                }
            }
        }
        (finished, self.is_stalled && self.abandoned == 0)
    }

    /// Tells the guest how a request ended.
    pub fn answer(
        &mut self,
        finished: Finished,
        queue: &mut VirtQueue,
        context: &mut Context<'_>,
    ) -> Result<(), QueueError> {
        let Finished { in_flight: InFlight { chain, request, .. }, result, data } = finished;
        let result = result.map_err(RequestError::Backend).and_then(|()| {
            let read = if matches!(request, CheckedRequest::Read { .. }) { &data[..] } else { &[] };
            chain.write(context.memory, 0, read).map_err(|_| RequestError::Refused)?;
            request.count(context.metrics);
            Ok(read.len() as u64)
        });
        self.buffers.give(data);
        self.answer_one(chain, &result, queue, context)
    }

    fn answer_one(
        &mut self,
        chain: Chain,
        result: &Result<u64, RequestError>,
        queue: &mut VirtQueue,
        context: &mut Context<'_>,
    ) -> Result<(), QueueError> {
        let written_bytes = answer(&chain, context.memory, result, context.metrics)?;
        queue.complete(context.memory, &[Used { head: chain.head(), written_bytes }])?;
        self.spare.push(chain);
        Ok(())
    }
}

/// Bytes that a request reads or writes.
fn data_len(request: &CheckedRequest) -> Result<usize, RequestError> {
    match request {
        CheckedRequest::Read { len, .. } | CheckedRequest::Write { len, .. } => {
            usize::try_from(*len).map_err(|_| RequestError::Refused)
        }
        _ => Ok(0),
    }
}

/// What a request asks for, and in `data` the bytes that it writes as they are now.
fn prepare(
    request: &CheckedRequest,
    chain: &Chain,
    memory: &DmaMemory,
    data: &mut [u8],
) -> Result<OperationKind, RequestError> {
    Ok(match request {
        CheckedRequest::Read { offset, .. } => OperationKind::Read { offset: *offset },
        CheckedRequest::Write { offset, .. } => {
            chain.read(memory, HEADER_LEN as u64, data).map_err(|_| RequestError::Refused)?;
            OperationKind::Write { offset: *offset }
        }
        CheckedRequest::Flush => OperationKind::Flush,
        CheckedRequest::Discard(ranges) => OperationKind::Discard(ranges.clone()),
        CheckedRequest::WriteZeroes(ranges) => OperationKind::WriteZeroes(ranges.clone()),
        // Answered without the disk.
        CheckedRequest::GetId { .. } => return Err(RequestError::Unsupported),
    })
}
