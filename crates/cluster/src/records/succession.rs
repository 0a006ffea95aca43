//! [`succession`]: which of two daemons with the same identity serves a host.

use std::time::Duration;

use super::{BootTime, HostRecord};

/// For how long a daemon waits at most for the lease of another one of its identity to end. A store may make it last longer than it was granted
/// for, as etcd does when its leader is lost.
const LEASE_PATIENCE: Duration = Duration::from_secs(7);

/// What a daemon does whose host was registered by another instance before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It registers in place of that instance, which has ended.
    Register,
    /// It looks again: that instance may have ended, and its lease has not.
    Wait,
    /// It ends, as another daemon serves the host.
    Refused,
}

/// What a daemon of `host` does that has waited for so long since it found the record `before`; `found` is what the record is now. An instance with the
/// same folder on the same machine has ended, as the folder is locked. Of any other it is awaited that its lease ends, which it does not if it is renewed.
pub fn succession(
    before: &HostRecord,
    found: &HostRecord,
    host: &HostRecord,
    now: &BootTime,
    waited: Duration,
) -> Succession {
    if (&before.boot_id, &before.folder) == (&host.boot_id, &host.folder) || !found.is_alive(now) {
        Succession::Register
    } else if waited > LEASE_PATIENCE || found.instance != before.instance {
        Succession::Refused
    } else {
        Succession::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Lease, UnknownFields};
    use super::*;

    fn record(instance: &str, folder: &str, ttl_ms: u64) -> HostRecord {
        HostRecord {
            name: "a".parse().unwrap(),
            api_address: ([127, 0, 0, 1], 1).into(),
            replication_ip: [127, 0, 0, 1].into(),
            boot_id: "boot".to_owned(),
            domain: None,
            cpus: 1,
            memory_bytes: 1 << 30,
            engines: Vec::new(),
            kvm_processor: None,
            networks: Vec::new(),
            reached: Default::default(),
            maintenance: Default::default(),
            lease: Lease { renewed_boot_ms: 0, renewed_unix_ms: 0, ttl_ms },
            version: String::new(),
            instance: instance.to_owned(),
            folder: folder.into(),
            unknown: UnknownFields::default(),
        }
    }

    #[test]
    fn a_second_daemon_of_an_identity_waits_for_a_lease_that_ends_and_for_no_other() {
        let (alive, ended) = (record("1", "/a", u64::MAX), record("1", "/a", 0));
        let second = record("2", "/b", u64::MAX);
        let now = BootTime { boot_id: "boot".to_owned(), ms: 1000 };
        let decide =
            |found: &HostRecord, waited_s| succession(&alive, found, &second, &now, Duration::from_secs(waited_s));
        assert_eq!(decide(&alive, 1), Succession::Wait);
        assert_eq!(decide(&ended, 1), Succession::Register);
        assert_eq!(decide(&alive, 8), Succession::Refused);
        // Somebody else was quicker.
        assert_eq!(decide(&record("3", "/c", u64::MAX), 1), Succession::Refused);
    }

    #[test]
    fn whoever_has_the_folder_knows_that_the_instance_before_has_ended() {
        let (before, next) = (record("1", "/a", u64::MAX), record("2", "/a", u64::MAX));
        let now = BootTime { boot_id: "boot".to_owned(), ms: 1000 };
        assert_eq!(succession(&before, &before, &next, &now, Duration::ZERO), Succession::Register);
    }
}
