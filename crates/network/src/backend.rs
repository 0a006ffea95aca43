//! The one trait through which a guest's frames reach the world.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use protocol::InputPosition;
use thiserror::Error;

use crate::offload::{FrameOffload, OffloadError, ReceiveOffloads};

/// Longest frame in bytes: an IP packet of 65,535 bytes behind an Ethernet header, rounded as the virtio 1.2
/// specification does it in section 5.1.6.3.1 (its 65,562-byte buffers less the header).
pub const FRAME_LEN_MAX: usize = 65_550;

/// Where a network card's frames go to and come from. Whoever holds the card holds exactly one of these; what must
/// stand between a guest and the world wraps it.
///
/// All methods return at once. Frames are Ethernet frames without frame check sequence, at most [`FRAME_LEN_MAX`] long.
pub trait FrameBackend: Send {
    /// Offers one frame. A frame that the other side finds malformed is dropped there, as by a switch.
    ///
    /// # Errors
    /// [`BackendError`]; after [`BackendError::Disconnected`] the link is down for good.
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError>;

    /// Takes the next frame into `buffer`, which should have room for [`FRAME_LEN_MAX`] bytes; `None` if there is none
    /// now. Frames comply with the offloads last accepted, apart from those already under way when they changed.
    ///
    /// # Errors
    /// [`BackendError`]; after [`BackendError::Disconnected`] the link is down for good, and [`Self::poll_fd`] stays
    /// readable, so stop polling it.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError>;

    /// Says that the guest is ready for frames, and what may be left open in them. Until the first call, frames
    /// towards the guest are held back, up to a limit. To be called when the driver is ready and after a restore.
    ///
    /// # Errors
    /// [`BackendError`].
    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError>;

    /// Whether frames can pass at all. Where the other side may come back, so may the link: [`Self::recv`] has nothing meanwhile, rather than
    /// an error, and [`Self::poll_fd`] wakes when it is to be looked at.
    fn link_state(&self) -> LinkState;

    /// How far frames have been taken through [`Self::recv`].
    fn position(&self) -> InputPosition;

    /// Readable when [`Self::recv`] has something to say; writable, or for some backends readable, when a
    /// [`Self::send`] that found it full can be repeated. Level-triggered. It stays the same for the backend's life.
    fn poll_fd(&self) -> BorrowedFd<'_>;
}

/// How a VM process wants to be connected to its network end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attach {
    /// Which of the VM's replicas asks. An end that has seen a higher generation refuses; 0 is for VMs without
    /// replicas.
    pub generation: u64,
    /// Go on after this position: frames that the end has handed out since, and still has, are handed out again.
    /// Without it, or with the position of another end, the link begins with the next new frame.
    pub resume: Option<InputPosition>,
    /// New frames that have waited for longer are not wanted: on a bridge, an end without a VM process takes what is sent to everybody, and
    /// what was sent to a guest that ran elsewhere.
    pub max_age: Option<Duration>,
}

/// What became of a frame offered for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum SendOutcome {
    /// The frame was taken.
    Sent,
    /// There is no room now: keep the frame and offer it again when [`FrameBackend::poll_fd`] is writable.
    Full,
}

/// A received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the buffer that hold the frame.
    pub len: usize,
    /// What the sender left open.
    pub offload: FrameOffload,
}

/// State of a link, as a network card's carrier shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Frames can pass.
    Up,
    /// The other side is gone, or another VM process has taken over its place.
    Down,
}

/// Why a frame could not be moved.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The network end is gone or serves a newer VM process.
    #[error("the network end has closed the connection")]
    Disconnected,
    /// The frame is longer than [`FRAME_LEN_MAX`].
    #[error("a frame of {len} bytes is longer than {FRAME_LEN_MAX}")]
    FrameTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A received frame did not fit the buffer and is lost.
    #[error("a received frame is longer than the buffer of {buffer_len} bytes")]
    BufferTooShort {
        /// The buffer's length in bytes.
        buffer_len: usize,
    },
    /// The offload header does not fit the frame.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The other side sent something that is not a frame.
    #[error("the network end sent a malformed message")]
    Malformed,
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}
