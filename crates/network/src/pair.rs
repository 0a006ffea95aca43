//! A cable between two network cards.

use std::io;
use std::os::fd::BorrowedFd;

use protocol::InputPosition;

use crate::backend::{BackendError, FrameBackend, LinkState, Received, SendOutcome};
use crate::offload::{FrameOffload, ReceiveOffloads};
use crate::seqpacket::SeqSocket;
use crate::wire::FrameSocket;

/// One end of a cable. Frames arrive as they were sent, offloads included, whatever the receiver accepts.
#[derive(Debug)]
pub struct CableEnd(FrameSocket);

/// A cable: what is sent into one end comes out of the other. It holds a bounded number of frames.
///
/// # Errors
/// When the process may open no more descriptors.
pub fn pair() -> io::Result<(CableEnd, CableEnd)> {
    let (a, b) = SeqSocket::pair()?;
    let end = |socket| CableEnd(FrameSocket::new(socket, InputPosition::default()));
    Ok((end(a), end(b)))
}

impl FrameBackend for CableEnd {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        self.0.send(frame, offload)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        self.0.recv(buffer)
    }

    fn accept(&mut self, _offloads: ReceiveOffloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn link_state(&self) -> LinkState {
        if self.0.is_closed() { LinkState::Down } else { LinkState::Up }
    }

    fn position(&self) -> InputPosition {
        self.0.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::FRAME_LEN_MAX;
    use crate::offload::{Checksum, Gso, Segmentation};

    #[test]
    fn frames_of_every_length_pass_with_their_offloads() {
        let (mut a, mut b) = pair().unwrap();
        let mut buffer = vec![0; FRAME_LEN_MAX];
        assert_eq!(b.recv(&mut buffer).unwrap(), None);
        let offload = FrameOffload {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            gso: Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 }),
        };
        for (len, offload) in [(0, FrameOffload::default()), (60, offload), (FRAME_LEN_MAX, offload)] {
            let frame: Vec<u8> = (0..len).map(|n| n as u8).collect();
            assert_eq!(a.send(&frame, offload).unwrap(), SendOutcome::Sent);
            assert_eq!(b.recv(&mut buffer).unwrap(), Some(Received { len, offload }));
            assert_eq!(buffer[..len], frame);
        }
        assert_eq!((a.position().frames, b.position()), (0, InputPosition { end: 0, frames: 3 }));
    }

    #[test]
    fn a_cable_that_nobody_reads_becomes_full_and_then_empties() {
        let (mut a, mut b) = pair().unwrap();
        let frame = [7; 1500];
        let mut sent = 0;
        while a.send(&frame, FrameOffload::default()).unwrap() == SendOutcome::Sent {
            sent += 1;
            assert!(sent < 10_000, "never full");
        }
        let mut buffer = vec![0; FRAME_LEN_MAX];
        let mut got = 0;
        while b.recv(&mut buffer).unwrap().is_some() {
            got += 1;
        }
        assert_eq!(got, sent);
        assert_eq!(a.send(&frame, FrameOffload::default()).unwrap(), SendOutcome::Sent);
    }

    #[test]
    fn the_link_goes_down_with_the_other_end() {
        let (mut a, b) = pair().unwrap();
        assert_eq!(a.link_state(), LinkState::Up);
        drop(b);
        assert!(matches!(a.recv(&mut [0; 100]), Err(BackendError::Disconnected)));
        assert_eq!(a.link_state(), LinkState::Down);
        assert!(matches!(a.send(&[0; 60], FrameOffload::default()), Err(BackendError::Disconnected)));
    }

    #[test]
    fn frames_too_long_for_either_side_are_errors_of_their_own() {
        let (mut a, mut b) = pair().unwrap();
        let long = vec![0; FRAME_LEN_MAX + 1];
        assert!(matches!(a.send(&long, FrameOffload::default()), Err(BackendError::FrameTooLong { .. })));
        assert_eq!(a.send(&[1; 100], FrameOffload::default()).unwrap(), SendOutcome::Sent);
        assert_eq!(a.send(&[2; 50], FrameOffload::default()).unwrap(), SendOutcome::Sent);
        let mut short = [0; 60];
        assert!(matches!(b.recv(&mut short), Err(BackendError::BufferTooShort { buffer_len: 60 })));
        assert_eq!(b.recv(&mut short).unwrap().map(|received| received.len), Some(50));
    }
}
