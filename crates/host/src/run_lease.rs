//! The host's run lease: renewed by its daemon, written down for the brokers of what runs under it (see [`cluster::controller::RunLease`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use cluster::controller::{RUN_LEASE_MS, RunLease};
use cluster::records::{Cluster, ClusterError};
use cluster::store::{LeaseId, boot_ms_now};
use machine::bus::lock;
use spec::HostName;
use storage::plain_file;

/// Longest file that says what the lease is, in bytes.
const BYTES_MAX: u64 = 1 << 10;

/// Where a host writes down what its run lease is.
fn file(host_folder: &Path) -> PathBuf {
    host_folder.join("run-lease.json")
}

/// What a host has written down of its run lease.
pub fn read(host_folder: &Path) -> Option<RunLease> {
    serde_json::from_slice(&plain_file::read(&file(host_folder), BYTES_MAX).ok()?).ok()
}

/// The run lease that a daemon holds for its host.
pub struct HeldRunLease {
    host_folder: PathBuf,
    boot_id: String,
    held: Mutex<Option<Held>>,
}

struct Held {
    lease: RunLease,
    /// Since when it has been good without a break, in ms since the machine was booted.
    since_ms: u64,
}

impl HeldRunLease {
    /// The one that the daemon before this one held, if it did: what runs under it goes on. It counts as held when it was renewed.
    pub fn of(host_folder: &Path, boot_id: &str) -> Self {
        let found = read(host_folder).filter(|lease| lease.boot_id == boot_id);
        let held = found.map(|lease| Held { lease, since_ms: boot_ms_now() });
        Self { host_folder: host_folder.to_owned(), boot_id: boot_id.to_owned(), held: Mutex::new(held) }
    }

    /// For how long it has been held without a break, in ms; none if VMs cannot be started under it now.
    pub fn held_ms(&self, now_ms: u64) -> Option<u64> {
        let held = lock(&self.held);
        held.as_ref().filter(|held| held.lease.is_good(now_ms)).map(|held| now_ms.saturating_sub(held.since_ms))
    }

    /// Its number, for a VM that is started under it now.
    pub fn id(&self, now_ms: u64) -> Option<u64> {
        lock(&self.held).as_ref().filter(|held| held.lease.is_good(now_ms)).map(|held| held.lease.id)
    }

    /// Renews it, or takes another one when the store says that it has ended.
    pub fn keep(&self, cluster: &Cluster, host: &HostName) -> Result<(), ClusterError> {
        let id = lock(&self.held).as_ref().map(|held| held.lease.id);
        if let Some(id) = id {
            let asked_ms = boot_ms_now();
            if cluster.renew_run_lease(LeaseId(id))? {
                return self.note(|held| {
                    if let Some(held) = held {
                        // By now, rather than when it was asked: what ran under it may have been ended meanwhile.
                        held.since_ms = if held.lease.is_good(boot_ms_now()) { held.since_ms } else { asked_ms };
                        held.lease.renewed(asked_ms);
                    }
                });
            }
            *lock(&self.held) = None;
        }
        let asked_ms = boot_ms_now();
        let lease = cluster.take_run_lease(host, Duration::from_millis(RUN_LEASE_MS))?;
        self.note(|held| {
            let lease = RunLease::granted(lease.0, self.boot_id.clone(), asked_ms);
            *held = Some(Held { lease, since_ms: asked_ms });
        })
    }

    /// Changes what is held, and writes it down. If that fails, brokers renew the lease themselves.
    fn note(&self, change: impl FnOnce(&mut Option<Held>)) -> Result<(), ClusterError> {
        let mut held = lock(&self.held);
        change(&mut held);
        let text = held.as_ref().and_then(|held| serde_json::to_vec(&held.lease).ok()).unwrap_or_default();
        let (file, new) = (file(&self.host_folder), self.host_folder.join("run-lease.json.new"));
        // Not to be seen half written; nor need it survive the machine.
        if let Err(error) = plain_file::write_anew(&new, &text).and_then(|()| fs::rename(&new, &file)) {
            tracing::warn!("{} cannot be written: {error}", file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cluster::store::{StoreLocation, Stores};

    use super::*;

    #[test]
    fn the_next_daemon_keeps_the_lease_and_one_that_has_ended_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let location = StoreLocation::File(folder.path().join("cluster.db"));
        let cluster = Cluster::new(Stores::create(&location, None).unwrap());
        let host: HostName = "a".parse().unwrap();
        let first = HeldRunLease::of(folder.path(), "boot");
        assert_eq!(first.id(boot_ms_now()), None);
        first.keep(&cluster, &host).unwrap();
        let id = first.id(boot_ms_now()).unwrap();
        assert_eq!(read(folder.path()).unwrap().id, id);
        let next = HeldRunLease::of(folder.path(), "boot");
        next.keep(&cluster, &host).unwrap();
        assert_eq!(next.id(boot_ms_now()), Some(id));
        assert_eq!(HeldRunLease::of(folder.path(), "another boot").id(boot_ms_now()), None);
        cluster.end_lease(LeaseId(id)).unwrap();
        next.keep(&cluster, &host).unwrap();
        assert_ne!(next.id(boot_ms_now()).unwrap(), id);
        assert_eq!(Some(read(folder.path()).unwrap().id), next.id(boot_ms_now()));
    }
}
