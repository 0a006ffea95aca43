//! What may happen to a VM before it is protected. Its FT mode makes no difference, so this is tested in one.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::broken_disks::{FULL_BYTES, disk_fault, save};
use crate::client::wait_for_service;
use crate::disks::limit_files;
use crate::races::{generation, type_on_console, wait_for_restart};
use crate::replicas::{Setup, World};
use crate::support::HUNG;

#[test]
fn a_reset_waits_for_the_store() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let before = generation(&primary);
    let away = world.take_store_away();
    let _console = type_on_console(&primary, "sync; reboot -f");
    primary.wait("the reset", |status| status["generation"] == 0);
    drop(away);
    wait_for_restart(&world, &primary, before);
}

#[test]
fn a_plug_that_is_pulled_during_a_reset_is_pulled() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let _away = world.take_store_away();
    let _console = type_on_console(&primary, "sync; reboot -f");
    primary.wait("the reset", |status| status["generation"] == 0);
    // The process ends without an answer.
    let _ = primary.ask(&json!({ "request": "stop", "force": true }));
    let end = primary.wait_for_end();
    assert_eq!(end["end"], "plug-pulled");
}

#[test]
fn the_plug_of_a_guest_that_stands_still_for_its_disk_can_be_pulled() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    limit_files(&primary, FULL_BYTES);
    let saved = save(&world);
    primary.wait("the fault to be seen", |status| disk_fault(status).is_some());
    primary.ask(&json!({ "request": "stop", "force": true })).unwrap();
    assert_eq!(primary.wait_for_end()["end"], "plug-pulled");
    drop((saved, world));
}

/// The disk holds parts of different times then, and a guest that starts from it finds what nobody ever wrote.
#[test]
fn a_first_copy_that_broke_off_is_not_started_from() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    limit_files(&secondary, FULL_BYTES);
    primary.protect_by(&secondary);
    primary.wait_until_alone();
    secondary.wait_for_end();
    let mark = fs::read_to_string(world.folder_of("b").join("copy.json")).unwrap();
    assert!(mark.contains("incomplete"), "{mark}");
    primary.kill();
    let torn = world.start("b", "primary");
    let log = torn.wait_for_log("incomplete");
    assert!(log.contains("start the VM on a host with a whole copy"), "{log}");
    torn.wait_for_end();
    // The primary's own are whole.
    let primary = world.boot();
    wait_for_service(world.address());
    let secondary = world.protect(&primary, "b");
    // Nobody waits for the mark of a whole one.
    let deadline = Instant::now() + HUNG;
    while !fs::read_to_string(world.folder_of("b").join("copy.json")).unwrap().contains("consistent") {
        assert!(Instant::now() < deadline, "{}", secondary.log());
        thread::sleep(Duration::from_millis(20));
    }
    drop((primary, secondary));
}
