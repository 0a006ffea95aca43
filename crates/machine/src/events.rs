//! What a guest asks of the machine as a whole: power off, reset, help.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// A request by the guest that only the run loop can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest wants a reset.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's kernel panicked and a crash kernel takes over: the VM goes on.
    CrashLoaded,
}

impl GuestEvent {
    const ALL: [Self; 4] = [Self::Panicked, Self::CrashLoaded, Self::Reset, Self::PowerOff];

    fn bit(self) -> u8 {
        match self {
            Self::PowerOff => 1,
            Self::Reset => 2,
            Self::Panicked => 4,
            Self::CrashLoaded => 8,
        }
    }
}

/// The events raised and not yet taken. Devices raise them during an access; the run loop takes them right after that
/// access, so none is pending when a VM is saved.
#[derive(Debug, Default)]
pub struct GuestEvents {
    raised: AtomicU8,
}

impl GuestEvents {
    /// No event raised.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Raises an event; raising it twice before it is taken is raising it once.
    pub fn raise(&self, event: GuestEvent) {
        self.raised.fetch_or(event.bit(), Ordering::AcqRel);
    }

    /// Whether there is something to take.
    #[inline]
    pub fn any(&self) -> bool {
        self.raised.load(Ordering::Acquire) != 0
    }

    /// Takes one event: a panic before the reset or power-off that may follow it.
    pub fn take(&self) -> Option<GuestEvent> {
        let raised = self.raised.load(Ordering::Acquire);
        let event = GuestEvent::ALL.into_iter().find(|event| raised & event.bit() != 0)?;
        self.raised.fetch_and(!event.bit(), Ordering::AcqRel);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_once_and_panic_first() {
        let events = GuestEvents::new();
        assert!(!events.any() && events.take().is_none());
        for event in [GuestEvent::PowerOff, GuestEvent::Panicked, GuestEvent::Panicked] {
            events.raise(event);
        }
        assert!(events.any());
        assert_eq!(events.take(), Some(GuestEvent::Panicked));
        assert_eq!(events.take(), Some(GuestEvent::PowerOff));
        assert_eq!(events.take(), None);
    }
}
