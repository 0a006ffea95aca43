//! Timers of libslirp: those that announce the network to guests over IPv6.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use libslirp_sys as sys;

/// The timers of one instance. They are few, and are never freed before the instance is: libslirp's handles are their places in the list.
#[derive(Default)]
pub(super) struct Timers(RefCell<Vec<Timer>>);

struct Timer {
    callback: sys::SlirpTimerCb,
    opaque: *mut c_void,
    /// When it is due, in ms of libslirp's clock.
    expires_at_ms: Cell<Option<i64>>,
}

impl Timers {
    /// Makes one that is not set; its handle is never null.
    pub fn add(&self, callback: sys::SlirpTimerCb, opaque: *mut c_void) -> *mut c_void {
        let mut timers = self.0.borrow_mut();
        timers.push(Timer { callback, opaque, expires_at_ms: Cell::new(None) });
        std::ptr::without_provenance_mut(timers.len())
    }

    /// Sets when a timer is due, or that it is not.
    pub fn set(&self, handle: *mut c_void, expires_at_ms: Option<i64>) {
        let timers = self.0.borrow();
        if let Some(timer) = handle.addr().checked_sub(1).and_then(|index| timers.get(index)) {
            timer.expires_at_ms.set(expires_at_ms);
        }
    }

    /// How long it is until the next one is due, in ms.
    pub fn wait_ms(&self, now_ms: i64) -> Option<u32> {
        let timers = self.0.borrow();
        let next = timers.iter().filter_map(|timer| timer.expires_at_ms.get()).min()?;
        Some(u32::try_from(next.saturating_sub(now_ms).max(0)).unwrap_or(u32::MAX))
    }

    /// Takes those that are due: what to call, and with what.
    pub fn take_due(&self, now_ms: i64) -> Vec<(sys::SlirpTimerCb, *mut c_void)> {
        let timers = self.0.borrow();
        let due = timers.iter().filter(|timer| timer.expires_at_ms.get().is_some_and(|at| at <= now_ms));
        due.map(|timer| {
            timer.expires_at_ms.set(None);
            (timer.callback, timer.opaque)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_once_each_time_it_is_set() {
        let timers = Timers::default();
        let (first, second) = (timers.add(None, std::ptr::null_mut()), timers.add(None, std::ptr::null_mut()));
        assert!(!first.is_null() && first != second);
        assert_eq!((timers.wait_ms(0), timers.take_due(i64::MAX).len()), (None, 0));
        timers.set(first, Some(100));
        timers.set(second, Some(70));
        assert_eq!((timers.wait_ms(50), timers.wait_ms(200)), (Some(20), Some(0)));
        assert_eq!(timers.take_due(70).len(), 1);
        assert_eq!((timers.take_due(99).len(), timers.take_due(100).len(), timers.take_due(i64::MAX).len()), (0, 1, 0));
        timers.set(first, Some(300));
        timers.set(first, None);
        timers.set(std::ptr::null_mut(), Some(1));
        assert_eq!(timers.wait_ms(0), None);
    }
}
