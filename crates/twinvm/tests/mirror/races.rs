//! What comes at the wrong time: resets, ends and commands of a VM that is protected, or is about to be.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::client::{Client, wait_for_service};
use crate::faults::{assert_whole, protected};
use crate::replicas::{Replica, Setup, World};

/// Types a line on the guest's console, as soon as there is a shell that takes it.
pub fn type_on_console(replica: &Replica, line: &str) -> UnixStream {
    let mut console = replica.console().unwrap();
    writeln!(console, "{line}").unwrap();
    console
}

pub fn generation(replica: &Replica) -> u64 {
    replica.status().unwrap()["generation"].as_u64().unwrap()
}

/// Waits until the guest has been started again, for which its replica takes a new generation.
pub fn wait_for_restart(world: &World, replica: &Replica, before: u64) {
    replica.wait("the guest to be started again", |status| status["generation"].as_u64() > Some(before));
    wait_for_service(world.address());
    // What Redis may have saved to disk.
    let mut redis = TcpStream::connect(world.address()).unwrap();
    redis.write_all(b"DEL counter\r\n").unwrap();
    BufReader::new(redis).read_line(&mut String::new()).unwrap();
}

#[test]
fn a_protected_guest_that_resets_starts_again_and_can_be_protected_again() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    let before = generation(&primary);
    let _console = type_on_console(&primary, "sync; reboot -f");
    let end = secondary.wait_for_end();
    assert_eq!(end["end"], "released", "the secondary took over: {end}");
    wait_for_restart(&world, &primary, before);
    drop(client);
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    let secondary = world.protect(&primary, "b");
    client.wait_for_progress(20);
    primary.kill();
    secondary.wait_for_takeover();
    client.wait_for_progress(20);
    assert_whole(&client.stop());
    // So can the guest of a replica that was a secondary before.
    let primary = secondary;
    let before = generation(&primary);
    assert_eq!(primary.status().unwrap()["figures"]["triple_faults"], 0);
    let _console = type_on_console(&primary, "sync; echo triple > /sys/kernel/reboot/type; reboot -f");
    wait_for_restart(&world, &primary, before);
    // One that crashes without a word is not taken for one that reboots.
    let figures = &primary.status().unwrap()["figures"];
    assert_eq!(figures["triple_faults"], 1, "{figures}");
    assert!(figures["last_triple_fault"]["place"].as_str().unwrap().starts_with("vCPU 0 at rip 0x"), "{figures}");
}

#[test]
fn protection_that_is_turned_off_during_the_first_copy_can_be_turned_on_at_once() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let client = Client::start(world.address());
    for round in 0..8 {
        let secondary = world.start_secondary("b");
        primary.protect_by(&secondary);
        std::thread::sleep(Duration::from_millis(round * 30));
        primary.ask(&json!({ "request": "unprotect", "reason": "restart" })).unwrap();
        let end = secondary.wait_for_end();
        assert_ne!(end["end"], "failed", "{end}");
        primary.wait("the secondary to be let go", |status| status["peer"].is_null());
        client.wait_for_progress(5);
    }
    let secondary = world.protect(&primary, "b");
    client.wait_for_progress(20);
    primary.kill();
    secondary.wait_for_takeover();
    client.wait_for_progress(20);
    assert_whole(&client.stop());
}
