//! What the log costs beside the frames in it, for the frames that the user-mode network delivers: their checksums are vouched for or
//! left open, so none of them leaves nothing open, and the guest's answers are acknowledged by frames of their own.

use machine::input::Input;
use network::{Checksum, FrameOffload, Gso, InputPosition, Segmentation};
use protocol::Epoch;
use replication::lockstep::log::SegmentWriter;

use super::samples::{EPOCH, INSTRUCTIONS, clock_step, positions, tcp_frame};

const ETHERNET_HEADER_LEN: usize = 14;
/// Where the TCP header of [`tcp_frame`] begins, and the checksum in it (RFC 9293, 3.1).
const TCP_START: u16 = 34;
const CHECKSUM_OFFSET: u16 = 16;
/// Length of its headers.
const HEADER_LEN: u16 = 66;

const VERIFIED: FrameOffload = FrameOffload { checksum: Checksum::Verified, gso: Gso::None };
/// Several segments joined.
const JOINED: FrameOffload = FrameOffload {
    checksum: Checksum::Partial { start: TCP_START, offset: CHECKSUM_OFFSET },
    gso: Gso::TcpV4(Segmentation { mss: 1448, header_len: HEADER_LEN }),
};

#[derive(Default)]
struct Totals {
    inbound: usize,
    log: usize,
}

/// Requests one after the other. For each: its frames, at most one acknowledgement of the answer, and two steps of the clock; a segment
/// for the frames, one for the answer, and one for the acknowledgement.
fn requests(frame_lens: &[usize], offload: FrameOffload, is_acknowledged: bool) -> Totals {
    let mut writer = SegmentWriter::new(Epoch::new(EPOCH), INSTRUCTIONS, &positions());
    let (mut totals, mut at, mut number) = (Totals::default(), INSTRUCTIONS, 0u32);
    let mut frame = |writer: &mut SegmentWriter, totals: &mut Totals, at, len: usize, offload| {
        let mut frame = tcp_frame(number, len, number / 1000);
        // What tells a request from an acknowledgement: the length of the IPv4 packet, and PSH.
        frame[16..18].copy_from_slice(&((len - ETHERNET_HEADER_LEN) as u16).to_be_bytes());
        frame[47] = if len == usize::from(HEADER_LEN) { 0x10 } else { 0x18 };
        number += 1;
        totals.inbound += frame.len();
        let position = InputPosition { end: positions()[0].end, frames: number.into() };
        writer.input(at, &Input::Frame { card: 0, frame, offload, position });
    };
    for request in 0..2000u64 {
        at += 50_000;
        writer.input(at, &clock_step(20_000 + request % 977));
        for &len in frame_lens {
            frame(&mut writer, &mut totals, at, len, offload);
        }
        totals.log += writer.finish(at, false).len();
        at += 60_000 + request % 613;
        writer.input(at, &clock_step(90_000));
        totals.log += writer.finish(at, true).len();
        if is_acknowledged {
            at += 9_000 + request % 101;
            frame(&mut writer, &mut totals, at, HEADER_LEN.into(), VERIFIED);
            totals.log += writer.finish(at, false).len();
        }
    }
    totals
}

#[test]
fn the_log_is_no_longer_than_a_user_mode_networks_frames_and_a_tenth() {
    for (what, frame_lens, offload, is_acknowledged) in [
        ("one at a time, 100 bytes", &[100][..], VERIFIED, false),
        ("one at a time, 90 bytes, each answer acknowledged", &[90], VERIFIED, true),
        ("pipelined, 4 frames of 1000 bytes", &[1000; 4], VERIFIED, true),
        ("pipelined, joined to one frame of 14,546 bytes", &[14_546], JOINED, true),
    ] {
        let Totals { inbound, log } = requests(frame_lens, offload, is_acknowledged);
        println!("{what}: {log} bytes of log for {inbound} bytes of frames: {:.3}", log as f64 / inbound as f64);
        assert!(log * 10 <= inbound * 11, "{what}: {log} bytes of log for {inbound} bytes of frames");
    }
}
