//! The rules for the replica that runs the guest: `a`, whose secondary is `b`.

use super::super::{
    Command, DropReason, Epoch, Event, Generation, LossReason, Protection, Reason, Replica, StopReason,
};
use super::{ask, assert_is_dead, claim, gone, id, lost_to, won};

fn alone() -> Replica {
    Replica::primary(id("a"), claim(1, "a", None))
}

fn joining() -> Replica {
    let mut replica = alone();
    assert_eq!(replica.handle(Event::SyncFinished { secondary: id("b") }), [Command::HoldOutput]);
    replica
}

fn entitling() -> Replica {
    let mut replica = joining();
    assert_eq!(replica.handle(ack(1)), [Command::Release { through: Epoch::new(1) }, ask(2, "a", Some("b"))]);
    replica
}

fn protected() -> Replica {
    let mut replica = entitling();
    assert_eq!(replica.handle(won()), [Command::TellEntitled { generation: Generation::new(2) }]);
    assert!(replica.status().is_protected());
    replica
}

fn switch_over(last: u64) -> Event {
    Event::SwitchOver { last: Epoch::new(last) }
}

fn handing_over() -> Replica {
    let mut replica = protected();
    assert_eq!(replica.handle(switch_over(2)), []);
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }, Command::AskToTakeOver]);
    replica
}

fn ack(epoch: u64) -> Event {
    Event::Acknowledged { epoch: Epoch::new(epoch) }
}

fn alone_again() -> [Command; 2] {
    [Command::OpenOutput, Command::Resume]
}

#[test]
fn only_whom_the_store_names_alone_starts_as_primary() {
    for claim in [claim(1, "b", None), claim(1, "a", Some("b"))] {
        let mut replica = Replica::primary(id("a"), claim);
        assert_eq!(replica.status().reason, Some(Reason::Stopped(StopReason::NotNamed)));
        assert_is_dead(&mut replica);
    }
}

#[test]
fn output_waits_as_soon_as_the_first_copy_is_over() {
    assert_eq!(joining().status().protection, Protection::Starting);
}

#[test]
fn output_leaves_only_on_the_ack_of_its_epoch() {
    let mut replica = protected();
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }]);
    assert_eq!(replica.handle(ack(5)), [Command::Release { through: Epoch::new(5) }]);
}

#[test]
fn the_store_names_a_secondary_before_that_is_told_and_after_its_first_ack() {
    let mut replica = entitling();
    assert_eq!(replica.status().reason, Some(Reason::Entitling));
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }]);
    assert_eq!(replica.handle(won()), [Command::TellEntitled { generation: Generation::new(2) }]);
    assert_eq!(replica.status().secondary, Some(id("b")));
}

#[test]
fn a_secondary_that_the_store_cannot_name_is_lost_without_arbitration() {
    let mut replica = joining();
    let commands = replica.handle(gone());
    assert_eq!(commands[0], Command::CloseChannel);
    assert_eq!(commands[1..], alone_again());
    assert_eq!(replica.status().reason, Some(Reason::Lost(LossReason::Closed)));
}

#[test]
fn a_primary_that_lost_its_secondary_goes_on_only_after_it_has_won() {
    let mut replica = protected();
    assert_eq!(replica.handle(gone()), [Command::CloseChannel, ask(3, "a", None)]);
    assert_eq!(replica.handle(ack(7)), [], "what comes late does not count");
    assert_eq!(replica.handle(gone()), [Command::CloseChannel], "and is not lost twice");
    assert_eq!(replica.handle(won()), alone_again());
    assert_eq!(replica.status().generation, Generation::new(3));
}

#[test]
fn the_loser_stops_for_good() {
    let mut replica = protected();
    replica.handle(gone());
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::Superseded }];
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), stop);
    assert_is_dead(&mut replica);
}

#[test]
fn without_a_store_output_waits_and_the_store_is_asked_again() {
    let mut replica = protected();
    replica.handle(gone());
    for _ in 0..3 {
        assert_eq!(replica.handle(Event::StoreUnreachable), [Command::StartRetryTimer]);
        assert_eq!(replica.status().reason, Some(Reason::StoreUnreachable));
        assert_eq!(replica.handle(Event::RetryDue), [ask(3, "a", None)]);
    }
    assert_eq!(replica.handle(won()), alone_again());
}

#[test]
fn a_claim_of_its_own_whose_answer_was_lost_counts_as_won() {
    let mut replica = protected();
    replica.handle(gone());
    replica.handle(Event::StoreUnreachable);
    replica.handle(Event::RetryDue);
    assert_eq!(replica.handle(lost_to(claim(3, "a", None))), alone_again());
}

#[test]
fn a_secondary_lost_while_the_store_is_asked_to_name_it_is_arbitrated_after_the_answer() {
    let mut replica = entitling();
    assert_eq!(replica.handle(gone()), [Command::CloseChannel]);
    assert_eq!(replica.handle(won()), [ask(3, "a", None)], "it is named now, and may compete");
    assert_eq!(replica.handle(won()), alone_again());
}

#[test]
fn a_secondary_that_an_unanswered_request_named_is_arbitrated() {
    let mut replica = entitling();
    replica.handle(Event::StoreUnreachable);
    replica.handle(gone());
    assert_eq!(replica.handle(Event::RetryDue), [ask(2, "a", None)], "nobody has to be named any more");
    assert_eq!(replica.handle(lost_to(claim(2, "a", Some("b")))), [ask(3, "a", None)]);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::Superseded }];
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), stop);
}

#[test]
fn a_dropped_secondary_serves_until_the_store_has_taken_note() {
    let mut replica = protected();
    assert_eq!(replica.handle(Event::DropSecondary { reason: DropReason::Off }), [ask(3, "a", None)]);
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }]);
    assert_eq!(replica.handle(won()), [Command::CloseChannel, Command::OpenOutput, Command::Resume]);
    assert_eq!(replica.status().protection, Protection::Disabled);
}

#[test]
fn a_dropped_secondary_may_be_lost_and_may_win() {
    let mut replica = protected();
    replica.handle(Event::DropSecondary { reason: DropReason::Restart });
    assert_eq!(replica.handle(gone()), [Command::CloseChannel]);
    assert_eq!(replica.handle(ack(2)), []);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::Superseded }];
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), stop);
}

#[test]
fn a_secondary_dropped_while_the_store_is_asked_to_name_it_is_unnamed_again() {
    let mut replica = entitling();
    assert_eq!(replica.handle(Event::DropSecondary { reason: DropReason::Suspend }), []);
    assert_eq!(replica.handle(won()), [ask(3, "a", None)]);
    assert_eq!(replica.handle(won()), [Command::CloseChannel, Command::OpenOutput, Command::Resume]);
    assert_eq!(replica.status().reason, Some(Reason::Dropped(DropReason::Suspend)));
}

#[test]
fn a_secondary_that_the_store_does_not_name_is_dropped_at_once() {
    let drop = Event::DropSecondary { reason: DropReason::TooSlow };
    assert_eq!(joining().handle(drop.clone()), [Command::CloseChannel, Command::OpenOutput, Command::Resume]);
    assert_eq!(alone().handle(drop), [Command::CloseChannel]);
}

#[test]
fn acks_release_nothing_during_a_hand_over() {
    let mut replica = handing_over();
    assert_eq!(replica.handle(ack(9)), []);
    assert_eq!(replica.status().reason, Some(Reason::HandOver));
}

#[test]
fn a_hand_over_ends_with_the_secondary_as_primary() {
    let mut replica = handing_over();
    assert_eq!(replica.handle(gone()), [Command::CloseChannel, ask(3, "a", None)]);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::HandedOver }];
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), stop);
    assert_is_dead(&mut replica);
}

#[test]
fn a_hand_over_that_does_not_come_about_lets_the_guest_run() {
    let mut replica = handing_over();
    replica.handle(gone());
    assert_eq!(replica.handle(won()), alone_again());
}

#[test]
fn a_hand_over_that_the_user_gives_up_is_arbitrated() {
    let mut replica = handing_over();
    let drop = Event::DropSecondary { reason: DropReason::Off };
    assert_eq!(replica.handle(drop), [Command::CloseChannel, ask(3, "a", None)]);
}

#[test]
fn a_secondary_is_asked_to_take_over_once_it_holds_the_last_epoch() {
    let mut replica = protected();
    assert_eq!(replica.handle(switch_over(5)), []);
    assert_eq!(replica.handle(ack(4)), [Command::Release { through: Epoch::new(4) }]);
    assert!(replica.status().is_protected());
    assert_eq!(replica.handle(ack(6)), [Command::Release { through: Epoch::new(6) }, Command::AskToTakeOver]);
    assert_eq!(replica.status().reason, Some(Reason::HandOver));
}

#[test]
fn a_guest_paused_for_a_hand_over_runs_if_nobody_could_take_over() {
    let mut lost = protected();
    lost.handle(gone());
    let mut dropped = protected();
    dropped.handle(Event::DropSecondary { reason: DropReason::Off });
    for mut replica in [alone(), joining(), entitling(), lost, dropped] {
        assert_eq!(replica.handle(switch_over(2)), [Command::Resume]);
    }
}

#[test]
fn a_guest_paused_for_a_hand_over_runs_if_the_secondary_is_not_asked() {
    let mut replica = protected();
    replica.handle(switch_over(2));
    assert_eq!(replica.handle(Event::SwitchOverFailed), [Command::Resume]);
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }]);
    // Lost.
    let mut replica = protected();
    replica.handle(switch_over(2));
    assert_eq!(replica.handle(gone()), [Command::CloseChannel, ask(3, "a", None)]);
    assert_eq!(replica.handle(won()), alone_again());
    // Dropped: acks still count, so the guest need not wait for the store.
    let mut replica = protected();
    replica.handle(switch_over(2));
    let drop = Event::DropSecondary { reason: DropReason::Off };
    assert_eq!(replica.handle(drop), [Command::Resume, ask(3, "a", None)]);
    assert_eq!(replica.handle(ack(2)), [Command::Release { through: Epoch::new(2) }]);
}

const BROKEN: Event = Event::DisksBroken { could_move: true };

/// What the store says is read, and that is `b` as secondary of `a`.
fn undecided() -> Event {
    Event::ClaimRead(claim(2, "a", Some("b")))
}

#[test]
fn a_primary_whose_disks_break_asks_its_secondary_to_take_over_from_what_it_holds() {
    let mut replica = protected();
    assert_eq!(replica.handle(BROKEN), [Command::AskToTakeOver]);
    assert_eq!(replica.status().reason, Some(Reason::HandOver));
    assert_eq!(replica.handle(ack(9)), [], "what the guest did since must not leave");
    assert_eq!(replica.handle(BROKEN), [], "it is asked once");
    assert_eq!(replica.handle(gone()), [Command::CloseChannel, Command::ReadClaim]);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::HandedOver }];
    assert_eq!(replica.handle(Event::ClaimRead(claim(3, "b", None))), stop);
    assert_is_dead(&mut replica);
}

#[test]
fn a_primary_whose_disks_are_broken_does_not_compete_until_they_are_sound() {
    for broken in [BROKEN, Event::DisksBroken { could_move: false }] {
        let mut replica = protected();
        replica.handle(broken);
        assert_eq!(replica.handle(gone()), [Command::CloseChannel, Command::ReadClaim]);
        for answer in [undecided(), Event::StoreUnreachable, undecided()] {
            assert_eq!(replica.handle(answer), [Command::StartRetryTimer]);
            assert_eq!(replica.handle(Event::RetryDue), [Command::ReadClaim]);
        }
        // The answer is still to come, and nobody is asked two things.
        assert_eq!(replica.handle(Event::DisksSound), []);
        assert_eq!(replica.handle(undecided()), [ask(3, "a", None)]);
        assert_eq!(replica.handle(won()), alone_again());
    }
    let mut replica = protected();
    replica.handle(BROKEN);
    replica.handle(gone());
    replica.handle(undecided());
    assert_eq!(replica.handle(Event::DisksSound), [], "the timer runs");
    assert_eq!(replica.handle(Event::RetryDue), [ask(3, "a", None)]);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::HandedOver }];
    assert_eq!(replica.handle(lost_to(claim(3, "b", None))), stop);
}

#[test]
fn disks_that_break_while_the_store_is_asked_keep_the_primary_from_asking_again() {
    let mut replica = protected();
    replica.handle(gone());
    replica.handle(Event::DisksBroken { could_move: false });
    assert_eq!(replica.handle(Event::StoreUnreachable), [Command::StartRetryTimer]);
    assert_eq!(replica.handle(Event::RetryDue), [Command::ReadClaim]);
    let stop = [Command::CloseChannel, Command::Stop { reason: StopReason::Superseded }];
    assert_eq!(replica.handle(Event::ClaimRead(claim(3, "b", None))), stop);
}

#[test]
fn disks_that_break_during_a_hand_over_do_not_wait_for_its_last_epoch() {
    let mut replica = protected();
    replica.handle(switch_over(5));
    assert_eq!(replica.handle(BROKEN), [Command::AskToTakeOver]);
    assert_eq!(replica.handle(ack(5)), []);
}

#[test]
fn a_primary_whose_disks_break_keeps_its_vm_if_nobody_could_take_it() {
    let mut lost = protected();
    lost.handle(gone());
    for mut replica in [joining(), entitling()] {
        assert_eq!(replica.handle(BROKEN), [Command::Resume]);
        assert_eq!(replica.handle(Event::DisksSound), []);
    }
    for mut replica in [alone(), lost] {
        assert_eq!(replica.handle(BROKEN), [Command::CloseChannel, Command::Resume]);
        assert_eq!(replica.handle(Event::DisksSound), []);
    }
}

/// A first copy may be under way while nobody is a secondary, also while it is not decided who goes on.
fn without_secondary() -> [Replica; 3] {
    let mut arbitrating = protected();
    arbitrating.handle(gone());
    let mut withheld = protected();
    withheld.handle(Event::DisksBroken { could_move: false });
    withheld.handle(gone());
    [alone(), arbitrating, withheld]
}

#[test]
fn no_first_copy_is_made_of_broken_disks() {
    for mut replica in without_secondary() {
        for _ in 0..2 {
            // Each time: another one may have begun since.
            assert_eq!(replica.handle(Event::DisksBroken { could_move: false }), [Command::CloseChannel]);
        }
    }
    assert_eq!(joining().handle(Event::DisksBroken { could_move: false }), [], "it is over");
}

#[test]
fn a_first_copy_is_given_up_with_the_secondary_that_it_would_make() {
    for reason in [DropReason::Off, DropReason::TooSlow] {
        for mut replica in without_secondary() {
            assert_eq!(replica.handle(Event::DropSecondary { reason }), [Command::CloseChannel]);
        }
    }
}

#[test]
fn a_vm_moves_only_if_it_is_protected_and_its_secondary_reaches_its_network() {
    assert!(protected().could_move(true) && !protected().could_move(false));
    for replica in [alone(), joining(), entitling(), handing_over()] {
        assert!(!replica.could_move(true));
    }
    assert!(!Replica::secondary(id("b")).could_move(true));
}

#[test]
fn a_primary_that_has_lost_its_secondary_is_undecided_until_the_store_has_answered() {
    let [alone, mut arbitrating, withheld] = without_secondary();
    assert!(!alone.is_undecided() && arbitrating.is_undecided() && withheld.is_undecided());
    assert!(!protected().is_undecided() && !joining().is_undecided(), "acks count");
    arbitrating.handle(won());
    assert!(!arbitrating.is_undecided());
}

/// The claim named `b` for a replica that had run there before; its successor joined, read that claim, and took over what it held.
#[test]
fn a_first_copy_that_ends_before_it_is_decided_who_goes_on_is_closed() {
    let mut replica = protected();
    replica.handle(gone());
    assert_eq!(replica.handle(Event::SyncFinished { secondary: id("b") }), [Command::CloseChannel]);
    assert_eq!(replica.handle(ack(9)), []);
    assert_eq!(replica.handle(won()), alone_again());
}

#[test]
fn a_first_copy_that_is_lost_changes_nothing() {
    let mut replica = alone();
    assert_eq!(replica.handle(gone()), [Command::CloseChannel]);
    assert_eq!(replica.status().reason, Some(Reason::NoSecondaryYet));
}

#[test]
fn a_second_secondary_or_itself_is_not_taken() {
    let twice = Event::SyncFinished { secondary: id("c") };
    assert_eq!(protected().handle(twice), [Command::CloseChannel, ask(3, "a", None)]);
    assert_eq!(alone().handle(Event::SyncFinished { secondary: id("a") }), [Command::CloseChannel]);
}

#[test]
fn a_vm_is_protected_again_at_the_generations_that_follow() {
    let mut replica = protected();
    replica.handle(gone());
    replica.handle(won());
    assert_eq!(replica.handle(Event::SyncFinished { secondary: id("c") }), [Command::HoldOutput]);
    assert_eq!(replica.handle(ack(8)), [Command::Release { through: Epoch::new(8) }, ask(4, "a", Some("c"))]);
    assert_eq!(replica.handle(won()), [Command::TellEntitled { generation: Generation::new(4) }]);
}
