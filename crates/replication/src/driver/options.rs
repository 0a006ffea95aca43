//! Times and bounds of a mirrored VM.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use machine::triple_fault::TripleFaults;
use protocol::{DISK_PATIENCE, Suspicion};
use spec::{FtMode, ReplicaId};

use super::console::ConsoleHistory;
use crate::disk::CopyMark;

/// More threads than these would fill a link of 10 Gbit/s with pages that compress badly.
const ENCODING_THREADS_MAX: usize = 4;

/// Times and bounds of a mirrored VM.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// This host's name.
    pub host: ReplicaId,
    /// How the VM is replicated once it has a secondary.
    pub mode: FtMode,
    /// Silence after which the peer is suspected to be dead: 10 ms to 60 s.
    pub suspicion: Suspicion,
    /// Longest epoch while no output waits: 5 ms to 10 s.
    pub epoch_length_max: Duration,
    /// Pages written that end an epoch.
    pub dirty_pages_max: u64,
    /// Bytes of disk writes that end an epoch.
    pub log_bytes_max: u64,
    /// Memory for the last sent versions of pages, in bytes.
    pub cache_bytes_max: u64,
    /// Most threads that encode pages of one checkpoint, at least 1.
    pub encoding_threads: usize,
    /// Lockstep: how far the secondary may be behind before the guest has to wait for it.
    pub lag_max: Duration,
    /// Where to keep the states of two replicas that turned out to differ, if anywhere.
    pub evidence_folder: Option<PathBuf>,
    /// A secondary for which the guest has had to wait half of its time or more for so long is given up.
    pub too_slow_after: Duration,
    /// Where it is noted what this host's copy of the disks is, if anywhere.
    pub copy_mark: Option<CopyMark>,
    /// A request to a disk that takes longer hangs, and its disk is broken.
    pub disk_patience: Duration,
    /// Where triple faults of the guest are counted, over all its resets.
    pub triple_faults: Arc<TripleFaults>,
    /// What the guest has written to its console, if a secondary is to keep it.
    pub console: Option<Arc<dyn ConsoleHistory>>,
}

impl MirrorOptions {
    /// The defaults.
    pub fn new(host: ReplicaId) -> Self {
        Self {
            host,
            mode: FtMode::Mirror,
            lag_max: Duration::from_millis(100),
            evidence_folder: None,
            suspicion: Suspicion::up_to(Duration::from_millis(100)),
            epoch_length_max: Duration::from_millis(50),
            dirty_pages_max: 8192,
            log_bytes_max: 16 << 20,
            cache_bytes_max: 64 << 20,
            // The other half of the host's processors is the guest's.
            encoding_threads: (thread::available_parallelism().map_or(1, usize::from) / 2)
                .clamp(1, ENCODING_THREADS_MAX),
            too_slow_after: Duration::from_secs(10),
            copy_mark: None,
            disk_patience: DISK_PATIENCE,
            triple_faults: Arc::default(),
            console: None,
        }
    }
}
