//! As whom the processes of VMs run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::{guest, images, skipped};
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
        return skipped("only a daemon of root's gives VMs users of their own");
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

/// A host whose daemon is an ordinary user's: whoever runs this or, if that is root, somebody who has no rights anywhere.
struct Ordinary {
    folder: TempDir,
    user: u32,
}

impl Ordinary {
    /// Nothing, if such a user may have no namespaces.
    fn new() -> Option<Self> {
        let (own, somebody) = (rustix::process::geteuid(), 2_100_400_000);
        let user = if own.is_root() { somebody } else { own.as_raw() };
        let folder = tempfile::Builder::new().prefix("twinvm-ordinary-").tempdir().unwrap();
        let place = Self { folder, user };
        // What root has may be out of that user's reach: the program, and the guest.
        let tiny = guest::image(&images::tiny());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_twinvm"));
        for (from, to) in [(program, "twinvm"), (tiny.kernel(), "kernel"), (tiny.initrd(), "initrd")] {
            fs::copy(from, place.path(to)).unwrap();
        }
        let spec = "name = \"v\"\nmemory = \"128M\"\nengine = \"soft\"\nkernel = \"kernel\"\ninitrd = \"initrd\"\n\
                    cmdline = 'console=ttyS0 quiet twinvm.run=\"sleep 1000\"'\n";
        fs::write(place.path("v.toml"), spec).unwrap();
        fs::create_dir(place.path("run")).unwrap();
        for path in [".", "twinvm", "kernel", "initrd", "v.toml", "run"] {
            lchown(place.path(path), Some(user), Some(user)).unwrap();
        }
        let namespaces = place.as_user("unshare").args(["--user", "--mount", "true"]).status();
        namespaces.is_ok_and(|status| status.success()).then_some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn as_user(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(self.user).gid(self.user);
        }
        command
    }

    fn twinvm(&self, words: &[&str]) -> Command {
        let mut command = self.as_user(self.path("twinvm").to_str().unwrap());
        command.args(words).env("TWINVM_HOST_DIR", self.path("a")).env("TWINVM_HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("run")).env_remove("TWINVM_OPERATOR");
        command
    }

    fn done(&self, words: &[&str]) -> String {
        let output = self.twinvm(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn replicas_of_an_ordinary_users_daemon_are_in_a_user_namespace_and_see_nothing_else() {
    let Some(place) = Ordinary::new() else { return skipped("ordinary users may have no namespaces here") };
    let [store, folder] = [place.path("cluster.db"), place.folder.path().to_owned()];
    let own = ["--store", store.to_str().unwrap(), "--vm-folder", folder.to_str().unwrap()];
    let common =
        ["host", "init", "--new-cluster", "--name", "a", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    place.done(&[&common[..], &own].concat());
    let mut daemon = place.twinvm(&["host", "start"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("\"ready\":\"a\""), "{ready}");
    place.done(&["vm", "create", "v.toml", "--start"]);
    let vm = place.path("a/vms/v");
    let pid: u32 = fs::read_to_string(vm.join("replica.pid")).unwrap().trim().parse().unwrap();
    assert_eq!(user(pid), place.user);
    assert_filtered(pid);
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "mnt"] {
        assert_ne!(namespace(pid, kind), namespace(daemon.id(), kind), "{kind}");
    }
    assert!(sees(pid, &vm) && !sees(pid, &store) && !sees(pid, &place.path("a/keys")));
    assert!(!sees(pid, Path::new("/etc/passwd")) && !sees(pid, &place.path("v.toml")));
    let refused = fs::read_to_string(vm.join("replica.log")).unwrap();
    assert!(!refused.contains("was refused"), "{refused}");
    place.done(&["vm", "stop", "v", "--force"]);
    place.done(&["host", "stop"]);
    assert!(daemon.wait().unwrap().success());
}

/// What a container that allows no namespaces is to a daemon.
#[test]
fn a_host_that_requires_the_sandbox_does_not_start_where_there_is_none() {
    let mut world = World::of(&["a"]);
    world.kill_daemon("a");
    let config = world.path("a").join("host.toml");
    let text = fs::read_to_string(&config).unwrap();
    let required = text.replace("require_sandbox = false", "require_sandbox = true");
    assert_ne!(required, text);
    fs::write(&config, required).unwrap();
    let bare = "echo 0 > /proc/sys/user/max_user_namespaces && \
                exec timeout 60 setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", bare, "sh", env!("CARGO_BIN_EXE_twinvm"), "host", "start"]);
    let output = command.env("TWINVM_HOST_DIR", world.path("a")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if ["unshare:", "sh:", "setpriv:"].iter().any(|program| said.starts_with(program)) {
        return skipped("this user may have no namespaces that have none");
    }
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("require_sandbox") && said.contains("no file system of its own"), "{said}");
}
