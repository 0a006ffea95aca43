//! The replication of disks, with real images.

mod applier;
mod copy;
mod deferred;
mod digests;
mod log;
mod pair;
mod pieces;
