//! What may happen to the hosts of a protected VM, in either FT mode.

use std::time::Duration;

use serde_json::json;

use crate::client::{self, Client, Outcome};
use crate::replicas::{Replica, Setup, World};
use crate::support::place;

/// Nothing that was acknowledged is lost, and the connection is still the same.
pub fn assert_whole(outcome: &Outcome) {
    assert_eq!(outcome.error, None, "after {} increments", outcome.acknowledged);
    assert!(outcome.acknowledged > 0);
}

/// Kills the primary: the secondary takes over, and the client, which has lost nothing in the end, goes on.
pub fn assert_survives(primary: Replica, secondary: &Replica, client: Client) {
    primary.kill();
    secondary.wait_for_takeover();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
}

/// A protected Redis: primary on `a`, secondary on `b`, and a client that counts.
pub fn protected(setup: Setup) -> (World, Replica, Replica, Client) {
    let mut world = World::new(setup);
    let primary = world.booted();
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    (world, primary, secondary, client)
}

#[test]
fn a_killed_primary_is_taken_over_again_and_again() {
    let kills = std::env::var("TWINVM_KILLS").map_or(50, |kills| kills.parse().unwrap());
    let mut world = World::new(Setup::redis());
    let mut primary = world.booted();
    let client = Client::start(world.address());
    let hosts = ["b", "c", "a"];
    for kill in 0..kills {
        let secondary = world.protect(&primary, hosts[kill % hosts.len()]);
        // At another moment each time: of a request, of a checkpoint.
        client.wait_for_progress(1 + kill as u64 * 37 % 100);
        std::thread::sleep(Duration::from_micros(kill as u64 * 1_709 % 20_000));
        primary.kill();
        secondary.wait_for_takeover();
        client.wait_for_progress(1);
        primary = secondary;
    }
    client.wait_for_progress(100);
    assert_whole(&client.stop());
}

#[test]
fn a_killed_secondary_is_replaced() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    secondary.kill();
    let status = primary.wait_until_alone();
    assert_eq!(status["protection"]["reason"], "lost-connection");
    client.wait_for_progress(50);
    let secondary = world.protect(&primary, "c");
    client.wait_for_progress(50);
    assert_survives(primary, &secondary, client);
}

#[test]
fn a_primary_that_wakes_after_the_takeover_stops_and_sends_nothing() {
    let setup = Setup { suspicion_ms: 300, ..Setup::redis() };
    let (world, primary, secondary, client) = protected(setup);
    primary.signal("STOP");
    let status = secondary.wait_for_takeover();
    assert!(status["figures"]["last_takeover"]["detected_ms"].as_f64().unwrap() >= 300.0);
    client.wait_for_progress(50);
    let before = world.network();
    primary.signal("CONT");
    let end = primary.wait_for_end();
    assert_eq!(end["end"], "lost-arbitration");
    client.wait_for_progress(50);
    let after = world.network();
    assert_eq!(after.attachments, before.attachments, "the old primary came back to the network");
    assert_whole(&client.stop());
}

#[test]
fn a_secondary_that_wakes_after_it_was_given_up_stops() {
    let setup = Setup { suspicion_ms: 300, ..Setup::redis() };
    let (_world, primary, secondary, client) = protected(setup);
    secondary.signal("STOP");
    primary.wait_until_alone();
    client.wait_for_progress(50);
    secondary.signal("CONT");
    let end = secondary.wait_for_end();
    assert_eq!(end["end"], "lost-arbitration");
    client.wait_for_progress(50);
    assert_whole(&client.stop());
}

#[test]
fn without_the_store_nobody_takes_over_until_it_is_back() {
    let (world, primary, secondary, client) = protected(Setup::redis());
    let away = world.take_store_away();
    primary.kill();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(secondary.status().unwrap()["role"], "secondary", "consistency before availability");
    drop(away);
    secondary.wait_for_takeover();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
}

#[test]
fn a_primary_goes_on_holding_output_while_the_store_is_away() {
    let (world, primary, secondary, client) = protected(Setup::redis());
    let away = world.take_store_away();
    secondary.kill();
    std::thread::sleep(Duration::from_secs(2));
    drop(away);
    primary.wait_until_alone();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
}

#[test]
fn a_primary_lost_during_the_first_copy_is_not_taken_over() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    primary.protect_by(&secondary);
    primary.kill();
    let end = secondary.wait_for_end();
    assert_eq!(end["end"], "released");
}

#[test]
fn a_secondary_lost_during_the_first_copy_costs_the_client_nothing() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let client = Client::start(world.address());
    for round in 0..5 {
        let secondary = world.start_secondary("b");
        primary.protect_by(&secondary);
        std::thread::sleep(Duration::from_millis(round * 60));
        secondary.kill();
        primary.wait_until_alone();
    }
    let secondary = world.protect(&primary, "b");
    client.wait_for_progress(50);
    assert_survives(primary, &secondary, client);
}

#[test]
fn a_switchover_costs_nothing_either() {
    let (mut world, mut primary, mut secondary, client) = protected(Setup::redis());
    for host in ["a", "b", "a", "b", "a", "b"] {
        primary.ask(&json!({ "request": "switchover" })).unwrap();
        secondary.wait_for_takeover();
        let end = primary.wait_for_end();
        assert_eq!(end["end"], "lost-arbitration");
        client.wait_for_progress(50);
        primary = secondary;
        secondary = world.protect(&primary, host);
    }
    assert_whole(&client.stop());
}

#[test]
fn protection_can_be_turned_off_and_on_again() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    primary.ask(&json!({ "request": "unprotect", "reason": "off" })).unwrap();
    let end = secondary.wait_for_end();
    assert_ne!(end["end"], "failed");
    let status = primary.wait("the secondary to be let go", |status| status["peer"].is_null());
    assert_ne!(status["protection"]["state"], "protected");
    client.wait_for_progress(50);
    let secondary = world.protect(&primary, "b");
    client.wait_for_progress(50);
    assert_survives(primary, &secondary, client);
}

#[test]
fn the_guest_clock_never_goes_back_and_catches_up() {
    let mut world = World::new(Setup::redis());
    let mut primary = world.booted();
    let clock = client::Clock::start(world.address());
    for host in ["b", "c", "b"] {
        let secondary = world.protect(&primary, host);
        clock.wait_for_progress(50);
        primary.kill();
        secondary.wait_for_takeover();
        clock.wait_for_progress(50);
        primary = secondary;
    }
    let outcome = clock.stop();
    assert_eq!(outcome.error, None);
    // Time passed outside, from the first reply to the last, must have passed inside.
    let (inside, outside) = (outcome.inside.as_secs_f64(), outcome.outside.as_secs_f64());
    let tolerance = 0.25 * f64::from(place::slowness());
    assert!((inside - outside).abs() < tolerance, "{inside:.3} s in the guest, {outside:.3} s outside");
}
