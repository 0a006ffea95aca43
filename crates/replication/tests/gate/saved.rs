//! Frames that come from a peer.

use network::{BackendError, Checksum, FRAME_LEN_MAX, FrameOffload, Gso, HEADER_LEN, InputPosition, Segmentation};
use proptest::prelude::*;
use replication::gate::{GatedFrame, InboundFrame};
use serde::Serialize;

/// Looks like either on the wire, and may hold anything.
#[derive(Serialize)]
struct Forged<P> {
    place: P,
    header: [u8; HEADER_LEN],
    bytes: Vec<u8>,
}

fn forged<P: Serialize>(place: P, header: [u8; HEADER_LEN], len: usize) -> Vec<u8> {
    postcard::to_stdvec(&Forged { place, header, bytes: vec![0; len] }).unwrap()
}

#[test]
fn saved_frames_come_back_and_forged_ones_do_not() {
    let offload = FrameOffload {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        gso: Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 }),
    };
    let frames = [
        GatedFrame::new(3, &[7; 5000], offload).unwrap(),
        GatedFrame::new(0, &[], FrameOffload::default()).unwrap(),
        GatedFrame::new(0, &[1; FRAME_LEN_MAX], FrameOffload::default()).unwrap(),
    ];
    let saved = postcard::to_stdvec(&frames).unwrap();
    assert_eq!(postcard::from_bytes::<[GatedFrame; 3]>(&saved).unwrap(), frames);
    let position = InputPosition { end: u64::MAX, frames: 5 };
    let inbound = InboundFrame { position, header: offload.to_header(), bytes: vec![7; 5000] };
    let saved = postcard::to_stdvec(&inbound).unwrap();
    assert_eq!(postcard::from_bytes::<InboundFrame>(&saved).unwrap(), inbound);

    let plain = FrameOffload::default().to_header();
    let unknown_gso = [0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let refused = [(plain, FRAME_LEN_MAX + 1), (unknown_gso, 60), (offload.to_header(), 51)];
    assert!(postcard::from_bytes::<GatedFrame>(&forged(0u32, plain, 60)).is_ok());
    assert!(postcard::from_bytes::<InboundFrame>(&forged(position, plain, 60)).is_ok());
    for (header, len) in refused {
        assert!(postcard::from_bytes::<GatedFrame>(&forged(0u32, header, len)).is_err());
        assert!(postcard::from_bytes::<InboundFrame>(&forged(position, header, len)).is_err());
    }
    assert!(matches!(
        GatedFrame::new(0, &[0; FRAME_LEN_MAX + 1], FrameOffload::default()),
        Err(BackendError::FrameTooLong { .. })
    ));
    assert!(matches!(GatedFrame::new(0, &[0; 51], offload), Err(BackendError::Offload(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        if let Ok(frames) = postcard::from_bytes::<Vec<GatedFrame>>(&bytes) {
            prop_assert!(frames.iter().all(|frame| frame.offload().check(frame.bytes().len()).is_ok()));
        }
        let _ = postcard::from_bytes::<Vec<InboundFrame>>(&bytes);
    }
}
