//! Cards and network ends without room.

use std::time::Duration;

use network::{
    BackendError, FRAME_LEN_MAX, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, SendOutcome,
};
use protocol::Epoch;
use replication::gate::{GATE_BYTES_MAX, GATE_FRAMES_MAX, GatedFrame};
use spec::MacAddr;

use crate::{TestEnd, counting_gate, frame, number_of, send, wakes};

const NOW: Duration = Duration::ZERO;
/// So long that it means never.
const EVENTUALLY: Duration = Duration::from_secs(20);

#[test]
fn a_full_gate_keeps_nothing_more_and_wakes_the_card_when_there_is_room() {
    let (gate, _) = counting_gate();
    let end = TestEnd::new(usize::MAX);
    let mut card = gate.wrap(0, Box::new(end.clone())).unwrap();
    gate.hold();
    let long = vec![0; FRAME_LEN_MAX];
    let offer = |card: &mut Box<dyn FrameBackend>| card.send(&long, FrameOffload::default()).unwrap();
    let mut kept = 0;
    while offer(&mut card) == SendOutcome::Sent {
        kept += 1;
    }
    assert_eq!(kept, GATE_BYTES_MAX / FRAME_LEN_MAX);
    // The end has room, but nobody is to be woken for that.
    assert!(!wakes(&*card, NOW));
    gate.close_epoch(Epoch::new(1));
    gate.release(Epoch::new(1));
    assert!(wakes(&*card, EVENTUALLY));
    assert_eq!(offer(&mut card), SendOutcome::Sent);
    assert!(!wakes(&*card, NOW));
    assert_eq!(end.content().sent.len(), kept);

    // The number of frames is bounded too, and opening makes room as well.
    gate.close_epoch(Epoch::new(2));
    gate.release(Epoch::new(2));
    let mut kept = 0;
    while send(&mut card, kept) {
        kept += 1;
    }
    assert_eq!(kept, GATE_FRAMES_MAX as u64);
    gate.open();
    assert!(wakes(&*card, EVENTUALLY));
    assert!(send(&mut card, kept));
    let sent = end.sent();
    assert_eq!(sent[sent.len() - 1 - GATE_FRAMES_MAX..], (0..=GATE_FRAMES_MAX as u64).collect::<Vec<_>>());
}

#[test]
fn released_frames_wait_for_room_in_the_end_without_a_thread_that_waits() {
    const FRAMES: u64 = 10_000;
    let (gate, _) = counting_gate();
    let (ours, mut theirs) = network::pair().unwrap();
    let mut card = gate.wrap(0, Box::new(ours)).unwrap();
    gate.hold();
    (0..FRAMES).for_each(|number| assert!(send(&mut card, number)));
    gate.close_epoch(Epoch::new(1));
    gate.release(Epoch::new(1));
    let waiting = gate.status().waiting_frames;
    assert!(waiting > 0 && waiting < FRAMES, "{waiting} wait");
    assert!(!wakes(&*card, NOW));
    gate.open();
    // What is open now comes after what waits.
    assert!(!send(&mut card, FRAMES));
    let mut buffer = vec![0; FRAME_LEN_MAX];
    let mut got = Vec::new();
    while got.len() < FRAMES as usize {
        while theirs.recv(&mut buffer).unwrap().is_some() {
            got.push(number_of(&buffer));
        }
        assert!(wakes(&*card, EVENTUALLY), "after {} frames", got.len());
        assert!(card.recv(&mut buffer).unwrap().is_none());
    }
    // It was told that there is no room, and has not tried again.
    assert!(wakes(&*card, NOW));
    assert!(send(&mut card, FRAMES));
    assert!(!wakes(&*card, NOW));
    assert!(theirs.recv(&mut buffer).unwrap().is_some());
    got.push(number_of(&buffer));
    assert_eq!(got, (0..=FRAMES).collect::<Vec<_>>());
}

/// A secondary that was told too much would not send again what a primary still held when it was lost.
#[test]
fn output_that_found_no_room_has_not_left() {
    let (gate, _) = counting_gate();
    let end = TestEnd::new(3);
    let mut card = gate.wrap(0, Box::new(end.clone())).unwrap();
    gate.hold();
    for epoch in 1..=4 {
        assert!(send(&mut card, 2 * epoch) && send(&mut card, 2 * epoch + 1));
        gate.close_epoch(Epoch::new(epoch));
    }
    assert_eq!(gate.release(Epoch::new(1)), Epoch::new(1));
    assert_eq!(gate.release(Epoch::new(3)), Epoch::new(1), "the second frame of epoch 2 waits");
    end.content().room = 1;
    assert_eq!(gate.release(Epoch::new(3)), Epoch::new(2));
    end.content().room = usize::MAX;
    assert_eq!(gate.release(Epoch::new(9)), Epoch::new(9));
    assert_eq!(end.sent(), (2..=9).collect::<Vec<_>>());
}

#[test]
fn an_open_gate_passes_on_that_the_end_is_full() {
    let (gate, _) = counting_gate();
    let (ours, mut theirs) = network::pair().unwrap();
    let mut card = gate.wrap(0, Box::new(ours)).unwrap();
    let mut sent = 0;
    while send(&mut card, sent) {
        sent += 1;
    }
    assert!(!wakes(&*card, NOW));
    let mut buffer = [0; 100];
    while theirs.recv(&mut buffer).unwrap().is_some() {}
    assert!(wakes(&*card, EVENTUALLY));
    // Looking for input does not use up the wake.
    assert!(card.recv(&mut buffer).unwrap().is_none());
    assert!(wakes(&*card, EVENTUALLY));
    assert!(send(&mut card, sent));
    assert!(!wakes(&*card, NOW));
    assert_eq!(gate.status().passed_frames, sent + 1);
}

#[test]
fn frames_for_an_end_that_is_gone_are_counted() {
    let (gate, _) = counting_gate();
    let (ours, theirs) = network::pair().unwrap();
    let mut card = gate.wrap(0, Box::new(ours)).unwrap();
    gate.hold();
    (0..5).for_each(|number| assert!(send(&mut card, number)));
    drop(theirs);
    gate.close_epoch(Epoch::new(1));
    gate.release(Epoch::new(1));
    assert_eq!((gate.status().dropped_frames, gate.status().waiting_frames), (5, 0));
    assert!(wakes(&*card, EVENTUALLY));
    assert!(card.recv(&mut [0; 100]).unwrap().is_none());
    assert_eq!((card.link_state(), gate.unplugged().len()), (LinkState::Down, 1));
    assert!(!wakes(&*card, NOW), "a run loop that has seen it would not sleep any more");
}

#[test]
fn a_card_whose_end_has_died_goes_on_through_the_next_one() {
    let (gate, _) = counting_gate();
    let (ours, theirs) = network::pair().unwrap();
    let mut card = gate.wrap(0, Box::new(ours)).unwrap();
    card.accept(ReceiveOffloads::default()).unwrap();
    drop(theirs);
    assert!(card.recv(&mut [0; 100]).unwrap().is_none());
    assert!(matches!(card.send(&frame(1), FrameOffload::default()), Err(BackendError::Disconnected)), "it is lost");
    let next = TestEnd::new(usize::MAX);
    gate.plug(0, Box::new(next.clone())).unwrap();
    assert!(wakes(&*card, EVENTUALLY), "the run loop has to show the link");
    assert!(card.recv(&mut [0; 100]).unwrap().is_none());
    assert!(!wakes(&*card, NOW));
    assert!(send(&mut card, 2));
    assert_eq!((next.sent(), card.link_state(), gate.unplugged().len()), (vec![2], LinkState::Up, 0));
    assert_eq!(
        next.content().accepted,
        Some(ReceiveOffloads::default()),
        "the new end has to know what the guest takes"
    );
}

/// One that hangs keeps its connection, and loses what it is sent.
#[test]
fn row_26_a_card_lets_go_of_an_end_that_hangs_and_goes_on_through_the_next_one() {
    let (gate, _) = counting_gate();
    let silent = TestEnd::new(usize::MAX);
    let mut card = gate.wrap(0, Box::new(silent.clone())).unwrap();
    assert!(send(&mut card, 1));
    gate.unplug(0);
    assert!(wakes(&*card, EVENTUALLY), "the run loop has to show the link");
    assert!(card.recv(&mut [0; 100]).unwrap().is_none());
    assert_eq!((card.link_state(), gate.unplugged().len()), (LinkState::Down, 1));
    // There is nothing to let go of.
    gate.unplug(0);
    gate.unplug(7);
    assert!(!wakes(&*card, NOW));
    let next = TestEnd::new(usize::MAX);
    gate.plug(0, Box::new(next.clone())).unwrap();
    assert!(send(&mut card, 2));
    assert_eq!((silent.sent(), next.sent(), gate.unplugged().len()), (vec![1], vec![2], 0));
}

#[test]
fn a_card_that_waits_for_its_end_keeps_what_is_to_be_sent_again() {
    let (gate, _) = counting_gate();
    let position = InputPosition { end: 7, frames: 9 };
    let mut card = gate.await_end(0).unwrap();
    gate.resume_at(&[position]);
    assert_eq!((card.link_state(), card.position()), (LinkState::Down, position));
    assert_eq!(gate.unplugged(), [(0, position)]);
    gate.send_again(&[GatedFrame::new(0, &frame(1), FrameOffload::default()).unwrap()]);
    assert!(card.recv(&mut [0; 100]).unwrap().is_none());
    let end = TestEnd::new(usize::MAX);
    gate.plug(0, Box::new(end.clone())).unwrap();
    assert!(send(&mut card, 2));
    assert_eq!((end.sent(), gate.status().dropped_frames), (vec![1, 2], 0));
}

#[test]
fn a_card_that_is_wrapped_again_goes_on_through_its_new_end() {
    let (gate, _) = counting_gate();
    let (old_end, new_end) = (TestEnd::new(usize::MAX), TestEnd::new(usize::MAX));
    let mut old = gate.wrap(0, Box::new(old_end.clone())).unwrap();
    gate.hold();
    assert!(send(&mut old, 1));
    gate.close_epoch(Epoch::new(1));
    let mut new = gate.wrap(0, Box::new(new_end.clone())).unwrap();
    assert_eq!(old.link_state(), LinkState::Down);
    assert!(matches!(old.recv(&mut [0; 100]), Err(BackendError::Disconnected)));
    assert!(send(&mut new, 2));
    gate.release(Epoch::new(1));
    gate.open();
    assert!(matches!(old.send(&frame(3), FrameOffload::default()), Err(BackendError::Disconnected)));
    assert_eq!((old_end.sent(), new_end.sent()), (vec![], vec![1, 2]));
}

#[test]
fn a_replica_that_takes_over_sends_committed_output_first_and_announces_its_cards() {
    let (gate, waits) = counting_gate();
    let ends = [TestEnd::new(usize::MAX), TestEnd::new(2)];
    let mut cards = [0, 1].map(|card| gate.wrap(card, Box::new(ends[card].clone())).unwrap());
    let output = |card: u32, number| GatedFrame::new(card, &frame(number), FrameOffload::default()).unwrap();
    gate.send_again(&[output(0, 1), output(1, 2), output(7, 3), output(1, 4), output(1, 5)]);
    assert!(!send(&mut cards[1], 6));
    ends[1].content().room = 10;
    assert!(send(&mut cards[1], 6));
    assert_eq!((ends[0].sent(), ends[1].sent()), (vec![1], vec![2, 4, 5, 6]));
    assert_eq!((gate.status().dropped_frames, waits.load(std::sync::atomic::Ordering::SeqCst)), (1, 0));

    // Neither waits for commits, and nothing that does comes along.
    gate.hold();
    assert!(send(&mut cards[0], 8));
    gate.send_again(&[output(0, 9)]);
    gate.announce(&[MacAddr::new([2, 0, 0, 0, 0, 1]).unwrap(), MacAddr::new([2, 0, 0, 0, 0, 2]).unwrap()]);
    assert_eq!(ends[0].sent()[..2], [1, 9]);
    let announced = [0, 1].map(|card: usize| ends[card].content().sent.last().cloned().unwrap());
    assert_eq!(
        announced.map(|frame| (frame[11], frame[12..14].to_vec())),
        [(1, vec![0x80, 0x35]), (2, vec![0x80, 0x35])]
    );
    assert_eq!(gate.status().waiting_frames, 1);
}
