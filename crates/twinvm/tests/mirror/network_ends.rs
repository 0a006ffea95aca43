//! Network ends that die, and replicas that cannot reach theirs.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::client::{Client, wait_for_service};
use crate::faults::{assert_whole, protected};
use crate::replicas::{Setup, World};
use crate::support::guest::free_port;

/// Whether a replica says that its network is broken.
fn has_fault(status: &Value) -> bool {
    status["faults"][0]["part"] == "network card 0" && status["faults"][0]["since_unix_ms"].is_u64()
}

fn has_none(status: &Value) -> bool {
    status["faults"].as_array().is_some_and(Vec::is_empty)
}

/// Whether a secondary says that it does not compete, and why.
fn is_unready(status: &Value) -> bool {
    let detail = status["protection"]["detail"].as_str().unwrap_or_default();
    status["role"] == "secondary" && detail.contains("could not run the VM") && detail.contains("network card 0")
}

/// A secondary that asked the store before it knew whether it could run the VM would win, fail, and leave nobody.
#[test]
fn a_secondary_that_does_not_reach_its_network_leaves_the_vm_to_a_primary_that_was_suspected_for_nothing() {
    let mut world = World::new(Setup { suspicion_ms: 300, ..Setup::redis() });
    let primary = world.booted();
    let end = world.own_end("b", None);
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    World::kill_process(end.pid());
    primary.signal("STOP");
    secondary.wait("it to say why it does not take over", is_unready);
    primary.signal("CONT");
    primary.wait_until_alone();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
    assert_eq!(secondary.wait_for_end()["end"], "lost-arbitration");
}

#[test]
fn a_secondary_takes_over_when_it_reaches_its_network_again() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let port = free_port();
    let end = world.own_end("b", Some(port));
    let secondary = world.protect(&primary, "b");
    World::kill_process(end.pid());
    primary.kill();
    secondary.wait("it to say why it does not take over", is_unready);
    let _end = world.own_end("b", Some(port));
    secondary.wait_for_takeover();
    wait_for_service(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
}

#[test]
fn a_hand_over_to_a_secondary_that_does_not_reach_its_network_costs_nothing() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let end = world.own_end("b", None);
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    World::kill_process(end.pid());
    primary.ask(&json!({ "request": "switchover" })).unwrap();
    let status = primary.wait_until_alone();
    assert!(status["protection"]["detail"].as_str().unwrap().contains("network card 0"), "{status}");
    client.wait_for_progress(50);
    assert_whole(&client.stop());
    assert_eq!(secondary.wait_for_end()["end"], "lost-arbitration");
}

/// Connections through a user-mode network end go with it; the guest is there again for new ones.
#[test]
fn row_26_a_guest_has_its_network_back_after_its_network_end_was_killed() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    world.kill_end();
    assert!(client.stop().error.is_some(), "the connection was the network end's");
    let status = primary.wait("the fault to be seen", has_fault);
    assert_eq!(status["protection"]["state"], "protected");
    secondary.wait("the fault to be seen", has_fault);
    world.start_end();
    wait_for_service(world.address());
    primary.wait("the fault to be over", has_none);
    secondary.wait("the fault to be over", has_none);
    // The same after a takeover.
    primary.kill();
    secondary.wait_for_takeover();
    wait_for_service(world.address());
    world.kill_end();
    secondary.wait("the fault to be seen", has_fault);
    world.start_end();
    wait_for_service(world.address());
    secondary.wait("the fault to be over", has_none);
}

#[test]
fn a_vm_does_not_move_to_where_the_network_is_gone_as_well() {
    let (mut world, primary, secondary, _client) = protected(Setup::redis());
    world.kill_end();
    primary.wait("the fault to be seen", has_fault);
    std::thread::sleep(2 * protocol::UPLINK_PATIENCE);
    let status = primary.status().unwrap();
    assert_eq!((&status["role"], &status["protection"]["state"]), (&"primary".into(), &"protected".into()));
    assert_eq!(secondary.status().unwrap()["role"], "secondary");
    world.start_end();
    wait_for_service(world.address());
}
