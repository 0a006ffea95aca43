//! The entropy device.

use std::collections::VecDeque;
use std::mem;

use memory::DmaMemory;

use super::entropy::EntropySource;
use super::metrics::RngMetrics;
use super::state::RngState;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::device::{Progress, VirtioDevice};
use crate::devices::virtio::queue::{QueueError, VirtQueue};
use crate::input::TakenSignal;

/// Most bytes given for one buffer; the driver asks again (virtio 1.2, 5.4.6: the device may use part of a buffer).
const REQUEST_BYTES_MAX: usize = 4096;

/// A virtio-rng device.
pub struct Rng {
    source: Box<dyn EntropySource>,
    taken_bytes: u64,
    /// Bytes that go to the guest before those of the source.
    supplied: VecDeque<u8>,
    /// What the guest took and nobody has asked for, if somebody will.
    record: Option<Record>,
    metrics: RngMetrics,
    chain: Chain,
}

struct Record {
    signal: TakenSignal,
    bytes: Vec<u8>,
}

impl Rng {
    /// A device as after power-on.
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self::restore(RngState { taken_bytes: 0 }, source)
    }

    /// A device that goes on where `state` was saved. A source whose bytes must not repeat or skip stands at
    /// [`RngState::taken_bytes`].
    pub fn restore(state: RngState, source: Box<dyn EntropySource>) -> Self {
        Self {
            source,
            taken_bytes: state.taken_bytes,
            supplied: VecDeque::new(),
            record: None,
            metrics: RngMetrics::default(),
            chain: Chain::default(),
        }
    }

    /// Begins or ends keeping what the guest takes, for [`Rng::take_record`] by whoever the signal belongs to.
    pub(crate) fn set_recording(&mut self, record: Option<TakenSignal>) {
        self.record = record.map(|signal| Record { signal, bytes: Vec::new() });
    }

    /// What the guest took since the last call, if it took something and it is being recorded.
    pub fn take_record(&mut self) -> Option<Vec<u8>> {
        self.record.as_mut().map(|record| mem::take(&mut record.bytes)).filter(|bytes| !bytes.is_empty())
    }

    /// Bytes that go to the guest before those of the source.
    pub fn supply(&mut self, bytes: Vec<u8>) {
        self.supplied.extend(bytes);
    }

    /// What the device did in this process.
    pub fn metrics(&self) -> RngMetrics {
        self.metrics
    }
}

impl VirtioDevice for Rng {
    type State = RngState;

    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
    const QUEUE_SIZES_MAX: &'static [u16] = &[64];

    fn offered_features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) {}

    fn process(
        &mut self,
        _queue_index: usize,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
    ) -> Result<Progress, QueueError> {
        let Self { source, taken_bytes, supplied, record, metrics, chain } = self;
        queue.serve(memory, chain, |chain| {
            let len = usize::try_from(chain.writable_bytes()).unwrap_or(REQUEST_BYTES_MAX).min(REQUEST_BYTES_MAX);
            if len == 0 {
                return Err(QueueError::ShortChain);
            }
            let mut bytes = [0; REQUEST_BYTES_MAX];
            let bytes = &mut bytes[..len];
            let from_supply = supplied.len().min(len);
            let (first, rest) = bytes.split_at_mut(from_supply);
            for (byte, supplied) in first.iter_mut().zip(supplied.drain(..from_supply)) {
                *byte = supplied;
            }
            if !rest.is_empty() {
                source.fill(rest).map_err(|error| {
                    tracing::error!(%error, "entropy source failed");
                    metrics.source_errors += 1;
                    QueueError::NoEntropy
                })?;
            }
            if let Some(record) = record {
                record.bytes.extend_from_slice(bytes);
                record.signal.raise();
            }
            *taken_bytes = taken_bytes.wrapping_add(len as u64);
            chain.write(memory, 0, bytes)?;
            metrics.requests += 1;
            metrics.bytes += len as u64;
            Ok(len as u32)
        })
    }

    fn reset(&mut self) {}

    fn save(&self) -> RngState {
        RngState { taken_bytes: self.taken_bytes }
    }
}
