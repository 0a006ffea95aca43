use spec::{DatastoreName, EngineKind, FailureDomain, HostName, ReplicaId};
use thiserror::Error;

/// Why a replica cannot be placed on a host, as a sentence about the host.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WhyNot {
    /// A VM's two replicas are never on one host.
    #[error("runs the VM itself")]
    IsPrimary,
    /// What takes the primary's host may take it too.
    #[error(
        "is in failure domain {own} and host {primary}, which runs the VM, in {of_primary}: one fault may take both"
    )]
    SameDomain {
        /// Its domain.
        own: FailureDomain,
        /// The primary's host.
        primary: ReplicaId,
        /// The domain of that.
        of_primary: FailureDomain,
    },
    /// It is on one machine with the primary's host.
    #[error(
        "is on one machine with host {0}, which runs the VM: set `domain` in host.toml of both where that is to count as two"
    )]
    SameMachine(ReplicaId),
    /// Nothing is known of the primary's host.
    #[error("may fail together with host {0}, which runs the VM, and of which the cluster knows nothing")]
    UnknownDomain(ReplicaId),
    /// Its lease has ended.
    #[error("has not been heard of {}", silence(*silent_ms))]
    LeaseEnded {
        /// For how long, in ms; none if a machine was booted since.
        silent_ms: Option<u64>,
    },
    /// The cluster does not know it.
    #[error("is not a host of the cluster")]
    NotRegistered,
    /// It takes no replicas until its maintenance is over.
    #[error("is in maintenance")]
    InMaintenance,
    /// It does not have the VM's engine.
    #[error("cannot run engine {0}")]
    NoEngine(EngineKind),
    /// It cannot be the processor that the guest was told it has, for the reason that is given.
    #[error("cannot be the VM's processor: {0}")]
    OtherProcessor(String),
    /// Its processor is not an x86-64-v3, which the VM's spec asks for.
    #[error("has no x86-64-v3 for guests: its KVM does not offer {missing}")]
    TooLittleProcessor {
        /// What of it is missing.
        missing: String,
    },
    /// It does not reach a bridge.
    #[error("is not connected to network {0}")]
    NoNetwork(String),
    /// It does not reach a datastore.
    #[error("does not reach datastore {0}")]
    NoDatastore(DatastoreName),
    /// Hosts share the VM's disks, of which a secondary would have its own.
    #[error(
        "cannot be given a copy of disks on datastore {0}, which hosts share: such a VM is restarted by HA instead"
    )]
    SharedDisks(DatastoreName),
    /// It has no run lease, under which it could start what others may start after it.
    #[error("has no run lease just now")]
    NoRunLease,
    /// It is on another machine than the user-mode connections of the VM.
    #[error("is on another machine, and the VM's user-mode networks exist on one machine only: use bridges")]
    OtherMachine,
    /// Not enough memory.
    #[error("has {} MiB of memory free, {} MiB are needed", free_bytes >> 20, needed_bytes >> 20)]
    TooLittleMemory {
        /// What a replica needs.
        needed_bytes: u64,
        /// What is not reserved.
        free_bytes: u64,
    },
    /// Not enough vCPUs.
    #[error("has {free} vCPUs free, {needed} are needed")]
    TooFewCpus {
        /// What a replica needs.
        needed: u32,
        /// What is not reserved.
        free: u32,
    },
    /// It failed a short while ago.
    #[error("failed {} ({message}); next attempt in {}", times(*count), span(*retry_in_ms))]
    FailedLately {
        /// How often.
        count: u32,
        /// What went wrong the last time.
        message: String,
        /// When it is tried again, in ms from now.
        retry_in_ms: u64,
    },
    /// Its copy of the disks is older than another one.
    #[error(
        "has an older copy of the disks than {0}: to start there loses what was written since, and has to be forced"
    )]
    OlderDisks(HostName),
    /// It has never had a replica of the VM.
    #[error("has no copy of the VM's disks")]
    NoDisks,
}

fn silence(silent_ms: Option<u64>) -> String {
    silent_ms.map_or_else(|| "since this host looks".to_owned(), |ms| format!("for {}", span(ms)))
}

/// A time span in words, rounded.
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms.saturating_add(500) / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{count} times"),
    }
}
