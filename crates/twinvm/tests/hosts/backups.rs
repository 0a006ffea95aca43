//! Recovery points of a VM that has hosts.

use std::fs;

use crate::snapshots::redis;
use crate::support::guest::free_port;
use crate::world::{VM, World};

/// What is deleted on both replicas, and lost with both hosts' copies, comes back from the repository.
#[test]
fn a_protected_vm_that_is_lost_comes_back_from_a_recovery_point_under_another_name() {
    let mut world = World::of(&["a", "b"]);
    let (place, escrow) = (world.path("repository"), world.path("repository.key"));
    let [place, escrow] = [&place, &escrow].map(|path| path.to_str().unwrap());
    world.boot_redis("a");
    assert_eq!(redis(&world, &["SET", "key", "kept"]), "OK");
    assert_eq!(redis(&world, &["SAVE"]), "OK");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let before = world.wait_until_protected("a", "a");
    let error = world.refused("b", &["backup", "run", VM]);
    assert!(error.contains("backup repo add"), "{error}");
    world.done("a", &["backup", "repo", "add", "nas", place, "--escrow", escrow]);
    world.done("b", &["backup", "repo", "add", "nas", place, "--key", escrow]);
    // Commands work on every host.
    let point = world.json("b", &["backup", "run", VM]);
    assert_eq!((point["vm"].as_str(), point["host"].as_str()), (Some(VM), Some("a")));
    let after = world.wait_until_protected("b", "a");
    assert_eq!(after["generation"], before["generation"], "the secondary was lost\n{}", world.logs());
    assert_eq!(redis(&world, &["FLUSHALL"]), "OK");
    assert_eq!(redis(&world, &["SAVE"]), "OK");
    // Only what has changed is new.
    let second = world.json("a", &["backup", "run", VM]);
    let bytes = |point: &serde_json::Value, key: &str| point[key].as_u64().unwrap();
    assert!(bytes(&second, "added_bytes") * 5 < bytes(&point, "added_bytes"), "{point:#} {second:#}");
    assert_eq!(world.json("a", &["vm", "snapshot", "list", VM]).as_array().unwrap().len(), 0);

    world.done("a", &["vm", "stop", VM, "--force"]);
    world.done("a", &["vm", "rm", VM, "--yes"]);
    // On the host that has never had a copy of this VM's record: all that is needed is in the repository.
    let listed = world.json("b", &["backup", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0], point);
    assert_eq!(world.json("b", &["backup", "verify"])["damaged"].as_array().unwrap().len(), 0);
    let id = point["id"].as_str().unwrap();
    let forward = format!("tcp:127.0.0.1:{}-:6379", world.address().port());
    let restored = world.json("b", &["backup", "restore", &id[..9], "--as", "again", "--forward", &forward, "--start"]);
    assert_eq!((restored["name"].as_str(), restored["host"].as_str()), (Some("again"), Some("b")));
    assert_eq!(restored["running"], true);
    world.wait_for_redis();
    assert_eq!(redis(&world, &["GET", "key"]), "kept");
    // It is a VM as others are, and needs nothing of what it was made from.
    let other = format!("tcp:127.0.0.1:{}-:6379", free_port());
    world.done("b", &["backup", "restore", "latest:redis", "--forward", &other]);
    assert_eq!(world.json("a", &["vm", "show", VM])["running"], false);
    assert!(world.refused("b", &["backup", "restore", "latest:redis"]).contains("there is a VM named"));
    assert_eq!(fs::read_dir(world.path("b/files")).unwrap().count(), 0, "what restores have used is removed");

    let image = world.path("disk.raw");
    let export = ["backup", "export", id, image.to_str().unwrap(), "--format", "raw", "--path", place, "--key", escrow];
    let exported = world.json("a", &export);
    assert_eq!(exported["bytes"].as_u64(), Some(fs::metadata(&image).unwrap().len()));
    assert!(world.refused("a", &export).contains("there already"));
    world.done("a", &["backup", "forget", "--keep-last", "1"]);
    assert_eq!(world.json("b", &["backup", "list", VM]).as_array().unwrap().len(), 1);
    assert_eq!(world.json("b", &["backup", "prune", "--now"])["doomed_packs"], 0);
    assert!(world.refused("b", &["backup", "show", id]).contains("no recovery point"));
    // What a restore has left that was cut short with its daemon, the next one removes.
    let left = world.path("b/files/.restoring-left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("disk0.qcow2"), "half a disk").unwrap();
    world.kill_host("b");
    world.start("b");
    assert!(!left.exists());
    assert!(!world.logs().contains("was refused"), "{}", world.logs());
}
