//! [`Plan`]: what goes wrong in a schedule, and when.

use std::time::Duration;

use protocol::{DropReason, Suspicion};

use crate::copying::PART_BYTES;
use crate::process::GuestEnd;
use crate::random::Random;
use crate::time::{MICROSECOND, MILLISECOND, Nanoseconds};

/// Faults end here at the latest; and where none are planned, as there is less to come about then.
const FAULTS_END_MAX: Nanoseconds = 1_200 * MILLISECOND;
const FAULTLESS_END: Nanoseconds = 400 * MILLISECOND;
/// Most faults of a schedule.
const FAULTS_MAX: u64 = 6;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Primary,
    Secondary,
    Host(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Kill(Target),
    PowerLoss(Target, Nanoseconds),
    Pause(Target, Nanoseconds),
    Partition {
        from: Target,
        one_way: bool,
        duration: Nanoseconds,
    },
    /// The primary's connection ends; who learns it?
    Cut {
        primary_learns: bool,
        secondary_learns: bool,
    },
    SlowLink {
        extra: Nanoseconds,
        duration: Nanoseconds,
    },
    SlowSender {
        extra: Nanoseconds,
        duration: Nanoseconds,
    },
    StoreDown(Nanoseconds),
    StoreOutOfReach(Target, Nanoseconds),
    SecondaryFails,
    /// The VM could not be run on the host: no network end can be reached there, or its state is refused.
    Unready(Target, Nanoseconds),
    /// The disks of the host fail, or hang.
    DisksBreak {
        target: Target,
        hang: bool,
        duration: Nanoseconds,
    },
    /// The network end of the host dies; after a while its host starts another one.
    EndDies(Target, Nanoseconds),
    /// The network end of the host takes nothing that the guest sends.
    EndStalls(Target, Nanoseconds),
    /// Another daemon of the identity of the host's is started.
    SecondDaemon(Target),
    Drop(DropReason),
    /// The guest powers off, or asks for a reset.
    GuestEnds(GuestEnd),
    /// The host's daemon ends, in the midst of whatever it does, and is started again.
    DaemonKilled(Target, Nanoseconds),
    /// Somebody stops a host with its VMs, and starts it again.
    HostStops(Target, Nanoseconds),
    /// Somebody starts the VM on a host.
    Start {
        target: Target,
        is_forced: bool,
    },
    /// Somebody shuts the VM down, or restarts it.
    Stop {
        force: bool,
        is_reboot: bool,
    },
    SwitchOver,
    /// Somebody moves the VM to a host.
    Migrate(Target),
    /// Somebody empties a host for a while; by force, whatever is lost by that.
    Maintenance {
        target: Target,
        is_forced: bool,
        duration: Nanoseconds,
    },
    /// The user changes the FT mode.
    ChangeMode,
    /// The secondary executes the log slowly.
    SlowExecution(Nanoseconds),
}

/// Something in the life of the replicas close to which faults are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Copied,
    SwapAsked,
    SwapCarriedOut,
    Protected,
    ModeChanged,
    HandOverBegun,
    HandOverSent,
    Lost,
    TakenOver,
    StartBegun,
    Launched,
}

const MOMENTS: [Moment; 11] = [
    Moment::ModeChanged,
    Moment::Copied,
    Moment::SwapAsked,
    Moment::SwapCarriedOut,
    Moment::Protected,
    Moment::HandOverBegun,
    Moment::HandOverSent,
    Moment::Lost,
    Moment::TakenOver,
    Moment::StartBegun,
    Moment::Launched,
];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Trigger {
    At(Nanoseconds),
    After { moment: Moment, times: u32, delay: Nanoseconds },
}

#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub trigger: Trigger,
    pub fault: Fault,
}

/// What does not change during a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub hosts: usize,
    pub faults: Vec<Planned>,
    /// When faults end.
    pub faults_end: Nanoseconds,
    pub suspicion: Nanoseconds,
    /// Longest time between two things that the guest does.
    pub guest_interval_max: Nanoseconds,
    pub memory_bytes: u64,
    /// What the guest writes to its memory, in percent of what the link carries, and how often, of a hundred steps, it writes to its disk.
    pub dirty_rate: u64,
    pub writes: u64,
    /// How long a part of a first copy takes to send.
    pub part_duration: Nanoseconds,
    /// Of a hundred acks.
    pub stalls: u64,
    /// Of a hundred answers of the store.
    pub answers_lost: u64,
    /// Of a hundred requests to the store.
    pub swaps_late: u64,
    /// The FT mode in the beginning.
    pub is_lockstep: bool,
    /// Of a thousand segments: the secondary's execution comes to another state.
    pub diverges: u64,
    /// Each host has a network end of its own, on a bridge; else they share one.
    pub is_bridged: bool,
    /// Frames that a client sends, for a hundred things that the guest does.
    pub frames: u64,
    /// Those that connect to a secondary and say nothing, or that they are its primary.
    pub strangers: u64,
    /// Other VMs at home on the first host.
    pub others: usize,
}

impl Plan {
    pub fn suspicion(&self) -> Suspicion {
        let max = Duration::from_nanos(self.suspicion);
        // Sooner than in the product, or no schedule would last so long.
        Suspicion::between(max / 2, max).learned_after(2 * max)
    }

    /// How much of its memory the guest writes in a step. When faults are over, it is not too fast to be protected.
    pub fn dirty_bytes(&self, is_calm: bool) -> u64 {
        let rate = if is_calm { self.dirty_rate.min(20) } else { self.dirty_rate };
        (self.guest_interval_max / 2 * rate / 100) * PART_BYTES / self.part_duration
    }

    /// How often, of a hundred steps, it writes to its disk, likewise.
    pub fn writes(&self, is_calm: bool) -> u64 {
        if is_calm { self.writes.min(5) } else { self.writes }
    }

    pub fn draw(random: &mut Random) -> Self {
        let hosts = random.pick(&[2, 3, 3]);
        let suspicion = random.pick(&[40, 60, 100]) * MILLISECOND;
        let count = random.between(0, FAULTS_MAX + 1);
        let latest = random.pick(&[1_000 * MILLISECOND, 1_000 * MILLISECOND, FAULTS_END_MAX]);
        let faults_end = if count == 0 { FAULTLESS_END } else { latest };
        let faults = (0..count).map(|_| Planned::draw(random, hosts, suspicion, faults_end)).collect();
        let guest_interval_max = random.pick(&[4, 10, 30]) * MILLISECOND;
        let part_duration = random.pick(&[300, 1000, 3000]) * MICROSECOND;
        let memory_bytes = random.pick(&[1, 4, 16, 1, 4, 16, 1, 4, 16, 256]) * PART_BYTES;
        Self {
            hosts,
            faults,
            faults_end,
            suspicion,
            guest_interval_max,
            memory_bytes,
            dirty_rate: random.pick(&[0, 0, 0, 20, 20, 80, 110, 300]),
            writes: random.pick(&[0, 20, 20, 20, 20, 80]),
            part_duration,
            stalls: random.pick(&[0, 0, 0, 3]),
            answers_lost: random.pick(&[0, 0, 10, 40]),
            swaps_late: random.pick(&[0, 0, 10, 40]),
            is_lockstep: random.chance(50),
            diverges: random.pick(&[0, 0, 0, 5]),
            is_bridged: random.chance(50),
            frames: random.pick(&[0, 20, 50]),
            strangers: random.pick(&[0, 0, 0, 3, 36]),
            others: if random.chance(4) { 3 } else { 0 },
        }
    }
}

impl Planned {
    fn draw(random: &mut Random, hosts: usize, suspicion: Nanoseconds, faults_end: Nanoseconds) -> Self {
        let trigger = if random.chance(40) {
            Trigger::At(random.between(0, faults_end))
        } else {
            let delay = random.pick(&[200 * MICROSECOND, 2 * MILLISECOND, suspicion, 3 * suspicion]);
            let moment = random.pick(&MOMENTS);
            Trigger::After { moment, times: random.pick(&[1, 1, 2, 3]), delay: random.between(0, delay) }
        };
        Self { trigger, fault: Fault::draw(random, hosts, suspicion) }
    }
}

impl Fault {
    fn draw(random: &mut Random, hosts: usize, suspicion: Nanoseconds) -> Self {
        let target = match random.below(5) {
            0 | 1 => Target::Primary,
            2 | 3 => Target::Secondary,
            _ => Target::Host(random.below(hosts)),
        };
        let longest = random.pick(&[suspicion / 2, 2 * suspicion, 8 * suspicion]);
        let duration = random.between(MILLISECOND, longest);
        match random.below(43) {
            34 => Self::EndDies(target, duration),
            35 | 36 => Self::EndStalls(target, duration),
            37 => Self::SecondDaemon(target),
            38..=40 if random.chance(50) => Self::Migrate(Target::Secondary),
            38..=40 => Self::Migrate(Target::Host(random.below(hosts))),
            41 | 42 => Self::Maintenance { target, is_forced: random.chance(30), duration: 4 * duration },
            0 | 1 => Self::Kill(target),
            2 => Self::PowerLoss(target, duration),
            3..=5 => Self::Pause(target, duration),
            6 => Self::Partition { from: target, one_way: false, duration },
            7 => Self::Partition { from: target, one_way: true, duration },
            8 | 9 => Self::Cut { primary_learns: random.chance(50), secondary_learns: random.chance(50) },
            10 => Self::SlowLink { extra: random.between(0, suspicion), duration },
            11 => Self::SlowSender { extra: random.pick(&[1, 4, 20]) * suspicion, duration: 8 * suspicion },
            12 | 13 => Self::StoreDown(duration),
            14 => Self::StoreOutOfReach(target, duration),
            15 => Self::SecondaryFails,
            16 => Self::Drop(random.pick(&[DropReason::Off, DropReason::Suspend])),
            17 => Self::Drop(DropReason::Restart),
            18 | 19 => Self::ChangeMode,
            20 => Self::SlowExecution(duration),
            21 => Self::Unready(target, duration),
            24..=26 => Self::DaemonKilled(target, duration),
            31 => Self::GuestEnds(random.pick(&[GuestEnd::PowerOff, GuestEnd::Reset])),
            29 => Self::HostStops(target, 4 * duration),
            27 => Self::Start { target, is_forced: random.chance(70) },
            28 => Self::Drop(random.pick(&[DropReason::Off, DropReason::Restart])),
            22 | 23 => Self::DisksBreak { target, hang: random.chance(30), duration },
            32 => Self::Stop { force: random.chance(50), is_reboot: random.chance(30) },
            33 => Self::Stop { force: random.chance(50), is_reboot: true },
            _ => Self::SwitchOver,
        }
    }
}
