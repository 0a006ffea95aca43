//! [`EarlyCopier`]: copies what a guest wrote early in an epoch while it goes on, so that its pause covers what it wrote last.
//!
//! This is for engines whose vCPUs nobody can stop at the first write to a page: what they wrote is copied before they go on, or while they
//! do and then again if they write to it. Each round leaves what was written during the round before, and a round is faster than writing
//! anew to pages that were protected for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use machine::control::Control;
use machine::engine::{DirtyLog, EngineError};
use memory::encoding::CapturedPages;
use memory::{GuestRam, Harvest};
use protocol::{EarlyRounds, are_copied_early};

/// Copies of pages of the epoch under way.
#[derive(Default)]
pub(super) struct EarlyCopies {
    /// The pages that were taken from the dirty ones. Those that were not copied, or were written to since, are dirty again.
    pub harvest: Option<Harvest>,
    /// The copies.
    pub pages: CapturedPages,
}

/// What the copier's thread has to do.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    /// Nothing.
    #[default]
    None,
    /// To copy, and then to pause the guest.
    Copy,
    /// Nothing before the guest goes on: it was told to pause, and copying would hold the VM's thread up.
    Pausing,
    /// To end.
    End,
}

/// Shared by the thread that copies, the VM's thread, which takes the copies, and those who find that a checkpoint is due.
pub(super) struct EarlyCopier {
    log: Arc<dyn DirtyLog>,
    ram: GuestRam,
    /// Checkpoints are being taken. Changed while `copies` is held.
    is_active: AtomicBool,
    copies: Mutex<EarlyCopies>,
    /// Pages of the epoch that are not dirty any more, as they were harvested.
    held: AtomicU64,
    /// Somebody waits for `copies`.
    hurry: AtomicBool,
    order: Mutex<Order>,
    ordered: Condvar,
}

impl EarlyCopier {
    /// A copier of `ram`, whose dirty pages are in `log`; it does nothing yet.
    pub fn new(log: Arc<dyn DirtyLog>, ram: GuestRam) -> Self {
        Self {
            log,
            ram,
            is_active: AtomicBool::new(false),
            copies: Mutex::default(),
            held: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            order: Mutex::default(),
            ordered: Condvar::new(),
        }
    }

    fn copies(&self) -> MutexGuard<'_, EarlyCopies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copies, at once: the thread that copies leaves off.
    fn hurried_copies(&self) -> MutexGuard<'_, EarlyCopies> {
        self.hurry.store(true, Ordering::Release);
        let copies = self.copies();
        self.hurry.store(false, Ordering::Release);
        copies
    }

    fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there are epochs.
    pub fn begin(&self) {
        let _copies = self.hurried_copies();
        self.is_active.store(true, Ordering::Release);
    }

    /// There are no epochs any more: what was copied is dirty again, and no log is kept.
    pub fn stop(&self) {
        let mut copies = self.hurried_copies();
        self.is_active.store(false, Ordering::Release);
        copies.harvest = None;
        copies.pages.clear();
        self.held.store(0, Ordering::Release);
        if let Err(error) = self.log.stop() {
            tracing::warn!(%error, "the log of dirty pages goes on");
        }
    }

    /// Takes the copies, for the checkpoint that ends the epoch.
    pub fn take(&self) -> EarlyCopies {
        let mut copies = self.hurried_copies();
        self.held.store(0, Ordering::Release);
        std::mem::take(&mut *copies)
    }

    /// How many pages were written in the epoch under way, as far as is known; some may be counted twice. Nobody asks the log while there
    /// are no epochs: it would be kept from then on.
    pub fn epoch_pages(&self) -> u64 {
        if self.is_active() { self.dirty_pages() + self.held.load(Ordering::Acquire) } else { 0 }
    }

    /// How many pages are dirty, as far as is known.
    pub fn dirty_pages(&self) -> u64 {
        // What fails here fails in the pause as well, where it is told.
        let _ = self.log.observe();
        self.ram.dirty_pages_estimate()
    }

    /// Pauses the guest once little is left to copy then.
    pub fn pause_soon(&self, control: &Control) {
        let mut order = self.order();
        if *order != Order::None {
            return;
        }
        if !self.is_active() || !are_copied_early(self.dirty_pages()) {
            control.pause();
            return;
        }
        *order = Order::Copy;
        drop(order);
        self.ordered.notify_one();
    }

    /// The guest goes on after a pause.
    pub fn goes_on(&self) {
        let mut order = self.order();
        if *order == Order::Pausing {
            *order = Order::None;
        }
    }

    /// Ends [`EarlyCopier::work`].
    pub fn end(&self) {
        *self.order() = Order::End;
        self.ordered.notify_one();
    }

    /// What the copier's thread does: copies and pauses the guest when it is told to. `buffer` gives a buffer for copies.
    pub fn work(&self, control: &Control, buffer: impl Fn() -> CapturedPages) {
        loop {
            let mut order = self.order();
            while matches!(*order, Order::None | Order::Pausing) {
                order = self.ordered.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
            if *order == Order::End {
                return;
            }
            drop(order);
            if let Err(error) = self.copy_while_it_pays(&buffer) {
                tracing::debug!(%error, "pages are copied in the pause");
            }
            let mut order = self.order();
            if *order == Order::Copy {
                *order = Order::Pausing;
            }
            drop(order);
            control.pause();
        }
    }

    fn copy_while_it_pays(&self, buffer: &impl Fn() -> CapturedPages) -> Result<(), EngineError> {
        let mut rounds = EarlyRounds::default();
        loop {
            let mut copies = self.copies();
            if !self.is_active() || self.hurry.load(Ordering::Acquire) {
                return Ok(());
            }
            self.log.observe()?;
            if !rounds.goes_on(self.ram.dirty_pages_estimate()) {
                return Ok(());
            }
            if copies.harvest.is_none() {
                copies.pages = buffer();
            }
            self.copy_round(&mut copies)?;
        }
    }

    /// Copies what is dirty.
    fn copy_round(&self, copies: &mut EarlyCopies) -> Result<(), EngineError> {
        // Taken first, then copied: whatever is written from here on makes its page dirty again.
        let harvest = self.log.harvest()?;
        let pages: Vec<u64> = harvest.pages().collect();
        self.held.fetch_add(harvest.len(), Ordering::AcqRel);
        match &mut copies.harvest {
            Some(earlier) => earlier.merge(harvest),
            earlier => *earlier = Some(harvest),
        }
        let before = copies.pages.len();
        let unhurried = pages.iter().copied().take_while(|_| !self.hurry.load(Ordering::Acquire));
        copies.pages.append(&self.ram, unhurried);
        let copied = copies.pages.len() - before;
        pages.iter().skip(copied).for_each(|&page| self.ram.mark_logged_page(page));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memory::PAGE_BYTES;
    use protocol::EARLY_PAGES_LEFT;

    use super::*;

    const PAGES: u64 = 4096;

    /// Stands for a kernel that has nothing to say: what is written here is known at once.
    struct Log(GuestRam);

    impl DirtyLog for Log {
        fn observe(&self) -> Result<(), EngineError> {
            Ok(())
        }

        fn harvest(&self) -> Result<Harvest, EngineError> {
            Ok(self.0.harvest())
        }

        fn stop(&self) -> Result<(), EngineError> {
            Ok(())
        }
    }

    fn write(ram: &GuestRam, page: u64, value: u8) {
        assert!(ram.write_offset(page * PAGE_BYTES, &[value]));
    }

    fn copier() -> (EarlyCopier, GuestRam) {
        let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
        let copier = EarlyCopier::new(Arc::new(Log(ram.clone())), ram.clone());
        copier.begin();
        (copier, ram)
    }

    #[test]
    fn the_pause_is_left_with_what_was_written_last() {
        let (copier, ram) = copier();
        (0..1000).for_each(|page| write(&ram, page, 1));
        copier.copy_while_it_pays(&CapturedPages::new).unwrap();
        assert_eq!((ram.dirty_pages_estimate(), copier.epoch_pages()), (0, 1000));
        [5, 2000].into_iter().for_each(|page| write(&ram, page, 2));
        assert_eq!(copier.epoch_pages(), 1002);
        let mut copies = copier.take();
        let last = ram.harvest();
        copies.pages.append(&ram, last.pages());
        let pages: Vec<_> = copies.pages.iter().map(|(page, content)| (page, content[0])).collect();
        assert_eq!(pages.len(), 1001);
        assert!(pages.contains(&(5, 2)) && pages.contains(&(2000, 2)) && pages.contains(&(999, 1)));
        // What no secondary has acknowledged is dirty again.
        drop((copies, last));
        assert_eq!(ram.dirty_pages_estimate(), 1001);
        assert_eq!(copier.epoch_pages(), 1001);
    }

    #[test]
    fn pages_that_there_was_no_time_for_stay_dirty() {
        let (copier, ram) = copier();
        (0..1000).for_each(|page| write(&ram, page, 1));
        copier.hurry.store(true, Ordering::Release);
        copier.copy_round(&mut copier.copies()).unwrap();
        assert_eq!(ram.dirty_pages_estimate(), 1000);
        let copies = copier.take();
        assert!(copies.pages.is_empty() && copies.harvest.is_some_and(|harvest| harvest.len() == 1000));
    }

    #[test]
    fn what_was_copied_for_a_session_that_ended_is_dirty_again() {
        let (copier, ram) = copier();
        (0..1000).for_each(|page| write(&ram, page, 1));
        copier.copy_while_it_pays(&CapturedPages::new).unwrap();
        copier.stop();
        assert_eq!((ram.dirty_pages_estimate(), copier.epoch_pages()), (1000, 0));
        copier.copy_while_it_pays(&CapturedPages::new).unwrap();
        assert_eq!(ram.dirty_pages_estimate(), 1000, "nothing is copied while there are no epochs");
    }

    #[test]
    fn little_is_left_to_the_pause_at_once_and_much_is_copied_before_it() {
        let (copier, ram) = copier();
        let control = Control::new().unwrap();
        copier.pause_soon(&control);
        assert!(*copier.order() == Order::None);
        (0..=EARLY_PAGES_LEFT).for_each(|page| write(&ram, page, 1));
        copier.pause_soon(&control);
        assert!(*copier.order() == Order::Copy);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| copier.work(&control, CapturedPages::new));
            while *copier.order() == Order::Copy {
                std::thread::yield_now();
            }
            copier.end();
            worker.join().unwrap();
        });
        assert_eq!(copier.take().pages.len() as u64, EARLY_PAGES_LEFT + 1);
    }

    /// Between the copier's end and the pause more is written, and others ask for the same pause again.
    #[test]
    fn nothing_is_copied_while_the_guest_is_about_to_pause() {
        let (copier, ram) = copier();
        let control = Control::new().unwrap();
        *copier.order() = Order::Pausing;
        (0..=EARLY_PAGES_LEFT).for_each(|page| write(&ram, page, 1));
        copier.pause_soon(&control);
        assert!(*copier.order() == Order::Pausing);
        copier.goes_on();
        copier.pause_soon(&control);
        assert!(*copier.order() == Order::Copy);
        copier.goes_on();
        assert!(*copier.order() == Order::Copy, "a pause for something else takes no order away");
    }
}
