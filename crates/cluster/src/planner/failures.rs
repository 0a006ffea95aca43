use std::collections::BTreeMap;

use spec::{HostName, VmName};

/// How long a host is left alone after it has failed once, in ms.
pub const BACKOFF_MS_MIN: u64 = 1_000;
/// How long it is left alone at most, in ms.
pub const BACKOFF_MS_MAX: u64 = 60_000;
/// How long after its last failure a host counts as good as new, in ms.
pub const FORGIVEN_AFTER_MS: u64 = 600_000;

/// Attempts to make a host the secondary of a VM that have failed, or did not last.
///
/// Success does not clear them, time does: a secondary that is too slow is lost again right after each first sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    failures: BTreeMap<(VmName, HostName), Failure>,
}

/// The failures of one host with one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How many, each less than [`FORGIVEN_AFTER_MS`] after the one before.
    pub count: u32,
    /// When the last one was, in ms since the machine was booted.
    pub last_ms: u64,
    /// What went wrong then.
    pub message: String,
}

impl Failure {
    /// When to try again, in ms since the machine was booted.
    pub fn retry_ms(&self) -> u64 {
        let doublings = self.count.saturating_sub(1).min(32);
        self.last_ms.saturating_add((BACKOFF_MS_MIN << doublings).min(BACKOFF_MS_MAX))
    }

    fn is_forgiven(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_ms) > FORGIVEN_AFTER_MS
    }
}

impl Failures {
    /// None.
    pub const NONE: Self = Self { failures: BTreeMap::new() };

    /// Notes that `host` could not be made or kept as the secondary of `vm`.
    pub fn note(&mut self, vm: &VmName, host: &HostName, message: &str, now_ms: u64) {
        self.failures.retain(|_, failure| !failure.is_forgiven(now_ms));
        let key = (vm.clone(), host.clone());
        let count = self.failures.get(&key).map_or(0, |failure| failure.count);
        let message = message.to_owned();
        let failure = Failure { count: count.saturating_add(1), last_ms: now_ms, message };
        self.failures.insert(key, failure);
    }

    /// Forgets those of a VM: somebody has asked for another attempt.
    pub fn forget(&mut self, vm: &VmName) {
        self.failures.retain(|(failed, _), _| failed != vm);
    }

    /// Those of a host with a VM, unless they are forgiven.
    pub fn of(&self, vm: &VmName, host: &HostName, now_ms: u64) -> Option<&Failure> {
        // Nearly always there is none, and planning asks for each host.
        if self.failures.is_empty() {
            return None;
        }
        let failure = self.failures.get(&(vm.clone(), host.clone()))?;
        (!failure.is_forgiven(now_ms)).then_some(failure)
    }
}
