//! Which host's disks a VM may start from, and what is copied to others.

use std::fs;

use crate::client::Client;
use crate::console::Console;
use crate::processes::signal;
use crate::support::HUNG;
use crate::world::{VM, World, detail, reason, state};

fn counter(world: &World) -> u64 {
    let client = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(HUNG)).unwrap();
    redis::cmd("GET").arg("counter").query(&mut connection).unwrap()
}

/// Bytes that a secondary has written, to its disks for the most part.
fn written_bytes(status: &serde_json::Value) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", status["replicas"][1]["pid"])).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_killed_host_is_replaced_by_a_third_and_taken_again_when_it_is_back() {
    const FILE_BYTES: u64 = 8 << 20;
    let mut world = World::of(&["a", "b", "c"]);
    world.boot_redis("a");
    let mut console = Console::connect(&world, "a");
    console.type_line(&format!(
        "dd if=/dev/urandom of=/root/file bs=64k count={} && sync && echo on-$((6*7))",
        FILE_BYTES >> 16
    ));
    console.wait_for("on-42");
    console.leave();
    world.done("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(30);
    let mut status = world.wait_until_protected("a", "a");
    assert!(written_bytes(&status) > FILE_BYTES, "the first copy holds the file");
    let second = status["secondary"].as_str().unwrap().to_owned();
    let third = if second == "b" { "c" } else { "b" };

    world.kill_host("a");
    client.wait_for_progress(30);
    status = world.wait_until_protected(&second, &second);
    assert_eq!(status["secondary"], third);
    assert!(written_bytes(&status) > FILE_BYTES);

    // With its stale disks it comes in again when the next host is lost.
    world.start("a");
    assert_eq!(world.status("a")["host"], second.as_str());
    world.kill_host(&second);
    client.wait_for_progress(30);
    status = world.wait_until_protected("a", third);
    assert_eq!(status["secondary"], "a");
    let written = written_bytes(&status);
    assert!(written < FILE_BYTES / 2, "{written} bytes were written where little differs");
    client.wait_for_progress(30);
    world.kill_host(third);
    client.wait_for_progress(30);
    assert_eq!(world.status("a")["host"], "a");
    assert_eq!(client.stop().error, None);
}

#[test]
fn after_the_loss_of_both_replicas_only_the_newest_disks_are_started_from() {
    let mut world = World::of(&["a", "b"]);
    world.boot_append_only("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(100);
    world.kill_host("a");
    client.wait_for_progress(100);
    // Now host a's disks are out of date: a VM that starts there would have lost what was acknowledged since.
    let stale = client.acknowledged();
    client.wait_for_progress(10);
    world.kill_host("b");
    let acknowledged = client.acknowledged();
    drop(client);
    world.start("a");
    world.wait_for_lease_end("a", "b");
    let error = world.refused("a", &["vm", "start", VM]);
    assert!(error.contains("host b, which holds VM redis, is not alive"), "{error}");
    assert!(error.contains("--from-stale-disks"), "{error}");
    assert!(error.contains("its older copy of the disks (generation ") && error.contains("last written "), "{error}");
    let lost = world.status("a");
    assert_eq!((state(&lost), reason(&lost)), ("not-running", "hardware-failure"));
    assert!(detail(&lost).contains("host b does not answer"), "{lost:#}");

    world.start("b");
    let found = world.status("a");
    assert_eq!((state(&found), found["host"].as_str()), ("not-running", Some("b")));
    assert!(detail(&found).contains("its process died"), "{found:#}");
    // By command on any host, and the newest disks are chosen.
    world.done("a", &["vm", "start", VM]);
    world.wait_for_redis();
    assert_eq!(world.status("a")["host"], "b");
    let kept = counter(&world);
    assert!(kept >= acknowledged, "{acknowledged} increments were acknowledged, {kept} are left");
    let protected = world.wait_until_protected("a", "b");
    assert_eq!(protected["secondary"], "a");

    // Older disks are started from by force only. The other host's VM still runs, in fact: it is ended when its daemon sees
    // that it was succeeded.
    world.done("a", &["ft", "suspend", VM]);
    world.kill_daemon("b");
    world.wait_for_lease_end("a", "b");
    assert_eq!(world.replicas("b").len(), 1);
    assert!(world.refused("a", &["vm", "start", VM]).contains("--from-stale-disks"));
    // As a first copy leaves it that broke off: not even by force.
    let mark = world.vm_folder("a").join("copy.json");
    let whole = fs::read_to_string(&mark).unwrap();
    fs::write(&mark, "{\"copy\":\"incomplete\",\"generation\":3,\"since_unix_ms\":0}").unwrap();
    assert!(world.refused("a", &["vm", "start", VM]).contains("This host has nothing to start from"));
    let torn = world.refused("a", &["vm", "start", VM, "--from-stale-disks"]);
    assert!(torn.contains("is incomplete") && torn.contains("a host with a whole copy"), "{torn}");
    fs::write(&mark, whole).unwrap();
    let forced = world.json("a", &["vm", "start", VM, "--from-stale-disks"]);
    assert_eq!(forced["host"], "a");
    assert!(forced["note"].as_str().unwrap().starts_with("started from generation "), "{forced:#}");
    world.wait_for_redis();
    assert!(counter(&world) >= stale);
    world.start("b");
    world.wait_for_no_replica("b");
    assert_eq!(world.status("b")["host"], "a");
    assert_eq!(world.replicas("a").len(), 1);
}

#[test]
fn both_replicas_killed_at_once_start_again_from_disk() {
    let mut world = World::of(&["a", "b"]);
    world.boot_append_only("a");
    let protected = world.json("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(200);
    // Stopped first, so that neither sees the other's end.
    let pids = [1, 0].map(|replica: usize| protected["replicas"][replica]["pid"].as_u64().unwrap() as u32);
    for pid in pids {
        signal(pid, "STOP");
    }
    let acknowledged = client.acknowledged();
    drop(client);
    world.kill_host("b");
    world.kill_host("a");
    world.start("a");
    // Nobody else is needed: the claim says that these disks are the newest.
    let lost = world.status("a");
    assert_eq!((state(&lost), lost["host"].as_str()), ("not-running", Some("a")));
    world.done("a", &["vm", "start", VM]);
    world.wait_for_redis();
    let kept = counter(&world);
    assert!(kept >= acknowledged, "{acknowledged} increments were acknowledged, {kept} are left");
    let alone = world.wait("a", "the search to fail", |status| !detail(status).is_empty());
    assert_eq!((state(&alone), reason(&alone)), ("need-secondary", "no-host"), "{alone:#}");
    assert!(detail(&alone).contains("host b has not been heard of"), "{alone:#}");
    world.start("b");
    world.wait_until_protected("b", "a");
}
