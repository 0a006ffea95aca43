//! Replication of a running VM, and its failover.
//!
//! | module | holds |
//! | --- | --- |
//! | [`channel`] | the connection between two replicas: framing, mutual TLS |
//! | [`gate`] | where output waits for its commit, and what passes inbound frames on |
//! | [`disk`] | a replica's copy of each disk: the log of writes, the first copy |
//! | [`lockstep`] | replication by the log of inputs: its format, recorder and executor |
//! | [`mirror`] | replication by checkpoints |

pub mod channel;
pub mod disk;
pub mod gate;
pub mod lockstep;
pub mod mirror;
