//! Broken parts of a primary: network ends that are gone, disks that fail, fill or hang.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use protocol::{DiskAdvice, DiskHealth, DiskWatch, DropReason, Event, StopReason};

use super::refusal::NotPaused;
use super::{Course, Primary, Shared};
use crate::disk::DiskFault;
use crate::driver::clock;

/// How often the disks are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Primary {
    /// Looks whether all cards have their network ends. If one has gone without for too long, and the secondary reaches its own, the VM is handed
    /// over.
    pub fn look_at_network(&self) {
        let could_move = self.shared.could_move();
        let is_whole = self.shared.gate.unplugged().is_empty();
        let mut uplink = self.shared.uplink.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = uplink.look(is_whole, could_move, clock::now());
        drop(uplink);
        if is_due {
            tracing::warn!("a network end is gone, and does not come back: the VM is handed over");
            if let Err(error) = self.switch_over() {
                tracing::warn!(%error, "the VM is not handed over");
            }
        }
    }

    /// Why another replica goes on, if a request to a disk that does not end may keep this one from ending: its process had better end at once.
    pub fn hangs_after_its_end(&self) -> Option<StopReason> {
        let health = DiskHealth { has_failed: false, ..self.shared.disks.health() };
        self.shared.core().stop.filter(|_| self.shared.disk_watch.is_broken(health))
    }
}

impl Shared {
    /// Refuses what needs the VM paused properly while a disk is broken.
    pub(super) fn refuse_if_halted(&self) -> Result<(), NotPaused> {
        match self.disk_faults().pop() {
            Some(fault) => Err(NotPaused::Halted(fault)),
            None => Ok(()),
        }
    }

    /// Whether the VM could go on at the secondary.
    fn could_move(&self) -> bool {
        let core = self.core();
        core.session.as_ref().is_some_and(|session| core.replica.could_move(session.reaches_network()))
    }

    /// Looks after the disks, in a thread of its own, until the run is over.
    pub(super) fn watch_disks(self: &Arc<Self>) -> std::io::Result<()> {
        let (shared, mut watch) = (Arc::downgrade(self), self.disk_watch);
        thread::Builder::new().name("disk-watch".to_owned()).spawn(move || {
            while Weak::upgrade(&shared).is_some_and(|shared| shared.look_at_disks(&mut watch)) {
                thread::sleep(LOOK_INTERVAL);
            }
        })?;
        Ok(())
    }

    /// Whether the guest stands still since a disk is broken.
    pub(super) fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Acquire)
    }

    pub(super) fn disk_faults(&self) -> Vec<DiskFault> {
        self.disks.faults(self.options.disk_patience)
    }

    /// False: the run is over.
    fn look_at_disks(self: &Arc<Self>, watch: &mut DiskWatch) -> bool {
        if self.core().course == Course::Over {
            return false;
        }
        let advice = watch.look(self.disks.health(), self.could_move());
        self.is_halted.store(advice.is_broken(), Ordering::Release);
        if advice.is_broken() {
            // A thread that waits for a disk hears of it afterwards.
            self.control.pause();
            self.say_of_first_copy("a disk of the primary is broken");
        }
        if let Some(event) = Event::of_disks(advice) {
            // The guest's thread is woken, too.
            self.event(None, event);
        }
        self.look_at_hand_over();
        // Last: the log may be where the disks are.
        match advice {
            DiskAdvice::GiveUp => tracing::error!("the disks are broken: the secondary is asked to take over"),
            DiskAdvice::Hold { is_new: true } => tracing::error!("the disks are broken: the guest stands still"),
            DiskAdvice::Recovered => tracing::warn!("the disks are sound again"),
            DiskAdvice::GoOn | DiskAdvice::Hold { is_new: false } => {}
        }
        true
    }

    /// Gives up a secondary that was asked to take over and does not, while the VM's thread is kept from looking by a disk.
    fn look_at_hand_over(self: &Arc<Self>) {
        let core = self.core();
        let session = core.session.as_ref().filter(|_| core.is_handing_over).map(|session| session.id);
        drop(core);
        if session.is_some() && self.is_halted() && self.patience().hands_over(clock::now()) {
            self.event(session, Event::DropSecondary { reason: DropReason::TooSlow });
        }
    }
}
