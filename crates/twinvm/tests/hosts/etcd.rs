//! Hosts whose cluster store is in etcd.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::members::Members;
use crate::support::HUNG;
use crate::world::{VM, World, state};

/// What an administrator does and sees is the same as with a file.
#[test]
fn hosts_with_a_store_in_etcd_survive_a_host_and_a_member() {
    let mut members = Members::start(3);
    let address = members.address().to_string();
    let mut world = World::on_etcd(&["a", "b", "c"], &address);
    let shown = world.json("a", &["host", "list"]);
    assert!(shown.as_array().unwrap().iter().all(|host| host["alive"] == true), "{shown}");
    // A second cluster there would have another authority.
    let init = ["host", "init", "--listen", "127.0.0.1:0", "--metrics", "", "--new-cluster", "--name", "x", "--store"];
    let error = world.refused("x", &[&init[..], &[&address]].concat());
    assert!(error.contains("holds a cluster already") && error.contains("--bundle"), "{error}");
    assert!(!world.path("x").exists());
    world.done("x", &[&init[..], &[&format!("{address}/lab")]].concat());
    // Under another name there would be no VM.
    let bundle = world.path("y.bundle");
    let bundle = bundle.to_str().unwrap();
    world.done("a", &["host", "issue", "y", "--out", bundle]);
    let join = ["host", "init", "--listen", "127.0.0.1:0", "--metrics", "", "--bundle", bundle, "--store"];
    let error = world.refused("y", &[&join[..], &[&format!("{address}/typo")]].concat());
    assert!(error.contains("no cluster with the name typo") && error.contains("end of the store's address"), "{error}");
    assert!(!world.path("y").exists());

    world.boot_redis("a");
    // Nobody has said that daemons of one machine are to count as several.
    let error = world.refused("a", &["ft", "on", VM, "--yes"]);
    assert!(
        error.contains("host b is on one machine with host a") && error.contains("`domain` in host.toml"),
        "{error}"
    );
    assert_eq!(world.status("a")["ft"]["enabled"], false);
    for (host, domain) in [("a", "rack1/power1"), ("b", "rack1/power2"), ("c", "rack2")] {
        world.kill_daemon(host);
        let path = world.path(host).join("host.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("domain = \"{domain}\"\n{text}")).unwrap();
        world.start(host);
    }
    assert_eq!(world.json("a", &["host", "show", "b"])["domain"], "rack1/power2");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let secondary = world.status("a")["secondary"].as_str().unwrap().to_owned();
    let client = Client::start(world.address());
    client.wait_for_progress(10);

    // A full etcd is told of, changes nothing that runs, and is no reason to do anything about it.
    let told = |text: &str| {
        let deadline = Instant::now() + HUNG;
        while !world.done("a", &["events"]).contains(text) {
            assert!(Instant::now() < deadline, "nobody is told of {text}\n{}", world.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    members.fill_up();
    told("database space exceeded; compact and defragment etcd, then disarm its alarm");
    let error = world.refused("a", &["ft", "suspend", VM]);
    assert!(error.contains("database space exceeded"), "{error}");
    assert_eq!(state(&world.status("a")), "protected");
    client.wait_for_progress(10);
    members.make_room();
    told("the cluster store answers again");

    // The host takes its member of etcd with it.
    members.kill(0);
    world.kill_host("a");
    client.wait_for_progress(30);
    world.wait(&secondary, "the takeover to show", |status| status["host"] == *secondary);
    world.wait_for_lease_end(&secondary, "a");
    // The third host becomes the secondary.
    world.wait_until_protected(&secondary, &secondary);
    assert_eq!(client.stop().error, None);
}

/// On one machine first, and then with its store in etcd: replicas that know of the file only arbitrate in etcd.
#[test]
fn a_cluster_moves_to_etcd_with_its_vm_running_and_protected() {
    let members = Members::start(1);
    let address = members.address().to_string();
    let mut world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    let generation = world.status("a")["generation"].as_u64();
    let migrate = ["cluster", "migrate-store", "--store", &address];
    // Killed wherever it is, and undone or gone on with.
    for killed_after_ms in [0, 20, 40, 80] {
        let mut command = world.spawn_with("a", &migrate, Stdio::null());
        std::thread::sleep(Duration::from_millis(killed_after_ms));
        command.kill().unwrap();
        command.wait().unwrap();
        let outcome = world.run("a", &["cluster", "migrate-store", "--abort"]);
        let expected = ["is undone", "is not being moved", "has been moved to", "is etcd://"];
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(expected.iter().any(|words| said.contains(words)), "{said}");
    }
    // A daemon is killed in the middle of it.
    world.kill_daemon("b");
    world.launch("b");
    world.done("a", &migrate);
    let deadline = Instant::now() + HUNG;
    let are_there = |world: &World| {
        // Daemons that start anew do not answer for a moment.
        let hosts: Vec<Value> =
            serde_json::from_str(&world.run("b", &["host", "list", "--json"]).stdout).unwrap_or_default();
        hosts.iter().filter(|host| host["alive"] == true).count() == 2
    };
    while !are_there(&world) {
        assert!(Instant::now() < deadline, "{}", world.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
    for host in ["a", "b"] {
        let config = fs::read_to_string(world.path(host).join("host.toml")).unwrap();
        assert!(config.contains(&address) && config.contains(&format!("domain = {host:?}")), "{config}");
    }
    let status = world.status("b");
    assert_eq!((state(&status), status["generation"].as_u64()), ("protected", generation), "{status}");
    client.wait_for_progress(10);
    // Whoever takes it over now has asked in etcd, as the file refuses to decide anything.
    world.kill_host("a");
    client.wait_for_progress(30);
    world.wait("b", "the takeover to show", |status| status["host"] == "b");
    assert_eq!(client.stop().error, None);
}
