//! Replication of a running VM, and its failover.
//!
//! | module | holds |
//! | --- | --- |
//! | [`channel`] | the connection between two replicas: framing, mutual TLS |
//! | [`gate`] | where output waits for its commit, and what passes inbound frames on |
//! | [`disk`] | a replica's copy of each disk: the log of writes, the first copy |
//! | [`lockstep`] | replication by the log of inputs: its format, recorder and executor |
//! | [`driver`] | the threads, sockets and buffers around the decisions of `protocol`, in both modes |

pub mod channel;
pub mod disk;
pub mod driver;
pub mod gate;
pub mod lockstep;
