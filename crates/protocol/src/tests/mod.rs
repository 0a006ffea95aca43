//! The rules, one by one. How they work together is the business of the simulator (`crates/sim`).

mod any_order;
mod primary;
mod secondary;

use spec::ReplicaId;

use super::{Claim, Command, Epoch, Event, Generation, LossReason, Replica, Verdict};

fn id(name: &str) -> ReplicaId {
    ReplicaId::new(name)
}

fn claim(generation: u64, primary: &str, secondary: Option<&str>) -> Claim {
    Claim { generation: Generation::new(generation), primary: id(primary), secondary: secondary.map(id) }
}

fn ask(generation: u64, primary: &str, secondary: Option<&str>) -> Command {
    Command::CompareAndSwap { claim: claim(generation, primary, secondary) }
}

fn won() -> Event {
    Event::Arbitrated(Verdict::Won)
}

fn lost_to(claim: Claim) -> Event {
    Event::Arbitrated(Verdict::Lost(claim))
}

fn gone() -> Event {
    Event::PeerLost { reason: LossReason::Closed }
}

/// Whatever it is told, it does nothing.
fn assert_is_dead(replica: &mut Replica) {
    use super::DropReason;
    for event in [
        Event::SyncFinished { secondary: id("c") },
        Event::Acknowledged { epoch: Epoch::new(100) },
        Event::DropSecondary { reason: DropReason::Off },
        Event::SwitchOver { last: Epoch::new(100) },
        Event::SwitchOverFailed,
        Event::DisksBroken { could_move: true },
        Event::DisksSound,
        Event::Ready,
        Event::NotReady,
        Event::CheckpointHeld { epoch: Epoch::new(100) },
        Event::Entitled { generation: Generation::new(100) },
        Event::HandOver,
        gone(),
        won(),
        Event::ClaimRead(claim(100, "c", Some("a"))),
        Event::StoreUnreachable,
        Event::RetryDue,
    ] {
        assert_eq!(replica.handle(event.clone()), [], "{event:?}");
    }
}
