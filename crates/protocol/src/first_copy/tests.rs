//! Guests and links as simple as can be, millisecond by millisecond.

use super::*;

const TOO_SLOW: Duration = Duration::from_secs(10);
const MB: u64 = 1_000_000;
/// Most that is on its way before it is taken in, in milliseconds of the link.
const PIECE_MS: u64 = 10;
/// Longer than any copy here takes, in milliseconds.
const HUNG_MS: u64 = 3_600_000;

fn at(ms: u64) -> MonotonicTime {
    MonotonicTime::new(Duration::from_millis(ms))
}

/// What there is to copy, what the guest does meanwhile, and the link. Rates are in bytes per millisecond.
#[derive(Clone, Copy, Debug)]
struct World {
    memory_bytes: u64,
    /// It writes through so much of its memory again and again,
    working_set_bytes: u64,
    at_rate: u64,
    /// and so much to its disks.
    writes_rate: u64,
    link_rate: u64,
    /// In this second it writes ten times as much.
    burst_s: Option<u64>,
}

/// 100 MB/s for 1 GB, and a guest that does nothing.
const IDLE: World = World {
    memory_bytes: 1000 * MB,
    working_set_bytes: 0,
    at_rate: 0,
    writes_rate: 0,
    link_rate: 100_000,
    burst_s: None,
};

/// What became of a copy.
#[derive(Debug, Default)]
struct Outcome {
    given_up: Option<Pace>,
    /// What was left for the first checkpoint, as time of the link.
    left_ms: u64,
    ms: u64,
    rounds: u32,
    waiting_max: u64,
    percent_max: u32,
    held_ms: u64,
}

/// A copy under way.
struct Run {
    world: World,
    copy: FirstCopy,
    now: u64,
    /// The guest stands still since, and until then.
    held_since: Option<u64>,
    holds_until: u64,
    taken_in: TakenIn,
    dirty: u64,
    written: u64,
    waiting: u64,
    outcome: Outcome,
}

impl World {
    fn copy(self) -> Outcome {
        let mut run = Run {
            world: self,
            copy: FirstCopy::new(TOO_SLOW, at(0)),
            now: 0,
            held_since: None,
            holds_until: 0,
            taken_in: TakenIn::default(),
            dirty: 0,
            written: 0,
            waiting: 0,
            outcome: Outcome::default(),
        };
        let mut pages = self.memory_bytes;
        loop {
            run.outcome.rounds += 1;
            run.copy.begin_round(run.taken_in, at(run.now));
            if let Some(pace) = run.round(pages) {
                return run.end(Some(pace));
            }
            let left = Left { memory_bytes: run.dirty, disk_bytes: run.waiting };
            run.outcome.left_ms = (left.memory_bytes + left.disk_bytes) / self.link_rate;
            match run.copy.end_round(run.taken_in, left, at(run.now)) {
                RoundEnd::Again => pages = std::mem::take(&mut run.dirty),
                RoundEnd::Finish => return run.end(None),
                RoundEnd::GiveUp(pace) => return run.end(Some(pace)),
            }
        }
    }
}

impl Run {
    fn end(mut self, given_up: Option<Pace>) -> Outcome {
        (self.outcome.given_up, self.outcome.ms) = (given_up, self.now);
        self.outcome
    }

    /// Sends pages, and what waited when the round began; each has half of the link while both have something. Why it is given up, if it is.
    fn round(&mut self, mut pages: u64) -> Option<Pace> {
        let mut writes = self.waiting;
        while pages > 0 || writes > 0 {
            let had = [pages, self.waiting];
            for _ in 0..PIECE_MS {
                let share = self.world.link_rate / 2;
                let of_writes = self.waiting.min(share.max(self.world.link_rate.saturating_sub(pages)));
                let of_pages = pages.min(self.world.link_rate - of_writes);
                (pages, self.waiting, writes) =
                    (pages - of_pages, self.waiting - of_writes, writes.saturating_sub(of_writes));
                self.guest_runs_on();
            }
            let gone = |before: u64, after: u64| Amount {
                bytes: before.saturating_sub(after),
                wire_bytes: before.saturating_sub(after),
            };
            // What came up meanwhile makes no difference of note.
            self.taken_in += TakenIn { memory: gone(had[0], pages), disks: gone(had[1], self.waiting) };
            self.outcome.waiting_max = self.outcome.waiting_max.max(self.waiting);
            if self.now < self.holds_until {
                continue;
            }
            if let Some(since) = self.held_since.take() {
                self.copy.held(at(since), at(self.holds_until));
            }
            if self.copy.wants_sample(at(self.now)) {
                self.copy.dirtied(self.dirty, at(self.now));
            }
            match self.copy.look(self.taken_in, self.written, self.waiting, at(self.now)) {
                Step::GoOn => {}
                Step::Hold(time) => {
                    assert!(time <= Duration::from_millis(90), "it stands still for {time:?}");
                    self.held_since = Some(self.now);
                    self.holds_until = self.now + time.as_millis() as u64;
                }
                Step::GiveUp(pace) => return Some(pace),
            }
            self.outcome.percent_max =
                self.outcome.percent_max.max(self.copy.slowed().map_or(0, |slowed| slowed.percent));
            assert!(self.now < HUNG_MS, "{:?}", self.outcome);
        }
        None
    }

    fn guest_runs_on(&mut self) {
        self.now += 1;
        if self.now <= self.holds_until {
            self.outcome.held_ms += 1;
            return;
        }
        let times = if self.world.burst_s == Some(self.now / 1000) { 10 } else { 1 };
        self.dirty = (self.dirty + times * self.world.at_rate).min(self.world.working_set_bytes);
        self.written += times * self.world.writes_rate;
        self.waiting += times * self.world.writes_rate;
    }
}

/// Ends well, with a bounded pause.
fn finishes(world: World) -> Outcome {
    let outcome = world.copy();
    assert_eq!(outcome.given_up, None, "{world:?}: {outcome:?}");
    assert!(outcome.left_ms <= 300, "{world:?}: {outcome:?}");
    assert!(outcome.waiting_max <= WRITES_WAITING_MAX, "{world:?}: {outcome:?}");
    outcome
}

fn is_given_up(world: World) -> (Pace, Outcome) {
    let outcome = world.copy();
    let pace = outcome.given_up.unwrap_or_else(|| panic!("{world:?} is not given up: {outcome:?}"));
    assert!(outcome.waiting_max <= WRITES_WAITING_MAX + 100 * MB, "{world:?}: {outcome:?}");
    (pace, outcome)
}

#[test]
fn an_idle_guest_takes_one_round() {
    let outcome = finishes(IDLE);
    assert_eq!((outcome.rounds, outcome.left_ms, outcome.held_ms), (1, 0, 0));
}

#[test]
fn rounds_go_on_as_long_as_they_get_somewhere_and_the_guest_is_left_alone() {
    for percent in [1, 10, 50, 80, 85] {
        let outcome = finishes(World { working_set_bytes: 1000 * MB, at_rate: 1000 * percent, ..IDLE });
        assert_eq!(outcome.percent_max, 0, "{percent} % of the link: {outcome:?}");
    }
}

#[test]
fn a_guest_that_changes_a_little_more_than_the_link_carries_is_slowed_down() {
    for percent in [95, 100, 110, 120] {
        let outcome = finishes(World { working_set_bytes: 1000 * MB, at_rate: 1000 * percent, ..IDLE });
        assert!((1..=40).contains(&outcome.percent_max), "{percent} % of the link: {outcome:?}");
    }
}

#[test]
fn a_guest_that_changes_far_more_is_given_up_with_the_figures() {
    let (pace, outcome) = is_given_up(World { working_set_bytes: 1000 * MB, at_rate: 400_000, ..IDLE });
    assert!((350 * MB..450 * MB).contains(&pace.changed_bytes_per_s), "{pace:?}");
    assert!((95 * MB..105 * MB).contains(&pace.taken_in_bytes_per_s), "{pace:?}");
    assert!(outcome.rounds <= 5 && outcome.percent_max <= 40, "{outcome:?}");
    assert_eq!(
        Pace { changed_bytes_per_s: 400 * MB, taken_in_bytes_per_s: 99_960_000 }.to_string(),
        "the guest changes 400.0 MB/s of its memory and disks, and the secondary takes in 100.0 MB/s"
    );
}

/// How often it is changed makes no difference then.
#[test]
fn a_working_set_that_fits_into_the_last_pause_needs_no_slower_guest() {
    let outcome = finishes(World { working_set_bytes: 25 * MB, at_rate: 10_000_000, ..IDLE });
    assert!((200..=300).contains(&outcome.left_ms) && outcome.percent_max == 0, "{outcome:?}");
}

#[test]
fn a_working_set_that_takes_longer_than_the_last_pause_is_given_up() {
    for at_rate in [100_000, 10_000_000] {
        let (pace, _) = is_given_up(World { working_set_bytes: 200 * MB, at_rate: at_rate.max(200_000), ..IDLE });
        assert!(pace.changed_bytes_per_s > pace.taken_in_bytes_per_s, "{pace:?}");
    }
}

/// Half a megabyte a second for half a gigabyte: the rounds take a quarter of an hour.
#[test]
fn disk_writes_are_sent_during_a_round_however_long_it_is() {
    let slow = World { memory_bytes: 512 << 20, link_rate: 500, writes_rate: 200, ..IDLE };
    let outcome = finishes(slow);
    assert!(outcome.waiting_max < MB && outcome.percent_max == 0, "{outcome:?}");
    assert!(outcome.ms > 1_000_000);
    finishes(World { working_set_bytes: 20 * MB, at_rate: 50, ..slow });
}

#[test]
fn a_guest_whose_disk_writes_need_most_of_the_link_is_slowed_down_and_kept() {
    let outcome = finishes(World { writes_rate: 80_000, memory_bytes: 4000 * MB, ..IDLE });
    assert!((1..=60).contains(&outcome.percent_max), "{outcome:?}");
    assert!(outcome.waiting_max > 64 << 20, "{outcome:?}");
}

#[test]
fn disk_writes_beyond_the_link_are_given_up_after_the_time_and_before_too_many_wait() {
    let (pace, outcome) = is_given_up(World { writes_rate: 300_000, memory_bytes: 10_000 * MB, ..IDLE });
    assert!(outcome.ms >= 10_000 && outcome.ms < 20_000, "{outcome:?}");
    assert!(outcome.waiting_max < WRITES_WAITING_MAX, "{outcome:?}");
    assert!((250 * MB..450 * MB).contains(&pace.changed_bytes_per_s), "{pace:?}");
    assert!(pace.taken_in_bytes_per_s < 105 * MB, "{pace:?}");
    // Faster than slowing down can help.
    let (_, outcome) = is_given_up(World { writes_rate: 5_000_000, memory_bytes: 10_000 * MB, ..IDLE });
    assert!(outcome.ms < 5000, "{outcome:?}");
}

#[test]
fn a_burst_is_no_reason_to_give_up() {
    for burst_s in 9..13 {
        let world = World { working_set_bytes: 500 * MB, at_rate: 20_000, burst_s: Some(burst_s), ..IDLE };
        finishes(world);
    }
}

#[test]
fn pages_that_are_sent_in_few_bytes_count_for_as_little() {
    let mut copy = FirstCopy::new(TOO_SLOW, at(0));
    copy.begin_round(TakenIn::default(), at(0));
    let memory = Amount { bytes: 1000 * MB, wire_bytes: 10 * MB };
    let taken_in = TakenIn { memory, disks: Amount::default() };
    // A tenth of a second for each 100 MB.
    let left = Left { memory_bytes: 15 * MB, disk_bytes: 0 };
    assert_eq!(copy.end_round(taken_in, left, at(1000)), RoundEnd::Finish);
    // A short round that took in little says nothing of the link.
    copy.begin_round(taken_in, at(1000));
    let more =
        TakenIn { memory: Amount { bytes: memory.bytes + 4096, wire_bytes: memory.wire_bytes + 4096 }, ..taken_in };
    assert_eq!(copy.end_round(more, left, at(1050)), RoundEnd::Finish);
}

#[test]
fn what_is_not_measured_yet_is_not_left_for_the_last_pause() {
    let mut copy = FirstCopy::new(TOO_SLOW, at(0));
    copy.begin_round(TakenIn::default(), at(0));
    let left = Left { memory_bytes: 1, disk_bytes: 0 };
    assert_eq!(copy.end_round(TakenIn::default(), left, at(0)), RoundEnd::Again);
    copy.begin_round(TakenIn::default(), at(0));
    assert_eq!(copy.end_round(TakenIn::default(), Left::default(), at(0)), RoundEnd::Finish);
}

#[test]
fn a_slowed_guest_says_so_and_why() {
    let pace = Pace { changed_bytes_per_s: 80 * MB, taken_in_bytes_per_s: 60 * MB };
    assert_eq!(
        Slowed { percent: 25, pace }.to_string(),
        "the guest is slowed down by 25 % for the first copy: the guest changes 80.0 MB/s of its memory and disks, and the \
         secondary takes in 60.0 MB/s"
    );
    let mut copy = FirstCopy::new(TOO_SLOW, at(0));
    assert_eq!(copy.look(TakenIn::default(), 0, 0, at(1)), Step::GoOn);
    assert_eq!(copy.slowed(), None);
    copy.look(TakenIn::default(), 0, 128 << 20, at(2));
    assert_eq!(copy.slowed().map(|slowed| slowed.percent), Some(45));
}
