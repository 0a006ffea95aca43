//! [`Epochs`]: when an epoch ends, and which of those that have ended the secondary has acknowledged.

use spec::FtMode;

use std::collections::VecDeque;
use std::time::Duration;

use super::{Epoch, InputPath, MonotonicTime};

/// Most checkpoints that are captured and not acknowledged: bounds what either side holds in memory.
const IN_FLIGHT_MAX: usize = 3;
/// How many times its bounds an epoch may be over before the guest has to wait for the secondary.
const PATIENCE: u32 = 4;

/// Bounds of an epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochBounds {
    /// Its longest time while nothing waits for it.
    pub length_max: Duration,
    /// Pages written that end it.
    pub dirty_pages_max: u64,
    /// Bytes of disk writes that end it.
    pub log_bytes_max: u64,
    /// Lockstep: how far the secondary's execution may be behind before the guest has to wait for it.
    pub lag_max: Duration,
}

/// How far the epoch under way is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Pages written in it, as far as is known.
    pub dirty_pages: u64,
    /// Bytes of its disk writes.
    pub log_bytes: u64,
}

/// What takes what the primary sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Nothing long waits or is being sent.
    pub is_idle: bool,
    /// There is no room for anything long.
    pub is_full: bool,
    /// Lockstep: age of the oldest part of the log that the secondary has not executed.
    pub lag: Duration,
}

impl Sending {
    /// Whether the secondary is behind with the log by more than it may be: what it does not take is not executed either.
    pub fn is_behind(&self, bounds: &EpochBounds) -> bool {
        self.is_full || self.lag > bounds.lag_max
    }
}

/// What to do with a VM that is paused, or whether to pause it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let the guest run on.
    Run,
    /// Take a checkpoint.
    Capture,
    /// Take checkpoints from now on in place of writing a log.
    EndLog,
    /// Let the guest wait: a checkpoint is overdue and the secondary has not taken the last ones yet, or it is behind in executing the log.
    Wait,
}

/// An epoch that the secondary has just been found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The epoch that the secondary holds.
    pub epoch: Epoch,
    /// When it ended: the guest was paused for the checkpoint, or the segment of the log was closed.
    pub ended_at: MonotonicTime,
}

/// The secondary acknowledges what was not sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secondary acknowledges epoch {0}, which was not sent")]
pub struct NotSent(Epoch);

/// The epochs of a VM since one secondary follows it, as its primary knows them.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    /// The first copy is over.
    has_begun: bool,
    /// The secondary follows the log; else it gets checkpoints.
    follows_log: bool,
    /// Ended and not acknowledged, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Last epoch of which all was sent, or is being sent: no later one can be acknowledged.
    sent_through: Epoch,
    /// The guest has sent something in the epoch under way, and it waits.
    output_waits: bool,
    /// When the epoch under way began.
    since: MonotonicTime,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    ended: Committed,
    is_checkpoint: bool,
}

impl Epochs {
    /// The first copy is over: epochs count from now on.
    pub fn begin(&mut self, now: MonotonicTime) {
        self.has_begun = true;
        self.since = now;
    }

    /// Whether the first copy is over.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the secondary follows the log.
    pub fn follows_log(&self) -> bool {
        self.follows_log
    }

    /// How the secondary comes to know of inbound frames that the primary takes now. What came during the first copy is in the first checkpoint.
    pub fn input_path(&self) -> InputPath {
        match (self.has_begun, self.follows_log) {
            (false, _) => InputPath::Unshared,
            (true, false) => InputPath::Forwarded,
            (true, true) => InputPath::Logged,
        }
    }

    /// The guest has sent something, and it waits.
    pub fn output_waits(&mut self) {
        self.output_waits = true;
    }

    /// The checkpoint that ends `epoch` was captured, in a pause that began at `paused_at` and is over; `then` says what follows it.
    /// Returns how long the epoch was.
    pub fn captured(&mut self, epoch: Epoch, then: FtMode, paused_at: MonotonicTime, now: MonotonicTime) -> Duration {
        self.follows_log = then == FtMode::Lockstep;
        self.end(InFlight { ended: Committed { epoch, ended_at: paused_at }, is_checkpoint: true }, now)
    }

    /// A segment of the log was closed, which ends `epoch`, and is being sent.
    pub fn segment_closed(&mut self, epoch: Epoch, now: MonotonicTime) {
        self.end(InFlight { ended: Committed { epoch, ended_at: now }, is_checkpoint: false }, now);
        self.sent(epoch);
    }

    /// The last segment of the log was closed: checkpoints follow.
    pub fn log_ended(&mut self, now: MonotonicTime) {
        self.follows_log = false;
        self.since = now;
    }

    fn end(&mut self, in_flight: InFlight, now: MonotonicTime) -> Duration {
        self.in_flight.push_back(in_flight);
        self.output_waits = false;
        in_flight.ended.ended_at.since(std::mem::replace(&mut self.since, now))
    }

    /// All of `epoch` is being sent: it may be acknowledged from now on.
    pub fn sent(&mut self, epoch: Epoch) {
        // Segments may wait already behind a checkpoint.
        self.sent_through = self.sent_through.max(epoch);
    }

    /// A fresh ack says that the secondary holds everything through `epoch`. Returns what it was not known to hold.
    ///
    /// # Errors
    /// [`NotSent`]: whoever says so is no secondary.
    pub fn acknowledged(&mut self, epoch: Epoch) -> Result<Vec<Committed>, NotSent> {
        if epoch > self.sent_through {
            return Err(NotSent(epoch));
        }
        let count = self.in_flight.iter().take_while(|in_flight| in_flight.ended.epoch <= epoch).count();
        Ok(self.in_flight.drain(..count).map(|in_flight| in_flight.ended).collect())
    }

    /// Checkpoints that were captured and not acknowledged.
    pub fn checkpoints_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|in_flight| in_flight.is_checkpoint).count()
    }

    /// Whether a checkpoint could be taken now.
    pub fn has_room(&self, sending: &Sending) -> bool {
        sending.is_idle && self.checkpoints_in_flight() < IN_FLIGHT_MAX
    }

    /// What to do, given how the VM is wanted to be replicated.
    pub fn decide(
        &self,
        bounds: &EpochBounds,
        wanted: FtMode,
        load: Load,
        sending: &Sending,
        now: MonotonicTime,
    ) -> Decision {
        match wanted {
            _ if !self.has_begun => Decision::Run,
            FtMode::Mirror if self.follows_log => Decision::EndLog,
            FtMode::Lockstep if self.follows_log => {
                if sending.is_behind(bounds) {
                    Decision::Wait
                } else {
                    Decision::Run
                }
            }
            FtMode::Mirror | FtMode::Lockstep => {
                let age = now.since(self.since);
                let over = |times: u32| {
                    age >= bounds.length_max.saturating_mul(times)
                        || load.dirty_pages > bounds.dirty_pages_max.saturating_mul(times.into())
                        || load.log_bytes > bounds.log_bytes_max.saturating_mul(times.into())
                };
                // The log begins with a checkpoint.
                let is_due = self.output_waits || wanted == FtMode::Lockstep || over(1);
                if !is_due {
                    Decision::Run
                } else if self.has_room(sending) {
                    Decision::Capture
                } else if over(PATIENCE) {
                    Decision::Wait
                } else {
                    Decision::Run
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: EpochBounds = EpochBounds {
        length_max: Duration::from_millis(100),
        dirty_pages_max: 1000,
        log_bytes_max: 1 << 20,
        lag_max: Duration::from_millis(30),
    };
    const NOTHING: Load = Load { dirty_pages: 0, log_bytes: 0 };
    const IDLE: Sending = Sending { is_idle: true, is_full: false, lag: Duration::ZERO };
    const BUSY: Sending = Sending { is_idle: false, ..IDLE };

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    fn begun() -> Epochs {
        let mut epochs = Epochs::default();
        epochs.begin(at(0));
        epochs
    }

    fn mirror(epochs: &Epochs, load: Load, sending: &Sending, ms: u64) -> Decision {
        epochs.decide(&BOUNDS, FtMode::Mirror, load, sending, at(ms))
    }

    #[test]
    fn output_ends_an_epoch_as_soon_as_there_is_room() {
        let mut epochs = begun();
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 1), Decision::Run);
        epochs.output_waits();
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 1), Decision::Capture);
        assert_eq!(mirror(&epochs, NOTHING, &BUSY, 1), Decision::Run);
        assert_eq!(epochs.captured(Epoch::new(1), FtMode::Mirror, at(2), at(3)), Duration::from_millis(2));
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 3), Decision::Run, "it waited for the epoch before");
    }

    #[test]
    fn time_pages_and_disk_writes_end_an_epoch_without_output() {
        let epochs = begun();
        assert_eq!(mirror(&epochs, Load { dirty_pages: 1001, ..NOTHING }, &IDLE, 1), Decision::Capture);
        assert_eq!(mirror(&epochs, Load { log_bytes: 2 << 20, ..NOTHING }, &IDLE, 1), Decision::Capture);
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 99), Decision::Run);
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 100), Decision::Capture);
    }

    #[test]
    fn a_slow_secondary_makes_the_guest_wait() {
        assert_eq!(mirror(&begun(), NOTHING, &BUSY, 399), Decision::Run);
        assert_eq!(mirror(&begun(), NOTHING, &BUSY, 400), Decision::Wait);
        assert_eq!(mirror(&Epochs::default(), NOTHING, &BUSY, 400), Decision::Run, "nobody follows yet");
        assert_eq!(Epochs::default().input_path(), InputPath::Unshared);
    }

    #[test]
    fn no_more_than_three_checkpoints_are_in_flight() {
        let mut epochs = begun();
        for number in 1..=3 {
            epochs.output_waits();
            assert_eq!(mirror(&epochs, NOTHING, &IDLE, number), Decision::Capture);
            epochs.captured(Epoch::new(number), FtMode::Mirror, at(number), at(number));
            epochs.sent(Epoch::new(number));
        }
        epochs.output_waits();
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 4), Decision::Run);
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 403), Decision::Wait);
        let committed = epochs.acknowledged(Epoch::new(1)).unwrap();
        assert_eq!(committed, [Committed { epoch: Epoch::new(1), ended_at: at(1) }]);
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 5), Decision::Capture);
    }

    #[test]
    fn what_was_not_sent_cannot_be_acknowledged() {
        let mut epochs = begun();
        epochs.captured(Epoch::new(7), FtMode::Mirror, at(1), at(1));
        assert_eq!(epochs.acknowledged(Epoch::new(7)), Err(NotSent(Epoch::new(7))));
        epochs.sent(Epoch::new(7));
        assert_eq!(epochs.acknowledged(Epoch::new(6)), Ok(vec![]));
        assert_eq!(epochs.acknowledged(Epoch::new(7)).unwrap().len(), 1);
        assert_eq!(epochs.acknowledged(Epoch::new(7)), Ok(vec![]), "an ack that comes again commits nothing");
        assert!(epochs.acknowledged(Epoch::new(8)).is_err());
    }

    #[test]
    fn a_change_of_mode_is_due_at_once() {
        let mut epochs = begun();
        let lockstep =
            |epochs: &Epochs, sending: &Sending| epochs.decide(&BOUNDS, FtMode::Lockstep, NOTHING, sending, at(1));
        assert_eq!(lockstep(&epochs, &BUSY), Decision::Run);
        assert_eq!(lockstep(&epochs, &IDLE), Decision::Capture);
        assert_eq!(epochs.input_path(), InputPath::Forwarded);
        epochs.captured(Epoch::new(1), FtMode::Lockstep, at(1), at(1));
        assert_eq!(lockstep(&epochs, &IDLE), Decision::Run);
        assert_eq!(epochs.input_path(), InputPath::Logged);
        assert_eq!(mirror(&epochs, NOTHING, &BUSY, 2), Decision::EndLog);
        epochs.log_ended(at(2));
        assert_eq!(epochs.input_path(), InputPath::Forwarded);
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 3), Decision::Run);
    }

    #[test]
    fn the_guest_waits_for_a_secondary_that_is_behind_with_the_log() {
        let mut epochs = begun();
        epochs.captured(Epoch::new(1), FtMode::Lockstep, at(1), at(1));
        for (lag_ms, is_full, expected) in
            [(30, false, Decision::Run), (31, false, Decision::Wait), (0, true, Decision::Wait)]
        {
            let sending = Sending { is_idle: false, is_full, lag: Duration::from_millis(lag_ms) };
            assert_eq!(epochs.decide(&BOUNDS, FtMode::Lockstep, NOTHING, &sending, at(1)), expected);
        }
    }

    #[test]
    fn segments_of_the_log_take_no_room_from_checkpoints() {
        let mut epochs = begun();
        epochs.captured(Epoch::new(1), FtMode::Lockstep, at(1), at(1));
        (2..=9).for_each(|number| epochs.segment_closed(Epoch::new(number), at(number)));
        epochs.log_ended(at(9));
        epochs.output_waits();
        assert_eq!(mirror(&epochs, NOTHING, &IDLE, 10), Decision::Capture);
    }
}
