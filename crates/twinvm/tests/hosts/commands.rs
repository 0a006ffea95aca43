//! Commands that need no guest: what they make, and what they say when they cannot.

use std::fs;

use crate::world::World;

#[test]
fn hosts_are_made_and_mistakes_are_explained_and_leave_nothing_behind() {
    let world = World::empty();
    let init = ["host", "init", "--listen", "127.0.0.1:0", "--metrics", ""];
    let with = |more: &[&'static str]| [&init[..], more].concat();
    for (more, expected) in [
        (&["--new-cluster", "--name", "A"][..], "lower-case letters"),
        (&["--new-cluster", "--name", "a", "--listen", "0.0.0.0:1"], "at which other hosts reach"),
        (&["--new-cluster", "--name", "a", "--store", "/nonexistent/x.db"], "cannot be created"),
        (&["--new-cluster", "--name", "a", "--metrics", "x"], "is not an address"),
        (&["--bundle", "nothing"], "`twinvm host issue` makes one"),
    ] {
        let words = match more.contains(&"--listen") || more.contains(&"--metrics") {
            true => [&["host", "init"], more].concat(),
            false => with(more),
        };
        let error = world.refused("a", &words);
        assert!(error.contains(expected), "{words:?}: {error}");
        assert!(!world.path("a").exists(), "{words:?}");
    }
    let neither = world.run("a", &init);
    assert!(!neither.success && neither.stderr.contains("--bundle"), "{}", neither.stderr);
    assert!(world.refused("a", &["host", "start"]).contains("twinvm host init"));
    assert!(world.refused("a", &["host", "list"]).contains("twinvm host init"));
    assert!(world.refused("a", &["host", "issue", "b", "--out", "b.bundle"]).contains("twinvm host init"));

    let made = world.json("a", &with(&["--new-cluster", "--name", "a", "--store", "cluster.db"]));
    assert_eq!((made["host"].as_str(), made["dir"].as_str()), (Some("a"), world.path("a").to_str()));
    fs::copy(world.path("a").join("operator.pem"), world.operator()).unwrap();
    // Another cluster's store would have hosts that do not know each other's keys.
    let error = world.refused("x", &with(&["--new-cluster", "--name", "x", "--store", "cluster.db"]));
    assert!(error.contains("--bundle") && !world.path("x").exists() && world.store().exists(), "{error}");
    assert!(world.refused("a", &with(&["--new-cluster", "--name", "a"])).contains("already"));

    assert!(world.refused("a", &["host", "issue", "a", "--out", "x"]).contains("choose another"));
    assert!(world.refused("a", &["host", "issue", "B", "--out", "x"]).contains("lower-case"));
    let issued = world.json("a", &["host", "issue", "b", "--out", "b.bundle"]);
    assert_eq!(issued["bundle"], "b.bundle");
    assert!(world.refused("a", &["host", "issue", "b", "--out", "b.bundle"]).contains("--out"));
    assert!(world.refused("c", &with(&["--bundle", "b.bundle", "--name", "c"])).contains("twinvm host issue c"));
    fs::write(world.path("bad.bundle"), "{}").unwrap();
    assert!(world.refused("c", &with(&["--bundle", "bad.bundle"])).contains("not a bundle"));
    assert!(!world.path("c").exists());
    world.done("b", &with(&["--bundle", "b.bundle"]));
    assert!(world.refused("b", &["host", "issue", "c", "--out", "c.bundle"]).contains("has not made the cluster"));
    assert!(world.refused("b", &["operator", "issue", "x", "--out", "x.pem"]).contains("has not made the cluster"));
    assert_eq!(world.json("a", &["operator", "issue", "alice", "--out", "alice.pem"])["operator"], "alice");
    assert!(world.refused("a", &["operator", "issue", "alice", "--out", "alice.pem"]).contains("alice.pem"));
    assert!(world.refused("a", &["operator", "issue", "a.b", "--out", "y.pem"]).contains("letters, digits"));
    let hosts_keys = world.path("b").join("keys/host.key");
    let error = world.refused("b", &["host", "list", "--operator", hosts_keys.to_str().unwrap()]);
    assert!(error.contains("the operator's keys cannot be used"), "{error}");
    let error = world.refused("b", &["host", "list"]);
    assert!(error.contains(&format!("twinvm host start --dir {}", world.path("b").display())), "{error}");
}

#[test]
fn hosts_come_and_go() {
    let mut world = World::of(&["a", "b"]);
    let hosts = world.json("b", &["host", "list"]);
    let names: Vec<&str> = hosts.as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(hosts.as_array().unwrap().iter().all(|host| host["alive"] == true));
    assert!(world.done("a", &["host", "list"]).contains("alive"));
    assert_eq!(world.json("b", &["host", "show"])["name"], "b");
    assert!(world.done("b", &["host", "show", "a"]).contains("soft"));
    assert!(world.refused("a", &["host", "show", "x"]).contains("twinvm host list"));
    assert!(world.refused("a", &["host", "start"]).contains("runs already"));
    for words in [
        &["vm", "show", "x"][..],
        &["vm", "start", "x"],
        &["vm", "stop", "x"],
        &["vm", "console", "x"],
        &["vm", "rm", "x", "--yes"],
        &["ft", "on", "x"],
        &["ft", "off", "x"],
        &["ft", "mode", "x", "lockstep"],
        &["ft", "suspend", "x"],
        &["ft", "resume", "x"],
        &["ft", "status", "x"],
        &["ft", "failover", "x"],
        &["ft", "switchover", "x"],
        &["ft", "restart-secondary", "x"],
        &["top", "x", "--once"],
    ] {
        let error = world.refused("a", words);
        assert!(error.contains("no VM named x") && error.contains("twinvm vm list"), "{words:?}: {error}");
    }
    assert_eq!(world.json("a", &["vm", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(world.json("a", &["top", "--once"]).as_array().unwrap().len(), 0);
    let error = world.refused("a", &["host", "rm", "b"]);
    assert!(error.contains("is alive") && error.contains("twinvm host stop"), "{error}");

    assert_eq!(world.json("b", &["host", "stop"])["stopped"], true);
    world.wait_for_daemon_end("b");
    // Its lease is given up at once.
    assert_eq!(world.json("a", &["host", "show", "b"])["alive"], false);
    assert!(!world.path("b").join("daemon.json").exists());
    let error = world.refused("b", &["host", "stop"]);
    assert!(error.contains("does not answer") && error.contains("twinvm host start"), "{error}");
    world.done("a", &["host", "rm", "b"]);
    assert_eq!(world.json("a", &["host", "list"]).as_array().unwrap().len(), 1);
    assert!(world.refused("a", &["host", "rm", "b"]).contains("twinvm host list"));
    // A host that was removed and comes back registers again.
    world.start("b");
    assert_eq!(world.json("a", &["host", "list"]).as_array().unwrap().len(), 2);
}
