//! The entropy device.

use memory::DmaMemory;

use super::entropy::EntropySource;
use super::metrics::RngMetrics;
use super::state::RngState;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::device::{Progress, VirtioDevice};
use crate::devices::virtio::queue::{QueueError, VirtQueue};

/// Most bytes given for one buffer; the driver asks again (virtio 1.2, 5.4.6: the device may use part of a buffer).
const REQUEST_BYTES_MAX: usize = 4096;

/// A virtio-rng device.
pub struct Rng {
    source: Box<dyn EntropySource>,
    taken_bytes: u64,
    metrics: RngMetrics,
    chain: Chain,
}

impl Rng {
    /// A device as after power-on.
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self::restore(RngState { taken_bytes: 0 }, source)
    }

    /// A device that goes on where `state` was saved. A source whose bytes must not repeat or skip stands at
    /// [`RngState::taken_bytes`].
    pub fn restore(state: RngState, source: Box<dyn EntropySource>) -> Self {
        Self { source, taken_bytes: state.taken_bytes, metrics: RngMetrics::default(), chain: Chain::default() }
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
        let Self { source, taken_bytes, metrics, chain } = self;
        queue.serve(memory, chain, |chain| {
            let len = usize::try_from(chain.writable_bytes()).unwrap_or(REQUEST_BYTES_MAX).min(REQUEST_BYTES_MAX);
            if len == 0 {
                return Err(QueueError::ShortChain);
            }
            let mut bytes = [0; REQUEST_BYTES_MAX];
            let bytes = &mut bytes[..len];
            source.fill(bytes).map_err(|error| {
                tracing::error!(%error, "entropy source failed");
                metrics.source_errors += 1;
                QueueError::NoEntropy
            })?;
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
