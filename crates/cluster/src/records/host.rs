use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::{CpuOffer, DatastoreName, EngineKind, FailureDomain, HostName, Maintenance};

use super::{DatastoreSpace, UnknownFields};
use crate::store::BootTime;

/// What a host offers, and its lease: the host itself writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its name.
    pub name: HostName,
    /// Where its REST API listens.
    pub api_address: SocketAddr,
    /// Where its secondaries listen; each chooses its port.
    pub replication_ip: IpAddr,
    /// The boot of the machine that it runs on (`/proc/sys/kernel/random/boot_id`): hosts with the same one are processes of one
    /// machine, and reach the same Unix sockets.
    pub boot_id: String,
    /// What it fails together with; none if nobody has said so, and that is its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<FailureDomain>,
    /// vCPUs that its VMs may have in all.
    pub cpus: u32,
    /// Memory that its VMs may have in all.
    pub memory_bytes: u64,
    /// Engines that it can run, the preferred one first.
    pub engines: Vec<EngineKind>,
    /// Which processors its KVM can give to guests; none if it has no KVM, or is of a version that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_processor: Option<CpuOffer>,
    /// Bridges that its VMs can be connected to.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Datastores that it reaches, as it has measured last.
    #[serde(default)]
    pub reached: BTreeMap<DatastoreName, DatastoreSpace>,
    /// Whether its VMs are to leave it, and no others come.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Whether it is alive, as whoever has read this sees it. In the store it says when the host has registered.
    pub lease: Lease,
    /// Version of the program that it runs.
    pub version: String,
    /// Which run of its daemon wrote this, by an identifier that is new at each start: two daemons with one identity must not both serve it.
    #[serde(default)]
    pub instance: String,
    /// The folder that the daemon serves. Of two daemons with one folder on one machine, the second finds it locked.
    #[serde(default)]
    pub folder: PathBuf,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl HostRecord {
    /// How long ago the host was last seen alive, in ms; none if it never was by whoever has read this.
    pub fn silent_ms(&self, now: &BootTime) -> Option<u64> {
        (self.lease.renewed_boot_ms > 0 || self.lease.ttl_ms > 0)
            .then(|| now.ms.saturating_sub(self.lease.renewed_boot_ms))
    }

    /// Whether this host and another one may be lost by one fault, and so must not hold the two replicas of a VM: one of their failure domains lies in the
    /// other. Of a host without a domain it is known only on which machine it is.
    pub fn shares_domain(&self, other: &Self) -> bool {
        match (&self.domain, &other.domain) {
            (Some(own), Some(others)) => own.overlaps(others),
            _ => self.boot_id == other.boot_id,
        }
    }

    /// Whether its lease is good.
    pub fn is_alive(&self, now: &BootTime) -> bool {
        self.lease.ttl_ms > 0 && self.silent_ms(now).is_some_and(|silent_ms| silent_ms <= self.lease.ttl_ms)
    }
}

/// A host's sign of life: its lease in the store, as one reader sees it. Times are the reader's, so that nobody compares those of two machines. It guides
/// planning only: no replica is ever stopped or taken over because of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// When it was last seen to be good, in ms since the reader's machine was booted ([`BootTime`]); 0 if it never was.
    #[serde(default)]
    pub renewed_boot_ms: u64,
    /// The same by the calendar, in ms since 1970: for people to read. Nothing is decided by it, as it may be set.
    pub renewed_unix_ms: u64,
    /// For how long what was seen then is good, in ms; 0 if the lease has ended.
    pub ttl_ms: u64,
}

/// For how long it is believed that a host is alive after it was seen to be, in ms: the store is read more often.
const BELIEVED_MS: u64 = 3_000;

impl Lease {
    /// What a reader makes of a lease that the store has just said to be good, or not, now by the reader's clocks. `before` is what it made of it
    /// last, if it did; `self` what whoever holds the lease has written, whose clocks say nothing to the reader.
    #[must_use]
    pub fn seen(self, is_good: bool, before: Option<Self>, now_boot_ms: u64, now_unix_ms: u64) -> Self {
        if is_good {
            return Self { renewed_boot_ms: now_boot_ms, renewed_unix_ms: now_unix_ms, ttl_ms: BELIEVED_MS };
        }
        Self { ttl_ms: 0, ..before.unwrap_or(Self { renewed_boot_ms: 0, ..self }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_good_from_when_its_reader_has_seen_it_by_its_own_clocks() {
        // Whoever holds it was booted long ago, and has its calendar ahead.
        let written = Lease { renewed_boot_ms: 1 << 40, renewed_unix_ms: 1 << 50, ttl_ms: 9_000 };
        let seen = written.seen(true, None, 500, 70);
        assert_eq!(seen, Lease { renewed_boot_ms: 500, renewed_unix_ms: 70, ttl_ms: BELIEVED_MS });
        assert_eq!(written.seen(false, Some(seen), 900, 80), Lease { ttl_ms: 0, ..seen });
        assert_eq!(written.seen(false, None, 900, 80), Lease { renewed_boot_ms: 0, ttl_ms: 0, ..written });
    }

    #[test]
    fn a_lease_that_was_seen_is_good_for_a_while_whatever_the_calendar_says() {
        let host = HostRecord {
            name: "a".parse().unwrap(),
            api_address: "127.0.0.1:1".parse().unwrap(),
            replication_ip: "127.0.0.1".parse().unwrap(),
            boot_id: "one".to_owned(),
            domain: None,
            cpus: 1,
            memory_bytes: 1,
            engines: Vec::new(),
            kvm_processor: None,
            networks: Vec::new(),
            reached: Default::default(),
            maintenance: Default::default(),
            // The calendar was an hour ahead when it was written.
            lease: Lease { renewed_boot_ms: 10_000, renewed_unix_ms: 3_610_000, ttl_ms: 3_000 },
            version: String::new(),
            instance: String::new(),
            folder: PathBuf::new(),
            unknown: UnknownFields::default(),
        };
        let at = |boot: &str, ms| host.is_alive(&BootTime { boot_id: boot.to_owned(), ms });
        assert_eq!([10_000, 13_000, 13_001, u64::MAX].map(|ms| at("one", ms)), [true, true, false, false]);
        // Where the host is does not matter: the time is that of who looks.
        assert!(at("two", 10_000));
        let ended = Lease { renewed_boot_ms: 10_000, renewed_unix_ms: 3_610_000, ttl_ms: 0 };
        let now = BootTime { boot_id: "one".to_owned(), ms: 10_500 };
        let host = HostRecord { lease: ended, ..host };
        assert_eq!((host.is_alive(&now), host.silent_ms(&now)), (false, Some(500)));
        let never_seen = HostRecord { lease: Lease { renewed_boot_ms: 0, ..ended }, ..host };
        assert_eq!((never_seen.is_alive(&now), never_seen.silent_ms(&now)), (false, None));
    }
}
