//! An etcd as `twinvm cluster etcd` sets it up: members in network namespaces of their own, each with the files that were written for it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use std::{panic, thread};

use cluster::store::{EtcdKeys, EtcdUser, Op, StoreLocation, Stores};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::joining::{join, names_of, token};
use crate::support::{HUNG, skipped};
use crate::world::World;

/// Names and addresses of the members' machines.
const MEMBERS: [(&str, &str); 3] = [("a", "10.98.0.11"), ("b", "10.98.0.12"), ("c", "10.98.0.13")];

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The members' machines, and the network between them and this thread, which has moved there.
struct Machines {
    name: String,
    members: Vec<Child>,
}

impl Machines {
    fn enter() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("twe{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = File::open(Path::new("/run/netns").join(&name)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        ip(&["link", "add", "switch", "type", "bridge"]);
        ip(&["addr", "add", "10.98.0.1/24", "dev", "switch"]);
        ip(&["link", "set", "switch", "up"]);
        ip(&["link", "set", "lo", "up"]);
        let machines = Self { name, members: Vec::new() };
        for (number, (_, address)) in MEMBERS.iter().enumerate() {
            let (namespace, port) = (machines.namespace(number), format!("port{number}"));
            ip(&["netns", "add", &namespace]);
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["link", "set", &port, "master", "switch", "up"]);
            ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        }
        machines
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}m{number}", self.name)
    }

    /// Starts a member with its files, as its unit does.
    fn start(&mut self, number: usize, files: &Path) {
        let log = File::create(files.join("log")).unwrap();
        let member = Command::new("ip")
            .args(["netns", "exec", &self.namespace(number), "etcd", "--config-file"])
            .arg(files.join("etcd.yml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members.push(member);
    }

    fn kill(&mut self, number: usize) {
        self.members[number].kill().unwrap();
        self.members[number].wait().unwrap();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
        for namespace in (0..MEMBERS.len()).map(|number| self.namespace(number)).chain([self.name.clone()]) {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}

/// Runs a test in a thread of its own, which may go to another network namespace.
fn in_namespaces(test: fn()) {
    if !rustix::process::geteuid().is_root() {
        return skipped("network namespaces need root");
    }
    if let Err(failure) = thread::spawn(test).join() {
        panic::resume_unwind(failure);
    }
}

/// Writes the setup; the folder of each member. Three machines have the same folders; this one needs some for each.
fn set_up(world: &World) -> Vec<PathBuf> {
    let members = MEMBERS.map(|(name, address)| format!("{name}={address}"));
    let words: Vec<&str> = members.iter().flat_map(|member| ["--member", member]).collect();
    let folders = ["--out", "etcd", "--member-dir", "MEMBER", "--data-dir", "MEMBER/data"];
    world.done("a", &[&["cluster", "etcd"][..], &words, &folders].concat());
    let folder = |(name, _): (&str, &str)| {
        let files = world.path("etcd").join(name);
        let settings = fs::read_to_string(files.join("etcd.yml")).unwrap();
        fs::write(files.join("etcd.yml"), settings.replace("MEMBER", files.to_str().unwrap())).unwrap();
        files
    };
    MEMBERS.map(folder).into()
}

/// Makes the cluster, once the members answer.
fn make_cluster(world: &mut World, members: &[PathBuf]) {
    let init = ["cluster", "init", "--name", "a", "--listen", "127.0.0.1:0", "--metrics", "", "--etcd", "etcd"];
    let deadline = Instant::now() + HUNG;
    loop {
        let outcome = world.run("a", &init);
        if outcome.success {
            break;
        }
        let logs: Vec<String> = members.iter().map(|files| fs::read_to_string(files.join("log")).unwrap()).collect();
        assert!(Instant::now() < deadline, "{}\n{}", outcome.stderr, logs.join("\n"));
        assert!(!world.path("a").exists(), "something is left behind");
    }
    fs::copy(world.path("a").join("operator.pem"), world.operator()).unwrap();
    world.start("a");
}

#[test]
fn an_etcd_that_was_set_up_lets_each_host_write_what_it_may_say() {
    in_namespaces(|| {
        let (mut world, mut machines) = (World::empty(), Machines::enter());
        let members = set_up(&world);
        for (number, files) in members.iter().enumerate() {
            machines.start(number, files);
        }
        make_cluster(&mut world, &members);
        // Who makes it again is refused, and takes nothing from the host that is there.
        let again = ["cluster", "init", "--name", "a", "--listen", "127.0.0.1:0", "--metrics", "", "--etcd", "etcd"];
        let error = world.refused("x", &again);
        assert!(error.contains("there is a cluster in this store already") && !world.path("x").exists(), "{error}");
        let error = world.refused("a", &["host", "issue", "a", "--out", "a.bundle"]);
        assert!(error.contains("choose another"), "{error}");
        let by_token = token(&world, "a", &["b"]);
        world.done("b", &join(&by_token, "b"));
        world.done("a", &["host", "issue", "c", "--out", "c.bundle"]);
        world.done("c", &["host", "init", "--bundle", "c.bundle", "--listen", "127.0.0.1:0", "--metrics", ""]);
        world.start("b");
        world.start("c");
        assert_eq!(names_of(&world, "c"), ["a", "b", "c"]);
        let error = world.refused("a", &["host", "issue", "b", "--out", "b.bundle"]);
        assert!(error.contains("there is a host b already"), "{error}");

        // What host b has does not let it speak for another one, or let anybody in.
        let config: toml::Table = fs::read_to_string(world.path("b").join("host.toml")).unwrap().parse().unwrap();
        let location: StoreLocation = config["store"].as_str().unwrap().parse().unwrap();
        let keys: EtcdKeys = config["store_keys"].clone().try_into().unwrap();
        let store = Stores::open(&location, Some(&keys)).unwrap().hosts;
        for key in ["hosts/a", "alive/a", "tokens/0", "cluster"] {
            let refused = store.transact(&[], &[Op::Put { key, value: b"x", lease: None }]).unwrap_err().to_string();
            assert!(refused.contains("permission denied"), "{key}: {refused}");
        }
        // A host that is gone is removed by the one that may, whichever is asked.
        world.done("c", &["host", "stop"]);
        world.wait_for_daemon_end("c");
        world.done("b", &["host", "rm", "c"]);
        assert_eq!(names_of(&world, "a"), ["a", "b"]);
        // A member is lost: the others answer, also for hosts that join.
        machines.kill(0);
        let by_token = token(&world, "b", &[]);
        fs::remove_dir_all(world.path("c")).unwrap();
        world.done("c", &join(&by_token, "c"));
        // Who has left has no rights in etcd any more, whatever it has kept.
        let aside = |path: &Path| {
            let kept = world.path(path.file_name().unwrap().to_str().unwrap());
            fs::copy(path, &kept).unwrap();
            kept
        };
        let user = keys.user.as_ref().map(|user| EtcdUser { password: aside(&user.password), ..user.clone() });
        let kept = EtcdKeys { ca: aside(&keys.ca), cert: aside(&keys.cert), key: aside(&keys.key), user };
        assert!(Stores::open(&location, Some(&kept)).is_ok());
        let left = world.json("b", &["host", "leave"]);
        assert_eq!((&left["left"], &left["remains"]), (&"b".into(), &serde_json::Value::Null));
        let unknown = Stores::open(&location, Some(&kept)).map(drop).unwrap_err().to_string();
        assert!(unknown.contains("authentication failed"), "{unknown}");
        world.wait_for_daemon_end("b");
        assert_eq!(names_of(&world, "a"), ["a"]);
    });
}

/// Hosts that were made with a file have no keys for etcd, and get them when their store moves there.
#[test]
fn a_cluster_that_moves_to_an_etcd_that_was_set_up_gets_its_rights_there() {
    in_namespaces(|| {
        let (mut world, mut machines) = (World::empty(), Machines::enter());
        let store = world.store();
        let init = ["cluster", "init", "--name", "a", "--listen", "127.0.0.1:0", "--metrics", "", "--store"];
        world.done("a", &[&init[..], &[store.to_str().unwrap()]].concat());
        fs::copy(world.path("a").join("operator.pem"), world.operator()).unwrap();
        world.start("a");
        let by_token = token(&world, "a", &["b"]);
        world.done("b", &join(&by_token, "b"));
        world.start("b");
        let members = set_up(&world);
        for (number, files) in members.iter().enumerate() {
            machines.start(number, files);
        }
        let deadline = Instant::now() + HUNG;
        loop {
            let outcome = world.run("a", &["cluster", "migrate-store", "--etcd", "etcd"]);
            if outcome.success {
                break;
            }
            assert!(Instant::now() < deadline, "{}\n{}", outcome.stderr, world.logs());
        }
        // Daemons are there a moment later. A line for each host, and their heads.
        while ["a", "b"].iter().any(|host| world.run(host, &["host", "list"]).stdout.lines().count() != 3) {
            assert!(Instant::now() < deadline, "{}", world.logs());
        }
        let config: toml::Table = fs::read_to_string(world.path("b").join("host.toml")).unwrap().parse().unwrap();
        let location: StoreLocation = config["store"].as_str().unwrap().parse().unwrap();
        let keys: EtcdKeys = config["store_keys"].clone().try_into().unwrap();
        let store = Stores::open(&location, Some(&keys)).unwrap().hosts;
        let refused = store.transact(&[], &[Op::Put { key: "cluster", value: b"x", lease: None }]).unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
        // Others join there as ever.
        let by_token = token(&world, "b", &["c"]);
        world.done("c", &join(&by_token, "c"));
    });
}
