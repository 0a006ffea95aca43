//! The output rule: what leaves, and when.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};
use proptest::prelude::*;
use protocol::Epoch;

use crate::{TestEnd, counting_gate, frame, number_of, send};

const CARDS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Step {
    Send {
        card: usize,
    },
    Close,
    /// Relative to the last epoch closed, so also epochs that are not closed yet, and old ones again.
    Release {
        ahead: i64,
    },
    Hold,
    Open,
    /// The end takes so many more frames, and the run loop looks at the card.
    Room {
        card: usize,
        frames: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..CARDS).prop_map(|card| Step::Send { card }),
        3 => Just(Step::Close),
        3 => (-3..2i64).prop_map(|ahead| Step::Release { ahead }),
        1 => Just(Step::Hold),
        1 => Just(Step::Open),
        2 => (0..CARDS, 0..4usize).prop_map(|(card, frames)| Step::Room { card, frames }),
    ]
}

/// What the gate should do with the frames of one card, by the number of each.
#[derive(Default)]
struct Model {
    /// In the order in which the gate took them, with the epoch they wait for. `None` is the one under way.
    taken: Vec<(u64, Option<u64>)>,
    /// How many of them, from the first, may leave.
    allowed: usize,
    /// How many have.
    left: usize,
    room: usize,
}

impl Model {
    fn flush(&mut self) {
        let leaving = self.room.min(self.allowed - self.left);
        self.room -= leaving;
        self.left += leaving;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_gate_does_what_its_model_does(
        steps in proptest::collection::vec(step(), 1..120),
        rooms in prop::array::uniform2(prop_oneof![Just(usize::MAX), 0..6usize]),
    ) {
        let (gate, waits) = counting_gate();
        let ends = rooms.map(TestEnd::new);
        let mut cards = [0, 1].map(|card| gate.wrap(card, Box::new(ends[card].clone())).unwrap());
        let mut models = rooms.map(|room| Model { room, ..Model::default() });
        let (mut held, mut epoch, mut number, mut expected_waits) = (false, 0u64, 0, 0);
        for step in steps {
            match step {
                Step::Send { card } => {
                    number += 1;
                    let first = !output_waits(&models);
                    let model = &mut models[card];
                    let takes = held || model.left == model.taken.len() && model.room > 0;
                    prop_assert_eq!(send(&mut cards[card], number), takes);
                    if takes {
                        expected_waits += usize::from(held && first);
                        model.taken.push((number, None));
                        if !held {
                            model.allowed += 1;
                            model.flush();
                        }
                    }
                }
                Step::Close => {
                    epoch += 1;
                    let mut expected = Vec::new();
                    for (card, model) in models.iter_mut().enumerate() {
                        for (number, waits_for) in model.taken.iter_mut().skip(model.left) {
                            if waits_for.is_none() {
                                *waits_for = Some(epoch);
                                expected.push((card, *number));
                            }
                        }
                    }
                    let closed: Vec<_> =
                        gate.close_epoch(Epoch::new(epoch)).iter().map(|frame| (frame.card(), number_of(frame.bytes()))).collect();
                    prop_assert_eq!(closed, expected);
                }
                Step::Release { ahead } => {
                    let through = epoch.saturating_add_signed(ahead);
                    gate.release(Epoch::new(through));
                    for model in &mut models {
                        let waiting = &model.taken[model.allowed..];
                        model.allowed +=
                            waiting.iter().take_while(|(_, epoch)| epoch.is_some_and(|epoch| epoch <= through)).count();
                        model.flush();
                    }
                }
                Step::Hold => {
                    gate.hold();
                    held = true;
                }
                Step::Open => {
                    gate.open();
                    held = false;
                    for model in &mut models {
                        model.allowed = model.taken.len();
                        // No secondary has copies of what is here.
                        model.taken.iter_mut().skip(model.left).for_each(|(_, epoch)| *epoch = None);
                        model.flush();
                    }
                }
                Step::Room { card, frames } => {
                    let mut content = ends[card].content();
                    content.room = content.room.saturating_add(frames);
                    drop(content);
                    prop_assert!(cards[card].recv(&mut [0; 100]).unwrap().is_none());
                    models[card].room = models[card].room.saturating_add(frames);
                    models[card].flush();
                }
            }
            for (end, model) in ends.iter().zip(&models) {
                let left: Vec<u64> = model.taken[..model.left].iter().map(|(number, _)| *number).collect();
                prop_assert_eq!(end.sent(), left);
            }
            let status = gate.status();
            let waiting: usize = models.iter().map(|model| model.taken.len() - model.left).sum();
            prop_assert_eq!((status.held, status.waiting_frames), (held, waiting as u64));
            prop_assert_eq!(status.waiting_bytes, status.waiting_frames * 60);
            prop_assert_eq!(status.dropped_frames, 0);
            let left: usize = models.iter().map(|model| model.left).sum();
            prop_assert_eq!(status.passed_frames + status.released_frames, left as u64);
            prop_assert_eq!(waits.load(Ordering::SeqCst), expected_waits);
        }
    }
}

/// Whether output of the epoch under way waits.
fn output_waits(models: &[Model]) -> bool {
    models.iter().any(|model| model.taken[model.allowed..].iter().any(|(_, epoch)| epoch.is_none()))
}

/// A network end that fails the test when a frame reaches it before its epoch was committed.
struct Judge {
    end: TestEnd,
    committed: Arc<AtomicU64>,
    bypassed: Arc<AtomicBool>,
}

impl FrameBackend for Judge {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        if number_of(frame) > self.committed.load(Ordering::SeqCst) {
            self.bypassed.store(true, Ordering::SeqCst);
        }
        self.end.send(frame, offload)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        self.end.recv(buffer)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.end.accept(offloads)
    }

    fn link_state(&self) -> LinkState {
        self.end.link_state()
    }

    fn position(&self) -> InputPosition {
        self.end.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.end.poll_fd()
    }
}

#[test]
fn commits_from_another_thread_let_out_their_epochs_and_no_more() {
    const FRAMES: u64 = 100_000;
    const PER_EPOCH: u64 = 7;
    let (gate, _) = counting_gate();
    let end = TestEnd::new(usize::MAX);
    let committed = Arc::new(AtomicU64::new(0));
    let bypassed = Arc::new(AtomicBool::new(false));
    let judge = Judge { end: end.clone(), committed: committed.clone(), bypassed: bypassed.clone() };
    let mut card = gate.wrap(0, Box::new(judge)).unwrap();
    gate.hold();
    let (closed, to_commit) = std::sync::mpsc::channel::<u64>();
    let releasing = gate.clone();
    let releaser = thread::spawn(move || {
        for epoch in to_commit {
            committed.store(epoch * PER_EPOCH, Ordering::SeqCst);
            releasing.release(Epoch::new(epoch));
            releasing.release(Epoch::new(epoch));
        }
    });
    let inbound = end.clone();
    let world = thread::spawn(move || (1..=1000).for_each(|number| inbound.push_inbound(frame(number))));
    let mut buffer = [0; 100];
    let mut received = Vec::new();
    let mut number = 0;
    while number < FRAMES {
        // Without room the VM goes on receiving, as a run loop does.
        if send(&mut card, number + 1) {
            number += 1;
            if number % PER_EPOCH == 0 {
                gate.close_epoch(Epoch::new(number / PER_EPOCH));
                closed.send(number / PER_EPOCH).unwrap();
            }
        }
        received.extend(card.recv(&mut buffer).unwrap().map(|_| number_of(&buffer)));
    }
    drop(closed);
    releaser.join().unwrap();
    world.join().unwrap();
    while card.recv(&mut buffer).unwrap().is_some() {
        received.push(number_of(&buffer));
    }
    assert!(!bypassed.load(Ordering::SeqCst));
    assert_eq!(end.sent(), (1..=FRAMES / PER_EPOCH * PER_EPOCH).collect::<Vec<_>>());
    assert_eq!(received, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn nothing_is_under_way_once_hold_returns() {
    let (gate, _) = counting_gate();
    let end = TestEnd::new(usize::MAX);
    let mut card = gate.wrap(0, Box::new(end.clone())).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let guest = thread::spawn(move || {
        let mut number = 0;
        while !stopping.load(Ordering::Relaxed) {
            number += u64::from(send(&mut card, number + 1));
        }
        number
    });
    for _ in 0..200 {
        gate.hold();
        let before = end.content().sent.len();
        (0..20).for_each(|_| thread::yield_now());
        assert_eq!(end.content().sent.len(), before);
        gate.open();
        (0..20).for_each(|_| thread::yield_now());
    }
    stop.store(true, Ordering::Relaxed);
    let sent = guest.join().unwrap();
    assert_eq!(end.sent(), (1..=sent).collect::<Vec<_>>());
    assert_eq!(gate.status().waiting_frames, 0);
}

#[test]
fn cards_keep_their_own_order_and_waits_are_told_once_per_epoch() {
    let (gate, waits) = counting_gate();
    let ends: BTreeMap<usize, TestEnd> = (0..3).map(|card| (card, TestEnd::new(usize::MAX))).collect();
    let mut cards: Vec<_> = ends.iter().map(|(card, end)| gate.wrap(*card, Box::new(end.clone())).unwrap()).collect();
    gate.hold();
    for epoch in 1..=3 {
        for number in 0..9 {
            assert!(send(&mut cards[number as usize % 3], epoch * 10 + number));
        }
        assert_eq!(gate.close_epoch(Epoch::new(epoch)).len(), 9);
    }
    assert_eq!(waits.load(Ordering::SeqCst), 3);
    assert!(gate.close_epoch(Epoch::new(4)).is_empty());
    gate.release(Epoch::new(2));
    assert_eq!(ends[&1].sent(), [11, 14, 17, 21, 24, 27]);
    gate.release(Epoch::new(1));
    gate.release(Epoch::new(u64::MAX));
    assert_eq!(ends[&2].sent(), [12, 15, 18, 22, 25, 28, 32, 35, 38]);
    // An epoch that was released before it was closed waits for its own release.
    assert!(send(&mut cards[0], 50));
    gate.close_epoch(Epoch::new(5));
    assert_eq!(ends[&0].sent().last(), Some(&36));
    gate.release(Epoch::new(5));
    assert_eq!(ends[&0].sent().last(), Some(&50));
    let status = gate.status();
    assert_eq!((status.released_frames, status.passed_frames, status.oldest_wait_us), (28, 0, 0));
    assert!(status.wait_us_p99 >= status.wait_us_p50);
}

#[test]
fn what_has_found_no_room_when_a_secondary_joins_is_in_its_first_checkpoint() {
    let (gate, _) = counting_gate();
    let end = TestEnd::new(1);
    let mut card = gate.wrap(0, Box::new(end.clone())).unwrap();
    gate.hold();
    (1..=3).for_each(|number| assert!(send(&mut card, number)));
    // The secondary that has this is given up.
    gate.close_epoch(Epoch::new(1));
    gate.open();
    assert_eq!(end.sent(), [1]);
    gate.hold();
    assert!(send(&mut card, 4));
    let copies: Vec<u64> = gate.close_epoch(Epoch::new(2)).iter().map(|frame| number_of(frame.bytes())).collect();
    assert_eq!(copies, [2, 3, 4]);
    assert_eq!(gate.release(Epoch::new(2)), Epoch::new(1), "the secondary must not hear that it has left");
    assert!(gate.close_epoch(Epoch::new(3)).is_empty());
}
