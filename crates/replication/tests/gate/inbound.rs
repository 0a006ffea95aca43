//! The way in: the tap and positions.

use std::sync::{Arc, Mutex};

use network::{Checksum, FRAME_LEN_MAX, FrameBackend, FrameOffload, Gso, InputPosition, Segmentation};
use replication::gate::InboundFrame;

use crate::{TestEnd, counting_gate, frame, number_of};

#[test]
fn the_tap_sees_each_frame_once_before_the_machine_does() {
    let (gate, _) = counting_gate();
    let end = TestEnd::new(usize::MAX);
    let mut card = gate.wrap(1, Box::new(end.clone())).unwrap();
    let seen = Arc::new(Mutex::new(Vec::<InboundFrame>::new()));
    let tapped = seen.clone();
    let source = end.clone();
    (1..=20).for_each(|number| end.push_inbound(frame(number)));
    let mut buffer = vec![0; FRAME_LEN_MAX];
    let mut take = || card.recv(&mut buffer).unwrap().map(|_| number_of(&buffer));
    assert_eq!(take(), Some(1));
    gate.set_input_tap(Some(Box::new(move |card, frame| {
        // The frame has left the end, and nobody else has had it.
        assert_eq!((card, frame.position), (1, source.position()));
        tapped.lock().unwrap().push(frame.clone());
    })));
    for number in 2..=10 {
        assert_eq!(seen.lock().unwrap().len() as u64, number - 2);
        assert_eq!(take(), Some(number));
    }
    gate.set_input_tap(None);
    assert_eq!(take(), Some(11));
    let seen = seen.lock().unwrap();
    let expected: Vec<_> = (2..=10).map(|number| (InputPosition { end: 77, frames: number }, frame(number))).collect();
    assert_eq!(seen.iter().map(|frame| (frame.position, frame.bytes.clone())).collect::<Vec<_>>(), expected);
    assert_eq!(gate.input_positions(), [InputPosition::default(), InputPosition { end: 77, frames: 11 }]);
}

#[test]
fn offloads_of_inbound_frames_are_passed_on() {
    let (gate, _) = counting_gate();
    let (ours, mut theirs) = network::pair().unwrap();
    let mut card = gate.wrap(0, Box::new(ours)).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tapped = seen.clone();
    gate.set_input_tap(Some(Box::new(move |_, frame| tapped.lock().unwrap().push(frame.clone()))));
    let offload = FrameOffload {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        gso: Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 }),
    };
    let _ = theirs.send(&[9; 4000], offload).unwrap();
    let mut buffer = vec![0; FRAME_LEN_MAX];
    assert_eq!(card.recv(&mut buffer).unwrap().map(|received| received.offload), Some(offload));
    let seen = seen.lock().unwrap();
    let [passed_on] = &seen[..] else { panic!("{} frames", seen.len()) };
    assert_eq!(FrameOffload::from_header(&passed_on.header), Ok(offload));
    assert_eq!((passed_on.position.frames, passed_on.bytes.len()), (1, 4000));
}
