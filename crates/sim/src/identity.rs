//! Two daemons with one identity: a bundle of keys that is used twice.

use std::time::Duration;

use cluster::records::{HostRecord, Succession, succession};

use crate::coverage::Occurrence;
use crate::daemon::{SecondDaemon, hasty_ms, store_time};
use crate::mutation::Mutation;
use crate::time::{MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::World;

/// How long it takes until somebody starts a daemon again that has ended as another one had come in its place.
const RESTARTED_AFTER: Nanoseconds = 50 * MILLISECOND;

impl World {
    /// Another daemon of the host's identity is started, from a folder of its own.
    pub fn second_daemon_starts(&mut self, host: usize) {
        let second = SecondDaemon { before: self.records.hosts[host].clone(), since: self.now };
        self.hosts[host].second.get_or_insert(second);
    }

    /// What the second daemon does, as `host::registry`.
    pub fn look_at_identity(&mut self, host: usize) {
        let Some(second) = self.hosts[host].second.take() else { return };
        let now = store_time(self.now);
        let found = &self.records.hosts[host];
        let is_served = self.has_daemon(host) && found.is_alive(&now);
        let own = HostRecord { folder: "second".into(), instance: "second".to_owned(), ..second.before.clone() };
        let waited = Duration::from_millis(hasty_ms(self.now - second.since));
        let becomes = succession(&second.before, found, &own, &now, waited);
        match becomes {
            _ if self.mutation == Some(Mutation::ServeTwice) && is_served => {
                self.broken(Violation::ServedTwice(self.name(host)));
            }
            Succession::Wait => self.hosts[host].second = Some(second),
            Succession::Refused => self.coverage.note(Occurrence::SecondRefused),
            Succession::Register if is_served => self.broken(Violation::ServedTwice(self.name(host))),
            Succession::Register => self.records.hosts[host].instance = own.instance,
        }
    }

    /// A daemon renews its lease, and notes what its clock says; whether it may go on. One that finds itself succeeded ends.
    pub fn renews_lease(&mut self, host: usize) -> bool {
        let record = &mut self.records.hosts[host];
        if record.instance != self.hosts[host].daemon.instance {
            self.coverage.note(Occurrence::Succeeded);
            self.daemon_is_killed(host, RESTARTED_AFTER);
            return false;
        }
        record.lease.renewed_boot_ms = hasty_ms(self.now);
        record.lease.renewed_unix_ms = self.hosts[host].boot_clock.ms(self.now);
        true
    }
}
