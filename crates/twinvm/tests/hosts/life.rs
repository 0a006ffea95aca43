//! The life of a VM, through every state that its protection can have.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::console::Console;
use crate::metrics::assert_every_figure_is_there;
use crate::support::HUNG;
use crate::world::{VM, World, detail, reason, since, state};

#[test]
fn row_19_20_21_and_25_a_vm_goes_through_every_state_of_protection() {
    let world = World::of(&["a", "b", "c"]);
    let stopped = create(&world);
    let disabled = start(&world, &stopped);
    let client = Client::start(world.address());
    let (protected, secondary) = protect(&world, &disabled);
    client.wait_for_progress(30);
    assert_every_figure_is_there(&world, "a", &secondary);
    let resumed = suspend_and_resume(&world, &secondary);
    let restarted = restart_the_secondary(&world, &resumed);
    assert!(restarted["generation"].as_u64() > protected["generation"].as_u64());
    client.wait_for_progress(30);
    let now = move_twice(&world, &client, &restarted);
    assert_eq!(client.stop().error, None);
    end(&world, &now);
}

/// Creates the VM, and gives its status.
fn create(world: &World) -> Value {
    let spec = world.spec(VM, "test-redis", false, world.address().port());
    all_or_nothing(world, spec.to_str().unwrap());
    let created = world.json("a", &["vm", "create", spec.to_str().unwrap()]);
    assert_eq!((created["running"].as_bool(), created["host"].as_str()), (Some(false), Some("a")));
    is_changed_while_off(world);
    let stopped = world.status("b");
    assert_eq!((state(&stopped), stopped["ft"]["enabled"].as_bool()), ("not-running", Some(false)));
    let error = world.refused("b", &["vm", "create", spec.to_str().unwrap()]);
    assert!(error.contains("already") && error.contains("another name"), "{error}");
    for words in [&["vm", "stop", VM][..], &["vm", "console", VM]] {
        assert!(world.refused("b", words).contains("does not run"), "{words:?}");
    }
    assert!(world.refused("b", &["ft", "switchover", VM]).contains("twinvm ft on"));
    assert!(world.refused("c", &["ft", "resume", VM]).contains("twinvm ft on"));
    stopped
}

/// A VM that was to be started too was left behind, off, and had to be removed before the next try.
fn all_or_nothing(world: &World, spec: &str) {
    let taken = TcpListener::bind(world.address()).unwrap();
    let error = world.refused("a", &["vm", "create", spec, "--start"]);
    assert!(error.contains(&world.address().port().to_string()) && error.contains("nothing was created"), "{error}");
    assert_eq!(world.json("b", &["vm", "list"]).as_array().unwrap().len(), 0);
    assert!(!world.vm_folder("a").exists());
    drop(taken);
    let good = fs::read_to_string(spec).unwrap();
    fs::write(world.path("junk"), [0x90; 70_000]).unwrap();
    let image = good.lines().find(|line| line.starts_with("image = ")).unwrap();
    for (bad, expected) in [
        (good.replace(image, "kernel = \"junk\""), "kernel"),
        (format!("{good}[[network]]\nmode = \"bridge\"\nbridge = \"nonesuch\"\n"), "nonesuch"),
        (format!("{good}[[disk]]\npath = \"junk\"\nformat = \"qcow2\"\n"), "junk"),
        (format!("{good}[[disk]]\npath = \"missing\"\nformat = \"raw\"\n"), "missing"),
        (good.replace("256M", "900G"), "memory"),
    ] {
        fs::write(spec, bad).unwrap();
        let error = world.refused("a", &["vm", "create", spec, "--start"]);
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(world.json("b", &["vm", "list"]).as_array().unwrap().len(), 0, "{expected}");
        assert!(!world.vm_folder("a").exists(), "{expected}");
        let deadline = Instant::now() + HUNG;
        while world.all_processes().len() > 3 {
            assert!(Instant::now() < deadline, "{expected}: {:?}", world.all_processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fs::write(spec, good).unwrap();
}

/// Settings, and VMs under other names.
fn is_changed_while_off(world: &World) {
    let set = |words: &[&str]| world.json("b", &[&["vm", "set", VM], words].concat());
    let changed = set(&["--memory", "192M", "--cpus", "2", "--autostart", "on"]);
    assert_eq!((&changed["memory_bytes"], &changed["cpus"]), (&(192u64 << 20).into(), &2.into()), "{changed:#}");
    assert!(changed["autostart"] == true && changed["next_spec"].is_null(), "{changed:#}");
    let bytes = changed["disks"][0]["size_bytes"].as_u64().unwrap();
    let grown = set(&["--grow-disk", &format!("0={}", bytes + (1 << 20)), "--memory", "256M", "--cpus", "1"]);
    assert_eq!(grown["disks"][0]["size_bytes"], bytes + (1 << 20));
    for (words, expected) in [
        (&[][..], "nothing to change"),
        (&["--memory", "1M"], "64M to 1024G"),
        (&["--grow-disk", "0=1G"], "not made smaller"),
        (&["--grow-disk", "5=90G"], "disk 5"),
        (&["--cpus", "64"], "cannot run here"),
    ] {
        let error = world.refused("b", &[&["vm", "set", VM], words].concat());
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    let clone = world.json("b", &["vm", "clone", VM, "copy"]);
    assert_eq!((clone["name"].as_str(), &clone["disks"][0]["base"]), (Some("copy"), &grown["disks"][0]["base"]));
    assert_ne!(clone["cards"][0]["mac"], grown["cards"][0]["mac"]);
    assert!(world.refused("b", &["vm", "clone", VM, "copy"]).contains("already"));
    assert!(world.refused("b", &["vm", "rename", "copy", VM]).contains("already"));
    let renamed = world.json("c", &["vm", "rename", "copy", "other"]);
    assert_eq!((renamed["name"].as_str(), &renamed["cards"][0]["mac"]), (Some("other"), &clone["cards"][0]["mac"]));
    assert!(renamed["disks"][0]["path"].as_str().is_some_and(|path| path.contains("/vms/other/")), "{renamed:#}");
    assert!(world.refused("a", &["vm", "show", "copy"]).contains("no VM named copy"));
    world.done("a", &["vm", "rm", "other", "--yes"]);
    assert_eq!(fs::read_dir(world.path("a").join("vms")).unwrap().count(), 1);
}

/// What the VM has, where it is, rather than what its spec once named.
fn is_shown(world: &World, host: &str) {
    let shown = world.json("b", &["vm", "show", VM]);
    let (disk, card) = (&shown["disks"][0], &shown["cards"][0]);
    assert_eq!(disk["path"].as_str(), world.vm_folder(host).join("disk0.qcow2").to_str(), "{shown:#}");
    assert!(disk["format"] == "qcow2" && disk["size_bytes"].as_u64() > Some(1 << 20), "{disk}");
    assert!(disk["base"].as_str().is_some_and(|base| Path::new(base).exists()), "{disk}");
    assert!(card["mac"].is_string() && card["address"] == "10.0.2.15" && card["forward"][0].is_string(), "{card}");
    for words in
        [&["vm", "show", VM][..], &["vm", "list"], &["ft", "status", VM], &["top", "--once"], &["host", "list"]]
    {
        let text = world.json("b", words).to_string();
        let sentinels = [u64::MAX.to_string(), i64::MAX.to_string(), u32::MAX.to_string(), "NaN".to_owned()];
        assert!(sentinels.iter().all(|number| !text.contains(number)), "{words:?}: {text}");
    }
    let text = world.done("c", &["vm", "show", VM]);
    assert!(text.contains(disk["path"].as_str().unwrap()) && text.contains(card["mac"].as_str().unwrap()), "{text}");
    assert_eq!(world.json("c", &["vm", "list"])[0]["disks"], shown["disks"]);
}

fn start(world: &World, stopped: &Value) -> Value {
    // Commands work on every host, whichever the VM is on.
    let started = world.json("c", &["vm", "start", VM]);
    assert_eq!((started["running"].as_bool(), started["host"].as_str()), (Some(true), Some("a")));
    let disabled = world.status("b");
    assert_eq!((state(&disabled), reason(&disabled)), ("disabled", ""));
    assert!(since(&disabled) >= since(stopped));
    let error = world.refused("b", &["vm", "start", VM]);
    assert!(error.contains("runs already") && error.contains("twinvm vm show"), "{error}");
    assert!(world.refused("b", &["vm", "rm", VM, "--yes"]).contains("twinvm vm stop"));
    world.wait_for_redis();
    disabled
}

/// Turns protection on; gives the status, and the secondary's host.
fn protect(world: &World, disabled: &Value) -> (Value, String) {
    let text = world.done("b", &["ft", "on", VM, "--no-wait"]);
    assert!(text.contains("256.00 MiB") && text.contains("vCPUs   1"), "{text}");
    // Before it is protected it is starting, or needs a secondary that is being prepared.
    let protected = world.wait("c", "protection", |status| {
        assert!(["starting", "need-secondary", "protected"].contains(&state(status)), "{status:#}");
        state(status) == "protected"
    });
    assert_eq!((reason(&protected), protected["ft"]["enabled"].as_bool()), ("", Some(true)));
    assert!(since(&protected) >= since(disabled));
    let secondary = protected["secondary"].as_str().unwrap().to_owned();
    assert_eq!(protected["replicas"][1]["host"], secondary.as_str());
    is_shown(world, "a");
    assert_eq!(world.json("a", &["ft", "on", VM])["generation"], protected["generation"], "it was on already");
    let hosts = world.json("b", &["host", "show", &secondary]);
    assert_eq!((&hosts["secondaries"][0], &hosts["memory_reserved_bytes"]), (&VM.into(), &(256u64 << 20).into()));
    (protected, secondary)
}

fn suspend_and_resume(world: &World, secondary: &str) -> Value {
    let suspended = world.json("b", &["ft", "suspend", VM]);
    assert_eq!((state(&suspended), reason(&suspended), detail(&suspended)), ("disabled", "user-action", "suspended"));
    world.wait_for_no_replica(secondary);
    assert!(world.vm_folder(secondary).join("disk0.qcow2").exists());
    let host = world.json("b", &["host", "show", secondary]);
    assert_eq!(host["memory_reserved_bytes"], 256u64 << 20, "a suspended secondary keeps its reservation");
    for words in [&["ft", "switchover", VM][..], &["ft", "failover", VM], &["ft", "restart-secondary", VM]] {
        assert!(world.refused("b", words).contains("twinvm ft resume"), "{words:?}");
    }
    let resumed = world.json("c", &["ft", "resume", VM]);
    assert_eq!((state(&resumed), resumed["secondary"].as_str()), ("protected", Some(secondary)), "not the old copy");
    resumed
}

fn restart_the_secondary(world: &World, resumed: &Value) -> Value {
    let restarted = world.json("c", &["ft", "restart-secondary", VM]);
    assert_eq!((state(&restarted), restarted["host"].as_str()), ("protected", Some("a")));
    assert!(since(&restarted) > since(resumed) && restarted["generation"].as_u64() > resumed["generation"].as_u64());
    assert_ne!(restarted["replicas"][1]["pid"], resumed["replicas"][1]["pid"]);
    restarted
}

/// A planned takeover and an unplanned one; gives the host that the VM is on then.
fn move_twice(world: &World, client: &Client, restarted: &Value) -> String {
    let moved = world.json("c", &["ft", "switchover", VM]);
    let there = restarted["secondary"].as_str().unwrap();
    assert_eq!(moved["host"].as_str(), Some(there));
    // The command has waited for a new secondary.
    assert_eq!(state(&moved), "protected");
    client.wait_for_progress(30);
    let before = world.wait_until_protected("a", there);
    let failed_over = world.json("a", &["ft", "failover", VM]);
    assert_eq!((&failed_over["host"], state(&failed_over)), (&before["secondary"], "protected"));
    client.wait_for_progress(30);
    let now = failed_over["host"].as_str().unwrap();
    let protected = world.wait_until_protected("b", now);
    assert!(protected["replicas"][0]["figures"]["last_takeover"].is_object());
    now.to_owned()
}

/// Turns protection off, stops the VM, which is on host `now`, and removes it.
fn end(world: &World, now: &str) {
    let protected = world.status("b");
    let off = world.json("b", &["ft", "off", VM]);
    assert_eq!((state(&off), reason(&off)), ("disabled", ""));
    for host in ["a", "b", "c"].into_iter().filter(|host| *host != now) {
        world.wait_for_no_replica(host);
        let is_last = protected["secondary"] == host;
        assert!(!world.vm_folder(host).exists(), "a copy is left on {host}, last secondary: {is_last}");
    }
    let hosts = world.json("b", &["host", "list"]);
    let reserved: u64 =
        hosts.as_array().unwrap().iter().map(|host| host["memory_reserved_bytes"].as_u64().unwrap()).sum();
    assert_eq!(reserved, 256 << 20);

    let stopped = world.json("a", &["vm", "stop", VM, "--force"]);
    assert_eq!((state(&stopped), detail(&stopped)), ("not-running", "the plug was pulled"));
    assert!(since(&stopped) > since(&off) && world.replicas(now).is_empty());
    assert!(world.done("a", &["top", "--once"]).contains("VM not running"));
    world.done("c", &["vm", "rm", VM, "--yes"]);
    for host in ["a", "b", "c"] {
        assert!(!world.vm_folder(host).exists(), "{host}");
    }
    let left: Vec<String> = world.all_processes().into_iter().map(|(_, what)| what).collect();
    assert_eq!(left, ["host", "host", "host"], "processes are left");
    assert!(fs::read_dir(world.path("ends")).unwrap().flatten().all(|entry| !entry.path().ends_with(".sock")));
}

#[test]
fn a_protected_guest_may_reboot_and_power_off() {
    let start = Instant::now();
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    assert_eq!(state(&world.json("a", &["ft", "on", VM, "--yes"])), "protected", "the command did not wait");
    let mut console = Console::connect(&world, "b");
    let before = world.status("b");
    console.type_line("reboot -f");
    let rebooted = world.wait("b", "protection after the reboot", |status| {
        status["generation"].as_u64() > before["generation"].as_u64() && state(status) == "protected"
    });
    assert_eq!(rebooted["replicas"][0]["pid"], before["replicas"][0]["pid"]);
    world.wait_for_redis();
    // What is set while it runs waits for its next start.
    let set = world.json("b", &["vm", "set", VM, "--memory", "192M"]);
    assert_eq!(set["memory_bytes"], 256u64 << 20);
    assert!(set["next_spec"].as_str().is_some_and(|spec| spec.contains("memory = \"192M\"")), "{set:#}");
    assert!(world.refused("b", &["vm", "set", VM, "--grow-disk", "0=90G"]).contains("when it is off"));
    // It is protected for true: the guest that was rebooted goes on.
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    world.kill_replica("a");
    client.wait_for_progress(10);
    assert_eq!(client.stop().error, None);
    world.wait_until_protected("a", "b");
    drop(console);

    let mut console = Console::connect(&world, "a");
    console.type_line("poweroff -f");
    let off = world.wait("a", "the power to be off", |status| state(status) == "not-running");
    assert_eq!((detail(&off), off["running"].as_bool()), ("the guest powered off", Some(false)));
    world.wait_for_no_replica("a");
    world.wait_for_no_replica("b");
    // The secondary was compared with its primary, and has ended in order: the next first copy need not read what it knows.
    assert!(world.vm_folder("a").join("digests-0").exists());
    assert!(console.wait_for_end().contains("is off"));
    world.wait_until_nothing_is_reserved("a");
    world.wait_until_nothing_is_reserved("b");
    // Protection is still wanted: it comes with the VM.
    let started = world.json("a", &["vm", "start", VM]);
    assert_eq!((&started["memory_bytes"], &started["next_spec"]), (&(192u64 << 20).into(), &Value::Null));
    world.wait_until_protected("a", "b");
    world.done("a", &["vm", "set", VM, "--memory", "256M"]);
    let rebooted = world.json("a", &["vm", "reboot", VM, "--force"]);
    assert_eq!((&rebooted["memory_bytes"], rebooted["running"].as_bool()), (&(256u64 << 20).into(), Some(true)));
    world.wait_until_protected("a", "b");
    // By the power button: the guest shuts down, once it is up so far that it heeds it.
    Console::connect(&world, "b").leave();
    let off = loop {
        world.run("b", &["vm", "stop", VM, "--no-wait"]);
        std::thread::sleep(Duration::from_secs(1));
        let status = world.status("a");
        if state(&status) == "not-running" {
            break status;
        }
        assert!(start.elapsed() < HUNG, "the guest does not shut down: {status:#}");
    };
    assert_eq!(detail(&off), "the guest powered off");
}

#[test]
fn protection_can_be_turned_off_while_the_first_copy_is_under_way() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    let client = Client::start(world.address());
    for round in 0..6u64 {
        world.done("a", &["ft", "on", VM, "--yes", "--no-wait"]);
        // At another moment each time: of planning, preparing, copying.
        std::thread::sleep(Duration::from_millis(round * 70));
        let off = world.json("b", &["ft", "off", VM]);
        assert_eq!(state(&off), "disabled");
        // Whatever was under way ends, and takes the copy with it.
        let deadline = Instant::now() + HUNG;
        while world.vm_folder("b").exists() || !world.replicas("b").is_empty() {
            assert!(Instant::now() < deadline, "round {round}: a copy is left\n{}", world.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(state(&world.status("a")), "disabled");
        world.wait_until_nothing_is_reserved("b");
    }
    world.done("a", &["ft", "on", VM, "--yes"]);
    client.wait_for_progress(10);
    assert_eq!(client.stop().error, None);
}
