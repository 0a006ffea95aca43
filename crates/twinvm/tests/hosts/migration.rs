//! VMs that run are moved to other hosts: a client on one connection loses no increment, whatever becomes of daemons and hosts meanwhile.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::processes::signal;
use crate::support::HUNG;
use crate::world::{VM, World, state};

/// The copy of the VM's disk on a host.
fn disk(world: &World, host: &str) -> PathBuf {
    world.vm_folder(host).join("disk0.qcow2")
}

/// Begins a move, and answers when its first copy is under way: the process that receives it is stopped, and named.
fn begin_to_copy(world: &World, from: &str, to: &str) -> u32 {
    world.done(from, &["vm", "migrate", VM, to, "--no-wait"]);
    let deadline = Instant::now() + HUNG;
    while world.peer_of_replica(from).as_deref() != Some(to) {
        assert!(Instant::now() < deadline, "no first copy to {to}\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(2));
    }
    let secondary = world.replicas(to)[0];
    signal(secondary, "STOP");
    secondary
}

fn wait_until_over(world: &World, host: &str) -> Value {
    world.wait(host, "the end of the move", |view| view["operation"]["is_over"] == true)
}

fn wait_for_no_disk(world: &World, host: &str) {
    let deadline = Instant::now() + HUNG;
    while disk(world, host).exists() {
        assert!(Instant::now() < deadline, "the disk on {host} stays\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_vm_moves_with_its_connections_and_whatever_is_lost_meanwhile() {
    let mut world = World::of(&["a", "b", "c"]);
    world.create("a", VM, "test-redis", false);
    let error = world.refused("a", &["vm", "migrate", VM, "b"]);
    assert!(error.contains("is off") && error.contains("vm start"), "{error}");
    world.done("a", &["vm", "start", VM]);
    world.wait_for_redis();
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    let error = world.refused("b", &["vm", "migrate", VM, "a"]);
    assert!(error.contains("runs on host a already"), "{error}");
    let error = world.refused("b", &["vm", "migrate", VM, "z"]);
    assert!(error.contains(" z") && error.contains("host list"), "{error}");

    // Not protected: it is on the other host alone.
    let before = world.status("a");
    let moved = world.json("c", &["vm", "migrate", VM, "b"]);
    assert_eq!((&moved["host"], state(&moved), &moved["secondary"]), (&"b".into(), "disabled", &Value::Null));
    assert_ne!(moved["replicas"][0]["pid"], before["replicas"][0]["pid"]);
    client.wait_for_progress(10);
    wait_for_no_disk(&world, "a");
    assert!(disk(&world, "b").exists() && world.replicas("a").is_empty());

    // Both daemons are killed in the midst, each at its own moment.
    let secondary = begin_to_copy(&world, "b", "a");
    world.kill_daemon("b");
    world.kill_daemon("a");
    signal(secondary, "CONT");
    client.wait_for_progress(10);
    world.start("b");
    world.start("a");
    let back = wait_until_over(&world, "c");
    assert_eq!((&back["operation"]["failure"], &back["host"]), (&Value::Null, &"a".into()), "{back:#}");
    client.wait_for_progress(10);
    wait_for_no_disk(&world, "b");

    // The host that it moves to is lost: it stays, and its own disks are what they were.
    begin_to_copy(&world, "a", "c");
    world.kill_host("c");
    client.wait_for_progress(10);
    let stayed = wait_until_over(&world, "a");
    let failure = stayed["operation"]["failure"].as_str().unwrap();
    assert!(failure.contains("host c "), "{failure}");
    assert_eq!((&stayed["host"], state(&stayed)), (&"a".into(), "disabled"));
    world.start("c");

    // It is called off.
    begin_to_copy(&world, "a", "b");
    world.done("b", &["vm", "migrate", VM, "--cancel"]);
    let stayed = wait_until_over(&world, "a");
    assert_eq!((&stayed["operation"]["failure"], &stayed["host"]), (&"it was cancelled".into(), &"a".into()));
    wait_for_no_disk(&world, "b");
    client.wait_for_progress(10);
    let events = world.done("b", &["events", "--vm", VM]);
    for text in [
        "migration to host b was asked for",
        "was taken over, and runs here",
        "migration to host b is done",
        "migration to host c has failed",
        "it was cancelled",
    ] {
        assert!(events.contains(text), "{text}: {events}");
    }
    protected_ones_move_as_well(world, client);
}

/// The second part, with the same guest.
fn protected_ones_move_as_well(world: World, client: Client) {
    let mut world = world;
    let protected = world.json("a", &["ft", "on", VM, "--yes"]);
    let second = protected["secondary"].as_str().unwrap().to_owned();
    // Without a word, to where its secondary is.
    let over = world.json("a", &["vm", "migrate", VM]);
    assert_eq!((over["host"].as_str().unwrap(), state(&over)), (second.as_str(), "protected"));
    let secondary = over["secondary"].as_str().unwrap().to_owned();
    let third = ["a", "b", "c"].into_iter().find(|host| *host != second && *host != secondary).unwrap();
    let error = world.refused("a", &["vm", "migrate", VM, third]);
    assert!(error.contains("would be without one") && error.contains("--interrupt-ft"), "{error}");
    assert_eq!(state(&world.status("a")), "protected");
    let there = world.json("a", &["vm", "migrate", VM, third, "--interrupt-ft"]);
    assert_eq!((there["host"].as_str().unwrap(), state(&there)), (third, "protected"));
    client.wait_for_progress(10);
    // Its host is lost in the midst of the hand-over.
    let next = there["secondary"].as_str().unwrap().to_owned();
    world.done(third, &["vm", "migrate", VM, "--no-wait"]);
    world.kill_host(third);
    client.wait_for_progress(30);
    let view = world.wait(&next, "the takeover", |view| view["host"] == next.as_str());
    assert_eq!(view["running"], true);
    wait_until_over(&world, &next);
    let outcome = client.stop();
    assert_eq!(outcome.error, None, "{}", world.logs());
}

#[test]
fn a_host_in_maintenance_is_left_by_its_vms() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    world.done("a", &["ft", "on", VM, "--yes"]);
    // Two hosts: neither may go without a word.
    for host in ["a", "b"] {
        let error = world.refused("a", &["host", "maintenance", "on", host]);
        assert!(error.contains("VM redis") && error.contains("--force"), "{error}");
    }
    assert_eq!(world.json("a", &["host", "show", "a"])["maintenance"], "off");
    world.add_host("c", |_, text| text);

    // It is handed over, and its next secondary is on the third host.
    let view = world.json("b", &["host", "maintenance", "on", "a"]);
    assert_eq!((&view["maintenance"], &view["vms"]), (&"on".into(), &Value::Array(vec![])));
    client.wait_for_progress(10);
    let protected = world.wait_until_protected("a", "b");
    assert_eq!(protected["secondary"], "c");
    let list = world.done("b", &["host", "list"]);
    assert!(list.lines().any(|line| line.starts_with("a ") && line.contains("in maintenance")), "{list}");
    // It takes nothing, also after a restart.
    world.kill_daemon("a");
    world.start("a");
    let spec = world.spec("other", "test-redis", false, crate::support::guest::free_port());
    let error = world.refused("a", &["vm", "create", spec.to_str().unwrap()]);
    assert!(error.contains("host a is in maintenance"), "{error}");
    let error = world.refused("b", &["vm", "migrate", VM, "a", "--interrupt-ft"]);
    assert!(error.contains("host a is in maintenance"), "{error}");
    // There is no third host for the secondary on c, which stays, as VMs keep their protection.
    let error = world.refused("b", &["host", "maintenance", "on", "c"]);
    assert!(error.contains("host a is in maintenance"), "{error}");
    world.done("b", &["host", "maintenance", "off", "a"]);

    // A secondary makes room for itself elsewhere; the events are followed over a restart of the daemon.
    let mut follower = world.spawn_with("b", &["events", "--follow", "--json"], Stdio::from(followed(&world)));
    world.done("b", &["host", "maintenance", "on", "c"]);
    let protected = world.wait_until_protected("a", "b");
    assert_eq!(protected["secondary"], "a");
    assert!(world.replicas("c").is_empty());
    world.done("b", &["host", "maintenance", "off", "c"]);
    world.kill_daemon("b");
    world.start("b");
    // Forced: it goes, and is not protected; a VM that is off stays with its disks.
    world.done("b", &["ft", "off", VM]);
    let shown = world.done("b", &["host", "maintenance", "on", "b"]);
    assert!(shown.contains("holds nothing"), "{shown}");
    let moved = world.status("c");
    assert_ne!(moved["host"], "b");
    client.wait_for_progress(10);
    assert_eq!(client.stop().error, None);
    let host = moved["host"].as_str().unwrap().to_owned();
    world.done("b", &["vm", "stop", VM, "--force"]);
    let seen = followed_of(&world, "maintenance-begun", &host);
    let shown = world.done("b", &["host", "maintenance", "on", &host]);
    assert!(shown.contains("VM redis is off: its disks are there"), "{shown}");
    let error = world.refused("b", &["vm", "start", VM]);
    assert!(error.contains(&format!("host {host} is in maintenance")), "{error}");
    let deadline = Instant::now() + HUNG;
    while followed_of(&world, "maintenance-begun", &host) == seen {
        assert!(Instant::now() < deadline, "the event is not followed");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(follower.id(), "KILL");
    follower.wait().unwrap();
}

fn followed(world: &World) -> std::fs::File {
    std::fs::File::create(world.path("followed")).unwrap()
}

/// How many events of this kind of a host were seen by whoever follows them: each event once, and those of each host in order.
fn followed_of(world: &World, kind: &str, host: &str) -> usize {
    let text = std::fs::read_to_string(world.path("followed")).unwrap();
    let of_host = |event: &Value| event["host"] == host;
    // The last line may just be written.
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(of_host);
    let events: Vec<Value> = events.collect();
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{text}");
    events.iter().filter(|event| event["kind"] == kind).count()
}
