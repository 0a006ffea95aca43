//! What the network end connects a guest to.

mod bridge;
mod slirp;

use std::io;

use spec::{NetworkError, PortForward};
use thiserror::Error;

pub(crate) use bridge::BridgePort;
pub use bridge::{BridgeState, find_bridge};
pub(crate) use slirp::UserNetwork;

use crate::offload::{FrameOffload, OffloadError, ReceiveOffloads};
use crate::queue::FrameQueue;

/// The world's side of a network end, driven by its poll loop.
pub(crate) trait Uplink {
    /// The network's MTU in bytes.
    fn mtu(&self) -> u16;

    /// Adds the descriptors to wait for to `fds`, and lowers `timeout_ms` to when [`Self::process`] is due at the
    /// latest. Without `room` for frames, nothing that only brings some is waited for.
    fn prepare(&mut self, fds: &mut Vec<libc::pollfd>, timeout_ms: &mut u32, room: bool);

    /// Moves what has come in to `to_guest`. `fds` are those that [`Self::prepare`] added, after the wait.
    ///
    /// # Errors
    /// When the uplink is lost for good.
    fn process(&mut self, fds: &[libc::pollfd], to_guest: &mut FrameQueue) -> io::Result<()>;

    /// Takes a frame from the guest, which may be changed on the way. Answers may go to `to_guest` at once.
    ///
    /// # Errors
    /// When the frame is dropped because it is malformed.
    fn send(&mut self, frame: &mut [u8], offload: FrameOffload, to_guest: &mut FrameQueue) -> Result<(), OffloadError>;

    /// Tells what the guest takes from now on.
    fn accept(&mut self, offloads: ReceiveOffloads);

    /// The ports that it forwards, if it can.
    fn forwards(&self) -> Option<&[PortForward]> {
        None
    }

    /// Forwards these ports and no others from now on; when it fails, those that it forwarded before.
    ///
    /// # Errors
    /// [`UplinkError::Forward`] and [`UplinkError::NoForwards`].
    fn forward(&mut self, ports: &[PortForward]) -> Result<(), UplinkError>;
}

/// Why an uplink could not be set up.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// A host port cannot be listened at.
    #[error("cannot forward {forward}: {source}")]
    Forward {
        /// The forwarded port.
        forward: PortForward,
        /// Why the port cannot be forwarded.
        source: io::Error,
    },
    /// A guest on a bridge has an address of its own there.
    #[error("only a user-mode network forwards ports")]
    NoForwards,
    /// libslirp refused its configuration.
    #[error("libslirp refused the user-mode network {0}")]
    Slirp(String),
    /// Not enough privilege.
    #[error("network mode `bridge` needs root or CAP_NET_ADMIN: {action}: {source}")]
    Privilege {
        /// The step that was refused.
        action: String,
        /// How the kernel refused it.
        source: io::Error,
    },
    /// There is no such bridge.
    #[error("there is no network interface `{0}`; `twinvm network add {0} --create` makes a bridge")]
    NoBridge(String),
    /// It is no name of an interface.
    #[error(transparent)]
    Name(#[from] NetworkError),
    /// It exists, and is something else.
    #[error("network interface `{0}` is not a bridge")]
    NotABridge(String),
    /// Another step of setting up the TAP device failed.
    #[error("{action}: {source}")]
    Tap {
        /// The step that failed.
        action: String,
        /// Why the step failed.
        source: io::Error,
    },
}
