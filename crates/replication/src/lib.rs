//! Replication of a running VM, and its failover.
//!
//! | module | holds |
//! | --- | --- |
//! | [`protocol`] | who may release output, who takes over: a pure state machine |
//! | [`channel`] | the connection between two replicas: framing, mutual TLS |
//! | [`gate`] | where output waits for its commit, and what passes inbound frames on |
//! | [`disk`] | a replica's copy of each disk: the log of writes, the first copy |
//! | [`lockstep`] | replication by the log of inputs: its format, recorder and executor |
//! | [`mode`] | which of the two ways a VM is replicated |
//! | [`mirror`] | replication by checkpoints |

pub mod channel;
pub mod disk;
pub mod gate;
pub mod lockstep;
pub mod mirror;
pub mod mode;
pub mod protocol;

pub use mode::{FtMode, UnknownMode};
