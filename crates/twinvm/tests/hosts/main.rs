//! Hosts with daemons, as administrators use them: every test goes by the commands of the program, with real guests.

mod api;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../mirror/client.rs"]
mod client;
mod commands;
mod console;
mod daemons;
mod disks;
mod life;
mod lockstep;
mod metrics;
mod network_ends;
mod placement;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
mod world;
