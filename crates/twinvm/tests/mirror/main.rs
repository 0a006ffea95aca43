//! Mirrored VMs, and what may happen to their hosts. Each test breaks something on purpose, under a client with one connection that
//! checks every acknowledged increment. The same tests run in lockstep mode: see `../lockstep`.

mod bridged;
mod broken_disks;
mod client;
mod clock;
mod disks;
mod etcd;
mod faults;
mod hostile;
#[allow(dead_code, reason = "the tests of the store use the rest")]
#[path = "../../../cluster/tests/stores/members.rs"]
mod members;
mod network_ends;
mod partition;
mod races;
mod replicas;
mod slow_link;
#[path = "../support/mod.rs"]
mod support;
mod unprotected;

use support::HUNG;

/// The FT mode.
const MODE: &str = "mirror";
