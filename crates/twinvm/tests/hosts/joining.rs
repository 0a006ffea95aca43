//! Hosts that join a cluster with a token, and leave it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::members::Members;
use crate::support::HUNG;
use crate::world::World;

const JOIN: [&str; 6] = ["host", "join", "--listen", "127.0.0.1:0", "--metrics", ""];

pub fn token(world: &World, host: &str, words: &[&str]) -> String {
    world.done(host, &[&["host", "token"], words].concat()).trim().to_owned()
}

pub fn join<'a>(token: &'a str, name: &'a str) -> Vec<&'a str> {
    [&JOIN[..], &[token, "--name", name]].concat()
}

pub fn names_of(world: &World, host: &str) -> Vec<String> {
    let hosts = world.json(host, &["host", "list"]);
    hosts.as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_host_joins_with_a_token_once_and_keeps_its_private_key() {
    let mut world = World::of(&["a"]);
    let first = token(&world, "a", &["b"]);
    // Refused before the token is used up.
    assert!(world.refused("b", &join(&first, "c")).contains("the token is for host b"));
    let everywhere = [&["host", "join", &first, "--name", "b", "--listen"], &["0.0.0.0:0"][..]].concat();
    assert!(world.refused("b", &everywhere).contains("at which other hosts reach"));
    fs::create_dir(world.path("full")).unwrap();
    fs::write(world.path("full").join("x"), "").unwrap();
    assert!(world.refused("full", &join(&first, "b")).contains("is not empty"));
    world.done("b", &join(&first, "b"));
    world.start("b");
    assert_eq!(names_of(&world, "b"), ["a", "b"]);
    let key = fs::read_to_string(world.path("b").join("keys/host.key")).unwrap();
    for entry in fs::read_dir(world.path("a").join("authority")).unwrap() {
        assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(&key));
    }
    let error = world.refused("c", &join(&first, "b"));
    assert!(error.contains("the token was used already") && error.contains("twinvm host token"), "{error}");

    // On another host the command is passed on to the one with the authority.
    let second = token(&world, "b", &[]);
    assert!(second.starts_with("twinvm1/a/"), "{second}");
    assert!(world.refused("c", &join(&second, "b")).contains("there is a host b already"));
    assert!(world.refused("a", &["host", "token", "b"]).contains("there is a host b already"));
    assert!(world.refused("a", &["host", "token", "--valid", "8d"]).contains("valid for"));
    world.done("c", &join(&second, "c"));
    for host in ["a", "b", "c"] {
        assert!(!fs::read_to_string(world.path(&format!("{host}.log"))).unwrap_or_default().contains(&second));
    }
    assert!(!world.run("a", &["host", "list"]).stdout.contains("token"));
}

#[test]
fn a_token_that_is_wrong_or_has_expired_is_refused_in_a_sentence() {
    let world = World::of(&["a"]);
    let expired = token(&world, "a", &["--valid", "1s"]);
    let good = token(&world, "a", &[]);
    let (rest, secret) = good.rsplit_once('/').unwrap();
    let wrong = format!("{rest}/{}", "0".repeat(secret.len()));
    assert!(world.refused("b", &join(&wrong, "b")).contains("the token is not known here"));
    // Whoever answers there has to be of that authority.
    let (rest, fingerprint) = rest.rsplit_once('/').unwrap();
    let elsewhere = format!("{rest}/{}/{secret}", "0".repeat(fingerprint.len()));
    let error = world.refused("b", &join(&elsewhere, "b"));
    assert!(error.contains("not of the cluster whose authority the token names"), "{error}");
    assert!(world.refused("b", &join("twinvm1/a", "b")).contains("not a token made by `twinvm host token`"));
    // The store counts whole seconds, and a little more.
    let deadline = Instant::now() + HUNG;
    thread::sleep(Duration::from_secs(2));
    let error = loop {
        let outcome = world.run("b", &join(&expired, "b"));
        assert!(!outcome.success, "it has not expired");
        if outcome.stderr.contains("it has expired") || Instant::now() > deadline {
            break outcome.stderr;
        }
    };
    assert!(error.contains("the token is not known here: it has expired"), "{error}");
    assert!(!world.path("b").exists());
    world.done("b", &join(&good, "b"));
}

/// Both stores swap it.
#[test]
fn of_many_hosts_with_one_token_one_joins() {
    let members = Members::start(1);
    let address = members.address().to_string();
    for world in [World::of(&["a"]), World::on_etcd(&["a"], &address)] {
        let token = token(&world, "a", &[]);
        let won: Vec<bool> = thread::scope(|scope| {
            let joining: Vec<_> = ["b", "c", "d", "e"]
                .map(|name| {
                    scope.spawn({
                        let (world, token) = (&world, &token);
                        move || world.run(name, &join(token, name))
                    })
                })
                .into();
            joining
                .into_iter()
                .map(|joined| {
                    let joined = joined.join().unwrap();
                    assert!(joined.success || joined.stderr.contains("was used already"), "{}", joined.stderr);
                    joined.success
                })
                .collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    }
}

#[test]
fn a_host_leaves_when_nothing_of_a_vm_is_there_any_more() {
    let mut world = World::of(&["a", "b"]);
    let spec = world.path("x.toml");
    fs::write(world.path("kernel"), [0x90; 4096]).unwrap();
    let files = world.path("b").join("files");
    fs::copy(world.path("kernel"), files.join("kernel")).unwrap();
    fs::write(&spec, format!("name = \"x\"\nmemory = \"64M\"\nkernel = {:?}\n", files.join("kernel"))).unwrap();
    world.done("b", &["vm", "create", spec.to_str().unwrap()]);
    let error = world.refused("b", &["host", "leave"]);
    assert!(error.contains("host b has the primary of x") && error.contains("twinvm ft switchover"), "{error}");
    // It goes on as before.
    assert_eq!(world.json("a", &["host", "show", "b"])["alive"], true);
    world.done("b", &["vm", "rm", "x", "--yes"]);
    let error = world.refused("a", &["host", "leave"]);
    assert!(error.contains("holds the cluster's authority"), "{error}");
    assert_eq!(world.json("b", &["host", "leave"])["left"], "b");
    world.wait_for_daemon_end("b");
    assert_eq!(names_of(&world, "a"), ["a"]);
    assert!(!world.path("b").join("keys").exists());
    assert!(world.refused("b", &["host", "start"]).contains("there is no host in"));
    // The name is free again.
    let token = token(&world, "a", &["b"]);
    assert!(world.refused("b", &join(&token, "b")).contains("is not empty"));
    fs::remove_dir_all(world.path("b")).unwrap();
    world.done("b", &join(&token, "b"));
}

#[test]
fn a_cluster_is_made_by_its_own_command_too() {
    let world = World::empty();
    let init = ["cluster", "init", "--name", "a", "--listen", "127.0.0.1:0", "--metrics", ""];
    let made = world.json("a", &[&init[..], &["--domain", "rack1/power2"]].concat());
    assert_eq!((&made["host"], &made["domain"]), (&"a".into(), &"rack1/power2".into()));
    let outcome = world.run("x", &[&init[..], &["--domain", "rack1//2"]].concat());
    assert!(!outcome.success && outcome.stderr.contains("such as rack1/power2"), "{}", outcome.stderr);
    assert!(world.path("a").join("authority/ca.key").exists());
}
