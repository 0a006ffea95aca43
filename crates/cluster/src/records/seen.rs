//! When hosts were last seen alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use spec::HostName;

use super::{HostRecord, Lease};
use crate::store::boot_ms_now;

/// When one reader of the store has last seen each host alive.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<HostName, Lease>>>);

impl Seen {
    /// Notes whether a host has a lease now, in what was read of it.
    pub fn note(&self, host: &mut HostRecord, is_alive: bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        host.lease = host.lease.seen(is_alive, seen.get(&host.name).copied(), boot_ms_now(), now_unix_ms);
        if is_alive {
            seen.insert(host.name.clone(), host.lease);
        }
    }
}
