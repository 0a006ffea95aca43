//! Hosts on machines of their own: three Debian 12 machines in QEMU, set up by following `docs/operators.md` word for word, each with a member of etcd, and a client
//! outside of them. Machines lose power, which ending their QEMU is: what their kernels have not written to their disks is gone.
//!
//! `make test-machines` runs them: they take long.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../mirror/client.rs"]
mod client;
mod cluster;
mod host;
mod ledger;
mod losses;
mod network;
mod page;
#[path = "../support/mod.rs"]
mod support;
mod switch;
mod system;

use std::time::Duration;

use losses::{Trial, lose_all};

/// How long anything may take before it counts as hung. Machines that are emulated are some twenty times slower than others, and there are three.
const HUNG: Duration = Duration::from_secs(1200);

/// The short form.
#[test]
#[ignore = "it takes minutes: `make test-machines` runs it"]
fn a_redis_and_its_connection_survive_the_loss_of_the_primarys_machine() {
    let mut trial = Trial::begin();
    trial.lose_the_primary();
    trial.end();
}

#[test]
#[ignore = "it takes minutes: `make test-machines` runs it"]
fn a_redis_and_its_connection_survive_the_loss_of_any_machine() {
    let mut trial = Trial::begin();
    trial.lose_the_primary();
    trial.lose_the_secondary();
    trial.lose_the_leader();
    trial.lose_two_in_turn();
    trial.close_the_primarys_port();
    trial.stop_the_primary_for_a_while();
    lose_all(&mut trial.end());
}
