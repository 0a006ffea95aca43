//! The FT modes: chosen, refused, kept, and changed under load.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::client::Client;
use crate::metrics::scrape;
use crate::support::HUNG;
use crate::world::{VM, World, detail, state};

fn mode(view: &Value) -> &str {
    view["ft"]["mode"].as_str().unwrap()
}

/// Whether the secondary executes, rather than follow by checkpoints.
fn executes(view: &Value) -> bool {
    view["replicas"][0]["figures"]["lockstep"].is_object()
}

#[test]
fn a_mode_is_kept_for_later_and_refused_where_the_engine_has_none() {
    let mut world = World::with_settings(&["a", "b"], |_, text| text.replace("lag_ms_max = 100", "lag_ms_max = 250"));
    world.create("a", VM, "test-redis", false);
    let created = world.status("b");
    assert_eq!((mode(&created), created["lag_ms_max"].as_u64()), ("mirror", Some(250)));
    let usage = world.run("b", &["ft", "mode", VM, "raid"]);
    assert!(!usage.success && usage.stderr.contains("mirror, lockstep"), "{}", usage.stderr);

    // The VM is off, and nobody has asked for protection yet.
    let changed = world.json("b", &["ft", "mode", VM, "lockstep"]);
    assert_eq!((mode(&changed), state(&changed)), ("lockstep", "not-running"));
    assert!(world.done("a", &["ft", "status", VM]).contains("off, by executing the same (lockstep)"));
    world.kill_daemon("a");
    world.start("a");
    let on = world.json("b", &["ft", "on", VM]);
    assert_eq!((mode(&on), on["ft"]["enabled"].as_bool()), ("lockstep", Some(true)), "not the mode that was kept");
    assert_eq!(mode(&world.json("a", &["ft", "on", VM, "--mode", "mirror"])), "mirror");

    if fs::metadata("/dev/kvm").is_err() {
        eprintln!("there is no /dev/kvm here: a VM that needs it cannot be made");
        return;
    }
    let spec = world.spec("native", "test-redis", false, 1);
    let text = fs::read_to_string(&spec).unwrap().replace("engine = \"soft\"", "engine = \"kvm\"");
    fs::write(&spec, text).unwrap();
    world.done("a", &["vm", "create", spec.to_str().unwrap()]);
    for words in [&["ft", "on", "native", "--mode", "lockstep"][..], &["ft", "mode", "native", "lockstep"]] {
        let error = world.refused("b", words);
        assert!(error.contains("needs the soft engine") && error.contains("would run on kvm"), "{words:?}: {error}");
        assert!(error.contains("engine = \"soft\"") && error.contains("--mode mirror"), "{words:?}: {error}");
    }
    let refused = world.json("a", &["ft", "status", "native"]);
    assert_eq!((mode(&refused), refused["ft"]["enabled"].as_bool()), ("mirror", Some(false)), "it was half done");
}

#[test]
fn a_vm_in_lockstep_outlives_its_host_and_is_in_lockstep_again() {
    let mut world = World::of(&["a", "b", "c"]);
    world.boot_redis("a");
    let client = Client::start(world.address());
    let on = world.json("c", &["ft", "on", VM, "--mode", "lockstep"]);
    assert_eq!((state(&on), mode(&on), executes(&on)), ("protected", "lockstep", true), "{on:#}");
    client.wait_for_progress(100);
    let text = world.done("b", &["ft", "status", VM]);
    for expected in ["on, by executing the same (lockstep)\n", "at most 100 ms", "bit/s", "divergences: 0"] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    assert!(world.done("b", &["top", "--once"]).contains("lockstep"));
    let metrics = scrape(&world, "a");
    for expected in [
        format!("twinvm_ft_mode{{host=\"a\",vm=\"{VM}\",mode=\"lockstep\"}} 1"),
        format!("twinvm_lockstep_divergences_total{{host=\"a\",role=\"primary\",vm=\"{VM}\"}} 0"),
    ] {
        assert!(metrics.lines().any(|line| line == expected), "{expected:?} is not in:\n{metrics}");
    }

    let secondary = on["secondary"].as_str().unwrap().to_owned();
    world.kill_host("a");
    client.wait_for_progress(100);
    let again = world.wait("c", "lockstep again", |status| {
        status["host"] == secondary.as_str() && state(status) == "protected" && executes(status)
    });
    assert_eq!(mode(&again), "lockstep");
    let divergences = &again["replicas"][0]["figures"]["lockstep"]["divergences"];
    assert_eq!(divergences.as_u64(), Some(0));
    // By hand as well.
    let moved = world.json("c", &["ft", "switchover", VM]);
    assert_ne!(moved["host"], again["host"]);
    client.wait_for_progress(100);
    world.wait("c", "lockstep after the move", |status| state(status) == "protected" && executes(status));
    assert_eq!(client.stop().error, None);
}

#[test]
fn a_mode_changes_under_load_and_the_vm_stays_protected() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    let client = Client::start(world.address());
    let before = world.json("a", &["ft", "on", VM]);
    assert_eq!((mode(&before), executes(&before)), ("mirror", false));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let deadline = Instant::now() + HUNG;
            while !is_done.load(Ordering::Acquire) && Instant::now() < deadline {
                let seen = world.status("b");
                assert_eq!(state(&seen), "protected", "{}: {seen:#}", detail(&seen));
            }
        });
        for round in 0..4 {
            for wanted in ["lockstep", "mirror"] {
                let changed = world.json("b", &["ft", "mode", VM, wanted]);
                let found = (state(&changed), mode(&changed), executes(&changed));
                assert_eq!(found, ("protected", wanted, wanted == "lockstep"), "round {round}: {changed:#}");
                client.wait_for_progress(50);
            }
        }
        is_done.store(true, Ordering::Release);
        watcher.join().unwrap();
    });
    // Whoever loses a secondary, even for a moment, claims the VM for itself.
    let after = world.status("b");
    assert_eq!(after["generation"], before["generation"], "the secondary was given up\n{}", world.logs());
    assert_eq!(after["replicas"][1]["pid"], before["replicas"][1]["pid"]);

    // What the secondary holds after all that is the VM.
    world.json("b", &["ft", "mode", VM, "lockstep"]);
    world.kill_replica("a");
    client.wait_for_progress(50);
    world.wait("a", "lockstep again", |status| {
        status["host"] == "b" && state(status) == "protected" && executes(status)
    });
    assert_eq!(client.stop().error, None);
}
