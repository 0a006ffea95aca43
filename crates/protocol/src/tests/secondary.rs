//! The rules for the replica that can take over: `b`, whose primary is `a`.

use super::super::{Command, Epoch, Event, Generation, LossReason, Protection, Reason, Replica, Role, StopReason};
use super::{ask, assert_is_dead, claim, gone, id, lost_to, won};

fn empty() -> Replica {
    Replica::secondary(id("b"))
}

fn following() -> Replica {
    let mut replica = empty();
    assert_eq!(replica.handle(held(1)), [Command::Acknowledge { epoch: Epoch::new(1) }]);
    replica
}

fn entitled() -> Replica {
    let mut replica = following();
    assert_eq!(replica.handle(Event::Entitled { generation: Generation::new(2) }), []);
    assert_eq!(replica.status().protection, Protection::Protected);
    replica
}

fn held(epoch: u64) -> Event {
    Event::CheckpointHeld { epoch: Epoch::new(epoch) }
}

fn stop(reason: StopReason) -> [Command; 2] {
    [Command::CloseChannel, Command::Stop { reason }]
}

/// Tells the replica what ends its following, and that it is ready then.
fn part(replica: &mut Replica, event: Event) -> Vec<Command> {
    assert_eq!(replica.handle(event), [Command::GetReady]);
    replica.handle(Event::Ready)
}

fn take_over(from: u64) -> [Command; 2] {
    [Command::CloseChannel, Command::TakeOver { from: Epoch::new(from) }]
}

#[test]
fn what_is_held_is_acknowledged() {
    let mut replica = entitled();
    assert_eq!(replica.handle(held(2)), [Command::Acknowledge { epoch: Epoch::new(2) }]);
    assert_eq!(replica.handle(held(4)), [Command::Acknowledge { epoch: Epoch::new(4) }]);
}

#[test]
fn a_checkpoint_that_is_not_newer_breaks_the_protocol() {
    let mut replica = entitled();
    assert_eq!(part(&mut replica, held(1)), [Command::CloseChannel, ask(3, "b", None)]);
}

#[test]
fn without_a_checkpoint_there_is_nothing_to_take_over() {
    let mut replica = empty();
    assert_eq!(replica.handle(gone()), stop(StopReason::NothingHeld));
    assert_is_dead(&mut replica);
}

#[test]
fn an_entitled_secondary_takes_over_from_the_last_checkpoint_after_it_has_won() {
    let mut replica = entitled();
    replica.handle(held(2));
    assert_eq!(replica.handle(gone()), [Command::GetReady]);
    assert_eq!(replica.handle(held(3)), [], "from now on nothing is acknowledged");
    assert_eq!(replica.handle(gone()), [], "and the primary is not lost twice");
    assert_eq!(replica.handle(Event::Ready), [Command::CloseChannel, ask(3, "b", None)]);
    assert_eq!(replica.handle(held(3)), []);
    assert_eq!(replica.handle(gone()), []);
    assert_eq!(replica.handle(won()), take_over(2));
    let status = replica.status();
    assert_eq!(
        (status.role, status.generation, status.reason),
        (Role::Primary, Generation::new(3), Some(Reason::TookOver))
    );
}

#[test]
fn the_loser_stops_for_good() {
    let mut replica = entitled();
    part(&mut replica, gone());
    assert_eq!(replica.handle(lost_to(claim(3, "a", None))), stop(StopReason::Superseded));
    assert_is_dead(&mut replica);
}

#[test]
fn without_a_store_there_is_no_takeover_and_the_store_is_asked_again() {
    let mut replica = entitled();
    part(&mut replica, Event::PeerLost { reason: LossReason::Silent });
    for _ in 0..3 {
        assert_eq!(replica.handle(Event::StoreUnreachable), [Command::CloseChannel, Command::StartRetryTimer]);
        assert_eq!(replica.status().reason, Some(Reason::StoreUnreachable));
        assert_eq!(replica.handle(Event::RetryDue), [ask(3, "b", None)]);
    }
    assert_eq!(replica.handle(won()), take_over(1));
}

#[test]
fn a_claim_of_its_own_whose_answer_was_lost_counts_as_won() {
    let mut replica = entitled();
    part(&mut replica, gone());
    replica.handle(Event::StoreUnreachable);
    replica.handle(Event::RetryDue);
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), take_over(1));
}

#[test]
fn a_secondary_that_the_store_does_not_name_stops() {
    for current in [claim(1, "a", None), claim(2, "a", Some("c")), claim(2, "b", None)] {
        let mut replica = following();
        assert_eq!(part(&mut replica, gone()), [Command::CloseChannel, Command::ReadClaim]);
        assert_eq!(replica.handle(Event::ClaimRead(current)), stop(StopReason::NotEntitled));
        assert_is_dead(&mut replica);
    }
}

#[test]
fn a_secondary_that_was_not_told_in_time_finds_out_that_the_store_names_it() {
    let mut replica = following();
    part(&mut replica, gone());
    assert_eq!(replica.handle(Event::ClaimRead(claim(6, "a", Some("b")))), [ask(7, "b", None)]);
    assert_eq!(replica.handle(won()), take_over(1));
}

#[test]
fn a_secondary_that_was_not_told_waits_for_the_store() {
    let mut replica = following();
    part(&mut replica, gone());
    assert_eq!(replica.handle(Event::StoreUnreachable), [Command::StartRetryTimer]);
    assert_eq!(
        replica.handle(Event::Entitled { generation: Generation::new(2) }),
        [],
        "what comes late does not count"
    );
    assert_eq!(replica.handle(Event::RetryDue), [Command::ReadClaim]);
    assert_eq!(replica.handle(Event::ClaimRead(claim(1, "a", None))), stop(StopReason::NotEntitled));
}

#[test]
fn a_claim_that_changes_after_it_was_read_is_lost() {
    let mut replica = following();
    part(&mut replica, gone());
    replica.handle(Event::ClaimRead(claim(2, "a", Some("b"))));
    assert_eq!(replica.handle(lost_to(claim(3, "a", None))), stop(StopReason::Superseded));
}

#[test]
fn the_connection_stays_open_during_a_hand_over_until_the_store_has_answered() {
    let mut replica = entitled();
    assert_eq!(part(&mut replica, Event::HandOver), [ask(3, "b", None)]);
    assert_eq!(replica.status().reason, Some(Reason::HandOver));
    assert_eq!(replica.handle(won()), take_over(1));
}

#[test]
fn a_hand_over_that_the_primary_has_given_up_meanwhile_is_lost() {
    let mut replica = entitled();
    part(&mut replica, Event::HandOver);
    assert_eq!(replica.handle(lost_to(claim(3, "a", None))), stop(StopReason::Superseded));
}

#[test]
fn a_hand_over_to_whom_the_store_does_not_name_breaks_the_protocol() {
    assert_eq!(empty().handle(Event::HandOver), stop(StopReason::NothingHeld));
    assert_eq!(part(&mut following(), Event::HandOver), [Command::CloseChannel, Command::ReadClaim]);
}

#[test]
fn being_entitled_does_not_change() {
    let mut replica = entitled();
    assert_eq!(replica.handle(Event::Entitled { generation: Generation::new(2) }), []);
    let other = Event::Entitled { generation: Generation::new(5) };
    assert_eq!(part(&mut replica, other), [Command::CloseChannel, ask(3, "b", None)]);
    assert_eq!(empty().handle(Event::Entitled { generation: Generation::new(2) }), stop(StopReason::NothingHeld));
}

#[test]
fn a_secondary_that_has_failed_does_not_compete() {
    let failed = Event::PeerLost { reason: LossReason::Failed };
    assert_eq!(entitled().handle(failed.clone()), stop(StopReason::Failed));
    assert_eq!(following().handle(failed), stop(StopReason::Failed));
}

#[test]
fn a_secondary_asks_nobody_before_it_is_ready_and_never_if_it_cannot_be() {
    for event in [gone(), Event::HandOver] {
        for reason in [LossReason::Failed, LossReason::Diverged] {
            let mut replica = entitled();
            assert_eq!(replica.handle(event.clone()), [Command::GetReady]);
            assert_eq!(replica.status().generation, Generation::new(2));
            assert_eq!(replica.handle(Event::PeerLost { reason }), stop(StopReason::Failed));
            assert_is_dead(&mut replica);
        }
    }
    assert_eq!(entitled().handle(Event::Ready), [], "nobody has asked");
}

#[test]
fn a_secondary_that_could_not_run_the_vm_does_not_compete_until_it_can() {
    let mut replica = entitled();
    assert_eq!(replica.handle(gone()), [Command::GetReady]);
    for _ in 0..3 {
        assert_eq!(replica.handle(Event::NotReady), [Command::CloseChannel, Command::StartRetryTimer]);
        assert_eq!(replica.status().reason, Some(Reason::NotReady));
        assert_eq!(replica.handle(Event::Ready), [], "it was not asked");
        assert_eq!(replica.handle(gone()), [], "the primary is not lost twice");
        assert_eq!(replica.handle(Event::RetryDue), [Command::ReadClaim]);
        assert_eq!(replica.handle(Event::StoreUnreachable), [Command::StartRetryTimer]);
        assert_eq!(replica.handle(Event::RetryDue), [Command::ReadClaim]);
        assert_eq!(replica.handle(Event::ClaimRead(claim(2, "a", Some("b")))), [Command::GetReady]);
    }
    assert_eq!(replica.handle(Event::Ready), [Command::CloseChannel, ask(3, "b", None)]);
    assert_eq!(replica.handle(won()), take_over(1));
}

#[test]
fn a_secondary_that_could_not_run_the_vm_stops_when_the_primary_has_gone_on() {
    for (mut replica, reason) in [(entitled(), StopReason::Superseded), (following(), StopReason::NotEntitled)] {
        replica.handle(gone());
        replica.handle(Event::NotReady);
        replica.handle(Event::RetryDue);
        assert_eq!(replica.handle(Event::ClaimRead(claim(3, "a", None))), stop(reason));
        assert_is_dead(&mut replica);
    }
}

#[test]
fn a_secondary_that_is_asked_to_take_over_and_could_not_lets_the_primary_go_on() {
    let mut replica = entitled();
    assert_eq!(replica.handle(Event::HandOver), [Command::GetReady]);
    assert_eq!(replica.handle(Event::NotReady), [Command::CloseChannel, Command::StartRetryTimer]);
    // It may have died all the same.
    replica.handle(Event::RetryDue);
    assert_eq!(replica.handle(Event::ClaimRead(claim(2, "a", Some("b")))), [Command::GetReady]);
    assert_eq!(replica.handle(Event::Ready), [Command::CloseChannel, ask(3, "b", None)]);
    assert_eq!(replica.handle(lost_to(claim(3, "a", None))), stop(StopReason::Superseded));
}

#[test]
fn a_secondary_that_has_taken_over_can_be_protected() {
    let mut replica = entitled();
    part(&mut replica, gone());
    replica.handle(won());
    assert_eq!(replica.handle(Event::SyncFinished { secondary: id("a") }), [Command::HoldOutput]);
    let acknowledged = replica.handle(Event::Acknowledged { epoch: Epoch::new(2) });
    assert_eq!(acknowledged, [Command::Release { through: Epoch::new(2) }, ask(4, "b", Some("a"))]);
}
