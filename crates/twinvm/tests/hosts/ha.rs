//! High availability: VMs on a datastore that hosts share are restarted on another host when theirs is lost, with all that their guests had written, and never
//! run on two.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use redis::Commands;

use crate::processes::{signal, stands_still, stop};
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

/// Creates the VM on host `a`, and waits until it runs there.
fn create(world: &World) {
    let spec = spec(world);
    world.done("a", &["vm", "create", spec.to_str().unwrap(), "--start"]);
    wait_for(world, "a", "a");
}

#[test]
fn a_vm_is_restarted_elsewhere_when_its_host_is_lost_and_keeps_what_it_acknowledged() {
    let mut world = world();
    create(&world);
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

/// Waits until a host that has found the VM's disks in use has tried again, and nobody runs the VM but `pids`, which stand still.
fn wait_for_attempts(world: &World, pids: &[u32]) {
    let deadline = Instant::now() + HUNG;
    while world.logs().matches("in use by").count() < 2 {
        assert!(Instant::now() < deadline, "nobody tries to start it\n{}", world.logs());
        assert!(world.replicas("b").is_empty(), "{}", world.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(pids.iter().all(|pid| stands_still(*pid)), "{}", world.logs());
    assert!(world.replicas("b").is_empty(), "{}", world.logs());
}

/// Waits until another replica than the one before has the VM. At no moment there are two.
fn wait_for_restart(world: &World, before: u32) {
    let deadline = Instant::now() + HUNG;
    let is_answered = || -> redis::RedisResult<i32> {
        let client = redis::Client::open(("127.0.0.1", world.address().port()))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.get("key")
    };
    let runs_once = || {
        // In this order: a replica that is seen stays, but for the first one.
        let now: Vec<u32> = ["b", "a"].iter().flat_map(|host| world.replicas(host)).collect();
        assert!(now.len() <= 1, "it runs twice: {now:?}\n{}", world.logs());
        now.first().is_some_and(|pid| *pid != before)
    };
    let found = loop {
        if runs_once()
            && let Ok(found) = is_answered()
        {
            break found;
        }
        assert!(Instant::now() < deadline, "it is not restarted\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(found, 7);
    let steady = Instant::now() + Duration::from_secs(3);
    while Instant::now() < steady {
        assert!(runs_once(), "{}", world.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A VM that stands still, as on a machine that is suspended, holds its disks with their locks: nobody starts it before its process is gone. When it wakes, its
/// broker ends it, and then it is. Its daemon does not come back.
#[test]
fn a_vm_that_stands_still_is_not_started_before_it_has_ended() {
    let mut world = world();
    create(&world);
    let () = connection(&world).set("key", 7).unwrap();
    let replica = world.replicas("a")[0];
    let pids = [vec![replica], world.brokers("a")].concat();
    assert_eq!(pids.len(), 2);
    stop(&pids, &world.store());
    world.kill_daemon("a");
    wait_for_attempts(&world, &pids);
    pids.iter().for_each(|pid| signal(*pid, "CONT"));
    wait_for_restart(&world, replica);
    wait_for(&world, "b", "b");
}

/// All of a host stands still and goes on, its daemon included: the VM is restarted once, there or elsewhere.
#[test]
fn a_vm_whose_host_stands_still_is_restarted_once_when_that_goes_on() {
    let world = world();
    create(&world);
    let () = connection(&world).set("key", 7).unwrap();
    let replica = world.replicas("a")[0];
    let pids = [vec![replica, world.daemon("a")], world.brokers("a")].concat();
    assert_eq!(pids.len(), 3);
    stop(&pids, &world.store());
    wait_for_attempts(&world, &pids);
    // The guest first, and who ends it last.
    pids.iter().for_each(|pid| signal(*pid, "CONT"));
    wait_for_restart(&world, replica);
}

/// Its host lacks nothing but what it takes to start the VM. The VM stays wanted, and another host starts it.
#[test]
fn a_vm_that_cannot_be_restarted_at_home_is_restarted_elsewhere() {
    let world = world();
    create(&world);
    let () = connection(&world).set("key", 7).unwrap();
    let log = world.vm_folder("a").join("replica.log");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let replica = world.replicas("a")[0];
    world.kill_replica("a");
    wait_for_restart(&world, replica);
    wait_for(&world, "b", "a");
    let events = world.done("a", &["events", "--vm", VM]);
    assert!(events.contains("was restarted here, as host a cannot start it"), "{events}");
}

/// A VM's process and its daemon are gone; its broker has ended with it, or stands still. Nobody keeps the lease.
#[test]
fn a_vm_whose_process_is_lost_with_its_daemon_is_restarted_elsewhere() {
    let mut world = world();
    create(&world);
    let () = connection(&world).set("key", 7).unwrap();
    world.kill_daemon("a");
    let replica = world.replicas("a")[0];
    world.kill_replica("a");
    wait_for_restart(&world, replica);
    wait_for(&world, "b", "b");

    world.start("a");
    let (replica, brokers) = (world.replicas("b")[0], world.brokers("b"));
    assert_eq!(brokers.len(), 1);
    stop(&brokers, &world.store());
    world.kill_daemon("b");
    world.kill_replica("b");
    wait_for_restart(&world, replica);
    wait_for(&world, "a", "a");
    assert!(stands_still(brokers[0]));
    signal(brokers[0], "CONT");
    let deadline = Instant::now() + HUNG;
    while fs::exists(format!("/proc/{}", brokers[0])).unwrap() {
        assert!(Instant::now() < deadline, "a broker outlives its replica");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((world.replicas("a").len(), world.replicas("b").len()), (1, 0));
}
