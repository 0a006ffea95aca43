//! What every store does, and what each does when something fails.

mod access;
mod bad_days;
mod conformance;
mod etcd;
mod files;
mod impostor;
mod leases;
mod members;
mod proxy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::store::{Change, Changes, Op, Outcome, Store};

/// Longer than anything takes that does not hang.
pub const HUNG: Duration = Duration::from_secs(60);

/// A store that is there for one test.
pub trait Place: Sync {
    /// Another client of it.
    fn client(&self) -> Arc<dyn Store>;
}

impl<F: Fn() -> Arc<dyn Store> + Sync> Place for F {
    fn client(&self) -> Arc<dyn Store> {
        self()
    }
}

/// Writes without a condition.
pub fn put(store: &dyn Store, key: &str, value: &[u8]) -> u64 {
    match store.transact(&[], &[Op::Put { key, value, lease: None }]).unwrap() {
        Outcome::Done { revision } => revision,
        Outcome::Conflict => panic!("a transaction without compares had a conflict"),
    }
}

/// The keys under a prefix.
pub fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().entries.into_iter().map(|(key, _)| key).collect()
}

/// Watches until as many changes have come; those, and the revision to go on from.
pub fn changes(store: &dyn Store, prefix: &str, since: u64, count: usize) -> (u64, Vec<Change>) {
    let (mut since, mut seen) = (since, Vec::new());
    let deadline = Instant::now() + HUNG;
    while seen.len() < count {
        assert!(Instant::now() < deadline, "a watch has seen only {seen:?}");
        match store.watch(prefix, since, Duration::from_secs(1)).unwrap() {
            Changes::Seen { revision, changes } => {
                assert!(revision >= since);
                since = revision;
                seen.extend(changes);
            }
            Changes::Compacted => panic!("what was watched is forgotten"),
        }
    }
    (since, seen)
}
