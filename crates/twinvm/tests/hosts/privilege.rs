//! As whom the processes of VMs run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use crate::world::{VM, World};

/// The first user that hosts give to VMs.
const UID_MIN: u32 = 2_100_000_000;

/// As whom a process runs, in every way.
fn user(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let groups = status.lines().find_map(|line| line.strip_prefix("Gid:")).unwrap();
    let further = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    let all: BTreeSet<&str> = users.split_whitespace().chain(groups.split_whitespace()).collect();
    assert_eq!((all.len(), further.trim()), (1, ""), "{status}");
    assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    all.first().unwrap().parse().unwrap()
}

fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

/// A process starts no programs, and does nothing else that it need not.
fn assert_filtered(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
}

/// What a process finds at its root: nothing but what leads to what it was given.
fn sees(pid: u32, path: &Path) -> bool {
    let root = Path::new("/proc").join(pid.to_string()).join("root");
    root.join(path.strip_prefix("/").unwrap()).symlink_metadata().is_ok()
}

#[test]
fn each_vm_runs_as_a_user_of_its_own_that_sees_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only a daemon of root's gives VMs users of their own");
        return;
    }
    let mut world = World::of(&["a", "b"]);
    let shown = world.done("a", &["host", "show"]);
    assert!(shown.contains("file system of its own; a user for each VM (2100000000-2100065535)"), "{shown}");
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    world.wait_until_protected("a", "a");
    let replicas = ["a", "b"].map(|host| world.replicas(host)[0]);
    let users = replicas.map(user);
    assert!(users[0] != users[1] && users.iter().all(|user| *user >= UID_MIN), "{users:?}");
    for (host, user) in ["a", "b"].iter().zip(users) {
        assert_eq!(owner(&world.vm_folder(host)), user);
        assert_eq!(owner(&world.vm_folder(host).join("disk0.qcow2")), user);
        assert_eq!(owner(&world.vm_folder(host).join("replica.json")), 0);
    }
    for (pid, what) in world.all_processes() {
        match what.as_str() {
            "net-end" => assert_eq!(user(pid), users[0]),
            "replica" => {}
            // It has the store.
            "broker" => {
                assert_filtered(pid);
                continue;
            }
            _ => continue,
        }
        assert_filtered(pid);
        assert!(!sees(pid, &world.store()) && !sees(pid, &world.path("a").join("keys")), "{what}");
    }
    assert!(sees(replicas[0], &world.vm_folder("a")) && !sees(replicas[0], &world.vm_folder("b")));

    // A later daemon finds its replica, and who it is.
    world.kill_daemon("a");
    world.start("a");
    world.done("a", &["vm", "snapshot", "create", VM, "first"]);
    assert_eq!(owner(&world.vm_folder("a").join("snapshots/first.snapshot")), users[0]);
    world.wait_until_protected("a", "a");
    assert_eq!(world.replicas("a"), [replicas[0]]);
    world.done("a", &["ft", "failover", VM]);
    world.wait_until_protected("a", "b");
    world.wait_for_redis();
    world.done("b", &["ft", "off", VM]);
    world.done("b", &["vm", "stop", VM, "--force"]);
    // As an earlier version left it.
    let folder = world.vm_folder("b");
    for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).chain([folder.clone()]) {
        lchown(path, Some(0), Some(0)).unwrap();
    }
    world.done("b", &["vm", "start", VM]);
    world.wait_for_redis();
    let now = user(world.replicas("b")[0]);
    assert!(now >= UID_MIN && owner(&folder) == now && owner(&folder.join("disk0.qcow2")) == now);
    assert!(!world.logs().contains("was refused"), "{}", world.logs());
    world.done("b", &["vm", "stop", VM, "--force"]);
    world.done("b", &["vm", "rm", VM, "--yes"]);
    assert!(!folder.exists());
}

#[test]
fn vms_of_an_administrator_who_wants_no_users_run_as_the_daemons_user() {
    let world = World::with_settings(&["a"], |_, text| {
        let without = text.lines().filter(|line| !line.starts_with("vm_uids")).map(|line| format!("{line}\n"));
        format!("vm_uids = \"\"\n{}", without.collect::<String>())
    });
    world.boot_redis("a");
    let (replica, own) = (world.replicas("a")[0], rustix::process::geteuid().as_raw());
    assert_eq!((owner(Path::new(&format!("/proc/{replica}"))), owner(&world.vm_folder("a"))), (own, own));
    assert!(sees(replica, &world.vm_folder("a")) && !sees(replica, &world.store()));
    assert!(world.done("a", &["host", "show"]).contains("VMs run as the daemon's user"));
}
