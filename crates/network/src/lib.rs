//! Layer-2 network ends for virtual network cards.
//!
//! A guest's frames reach the world through one trait, [`FrameBackend`]. The VM process holds a [`Link`] to the
//! **network end**, a process of its own ([`end`]) that owns what must outlive the VM process: the sockets of the guest's
//! TCP connections and forwarded ports in `user` mode, the TAP device in `bridge` mode. When a VM process dies, the one
//! that takes over connects to the same end, and clients of the guest notice nothing but a pause.
//!
//! ```text
//! guest ─ virtio-net ─ dyn FrameBackend ─ Link ─(Unix socket)─ network end ─ libslirp ─ host sockets
//!                                                                         └─ TAP ─ Linux bridge
//! ```
//!
//! Frames carry a [`FrameOffload`]: an interpreted guest leaves checksums and TCP segmentation to the end, which does
//! them in native code or leaves them to the kernel.
//!
//! A frame towards the guest that sat in the socket of a VM process when that died is not lost: the end keeps the frames
//! that it handed out last, and a [`Link`] that is [attached](Attach) at an [`InputPosition`] gets those after it again.

mod backend;
mod checksum;
mod coalesce;
pub mod end;
mod link;
mod offload;
mod packet;
mod pair;
mod queue;
mod retained;
mod segment;
mod seqpacket;
mod uplink;
mod wire;

pub use backend::{Attach, BackendError, FRAME_LEN_MAX, FrameBackend, LinkState, Received, SendOutcome};
pub use link::{Link, LinkError};
pub use offload::{Checksum, FrameOffload, Gso, HEADER_LEN, OffloadError, ReceiveOffloads, Segmentation};
pub use pair::{CableEnd, pair};
pub use protocol::InputPosition;
pub use uplink::{BridgeState, find_bridge};
