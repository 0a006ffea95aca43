use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use spec::{EngineKind, HostName};

use super::UnknownFields;

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
    /// vCPUs that its VMs may have in all.
    pub cpus: u32,
    /// Memory that its VMs may have in all.
    pub memory_bytes: u64,
    /// Engines that it can run, the preferred one first.
    pub engines: Vec<EngineKind>,
    /// Bridges that its VMs can be connected to.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Named storage that it reaches.
    #[serde(default)]
    pub datastores: Vec<String>,
    /// Until when it counts as alive.
    pub lease: Lease,
    /// Version of the program that it runs.
    pub version: String,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// A host's sign of life. It guides planning only: no replica is ever stopped or taken over because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// When the host renewed it, by its own clock, in ms since 1970.
    pub renewed_unix_ms: u64,
    /// For how long that is good, in ms.
    pub ttl_ms: u64,
}

impl Lease {
    /// Whether it is good now. One that was renewed long in the future, by a clock that is wrong, is not.
    pub fn is_alive(&self, now_unix_ms: u64) -> bool {
        self.renewed_unix_ms.abs_diff(now_unix_ms) <= self.ttl_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_and_forgives_clocks_that_differ_a_little() {
        let lease = Lease { renewed_unix_ms: 10_000, ttl_ms: 3_000 };
        let alive: Vec<bool> =
            [6_999, 7_000, 10_000, 13_000, 13_001, u64::MAX].iter().map(|&now| lease.is_alive(now)).collect();
        assert_eq!(alive, [false, true, true, true, false, false]);
    }
}
