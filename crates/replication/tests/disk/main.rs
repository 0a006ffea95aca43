//! The replication of disks, with real images.

mod applier;
mod copy;
mod log;
mod pair;
mod pieces;
