//! [`FirstCopy`]: how the first copy of a guest that goes on changing what is copied comes to its end.

#[cfg(test)]
mod tests;
mod turns;
mod window;

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::turns::{CopyTurn, CopyTurns};
pub use self::window::CopyWindow;
use super::{MonotonicTime, Patience};

/// Longest time that the secondary may need for what is left when the rounds end: for so long the guest's output waits, or the guest.
pub const LAST_PAUSE_MAX: Duration = Duration::from_millis(300);
/// What is left is little: another round would not make the pause shorter that anybody notices.
const LAST_PAUSE_AIM: Duration = Duration::from_millis(20);
/// How often [`FirstCopy::look`] is asked at least.
pub const COPY_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Most bytes of disk writes that are kept to be sent, during a first copy and after it. What comes beyond them is lost to the secondary, which is given
/// up then.
pub const WRITES_KEPT_MAX: u64 = 256 << 20;
/// Most bytes of disk writes that may wait to be sent during a first copy: before there is a gap, it is given up.
pub const WRITES_WAITING_MAX: u64 = 224 << 20;
const _: () = assert!(WRITES_WAITING_MAX < WRITES_KEPT_MAX);
/// Bytes of disk writes that may wait before the guest is slowed down, and those at which it is slowed down most.
const WRITES_WAITING_FREELY: u64 = 64 << 20;
const WRITES_WAITING_SLOWEST: u64 = 192 << 20;
/// Most of its time, in percent, that is taken from the guest for its disk writes. What takes half of it for long is given up.
const WRITES_PERCENT_MAX: u64 = 90;
/// The same for its memory: clearly less than what a protected guest has to bear before its secondary is given up as too slow. One that
/// would need more could not stay protected.
const MEMORY_PERCENT_MAX: f64 = 40.0;
/// A guest that is slowed down for its memory is to leave so much of what the round before left.
const SOUGHT_RATIO: f64 = 0.6;
/// A round has got somewhere if it leaves no more quarters than these of the least that one has left before.
const PROGRESS_QUARTERS: u32 = 3;
/// Rounds in a row that do not get anywhere: from the second on the guest is slowed down, after the last the copy is given up. The first
/// may have been a burst.
const FUTILE_ROUNDS_SLOW: u32 = 2;
const FUTILE_ROUNDS_MAX: u32 = 4;
/// The least that the guest is held, and let run, at a time: 90 ms are the most, so that it never seems to have stopped.
const TURN: Duration = Duration::from_millis(10);
/// For how long it is looked how much changes before that is a rate. At the beginning of a round, as what changes again counts once.
const WINDOW: Duration = Duration::from_secs(1);
/// Shorter rounds of less say more about the way to the secondary and back than about its pace.
const MEASURED_BYTES: u64 = 256 << 10;
const MEASURED_TIME: Duration = Duration::from_millis(100);

/// Bytes of a guest's memory or disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// As the guest has them.
    pub bytes: u64,
    /// As they are sent.
    pub wire_bytes: u64,
}

/// What the secondary has taken in since the first copy began: it has said so, rather than that it has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenIn {
    /// Of memory.
    pub memory: Amount,
    /// Of disks.
    pub disks: Amount,
}

/// What the guest has changed and nobody has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk writes.
    pub disk_bytes: u64,
}

/// How fast the guest changes what is copied, and how fast that is copied. Lately, in bytes of the guest's per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// What it changes while nobody slows it down.
    pub changed_bytes_per_s: u64,
    /// What the secondary takes in.
    pub taken_in_bytes_per_s: u64,
}

/// As in `the guest changes 80.0 MB/s of its memory and disks, and the secondary takes in 20.0 MB/s`.
impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |bytes: u64| match bytes {
            0..1_000_000 => format!("{:.1} kB/s", bytes as f64 / 1e3),
            _ => format!("{:.1} MB/s", bytes as f64 / 1e6),
        };
        write!(f, "the guest changes {} of its memory and disks, ", rate(self.changed_bytes_per_s))?;
        write!(f, "and the secondary takes in {}", rate(self.taken_in_bytes_per_s))
    }
}

/// That a guest is slowed down for its first copy, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowed {
    /// How much of its time is taken from it, in percent.
    pub percent: u32,
    /// How fast the guest changes memory, and how fast the secondary takes it in: what the guest is slowed for.
    pub pace: Pace,
}

/// As in `the guest is slowed down by 20 % for the first copy: the guest changes ...`.
impl fmt::Display for Slowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest is slowed down by {} % for the first copy: {}", self.percent, self.pace)
    }
}

/// What to do while the copy goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    GoOn,
    /// Let the guest stand still for so long, say so with [`FirstCopy::held`], and go on.
    Hold(Duration),
    /// Give the secondary up as [too slow](super::DropReason::TooSlow).
    GiveUp(Pace),
}

/// What follows a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundEnd {
    /// Another one, of what is left.
    Again,
    /// The first checkpoint, which takes what is left.
    Finish,
    /// Give the secondary up as [too slow](super::DropReason::TooSlow).
    GiveUp(Pace),
}

/// The first copy of a VM, from the first byte that is sent for it to the first checkpoint.
///
/// Disks come first, then memory in rounds: all of it, then what was written meanwhile, and so on. What the guest writes to disks is sent
/// all the time. The rounds end when the secondary needs little time for what is left, or when they get nowhere and it needs no more than
/// [`LAST_PAUSE_MAX`]. A guest that changes more than the secondary takes in is slowed down, by standing still for some milliseconds again
/// and again; where that does not help, the secondary is given up, as it could not keep up with the protected guest either.
#[derive(Clone, Debug)]
pub struct FirstCopy {
    patience: Patience,
    watch: Watch,
    round: Round,
    link: Option<Link>,
    /// The least that a round has left, as time of the secondary's.
    least_left: Option<Duration>,
    futile_rounds: u32,
    /// What is taken of the guest's time for its memory, and in all, in percent.
    memory_percent: f64,
    percent: u32,
    held_until: MonotonicTime,
    /// For how long the guest has been held in all.
    held: Duration,
    /// The guest has been held for too long.
    is_hopeless: bool,
}

/// Looks at what has grown since the last look, and at what rates.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    since: MonotonicTime,
    taken_in_bytes: u64,
    written_bytes: u64,
    held: Duration,
    taken_in_per_s: f64,
    written_per_s: f64,
    dirtied_per_s: f64,
}

/// A round of copying memory.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    begun_at: MonotonicTime,
    /// Before it.
    taken_in: TakenIn,
    held: Duration,
    is_sampled: bool,
}

/// What a round that was long enough has shown.
#[derive(Clone, Copy, Debug)]
struct Link {
    wire_bytes_per_s: f64,
    /// What is sent for a byte of memory, and of disk writes.
    memory_ratio: f64,
    disk_ratio: f64,
}

impl FirstCopy {
    /// Nothing has been sent. A guest from which half of its time was taken for `too_slow_after` is too fast for its secondary.
    pub fn new(too_slow_after: Duration, now: MonotonicTime) -> Self {
        Self {
            patience: Patience::new(too_slow_after),
            watch: Watch { since: now, ..Watch::default() },
            round: Round::default(),
            link: None,
            least_left: None,
            futile_rounds: 0,
            memory_percent: 0.0,
            percent: 0,
            held_until: now,
            held: Duration::ZERO,
            is_hopeless: false,
        }
    }

    /// What to do now; to be asked every [`COPY_LOOK_INTERVAL`] at least. Since the copy began the guest has written `written_bytes` to disks, of which
    /// `waiting_bytes` wait to be sent.
    pub fn look(&mut self, taken_in: TakenIn, written_bytes: u64, waiting_bytes: u64, now: MonotonicTime) -> Step {
        self.watch.look(taken_in.memory.bytes + taken_in.disks.bytes, written_bytes, self.held, now);
        if self.is_hopeless || waiting_bytes > WRITES_WAITING_MAX {
            return Step::GiveUp(self.pace());
        }
        self.percent = (self.memory_percent.round() as u32).max(writes_percent(waiting_bytes));
        if self.percent == 0 {
            return Step::GoOn;
        }
        let held = TURN.max(TURN * self.percent / (100 - self.percent));
        let runs = held * (100 - self.percent) / self.percent;
        if now.since(self.held_until) >= runs { Step::Hold(held) } else { Step::GoOn }
    }

    /// The guest stood still from `from` to `to`, as [`FirstCopy::look`] wanted.
    pub fn held(&mut self, from: MonotonicTime, to: MonotonicTime) {
        self.held_until = to;
        self.held += to.since(from);
        self.is_hopeless |= self.patience.waited(from, to);
    }

    /// Whether the guest is slowed down now.
    pub fn slowed(&self) -> Option<Slowed> {
        (self.percent > 0).then(|| Slowed { percent: self.percent, pace: self.pace() })
    }

    /// A round of copying memory begins: what changes from now on is left for the next one.
    pub fn begin_round(&mut self, taken_in: TakenIn, now: MonotonicTime) {
        self.round = Round { begun_at: now, taken_in, held: self.held, is_sampled: false };
    }

    /// Whether [`FirstCopy::dirtied`] should be told now what memory has been written since the round began.
    pub fn wants_sample(&self, now: MonotonicTime) -> bool {
        !self.round.is_sampled && now.since(self.round.begun_at) >= WINDOW
    }

    /// So much memory has been written since the round began.
    pub fn dirtied(&mut self, bytes: u64, now: MonotonicTime) {
        if !self.round.is_sampled {
            self.round.is_sampled = true;
            let ran = time_run(now.since(self.round.begun_at), self.held.saturating_sub(self.round.held));
            self.watch.dirtied_per_s = per_s(bytes, ran);
        }
    }

    /// The secondary has taken in all of the round, and `left` has come up since it began.
    pub fn end_round(&mut self, taken_in: TakenIn, left: Left, now: MonotonicTime) -> RoundEnd {
        self.dirtied(left.memory_bytes, now);
        let took = now.since(self.round.begun_at);
        let round = taken_in.since(&self.round.taken_in);
        self.measure(&round, took);
        let time_left = self.time_for(left);
        let least_left = *self.least_left.get_or_insert(took);
        if time_left <= LAST_PAUSE_AIM {
            return RoundEnd::Finish;
        }
        if time_left <= least_left * PROGRESS_QUARTERS / 4 {
            self.least_left = Some(time_left);
            self.futile_rounds = 0;
            return RoundEnd::Again;
        }
        if time_left <= LAST_PAUSE_MAX {
            return RoundEnd::Finish;
        }
        self.futile_rounds += 1;
        if self.futile_rounds >= FUTILE_ROUNDS_MAX {
            return RoundEnd::GiveUp(self.pace());
        }
        if self.futile_rounds >= FUTILE_ROUNDS_SLOW {
            self.slow_down(time_left.as_secs_f64() / took.as_secs_f64().max(1e-3));
        }
        RoundEnd::Again
    }

    fn measure(&mut self, round: &TakenIn, took: Duration) {
        let wire_bytes = round.memory.wire_bytes + round.disks.wire_bytes;
        let says_little = wire_bytes == 0 || wire_bytes < MEASURED_BYTES && took < MEASURED_TIME;
        if self.link.is_some() && says_little {
            return;
        }
        let (memory_ratio, disk_ratio) = self.link.map_or((1.0, 1.0), |link| (link.memory_ratio, link.disk_ratio));
        self.link = Some(Link {
            wire_bytes_per_s: per_s(wire_bytes, took),
            memory_ratio: round.memory.ratio().unwrap_or(memory_ratio),
            disk_ratio: round.disks.ratio().unwrap_or(disk_ratio),
        });
    }

    /// How long the secondary needs for what is left.
    fn time_for(&self, left: Left) -> Duration {
        let Some(link) = self.link else { return Duration::MAX };
        let wire_bytes = left.memory_bytes as f64 * link.memory_ratio + left.disk_bytes as f64 * link.disk_ratio;
        if wire_bytes <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(wire_bytes / link.wire_bytes_per_s).unwrap_or(Duration::MAX)
    }

    /// Takes so much of the guest's time that a round should leave less than the one before: the last one left `ratio` of itself.
    fn slow_down(&mut self, ratio: f64) {
        let runs = (100.0 - self.memory_percent) * SOUGHT_RATIO / ratio;
        self.memory_percent = (100.0 - runs).clamp(self.memory_percent, MEMORY_PERCENT_MAX);
    }

    fn pace(&self) -> Pace {
        Pace {
            changed_bytes_per_s: (self.watch.written_per_s + self.watch.dirtied_per_s) as u64,
            taken_in_bytes_per_s: self.watch.taken_in_per_s as u64,
        }
    }
}

impl Watch {
    fn look(&mut self, taken_in_bytes: u64, written_bytes: u64, held: Duration, now: MonotonicTime) {
        let passed = now.since(self.since);
        if passed >= WINDOW {
            self.taken_in_per_s = per_s(taken_in_bytes.saturating_sub(self.taken_in_bytes), passed);
            let ran = time_run(passed, held.saturating_sub(self.held));
            self.written_per_s = per_s(written_bytes.saturating_sub(self.written_bytes), ran);
            (self.since, self.held) = (now, held);
            (self.taken_in_bytes, self.written_bytes) = (taken_in_bytes, written_bytes);
        }
    }
}

impl Amount {
    /// What is sent for a byte, if there are any.
    fn ratio(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.wire_bytes as f64 / self.bytes as f64)
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            wire_bytes: self.wire_bytes.saturating_sub(earlier.wire_bytes),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.wire_bytes = self.wire_bytes.saturating_add(more.wire_bytes);
    }
}

impl TakenIn {
    fn since(&self, earlier: &Self) -> Self {
        Self { memory: self.memory.since(&earlier.memory), disks: self.disks.since(&earlier.disks) }
    }
}

impl AddAssign for TakenIn {
    fn add_assign(&mut self, more: Self) {
        self.memory += more.memory;
        self.disks += more.disks;
    }
}

/// How much of its time is taken from a guest of whose disk writes so many bytes wait: the more, the more.
fn writes_percent(waiting_bytes: u64) -> u32 {
    let too_many = waiting_bytes.saturating_sub(WRITES_WAITING_FREELY);
    let percent = too_many * WRITES_PERCENT_MAX / (WRITES_WAITING_SLOWEST - WRITES_WAITING_FREELY);
    percent.min(WRITES_PERCENT_MAX) as u32
}

/// For how long a guest ran that was held within this time, which cannot have been all of it.
fn time_run(time: Duration, held: Duration) -> Duration {
    time.saturating_sub(held).max(time / 20)
}

fn per_s(bytes: u64, time: Duration) -> f64 {
    // No clock is finer, and nothing is infinitely fast.
    bytes as f64 / time.as_secs_f64().max(1e-6)
}
