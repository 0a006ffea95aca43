//! virtio-rng: a source of entropy (virtio 1.2, section 5.4).

mod device;
mod entropy;
mod metrics;
mod state;

pub use device::Rng;
pub use entropy::{EntropySource, OsEntropy, SeededEntropy};
pub use metrics::RngMetrics;
pub use state::RngState;
