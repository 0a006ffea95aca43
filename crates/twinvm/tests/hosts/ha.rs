//! High availability: VMs on a datastore that hosts share are restarted on another host when theirs is lost, with all that their guests had written, and never
//! run on two.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use redis::Commands;

use crate::support::{HUNG, guest, images, place};
use crate::world::{VM, World};

/// The datastore that both hosts reach.
const DATASTORE: &str = "nfs";

/// Two hosts with a datastore that they share, and a Redis on it that writes every change to its append-only file before it answers.
fn world() -> World {
    let world = World::empty();
    let shared = world.path("shared");
    fs::create_dir(&shared).unwrap();
    let folders = format!("vm_folders = [{:?}]", shared.to_str().unwrap());
    let world = world.with_hosts(&["a", "b"], move |_, text| {
        let others = text.lines().filter(|line| !line.starts_with("vm_folders")).collect::<Vec<_>>().join("\n");
        format!("{folders}\n{others}\n")
    });
    world.done("a", &["datastore", "add", DATASTORE, "--shared", world.path("shared").to_str().unwrap()]);
    let deadline = Instant::now() + HUNG;
    while world.json("b", &["datastore", "show", DATASTORE])["hosts"].as_array().unwrap().len() < 2 {
        assert!(Instant::now() < deadline, "b does not reach the datastore\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    world
}

fn spec(world: &World) -> PathBuf {
    let image = images::redis_append_only();
    guest::image(&image);
    let path = world.path("ha.toml");
    let text = format!(
        "name = \"{VM}\"\nmemory = \"256M\"\nengine = \"{}\"\nprotection = \"ha\"\nimage = \"{name}\"\n[[disk]]\npath = \
         \"{VM}.qcow2\"\nformat = \"qcow2\"\nbase_image = \"{name}\"\ndatastore = \"{DATASTORE}\"\n[[network]]\nmode = \"user\"\nforward = \
         [\"tcp:127.0.0.1:{port}-:6379\"]\n",
        place::engine(),
        name = image.name,
        port = world.address().port()
    );
    fs::write(&path, text).unwrap();
    path
}

fn connection(world: &World) -> redis::Connection {
    world.wait_for_redis();
    let client = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let connection = client.get_connection_with_timeout(HUNG).unwrap();
    connection.set_read_timeout(Some(HUNG)).unwrap();
    connection
}

/// Waits until the VM runs on a host, under its lease.
fn wait_for(world: &World, host: &str, asked: &str) {
    let deadline = Instant::now() + HUNG;
    loop {
        let view = world.json(asked, &["vm", "show", VM]);
        if view["host"] == host && view["running"] == true && view["ha"]["restarts"] == true {
            return;
        }
        assert!(Instant::now() < deadline, "it does not run on {host}: {view:#}\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_vm_is_restarted_elsewhere_when_its_host_is_lost_and_keeps_what_it_acknowledged() {
    let mut world = world();
    let spec = spec(&world);
    world.done("a", &["vm", "create", spec.to_str().unwrap(), "--start"]);
    wait_for(&world, "a", "a");
    for number in 0..20 {
        let () = connection(&world).set(format!("key{number}"), number).unwrap();
    }
    assert!(world.refused("b", &["datastore", "rm", DATASTORE]).contains(&format!("VM {VM}")));
    let error = world.refused("a", &["vm", "migrate", VM, "b"]);
    assert!(error.contains("restarted by HA"), "{error}");

    // A daemon that is away stops nothing: its brokers keep the lease.
    world.kill_daemon("a");
    let pid = world.replicas("a")[0];
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(world.replicas("a"), [pid], "{}", world.logs());
    world.start("a");
    wait_for(&world, "a", "b");
    assert_eq!(world.replicas("a"), [pid]);

    // Its process is gone, and nobody has asked for that.
    world.kill_replica("a");
    let deadline = Instant::now() + HUNG;
    while world.replicas("a").first().is_none_or(|now| *now == pid) {
        assert!(Instant::now() < deadline, "it is not restarted at home\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_for(&world, "a", "b");
    connection(&world);

    // All of the host is gone.
    world.kill_host("a");
    let lost = Instant::now();
    wait_for(&world, "b", "b");
    println!("restarted {} ms after the loss of its host", lost.elapsed().as_millis());
    for number in 0..20 {
        let found: i32 = connection(&world).get(format!("key{number}")).unwrap();
        assert_eq!(found, number, "{}", world.logs());
    }
    // Its host is back: the VM is not its any more.
    world.start("a");
    std::thread::sleep(Duration::from_secs(3));
    assert!(world.replicas("a").is_empty());
    let events = world.done("a", &["events", "--vm", VM]);
    for text in ["was restarted here, as its replica had ended", "was restarted here, as host a is lost"] {
        assert!(events.contains(text), "{text}: {events}");
    }
    world.done("b", &["vm", "stop", VM, "--force"]);
    world.done("b", &["vm", "rm", VM, "--yes"]);
    assert_eq!(
        fs::read_dir(world.path("shared")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(),
        0
    );
}
