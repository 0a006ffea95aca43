//! A VM process that can be killed while its guest, which a twin holds too, lives on in the test: it only carries frames
//! between the end and the test.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use network::{
    Attach, BackendError, FRAME_LEN_MAX, FrameBackend, FrameOffload, HEADER_LEN, InputPosition, Link, LinkState,
    ReceiveOffloads, Received, SendOutcome,
};

use crate::host::this_program;

/// Main function of the process: its standard input is a datagram socket to the test.
pub fn relay(socket: &Path) -> ExitCode {
    let test = UnixDatagram::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    test.set_nonblocking(true).unwrap();
    let mut link = Link::connect(socket, &Attach::default()).unwrap();
    link.accept(ReceiveOffloads { checksum: true, tso4: true, tso6: true }).unwrap();
    let mut buffer = vec![0; HEADER_LEN + FRAME_LEN_MAX];
    loop {
        let mut idle = true;
        if let Ok(len @ HEADER_LEN..) = test.recv(&mut buffer) {
            let (header, frame) = buffer[..len].split_first_chunk().unwrap();
            let offload = FrameOffload::from_header(header).unwrap();
            while link.send(frame, offload).unwrap() == SendOutcome::Full {
                thread::sleep(Duration::from_micros(100));
            }
            idle = false;
        }
        if let Some(received) = link.recv(&mut buffer[HEADER_LEN..]).unwrap() {
            buffer[..HEADER_LEN].copy_from_slice(&received.offload.to_header());
            while test.send(&buffer[..HEADER_LEN + received.len]).is_err() {
                thread::sleep(Duration::from_micros(100));
            }
            idle = false;
        }
        if idle {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// The test's side of it.
pub struct VmProcess {
    child: Child,
    socket: UnixDatagram,
}

impl VmProcess {
    pub fn spawn(end: &Path) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let child = Command::new(this_program())
            .arg("vm")
            .arg(end)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket: ours }
    }
}

impl Drop for VmProcess {
    /// Kills it without warning.
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl FrameBackend for VmProcess {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let message = [&offload.to_header(), frame].concat();
        match self.socket.send(&message) {
            Ok(_) => Ok(SendOutcome::Sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(SendOutcome::Full),
            Err(_) => Err(BackendError::Disconnected),
        }
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        let mut message = vec![0; HEADER_LEN + FRAME_LEN_MAX];
        match self.socket.recv(&mut message) {
            Ok(len @ HEADER_LEN..) => {
                let (header, frame) = message[..len].split_first_chunk().unwrap();
                buffer[..frame.len()].copy_from_slice(frame);
                Ok(Some(Received { len: frame.len(), offload: FrameOffload::from_header(header)? }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(BackendError::Disconnected),
        }
    }

    /// The process does it itself.
    fn accept(&mut self, _offloads: ReceiveOffloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    /// Not known here.
    fn position(&self) -> InputPosition {
        InputPosition::default()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
