//! Device work off the vCPUs: notifications and requests that a thread of the engine's serves.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_QUEUE_NOTIFY};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Platform;
use crate::bus::{Shared, lock};
use crate::control::{Control, descriptor};
use crate::devices::virtio::{Interrupt, NotifiedDevice, RegisterPages};

/// A write of the guest that needs no answer: it makes `event` readable in place of reaching the device.
pub struct Notification {
    /// Guest-physical address of the register written.
    pub address: u64,
    /// The value written: the number of a queue. Others reach the device.
    pub queue: u32,
    /// What the engine has to write to.
    pub event: EventFd,
    /// Whose register it is.
    device: usize,
}

/// What a platform with queued requests has beside one without.
#[derive(Default)]
pub(super) struct Queueing {
    notifications: Vec<Notification>,
    /// For each disk, what is readable when requests of it have been done.
    ended: Vec<EventFd>,
    /// Address of each `InterruptACK` register, and what is acknowledged there.
    interrupts: Vec<(u64, Arc<Interrupt>)>,
    registers: Option<RegisterPages>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Somebody asked for something, or frames wait: see [`Platform::collect_inputs`].
    pub inputs: bool,
    /// Queues were notified of, or requests done: see [`Platform::serve_queues`].
    pub queues: bool,
}

impl Platform {
    /// From now on disks do their requests by threads of their own, and [`Platform::notifications`] may be taken by the engine. It
    /// waits by [`Platform::wait_for_work`] in place of [`Platform::wait_for_input`].
    ///
    /// # Errors
    /// The host's.
    pub fn queue_requests(&mut self) -> io::Result<()> {
        let mut queueing = Queueing::default();
        let registers = RegisterPages::new(self.virtio.len());
        for (device, slot) in self.virtio.iter().enumerate() {
            let interrupt = lock(&slot.device).detach(registers.page(device));
            queueing.interrupts.push((slot.base + u64::from(VIRTIO_MMIO_INTERRUPT_ACK), interrupt));
            let address = slot.base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
            for queue in 0..slot.queues {
                let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
                queueing.notifications.push(Notification { address, queue, event, device });
            }
        }
        for disk in &self.disks {
            queueing.ended.push(lock(disk).device_mut().queue_requests()?);
        }
        queueing.registers = Some(registers);
        self.queueing = queueing;
        Ok(())
    }

    /// The writes that need not reach a device by a vCPU.
    pub fn notifications(&self) -> &[Notification] {
        &self.queueing.notifications
    }

    /// What all registers of virtio devices read as, from [`crate::map::VIRTIO_MMIO`] on.
    pub fn registers(&self) -> Option<&RegisterPages> {
        self.queueing.registers.as_ref()
    }

    /// The guest writes device memory: if that acknowledges an interrupt it is done here, without a wait for the device, which may be at work.
    /// False if it is something else, for [`Platform::mmio_write`].
    pub fn acknowledge_interrupt(&self, address: u64, data: &[u8]) -> bool {
        let Ok(bits) = data.try_into().map(u32::from_le_bytes) else { return false };
        let interrupt = self.queueing.interrupts.iter().find(|(register, _)| *register == address);
        if let Some((_, interrupt)) = interrupt {
            interrupt.acknowledge(bits);
        }
        interrupt.is_some()
    }

    /// Does what the VM had under way when it was saved: requests to disks, and queues that were notified of. To be called before the
    /// guest runs; afterwards there is nothing, until the platform is restored again.
    pub fn carry_on(&self) {
        for disk in &self.disks {
            lock(disk).carry_on();
        }
        for slot in &self.virtio {
            let mut device = lock(&slot.device);
            // Each round takes something, and no queue has more entries than this: a guest that stands still adds none.
            for _ in 0..=u16::MAX {
                if !device.serve_notified() {
                    break;
                }
            }
        }
    }

    /// Sleeps until there is something to do, or `timeout` is over. Notifications are taken here.
    ///
    /// # Errors
    /// The host's.
    pub fn wait_for_work(&self, control: &Control, timeout: Option<Duration>) -> io::Result<Ready> {
        let Queueing { notifications, ended, .. } = &self.queueing;
        let mut fds = Vec::with_capacity(notifications.len() + ended.len() + 2 + self.cards.len());
        let events = notifications.iter().map(|notification| &notification.event).chain(ended);
        fds.extend(events.map(|event| PollFd::from_borrowed_fd(descriptor(event), PollFlags::IN)));
        let inputs_from = fds.len();
        self.push_input_fds(control, &mut fds);
        let timeout = timeout.map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let (queues, inputs) = fds.split_at(inputs_from);
        let mut ready = Ready { inputs: inputs.iter().any(is_ready), queues: false };
        for (number, _) in queues.iter().enumerate().filter(|(_, fd)| is_ready(fd)) {
            ready.queues = true;
            match notifications.get(number) {
                Some(notification) => self.take_notification(notification),
                // Made unreadable before the requests are looked at.
                None => drop(ended.get(number - notifications.len()).map(EventFd::read)),
            }
        }
        Ok(ready)
    }

    fn take_notification(&self, notification: &Notification) {
        // An error means that there was none.
        if notification.event.read().is_ok()
            && let Some(slot) = self.virtio.get(notification.device)
        {
            lock(&slot.device).notified(notification.queue);
        }
    }

    /// Looks at queues that were notified of, and answers requests that have been done. True if there is more to do at once.
    pub fn serve_queues(&self) -> bool {
        for disk in &self.disks {
            lock(disk).answer_requests();
        }
        let mut has_more = false;
        for slot in &self.virtio {
            has_more |= lock(&slot.device).serve_notified();
        }
        // A frame that found no room outside goes when there is some, which only those hear of who ask.
        for card in &self.cards {
            let waits = lock(&card.device).device().has_waiting_tx();
            card.transmit_waits.store(waits, Ordering::Release);
        }
        has_more
    }

    /// Takes what the guest notified of and nobody has looked at, so that it is part of the state. To be called when all vCPUs have stopped.
    pub fn keep_notifications(&self) {
        self.queueing.notifications.iter().for_each(|notification| self.take_notification(notification));
    }

    pub(super) fn push_input_fds<'a>(&'a self, control: &'a Control, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::from_borrowed_fd(control.wake_fd(), PollFlags::IN));
        fds.push(PollFd::from_borrowed_fd(descriptor(&self.wake), PollFlags::IN));
        for card in self.cards.iter().filter(|card| card.connected.load(Ordering::Acquire)) {
            let mut flags = PollFlags::IN;
            if card.transmit_waits.load(Ordering::Acquire) {
                flags |= PollFlags::OUT;
            }
            fds.push(PollFd::from_borrowed_fd(card.poll.as_fd(), flags));
        }
    }
}

pub(super) fn timespec(timeout: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    }
}

/// A virtio device's place on the bus.
pub(super) struct VirtioSlot {
    pub device: Shared<dyn NotifiedDevice>,
    /// Address of its first register.
    pub base: u64,
    pub queues: u32,
}

#[cfg(test)]
mod tests;
