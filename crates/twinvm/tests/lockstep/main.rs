//! VMs in lockstep: what may happen to the hosts of a mirrored VM happens here too, and what only lockstep knows. What happens before a secondary
//! has heard of the mode is tested in mirror alone.

#[path = "../mirror/bridged.rs"]
mod bridged;
#[path = "../mirror/broken_disks.rs"]
mod broken_disks;
#[path = "../mirror/client.rs"]
mod client;
#[path = "../mirror/clock.rs"]
mod clock;
#[path = "../mirror/disks.rs"]
mod disks;
mod execution;
#[path = "../mirror/faults.rs"]
mod faults;
#[path = "../mirror/network_ends.rs"]
mod network_ends;
#[path = "../mirror/partition.rs"]
mod partition;
#[path = "../mirror/races.rs"]
mod races;
#[path = "../mirror/replicas.rs"]
mod replicas;
#[path = "../mirror/slow_link.rs"]
mod slow_link;
#[path = "../support/mod.rs"]
mod support;

use support::HUNG;

/// The FT mode.
const MODE: &str = "lockstep";
