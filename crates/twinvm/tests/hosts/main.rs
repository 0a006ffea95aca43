//! Hosts with daemons, as administrators use them: every test goes by the commands of the program, with real guests.

mod adopt;
mod api;
mod backups;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../mirror/client.rs"]
mod client;
mod commands;
mod console;
mod daemons;
mod disks;
mod etcd;
mod etcd_setup;
mod full_disk;
mod ha;
mod joining;
mod life;
mod lockstep;
#[allow(dead_code, reason = "the tests of the store use the rest")]
#[path = "../../../cluster/tests/stores/members.rs"]
mod members;
mod metrics;
mod migration;
mod network_ends;
mod placement;
mod privilege;
mod processes;
mod settings;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
mod world;

use support::HUNG;
