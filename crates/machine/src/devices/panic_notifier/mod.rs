//! The panic notifier: QEMU's pvpanic device (QEMU `docs/specs/pvpanic.rst`), one port.
//!
//! Reading gives the events that the machine understands, writing raises them. The device has no state.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::events::{GuestEvent, GuestEvents};

/// The guest panicked.
const PANICKED: u8 = 1;
/// The guest panicked and its crash kernel takes over.
const CRASH_LOADED: u8 = 2;

/// The panic notifier.
pub struct PanicNotifier {
    requests: Arc<GuestEvents>,
}

impl PanicNotifier {
    /// A panic notifier that raises its events there.
    pub fn new(requests: Arc<GuestEvents>) -> Self {
        Self { requests }
    }
}

impl BusDevice for PanicNotifier {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (0, Some(events)) = (offset, data.first()) else { return };
        if events & PANICKED != 0 {
            self.requests.raise(GuestEvent::Panicked);
        }
        if events & CRASH_LOADED != 0 {
            self.requests.raise(GuestEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::hostile::hammer;

    #[test]
    fn panics_reach_the_run_loop() {
        let events = GuestEvents::new();
        let mut notifier = PanicNotifier::new(events.clone());
        let mut data = [0xff; 2];
        notifier.read(0, &mut data);
        assert_eq!(data, [3, 0xff]);
        notifier.write(0, &[0x80]);
        assert_eq!(events.take(), None);
        notifier.write(0, &[PANICKED]);
        assert_eq!(events.take(), Some(GuestEvent::Panicked));
        notifier.write(0, &[CRASH_LOADED]);
        assert_eq!(events.take(), Some(GuestEvent::CrashLoaded));
    }

    #[test]
    fn no_access_does_harm() {
        hammer(&mut PanicNotifier::new(GuestEvents::new()), 1, |_, _| {});
    }
}
