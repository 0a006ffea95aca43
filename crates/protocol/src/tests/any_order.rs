//! What holds whatever a replica is told, in any order: peers and drivers may be wrong.

use super::super::{Claim, Command, DropReason, Epoch, Event, Generation, LossReason, Replica, Verdict};
use super::{claim, id};

const RUNS: u64 = 20_000;
const EVENTS: usize = 40;

/// A linear congruential generator (Knuth, MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What the driver owes the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owed {
    Nothing,
    Swap(Claim),
    Claim,
    Retry,
    Ready,
}

fn event(chance: &mut Chance, owed: &Owed) -> Event {
    let number = chance.below(6);
    match (chance.below(14), owed) {
        (0, _) => Event::SyncFinished { secondary: id(["a", "b", "c"][chance.below(3) as usize]) },
        (1..=2, _) => Event::Acknowledged { epoch: Epoch::new(number) },
        (3, _) => Event::DropSecondary { reason: DropReason::Restart },
        (4, _) if number < 2 => Event::DisksBroken { could_move: number == 0 },
        (4, _) if number == 2 => Event::DisksSound,
        (4, _) => Event::SwitchOver { last: Epoch::new(number) },
        (5..=6, _) => Event::CheckpointHeld { epoch: Epoch::new(number) },
        (7, _) => Event::Entitled { generation: Generation::new(number) },
        (8, _) => Event::HandOver,
        (9, _) => Event::PeerLost { reason: LossReason::Closed },
        (10, Owed::Swap(_) | Owed::Claim) => Event::StoreUnreachable,
        (11, Owed::Swap(_)) => Event::Arbitrated(Verdict::Lost(claim(number, "a", Some("b")))),
        (_, Owed::Swap(_)) => Event::Arbitrated(Verdict::Won),
        (_, Owed::Claim) => Event::ClaimRead(claim(number, "a", Some("b"))),
        (_, Owed::Retry) => Event::RetryDue,
        (10, Owed::Ready) => Event::PeerLost { reason: LossReason::Failed },
        (11, Owed::Ready) => Event::NotReady,
        (_, Owed::Ready) => Event::Ready,
        (_, Owed::Nothing) => Event::PeerLost { reason: LossReason::Silent },
    }
}

/// Carries out nothing, and keeps accounts.
struct Books {
    owed: Owed,
    is_held: bool,
    has_stopped: bool,
}

impl Books {
    fn enter(&mut self, event: &Event, commands: Vec<Command>) {
        match event {
            Event::Arbitrated(_)
            | Event::ClaimRead(_)
            | Event::StoreUnreachable
            | Event::RetryDue
            | Event::Ready
            | Event::NotReady
            | Event::PeerLost { reason: LossReason::Failed } => self.owed = Owed::Nothing,
            _ => {}
        }
        for command in commands {
            assert!(!self.has_stopped, "{command:?} of a replica that has stopped");
            let asks = match &command {
                Command::CompareAndSwap { claim } => Owed::Swap(claim.clone()),
                Command::ReadClaim => Owed::Claim,
                Command::StartRetryTimer => Owed::Retry,
                Command::GetReady => Owed::Ready,
                _ => Owed::Nothing,
            };
            if asks != Owed::Nothing {
                assert_eq!(self.owed, Owed::Nothing, "{asks:?} before that is over");
                self.owed = asks;
            }
            match command {
                Command::HoldOutput => self.is_held = true,
                Command::OpenOutput => self.is_held = false,
                Command::Release { .. } => assert!(self.is_held, "released what does not wait"),
                Command::TakeOver { .. } => assert!(matches!(event, Event::Arbitrated(_)), "taken over for {event:?}"),
                Command::Stop { .. } => self.has_stopped = true,
                _ => {}
            }
        }
    }
}

#[test]
fn one_question_is_asked_at_a_time_and_nothing_after_the_end() {
    for seed in 0..RUNS {
        let mut chance = Chance(seed);
        let mut replica = match seed % 2 {
            0 => Replica::primary(id("a"), claim(1, "a", None)),
            _ => Replica::secondary(id("b")),
        };
        let mut books = Books { owed: Owed::Nothing, is_held: false, has_stopped: false };
        for _ in 0..EVENTS {
            let event = event(&mut chance, &books.owed);
            let commands = replica.handle(event.clone());
            books.enter(&event, commands);
        }
    }
}

#[test]
fn generations_and_epochs_at_their_end_do_not_overflow() {
    let mut primary = Replica::primary(id("a"), claim(u64::MAX, "a", None));
    primary.handle(Event::SyncFinished { secondary: id("b") });
    let commands = primary.handle(Event::Acknowledged { epoch: Epoch::new(u64::MAX) });
    assert!(commands.contains(&Command::Release { through: Epoch::new(u64::MAX) }));
    let mut secondary = Replica::secondary(id("b"));
    secondary.handle(Event::CheckpointHeld { epoch: Epoch::new(u64::MAX) });
    secondary.handle(Event::Entitled { generation: Generation::new(u64::MAX) });
    secondary.handle(Event::PeerLost { reason: LossReason::Closed });
    assert_eq!(secondary.handle(Event::Ready).len(), 2);
}
