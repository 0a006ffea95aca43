//! [`Voice`]: what a secondary says to its primary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Ack, DiskWatch, Epoch, Silence};

use super::super::clock;
use super::super::message::{self, Kind};
use super::super::secondary::SecondaryHandle;
use crate::channel::{ChannelError, Sender};
use crate::disk::DiskSet;
use crate::lockstep::ExecutorProgress;

/// How often it is looked whether more of the log was executed: as often as segments end while nobody waits for them.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(5);

/// What the threads that send to the primary share.
pub(super) struct Voice {
    sender: Mutex<Sender>,
    /// What is said next.
    ack: Mutex<Ack>,
    ended: AtomicBool,
    executed: Arc<ExecutorProgress>,
    secondary: SecondaryHandle,
}

impl Voice {
    pub fn new(sender: Sender, secondary: SecondaryHandle) -> Self {
        Self {
            sender: Mutex::new(sender),
            ack: Mutex::default(),
            ended: AtomicBool::new(false),
            executed: Arc::default(),
            secondary,
        }
    }

    fn next_ack(&self) -> MutexGuard<'_, Ack> {
        self.ack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Heartbeat `number` was heard just now, which `silence` knows.
    pub fn has_heard(&self, number: u64, silence: &Silence) {
        self.next_ack().hears(number, silence);
    }

    /// Everything through `epoch` is held.
    pub fn holds(&self, epoch: Epoch) {
        self.next_ack().holds(epoch);
    }

    /// Nothing more is said by the thread that beats.
    pub fn falls_silent(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// How far the log was executed.
    pub fn executed(&self) -> &Arc<ExecutorProgress> {
        &self.executed
    }

    pub fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), ChannelError> {
        let mut sender: MutexGuard<'_, Sender> = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(kind, &[payload])?;
        sender.flush()
    }

    /// Says what is held and heard: the ack of a checkpoint, and the secondary's heartbeat.
    pub fn ack(&self) -> Result<(), ChannelError> {
        let Ack { epoch, heard, patience } = *self.next_ack();
        let ack = message::Ack {
            epoch,
            heard,
            patience_us: u32::try_from(patience.as_micros()).unwrap_or(u32::MAX),
            executed: self.executed.instructions(),
            digests: self.executed.digests(),
            reaches_network: self.secondary.reaches_network(),
            sent_at: clock::now(),
        };
        // A structure of integers always serializes.
        self.send(Kind::Ack, &postcard::to_stdvec(&ack).unwrap_or_default())
    }

    /// Says it every `interval`, soon after more of the log was executed, as the primary's guest waits for that, and soon after each heartbeat
    /// of a first copy, by which the primary measures how fast that is taken in. A disk that hangs keeps other threads from saying so.
    pub fn beat(&self, interval: Duration, disks: &DiskSet, watch: DiskWatch) {
        while !self.ended.load(Ordering::Acquire) {
            let (said, due) = (self.executed.instructions(), Instant::now() + interval);
            let Ack { heard, .. } = *self.next_ack();
            if watch.is_broken(disks.health()) {
                // A primary that does not hear it finds it silent. Only then is it logged: the log may be where the disks are.
                let _ = self.send(Kind::Failed, b"a request to its disks does not end");
                tracing::error!("a disk does not answer: this secondary could not take over");
                return;
            }
            if self.ack().is_err() {
                return;
            }
            loop {
                thread::sleep(due.saturating_duration_since(Instant::now()).min(PROGRESS_INTERVAL));
                let next = *self.next_ack();
                let is_news = self.executed.instructions() != said || next.epoch.is_none() && next.heard != heard;
                if Instant::now() >= due || is_news || self.ended.load(Ordering::Acquire) {
                    break;
                }
            }
        }
    }
}
