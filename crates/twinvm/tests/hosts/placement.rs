//! Where secondaries may be.

use std::fs;
use std::time::Instant;

use crate::support::HUNG;
use crate::support::guest::free_port;
use crate::world::{VM, World, detail, state};

#[test]
fn hosts_without_room_are_refused_with_the_reason() {
    // Room for two VMs on a, for none on b, for one on c.
    let memory = |host: &str, text: String| {
        let memory = match host {
            "a" => "600M",
            "b" => "100M",
            _ => "300M",
        };
        text.replace("suspicion_ms", &format!("memory = \"{memory}\"\nsuspicion_ms"))
    };
    let mut world = World::with_settings(&["a", "b"], memory);
    let spec = world.spec(VM, "test-redis", false, world.address().port());
    let spec = spec.to_str().unwrap();
    let error = world.refused("b", &["vm", "create", spec]);
    assert!(error.contains("has 100 MiB of memory free, 256 MiB are needed"), "{error}");
    assert!(!world.vm_folder("b").exists());
    world.done("a", &["vm", "create", spec, "--start"]);
    let error = world.refused("a", &["ft", "on", VM, "--yes"]);
    assert!(error.contains("host b has 100 MiB of memory free, 256 MiB are needed"), "{error}");
    assert!(error.contains("twinvm host list"), "{error}");
    assert_eq!(world.status("a")["ft"]["enabled"], false, "it was turned on though it cannot be");

    // Another port, and another name; there is no room for a third.
    let other = world.spec("other", "test-redis", false, free_port());
    world.done("a", &["vm", "create", other.to_str().unwrap(), "--start"]);
    let third = world.spec("third", "test-redis", false, free_port());
    let error = world.refused("a", &["vm", "create", third.to_str().unwrap()]);
    assert!(error.contains("of memory free"), "{error}");

    // Two VMs want the one place on c at the same time: one gets it, the other says why not.
    world.add_host("c", memory);
    std::thread::scope(|scope| {
        for vm in [VM, "other"] {
            let world = &world;
            // The one that comes second may be refused at once.
            scope.spawn(move || world.run("a", &["ft", "on", vm, "--yes", "--no-wait"]));
        }
    });
    let deadline = Instant::now() + HUNG;
    let states = || [VM, "other"].map(|vm| world.json("a", &["ft", "status", vm]));
    let settled = loop {
        let seen = states();
        if seen.iter().filter(|view| state(view) == "protected").count() == 1
            && seen
                .iter()
                .all(|view| state(view) == "protected" || state(view) == "disabled" || !detail(view).is_empty())
        {
            break seen;
        }
        assert!(Instant::now() < deadline, "{seen:#?}\n{}", world.logs());
    };
    assert_eq!(world.replicas("c").len(), 1);
    let left_out = settled.iter().find(|view| state(view) != "protected").unwrap();
    if left_out["ft"]["enabled"] == true {
        assert_eq!(state(left_out), "need-secondary");
        assert!(detail(left_out).contains("host c has 44 MiB of memory free"), "{left_out:#}");
    }
    let host = world.json("a", &["host", "show", "c"]);
    assert_eq!(host["memory_reserved_bytes"], 256u64 << 20);
}

#[test]
fn a_vm_that_cannot_start_is_off_and_its_port_is_named() {
    let world = World::of(&["a"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = world.spec(VM, "test-redis", false, taken.local_addr().unwrap().port());
    world.done("a", &["vm", "create", spec.to_str().unwrap()]);
    let error = world.refused("a", &["vm", "start", VM]);
    assert!(error.contains(&taken.local_addr().unwrap().to_string()) && error.contains("in use"), "{error}");
    let view = world.json("a", &["vm", "show", VM]);
    assert_eq!((state(&view), view["running"].as_bool()), ("not-running", Some(false)));
    assert_eq!(world.json("a", &["host", "show"])["memory_reserved_bytes"], 0);
    assert_eq!(world.all_processes().len(), 1, "{:?}", world.all_processes());
    drop(taken);
    world.done("a", &["vm", "start", VM]);
    world.done("a", &["vm", "stop", VM, "--force"]);
    world.done("a", &["vm", "rm", VM, "--yes"]);
    let error = world.refused("a", &["vm", "create", "nothing.toml"]);
    assert!(error.contains("nothing.toml"), "{error}");
}

/// The replicas of a VM with a host keep no record, and nobody would notice.
#[test]
fn a_vm_with_a_host_is_not_said_to_be_recorded() {
    let world = World::of(&["a"]);
    let spec = world.spec(VM, "test-redis", false, 1);
    let text = fs::read_to_string(&spec).unwrap();
    fs::write(&spec, format!("record = \"records\"\n{text}")).unwrap();
    let error = world.refused("a", &["vm", "create", spec.to_str().unwrap()]);
    assert!(error.contains("only a VM in the foreground can be recorded") && error.contains("twinvm run"), "{error}");
}
