//! Driver and device in threads of their own, each of which sleeps as soon as it may: no request and no answer is left lying.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use machine::bus::lock;
use machine::devices::virtio::rng::{Rng, SeededEntropy};
use machine::devices::virtio::testing::{Buffer, GuestDriver};
use machine::devices::virtio::{MmioTransport, NotifiedDevice};
use machine::irq::{IrqPin, IrqPins};
use memory::GuestRam;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const REQUESTS: u16 = 20_000;
/// How long a side may sleep before it has overslept.
const HUNG: Duration = Duration::from_secs(60);

#[test]
fn neither_side_oversleeps_with_event_indices() {
    ping(1 << VIRTIO_RING_F_EVENT_IDX);
}

#[test]
fn neither_side_oversleeps_without_event_indices() {
    ping(0);
}

fn ping(features: u64) {
    let (ram, pins) = (GuestRam::new(256 << 20).unwrap(), IrqPins::new());
    let rng = Rng::new(Box::new(SeededEntropy::new(1, 0)));
    let mut device = MmioTransport::new(rng, ram.dma().clone(), IrqPin::new(&pins, 5));
    let mut driver = GuestDriver::new(&ram);
    driver.start(&mut device, features, 16);
    let device = Arc::new(Mutex::new(device));
    let (notify, notified) = channel();
    let is_over = AtomicBool::new(false);
    let has_event_idx = features != 0;
    thread::scope(|scope| {
        let (served, is_over) = (&device, &is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Acquire) {
                match notified.recv_timeout(Duration::from_millis(100)) {
                    Ok(()) => {
                        lock(served).notified(0);
                        while lock(served).serve_notified() {}
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        let (mut posted, mut used) = (0_u16, 0_u16);
        let since = Instant::now();
        while used < REQUESTS && since.elapsed() < HUNG {
            while posted < REQUESTS && posted - used < 8 {
                driver.post(0, &[Buffer::In(1)]);
                fence(Ordering::SeqCst);
                // Virtio 1.2, 2.7.10: it is notified of the request that it names, and of no other.
                if !has_event_idx || driver.avail_event(0) == posted {
                    notify.send(()).unwrap();
                }
                posted += 1;
            }
            driver.set_used_event(0, used);
            fence(Ordering::SeqCst);
            let before = used;
            while driver.take_used(0).is_some() {
                used += 1;
            }
            // Nothing has come: sleeps until it is interrupted.
            while used == before && pins.levels() == 0 && since.elapsed() < HUNG {
                thread::yield_now();
            }
            if pins.levels() != 0 {
                driver.write_register(&mut *lock(&device), VIRTIO_MMIO_INTERRUPT_ACK, 1);
            }
        }
        is_over.store(true, Ordering::Release);
        assert_eq!(used, REQUESTS, "of {posted} requests");
    });
}
