//! The connection between two replicas: frames over TLS 1.3 over TCP, with both sides proving who they are.
//!
//! A frame on the wire, within TLS (integers little-endian):
//!
//! | bytes | holds |
//! | --- | --- |
//! | 4 | length of the payload, at most [`PAYLOAD_BYTES_MAX`] |
//! | 1 | kind; what it means is the sender's and the receiver's business |
//! | 4 | CRC-32 (IEEE 802.3) of the length, the kind and the payload |
//! | length | payload |
//!
//! TLS keeps anybody else from changing frames; the checksum is there for the machines at both ends, whose memory and
//! buses a frame crosses outside of TLS. Before the first frame each side sends a greeting of 8 bytes: `twinvm` and the version of
//! the protocol ([`VERSION`]).
//!
//! Nothing here has a default that is not secure: without an [`Identity`], keys made by the cluster's authority
//! ([`create_authority`], [`issue`]) or for one session ([`session_keys`]), there is no connection. Certificates do not expire and are not
//! revoked: a host or an operator who must not be trusted any more is shut out by making a new authority.

mod authority;
mod connection;
mod error;
mod etcd;
mod frame;
mod handshake;
mod identity;
mod keys;
mod peer;
mod receiver;
mod request;
mod sender;

pub use authority::{create_authority, issue, issue_operator, session_keys};
pub use connection::{Caller, Closer, Connection, Listener, connect, connect_over, dial};
pub use error::{ChannelError, IdentityError};
pub use etcd::{issue_member, sign_etcd_client};
pub use frame::{Frame, PAYLOAD_BYTES_MAX};
pub use identity::Identity;
pub use keys::PemKeys;
pub use peer::Peer;
pub use receiver::Receiver;
pub use request::{Certified, Fingerprint, KeyRequest, pinned_client, sign_request};
pub use sender::Sender;

/// Version of what replicas say to each other. Replicas of different versions do not talk.
pub const VERSION: u16 = 6;
