//! Snapshots of a VM that has a host.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use spec::DiskFormat;
use storage::disk::{DiskImage, DiskOptions};

use crate::client::Client;
use crate::support::HUNG;
use crate::support::guest::images_dir;
use crate::world::{VM, World};

/// The answer of the guest's Redis.
pub fn redis(world: &World, words: &[&str]) -> String {
    let address = world.address();
    let client = redis::Client::open((address.ip().to_string(), address.port())).unwrap();
    let mut connection = client.get_connection_with_timeout(HUNG).unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query(&mut connection).unwrap()
}

/// Whether a version of an image has a note of this file.
fn is_noted(file: &Path) -> bool {
    let path = serde_json::to_string(file.as_os_str()).unwrap();
    let versions = fs::read_dir(images_dir().join(".versions")).unwrap();
    let users = versions.filter_map(|version| fs::read_dir(version.unwrap().path().join("users")).ok());
    users.flatten().any(|note| fs::read_to_string(note.unwrap().path()).is_ok_and(|text| text.contains(&path)))
}

#[test]
fn a_vm_goes_back_to_a_snapshot_with_its_memory_and_its_disk() {
    let world = World::of(&["a", "b"]);
    let create = ["vm", "snapshot", "create", VM, "first"];
    world.create("a", VM, "test-redis", false);
    assert_eq!(world.json("a", &["vm", "snapshot", "list", VM]).as_array().unwrap().len(), 0);
    world.done("a", &["vm", "start", VM]);
    world.wait_for_redis();
    assert_eq!(redis(&world, &["SET", "key", "before"]), "OK");
    // Commands work on every host.
    let taken = world.json("b", &create);
    assert_eq!((taken["name"].as_str(), taken["host"].as_str()), (Some("first"), Some("a")));
    // The kernel that images have by default has no driver for the generation ID.
    assert_eq!((&taken["memory"], &taken["notices"]), (&true.into(), &false.into()));
    assert!(taken["pause_ms"].as_u64() > Some(0), "{taken:#}");
    let disks = world.json("b", &["vm", "snapshot", "create", VM, "disks", "--no-memory"]);
    assert_eq!((&disks["memory"], &disks["notices"]), (&false.into(), &Value::Null));
    assert!(disks["bytes"].as_u64().unwrap() < taken["bytes"].as_u64().unwrap());
    let file = world.vm_folder("a").join("snapshots/first.snapshot");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, taken["bytes"].as_u64().unwrap()));
    assert!(is_noted(&file), "the image that the snapshot is based on could be removed");
    let error = world.refused("a", &create);
    assert!(error.contains("already") && error.contains("vm snapshot rm"), "{error}");
    assert!(!world.run("a", &["vm", "snapshot", "create", VM, "../first"]).success);

    assert_eq!(redis(&world, &["SET", "key", "after"]), "OK");
    assert_eq!(redis(&world, &["SAVE"]), "OK");
    let restore = ["vm", "snapshot", "restore", VM, "first"];
    assert!(world.refused("b", &restore).contains("twinvm vm stop"));
    world.done("a", &["vm", "stop", VM, "--force"]);
    let error = world.refused("b", &["vm", "rename", VM, "other"]);
    assert!(error.contains("has snapshots") && error.contains("vm snapshot rm"), "{error}");
    let size = |view: &Value| view["disks"][0]["size_bytes"].as_u64().unwrap();
    assert_eq!(size(&world.json("b", &["vm", "set", VM, "--grow-disk", "0=90G"])), 90 << 30);
    // One that cannot be restored changes nothing.
    let disk = world.vm_folder("a").join("disk0.qcow2");
    let (good, before) = (fs::read(&file).unwrap(), fs::read(&disk).unwrap());
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&file, bad).unwrap();
    let error = world.refused("a", &restore);
    assert!(error.contains("first.snapshot") && error.contains("damaged"), "{error}");
    assert!(fs::read(&disk).unwrap() == before);
    fs::write(&file, good).unwrap();
    // What the disk holds is of no interest.
    File::options().write(true).open(&disk).unwrap().set_len(0).unwrap();
    let restored = world.json("b", &restore);
    assert_eq!((restored["running"].as_bool(), restored["host"].as_str()), (Some(true), Some("a")));
    assert!(size(&restored) < 90 << 30, "the disk is as it was, and so is what is said of it: {restored:#}");
    world.wait_for_redis();
    assert_eq!(redis(&world, &["GET", "key"]), "before");
    assert_eq!(redis(&world, &["SAVE"]), "OK");
    assert!(!world.logs().contains("was refused"), "{}", world.logs());

    let listed = world.json("b", &["vm", "snapshot", "list", VM]);
    // Though the file of the first one was written again above.
    assert_eq!((listed[0]["name"].as_str(), listed[0]["memory"].as_bool()), (Some("first"), Some(true)));
    assert_eq!((listed[1]["name"].as_str(), listed[1]["memory"].as_bool()), (Some("disks"), Some(false)));
    assert_eq!(listed[0]["created_unix_ms"], taken["created_unix_ms"]);
    assert!(world.done("a", &["vm", "snapshot", "list", VM]).contains("first"));
    let restore_disks = ["vm", "snapshot", "restore", VM, "disks"];
    assert!(world.refused("b", &restore_disks).contains("twinvm vm stop"));
    world.done("a", &["vm", "stop", VM, "--force"]);
    assert_eq!(world.json("b", &restore_disks)["running"], false);
    world.done("b", &["vm", "snapshot", "rm", VM, "first"]);
    assert!(!file.exists());
    let error = world.refused("a", &restore);
    assert!(error.contains("no snapshot named first") && error.contains("vm snapshot list"), "{error}");
}

/// The first bytes of the VM's disk, which nobody has meanwhile.
fn disk(world: &World) -> DiskImage {
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
    DiskImage::open(&world.vm_folder("a").join("disk0.qcow2"), options).unwrap()
}

fn write_disk(world: &World, content: &[u8]) {
    let mut disk = disk(world);
    disk.write_at(0, content).unwrap();
    disk.flush().unwrap();
}

fn read_disk(world: &World) -> Vec<u8> {
    let mut content = vec![0; 6];
    disk(world).read_at(0, &mut content).unwrap();
    content
}

#[test]
fn a_vm_that_is_off_goes_back_to_the_disks_of_a_snapshot_and_stays_off() {
    let world = World::of(&["a", "b"]);
    world.create("a", VM, "test-redis", false);
    write_disk(&world, b"before");
    let create = ["vm", "snapshot", "create", VM, "off"];
    // Somebody has the disk.
    let held = disk(&world);
    let error = world.refused("b", &create);
    assert!(error.contains("disk0.qcow2") && error.contains("in use"), "{error}");
    drop(held);
    assert_eq!(world.json("b", &["vm", "snapshot", "list", VM]).as_array().unwrap().len(), 0);
    let taken = world.json("b", &create);
    assert_eq!((taken["memory"].as_bool(), taken["host"].as_str()), (Some(false), Some("a")));
    assert_eq!(taken["pause_ms"], Value::Null, "nobody stood still");
    let file = world.vm_folder("a").join("snapshots/off.snapshot");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(is_noted(&file), "the image that the snapshot is based on could be removed");
    let error = world.refused("a", &create);
    assert!(error.contains("already") && error.contains("vm snapshot rm"), "{error}");

    write_disk(&world, b"after!");
    let restore = ["vm", "snapshot", "restore", VM, "off"];
    let good = fs::read(&file).unwrap();
    for (at, what) in [(good.len() / 2, "middle"), (good.len() - 20, "end")] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        let error = world.refused("a", &restore);
        assert!(error.contains("off.snapshot") && error.contains("damaged"), "{what}: {error}");
        assert_eq!(read_disk(&world), b"after!", "{what}");
    }
    fs::write(&file, &good).unwrap();
    let held = disk(&world);
    assert!(world.refused("a", &restore).contains("in use"));
    drop(held);
    assert_eq!(read_disk(&world), b"after!");
    let restored = world.json("b", &restore);
    assert_eq!((restored["running"].as_bool(), restored["host"].as_str()), (Some(false), Some("a")));
    assert_eq!(read_disk(&world), b"before");
    let left = fs::read_dir(world.vm_folder("a")).unwrap().flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains(".restor")).collect();
    assert!(left.is_empty(), "{left:?}");
    // Other hardware is no obstacle: nothing of it is in the snapshot.
    write_disk(&world, b"after!");
    world.done("a", &["vm", "set", VM, "--memory", "192M"]);
    assert!(world.done("b", &restore).contains("is off"));
    assert_eq!(read_disk(&world), b"before");
    assert!(!world.logs().contains("was refused"), "{}", world.logs());
}

#[test]
fn a_protected_vm_stays_so_while_a_snapshot_is_taken_and_is_protected_again_after_a_restore() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    assert_eq!(redis(&world, &["SET", "key", "before"]), "OK");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let before = world.wait_until_protected("a", "a");
    world.done("a", &["vm", "snapshot", "create", VM, "protected"]);
    let after = world.wait_until_protected("b", "a");
    assert_eq!(after["generation"], before["generation"], "the secondary was lost\n{}", world.logs());
    assert_eq!(redis(&world, &["SET", "key", "after"]), "OK");
    world.done("a", &["vm", "stop", VM, "--force"]);
    world.wait_for_no_replica("b");
    world.done("a", &["vm", "snapshot", "restore", VM, "protected"]);
    world.wait_for_redis();
    assert_eq!(redis(&world, &["GET", "key"]), "before");
    world.wait_until_protected("a", "a");
    world.done("a", &["ft", "failover", VM]);
    world.wait_for_redis();
    assert_eq!(redis(&world, &["GET", "key"]), "before");
}

/// Files that are no snapshots yet.
fn half_written(world: &World, host: &str) -> Vec<String> {
    let entries = fs::read_dir(world.vm_folder(host).join("snapshots")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".snapshot")).collect()
}

/// Whoever has the VM when a snapshot is asked for may have lost it before that is written.
#[test]
fn a_protected_guest_goes_on_while_snapshots_are_taken_and_the_vm_moves_in_the_middle_of_one() {
    for mode in ["mirror", "lockstep"] {
        let world = World::of(&["a", "b"]);
        world.boot_redis("a");
        world.done("a", &["ft", "on", VM, "--yes", "--mode", mode]);
        world.wait_until_protected("a", "a");
        let client = Client::start(world.address());
        client.wait_for_progress(20);
        for words in
            [&["vm", "snapshot", "create", VM, "whole"][..], &["vm", "snapshot", "create", VM, "disks", "--no-memory"]]
        {
            world.done("b", words);
            client.wait_for_progress(20);
        }
        let generation = &world.wait_until_protected("a", "a")["generation"];
        for (from, to) in [("a", "b"), ("b", "a")] {
            let name = format!("at-{from}");
            let taking = world.spawn(from, &["vm", "snapshot", "create", VM, &name]);
            world.done(from, &["ft", "switchover", VM]);
            let taken = taking.wait_with_output().unwrap();
            if !taken.status.success() {
                let error = String::from_utf8_lossy(&taken.stderr).into_owned();
                assert!(!error.contains("panicked"), "{mode}: {error}");
                assert_eq!(half_written(&world, from), [""; 0], "{mode}: {error}");
            }
            client.wait_for_progress(20);
            world.wait_until_protected(to, to);
        }
        assert_ne!(&world.status("a")["generation"], generation);
        assert_eq!(client.stop().error, None, "{mode}\n{}", world.logs());
        assert!(!world.logs().contains("diverge"), "{mode}\n{}", world.logs());
        world.done("a", &["vm", "stop", VM, "--force"]);
        world.done("a", &["vm", "snapshot", "restore", VM, "whole"]);
        world.wait_for_redis();
    }
}

/// After a takeover they were not listed, and nobody said where they were.
#[test]
fn snapshots_of_a_vm_that_has_moved_are_found_removed_and_restored_where_they_are() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    assert_eq!(redis(&world, &["SET", "key", "before"]), "OK");
    for name in ["first", "second"] {
        world.done("a", &["vm", "snapshot", "create", VM, name]);
    }
    world.done("a", &["ft", "on", VM, "--yes"]);
    world.done("a", &["ft", "failover", VM]);
    world.wait_until_protected("a", "b");
    assert_eq!(redis(&world, &["SET", "key", "after"]), "OK");
    world.done("b", &["vm", "snapshot", "create", VM, "third"]);
    let listed = world.json("a", &["vm", "snapshot", "list", VM]);
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|view| (&view["name"], &view["host"])).collect();
    let expected =
        [("first", "a"), ("second", "a"), ("third", "b")].map(|(name, host)| (Value::from(name), Value::from(host)));
    assert_eq!(listed, expected.iter().map(|(name, host)| (name, host)).collect::<Vec<_>>());
    let error = world.refused("b", &["vm", "snapshot", "create", VM, "first"]);
    assert!(error.contains("already, on host a"), "{error}");
    world.done("b", &["vm", "snapshot", "rm", VM, "second"]);
    assert!(!world.vm_folder("a").join("snapshots/second.snapshot").exists());
    let restore = ["vm", "snapshot", "restore", VM, "first"];
    let error = world.refused("a", &restore);
    assert!(error.contains("is on host a, and the VM on host b") && error.contains("vm migrate redis a"), "{error}");
    // As it says.
    world.done("a", &["vm", "migrate", VM, "a"]);
    world.done("a", &["vm", "stop", VM, "--force"]);
    world.done("b", &restore);
    world.wait_for_redis();
    assert_eq!(redis(&world, &["GET", "key"]), "before");
}
