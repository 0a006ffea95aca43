//! Daemons and the cluster store may go away: VMs and their protection do not depend on them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use cluster::arbiter::StoreArbiter;
use cluster::records::{Cluster, HostRecord, OperationKind, Power};
use cluster::store::{StoreLocation, Stores};

use protocol::{Arbiter, Claim, Verdict};
use serde_json::Value;
use spec::ReplicaId;

use crate::client::Client;
use crate::console::{Console, pass_on};
use crate::metrics::scrape_until;
use crate::processes::{signal, stands_still};
use crate::support::HUNG;
use crate::world::{VM, World, state};

#[test]
fn a_killed_daemon_takes_nothing_with_it_and_the_next_one_finds_the_replicas() {
    let mut world = World::of(&["a", "b", "c"]);
    world.boot_redis("a");
    let protected = world.json("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    let secondary = protected["secondary"].as_str().unwrap().to_owned();
    let third = if secondary == "b" { "c" } else { "b" };
    world.kill_daemon("a");
    world.kill_daemon(&secondary);
    client.wait_for_progress(30);
    let error = world.refused("a", &["ft", "status", VM]);
    assert!(error.contains("twinvm host start"), "{error}");
    world.start("a");
    world.start(&secondary);
    let adopted = world.wait_until_protected("a", "a");
    for replica in 0..2 {
        assert_eq!(adopted["replicas"][replica]["pid"], protected["replicas"][replica]["pid"]);
    }
    assert_eq!(adopted["generation"], protected["generation"], "the replicas were not left alone");
    // The daemons care for replicas that they have not started: the secondary's end is seen, and another is found.
    signal(world.replicas(&secondary)[0], "KILL");
    let again = world.wait("a", "protection again", |status| {
        state(status) == "protected" && status["generation"].as_u64() > adopted["generation"].as_u64()
    });
    assert_eq!(again["host"], "a");
    client.wait_for_progress(10);

    // A takeover needs no daemon at all.
    let (next, rest) = match again["secondary"].as_str().unwrap() {
        host if host == secondary => (secondary.as_str(), third),
        _ => (third, secondary.as_str()),
    };
    world.kill_daemon(next);
    world.kill_host("a");
    client.wait_for_progress(30);
    world.wait(rest, "the loss of the host to show", |status| status["host"] == next);
    world.start(next);
    let protected = world.wait_until_protected(rest, next);
    assert_eq!(protected["secondary"], rest);
    assert_eq!(client.stop().error, None);

    // The guest's end is noted even if no daemon saw it.
    world.done(rest, &["ft", "off", VM]);
    world.kill_daemon(next);
    world.power_off_by_replica(next);
    world.wait_for_no_replica(next);
    world.start(next);
    let off = world.wait(rest, "the power to be off", |status| state(status) == "not-running");
    assert_eq!(off["protection"]["detail"], "the plug was pulled");
    world.wait_until_nothing_is_reserved(next);
}

#[test]
fn a_host_is_stopped_with_or_without_its_vms() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    // The guest is up so far that it heeds its power button.
    Console::connect(&world, "a").leave();
    let mut top = world.spawn("a", &["top", "--json"]);
    let (sender, shown) = channel();
    pass_on(top.stdout.take().unwrap(), sender);
    shown.recv_timeout(HUNG).unwrap();
    world.done("a", &["host", "stop"]);
    world.wait_for_daemon_end("a");
    assert_eq!((world.replicas("a").len(), world.replicas("b").len()), (1, 1));
    let error = world.refused("b", &["vm", "stop", VM]);
    assert!(error.contains("host a, which holds VM redis, is not alive") && error.contains("host start"), "{error}");
    while shown.try_recv().is_ok() {}
    world.start("a");
    world.wait_until_protected("b", "a");
    assert!(!shown.recv_timeout(HUNG).expect("the table ended with its daemon").is_empty());
    top.kill().unwrap();
    top.wait().unwrap();
    world.done("b", &["host", "stop", "--with-vms"]);
    world.wait_for_daemon_end("b");
    assert_eq!((world.replicas("a").len(), world.replicas("b").len()), (1, 0));
    let alone = world.wait("a", "the loss of the secondary", |status| state(status) == "need-secondary");
    assert_eq!(alone["running"], true);
    // Also without the store, as where that is to be replaced.
    let (vms, away) = (world.path("cluster.db.vms"), world.path("away"));
    fs::rename(&vms, &away).unwrap();
    world.done("a", &["host", "stop", "--with-vms"]);
    world.wait_for_daemon_end("a");
    assert!(world.replicas("a").is_empty());
    fs::rename(&away, &vms).unwrap();
    world.start("a");
    let off = world.wait("a", "the power to be off", |status| state(status) == "not-running");
    assert_eq!(off["protection"]["detail"], "the guest powered off");
}

#[test]
fn without_the_store_commands_say_so_and_protection_stands() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    let before = world.json("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    let (vms, away) = (world.path("cluster.db.vms"), world.path("away"));
    fs::rename(&vms, &away).unwrap();
    for words in [
        &["vm", "list"][..],
        &["ft", "status", VM],
        &["ft", "off", VM],
        &["ft", "suspend", VM],
        &["host", "list"],
        &["vm", "stop", VM],
    ] {
        let error = world.refused("a", words);
        assert!(error.contains("cluster store unreachable") && error.contains("VMs go on"), "{words:?}: {error}");
    }
    let text = scrape_until(&world, "a", "twinvm_store_reachable{host=\"a\"} 0");
    assert!(text.contains("twinvm_lag_epochs{host=\"a\",role=\"primary\""), "{text}");
    client.wait_for_progress(30);
    fs::rename(&away, &vms).unwrap();
    let after = world.wait("b", "the store to answer", |status| state(status) == "protected");
    assert_eq!((&after["generation"], &after["host"]), (&before["generation"], &before["host"]));
    assert_eq!(client.stop().error, None);
}

/// Two daemons with one identity would both answer for its VMs.
#[test]
fn row_27_a_second_daemon_with_the_keys_of_a_host_is_refused() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    // The keys serve a second host, in another folder.
    copy_folder(&world.path("a"), &world.path("twin"), &["vms", "daemon.json", "lock"]);
    std::fs::create_dir(world.path("twin").join("vms")).unwrap();
    let error = world.refused("twin", &["host", "start"]);
    assert!(error.contains("host a runs already, from folder") && error.contains("host issue"), "{error}");
    assert_eq!(world.status("b")["host"], "a");
    // The same folder is another matter: its daemon was killed, and the next one does not wait.
    world.kill_daemon("a");
    world.start("a");
    assert_eq!(world.status("a")["running"], true);
}

/// It stood still for longer than its lease, and another one serves its host now.
#[test]
fn a_daemon_that_was_succeeded_ends_and_leaves_its_vms_alone() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    let cluster = Cluster::new(Stores::open(&StoreLocation::File(world.store()), None).unwrap());
    let before = cluster.host(&"a".parse().unwrap()).unwrap();
    let next = HostRecord { instance: "its successor".to_owned(), ..before.clone() };
    cluster.register_host(&next, Some(&before.instance), HUNG).unwrap();
    world.wait_for_daemon_end("a");
    assert!(world.logs().contains("this one ends"), "{}", world.logs());
    assert_eq!(world.replicas("a").len(), 1);
    world.wait_for_redis();
}

/// A backup of a host's folder, say, that is unpacked elsewhere: its VMs are there, too.
#[test]
fn row_27_a_whole_copy_of_a_host_starts_no_vm_and_takes_its_place_only_when_it_is_gone() {
    let mut world = World::of(&["a", "b"]);
    world.create("a", VM, "test-redis", false);
    world.done("a", &["vm", "set", VM, "--autostart", "on"]);
    copy_folder(&world.path("a"), &world.path("twin"), &["daemon.json", "lock"]);
    let error = world.refused("twin", &["host", "start"]);
    assert!(error.contains("host a runs already, from folder"), "{error}");
    assert!(world.replicas("twin").is_empty() && world.status("b")["running"] == false);
    // It waits until the lease of the other one has ended. From then on that one is the second.
    world.kill_daemon("a");
    world.start("twin");
    let error = world.refused("a", &["host", "start"]);
    assert!(error.contains("host a runs already, from folder") && error.contains("twin"), "{error}");
    assert!(world.replicas("a").is_empty());
}

/// Neither what Linux sends to processes that stand still when their parent is gone ends them, nor Ctrl-C in the terminal of their daemon.
#[test]
fn a_replica_and_its_network_end_outlive_their_daemon_also_if_they_stand_still() {
    let mut world = World::of(&["a"]);
    world.boot_redis("a");
    let of_vm = |world: &World| {
        let mut pids: Vec<u32> =
            world.all_processes().into_iter().filter(|(_, what)| what != "host").map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        pids
    };
    let pids = of_vm(&world);
    assert_eq!(pids.len(), 2, "{:?}", world.all_processes());
    pids.iter().for_each(|pid| signal(*pid, "STOP"));
    world.kill_daemon("a");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((of_vm(&world), pids.iter().all(|pid| stands_still(*pid))), (pids.clone(), true), "{}", world.logs());
    pids.iter().for_each(|pid| signal(*pid, "CONT"));
    world.wait_for_redis();

    world.start("a");
    assert_eq!(world.status("a")["running"], true);
    world.interrupt_daemon_group("a");
    assert_eq!(of_vm(&world), pids);
    world.wait_for_redis();
}

/// The old primary, which stands still, cannot tell its daemon that it is none any more.
#[test]
fn a_client_is_sent_on_where_the_old_primary_stands_still() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let stopped = world.replicas("a")[0];
    signal(stopped, "STOP");
    world.wait("b", "the takeover", |view| view["host"] == "b");
    world.done("a", &["vm", "stop", VM, "--force"]);
    signal(stopped, "CONT");
    world.wait_for_no_replica("a");
    assert_eq!((world.status("a")["running"].as_bool(), world.replicas("b").len()), (Some(false), 0));
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path, without: &[&str]) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (name, to) = (entry.file_name(), to.join(entry.file_name()));
        if without.iter().any(|left_out| name == *left_out) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to, without);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Leases are renewed all the time: a daemon that is stopped meanwhile keeps the lock of their file, the only one of the store.
#[test]
fn row_29_a_takeover_does_not_wait_for_whoever_holds_the_lock_of_the_store() {
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemons::hold_the_lock", "--ignored", "--nocapture"])
        .env("STORE", world.store())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("it is held")));
    signal(holder.id(), "STOP");
    world.kill_host("a");
    client.wait_for_progress(30);
    let is_stopped = fs::read_to_string(format!("/proc/{}/stat", holder.id())).unwrap().contains(") T ");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(is_stopped);
    world.wait("b", "the takeover to show", |status| status["host"] == "b");
    assert_eq!(client.stop().error, None);
}

#[test]
#[ignore = "run by row_29_a_takeover_does_not_wait_for_whoever_holds_the_lock_of_the_store"]
fn hold_the_lock() {
    let connection = rusqlite::Connection::open(std::env::var_os("STORE").expect("run by another test")).unwrap();
    connection.busy_timeout(HUNG).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    println!("it is held");
    std::thread::sleep(HUNG);
}

/// Its folder would keep the name from being used.
#[test]
fn a_vm_that_was_half_made_when_the_daemon_was_killed_is_gone_with_the_next_one() {
    let mut world = World::of(&["a"]);
    world.kill_daemon("a");
    let half = world.path("a").join("vms").join(VM);
    fs::create_dir(&half).unwrap();
    fs::write(half.join("unfinished.json"), r#"{"made":{"disks":null}}"#).unwrap();
    fs::write(half.join("disk0.raw"), "half of it").unwrap();
    world.start("a");
    assert!(!half.exists(), "{}", world.logs());
    world.create("a", VM, "test-redis", false);
    assert!(half.join("disk0.qcow2").exists() && !half.join("unfinished.json").exists());
}

/// As when the disk with the logs is full.
#[test]
fn a_daemon_whose_log_cannot_be_written_serves_all_the_same() {
    let mut world = World::of(&["a"]);
    world.kill_daemon("a");
    fs::remove_file(world.path("a.log")).unwrap();
    symlink("/dev/full", world.path("a.log")).unwrap();
    world.start("a");
    world.boot_redis("a");
    assert_eq!(state(&world.status("a")), "disabled");
    world.done("a", &["vm", "stop", VM, "--force"]);
    assert_eq!(state(&world.status("a")), "not-running");
    world.done("a", &["host", "stop"]);
}

/// Lets the cluster believe that the machine of a host, whose daemon does not run, was booted since.
fn boot_anew(world: &World, host: &str) {
    let cluster = Cluster::new(Stores::open(&StoreLocation::File(world.store()), None).unwrap());
    let before = cluster.host(&host.parse().unwrap()).unwrap();
    let booted = HostRecord { boot_id: "another boot".to_owned(), ..before };
    cluster.register_host(&booted, None, Duration::from_secs(1)).unwrap();
}

#[test]
fn a_vm_is_started_with_its_machine_if_that_is_wanted_and_not_with_its_daemon() {
    let mut world = World::of(&["a"]);
    world.create("a", VM, "test-redis", false);
    let restart = |world: &mut World, has_booted: bool| {
        world.kill_daemon("a");
        if has_booted {
            boot_anew(world, "a");
        }
        world.start("a");
    };
    restart(&mut world, true);
    world.done("a", &["vm", "set", VM, "--autostart", "on"]);
    restart(&mut world, false);
    // Neither without being asked, nor for a daemon.
    assert_eq!(world.status("a")["running"], false);
    restart(&mut world, true);
    let started = world.wait("a", "the VM to run", |status| status["running"] == true);
    assert_eq!((&started["autostart"], state(&started)), (&true.into(), "disabled"));
    world.done("a", &["vm", "stop", VM, "--force"]);
}

/// It is killed when it has written down what it was asked for, and when the guest has shut down.
#[test]
fn a_reboot_goes_on_whatever_becomes_of_the_daemon() {
    let mut world = World::of(&["a"]);
    world.boot_redis("a");
    // The guest is up so far that it heeds its power button.
    Console::connect(&world, "a").leave();
    let cluster = Cluster::new(Stores::open(&StoreLocation::File(world.store()), None).unwrap());
    let name = VM.parse().unwrap();
    let ask = |force| {
        let generation = cluster.claim(&name).unwrap().claim.generation;
        let kind = OperationKind::Reboot { force, patience_ms: u64::try_from(HUNG.as_millis()).unwrap() };
        let asked = cluster.update_vm(&name, |record| {
            record.ask(kind.clone(), None, generation);
        });
        assert!(asked.unwrap().pending().is_some());
    };
    let rebooted = |world: &World, before: &Value| {
        let after = world.wait("a", "the reboot", |status| status["operation"]["is_over"] == true);
        assert_eq!((&after["operation"]["failure"], &after["running"]), (&Value::Null, &true.into()), "{after:#}");
        assert!(after["generation"].as_u64() > before["generation"].as_u64());
        assert_ne!(after["replicas"][0]["pid"], before["replicas"][0]["pid"]);
        after
    };
    let first = world.status("a");
    world.kill_daemon("a");
    ask(false);
    assert_eq!(world.replicas("a").len(), 1);
    world.start("a");
    let second = rebooted(&world, &first);
    world.kill_daemon("a");
    ask(true);
    world.power_off_by_replica("a");
    world.wait_for_no_replica("a");
    world.start("a");
    let third = rebooted(&world, &second);
    // It is done: the next daemon does not do it again.
    world.kill_daemon("a");
    world.start("a");
    world.done("a", &["vm", "snapshot", "create", VM, "later"]);
    assert_eq!(world.status("a")["replicas"][0]["pid"], third["replicas"][0]["pid"]);
}

/// The daemon was killed after it had claimed the VM for a start, and before it had started it.
#[test]
fn a_start_goes_on_whatever_becomes_of_the_daemon() {
    let mut world = World::of(&["a"]);
    world.boot_redis("a");
    world.done("a", &["vm", "stop", VM, "--force"]);
    let before = world.status("a");
    world.kill_daemon("a");
    let cluster = Cluster::new(Stores::open(&StoreLocation::File(world.store()), None).unwrap());
    let name = VM.parse().unwrap();
    let generation = cluster.claim(&name).unwrap().claim.generation;
    let kind = OperationKind::Start { from_stale_disks: false, snapshot: None };
    let written = cluster.update_vm(&name, |record| {
        record.ask(kind.clone(), None, generation);
        record.begin_start(generation);
        record.power = Power::On;
    });
    assert!(written.unwrap().pending().is_some());
    // What the guest's end before has left is not taken for that of this start.
    fs::remove_file(world.vm_folder("a").join("ended.json")).unwrap();
    let claim = Claim { generation: generation.next(), primary: ReplicaId::new("a"), secondary: None };
    let arbiter = StoreArbiter::new(cluster.store().clone(), VM);
    assert_eq!(arbiter.compare_and_swap(generation, &claim).unwrap(), Verdict::Won);
    world.start("a");
    let started = world.wait("a", "the start", |status| status["operation"]["is_over"] == true);
    assert_eq!((&started["operation"]["failure"], &started["running"]), (&Value::Null, &true.into()), "{started:#}");
    assert!(started["generation"].as_u64() > before["generation"].as_u64());
    world.wait_for_redis();
}
