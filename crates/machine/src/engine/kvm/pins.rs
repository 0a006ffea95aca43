//! The interrupt pins as the kernel's I/O APIC knows them.

use std::sync::Mutex;

use crate::bus::lock;

/// Carries the levels of pins to the kernel, for any number of threads.
#[derive(Debug, Default)]
pub(super) struct PinCarrier {
    /// The levels that the kernel was told.
    told: Mutex<u32>,
}

impl PinCarrier {
    /// Tells the kernel, by `tell`, of each pin whose level is another one than it was told. `levels` is read under the lock: read before
    /// it, a level could replace a newer one that another thread has told meanwhile, and an interrupt would be lost.
    pub fn carry<E>(
        &self,
        levels: impl FnOnce() -> u32,
        mut tell: impl FnMut(u32, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut told = lock(&self.told);
        let levels = levels();
        let mut changed = *told ^ levels;
        while changed != 0 {
            let pin = changed.trailing_zeros();
            tell(pin, levels >> pin & 1 == 1)?;
            *told ^= 1 << pin;
            changed &= changed - 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// One thread has just read the levels when a pin is raised and a second thread carries that.
    #[test]
    fn a_stale_level_does_not_replace_a_newer_one() {
        let (carrier, pins, kernel) = (PinCarrier::default(), AtomicU32::new(0), AtomicU32::new(0));
        let tell = |pin: u32, level: bool| {
            let bit = 1 << pin;
            if level {
                kernel.fetch_or(bit, Ordering::AcqRel)
            } else {
                kernel.fetch_and(!bit, Ordering::AcqRel)
            };
            Ok::<(), Infallible>(())
        };
        let (done, second_is_done) = channel();
        thread::scope(|scope| {
            let stale = || {
                let levels = pins.load(Ordering::Acquire);
                pins.store(0b100, Ordering::Release);
                let (carrier, pins, done) = (&carrier, &pins, done.clone());
                scope.spawn(move || {
                    let Ok(()) = carrier.carry(|| pins.load(Ordering::Acquire), tell);
                    let _ = done.send(());
                });
                // It has to wait for the lock; without one it is through by then.
                let _ = second_is_done.recv_timeout(Duration::from_millis(100));
                levels
            };
            let Ok(()) = carrier.carry(stale, tell);
        });
        assert_eq!(kernel.load(Ordering::Acquire), 0b100);
    }

    #[test]
    fn what_could_not_be_told_is_told_again() {
        let carrier = PinCarrier::default();
        let refuse_pin_2 = |pin: u32, _: bool| if pin == 2 { Err(()) } else { Ok(()) };
        assert_eq!(carrier.carry(|| 0b1110, refuse_pin_2), Err(()));
        let mut told = Vec::new();
        let note = |pin, level| {
            told.push((pin, level));
            Ok::<(), Infallible>(())
        };
        let Ok(()) = carrier.carry(|| 0b1110, note);
        assert_eq!(told, [(2, true), (3, true)]);
    }
}
