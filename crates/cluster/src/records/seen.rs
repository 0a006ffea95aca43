//! When hosts were last seen alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use spec::HostName;

use super::{HostRecord, Lease};
use crate::store::boot_ms_now;

/// For how long it is believed that a host is alive after it was seen to be, in ms: the store is read more often.
const BELIEVED_MS: u64 = 3_000;

/// When one reader of the store has last seen each host alive.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<HostName, Lease>>>);

impl Seen {
    /// Notes whether a host has a lease now, in what was read of it.
    pub fn note(&self, host: &mut HostRecord, is_alive: bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_alive {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            host.lease = Lease {
                renewed_boot_ms: boot_ms_now(),
                renewed_unix_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
                ttl_ms: BELIEVED_MS,
            };
            seen.insert(host.name.clone(), host.lease);
        } else {
            let registered = Lease { renewed_boot_ms: 0, ..host.lease };
            host.lease = Lease { ttl_ms: 0, ..seen.get(&host.name).copied().unwrap_or(registered) };
        }
    }
}
