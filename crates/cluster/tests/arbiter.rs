//! The arbiter: of all replicas that ask for a generation exactly one gets it, whatever happens to the others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;

use cluster::arbiter::StoreArbiter;
use cluster::records::{COPIES_MAX, Cluster, FtSettings, VmRecord};
use cluster::store::{FolderStore, Stores};
use protocol::{Arbiter, Claim, Generation, Verdict};
use spec::{HostName, ReplicaId, VmName};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// A store with a VM, and the VM's first claim.
fn vm_in(path: &Path) -> (Cluster, VmName, Claim) {
    let cluster = Cluster::new(Stores::one(Arc::new(FolderStore::create(path).unwrap())));
    let vm: VmName = "redis".parse().unwrap();
    let claim = cluster
        .create_vm(&VmRecord::new(vm.clone(), String::new(), FtSettings::disabled(100, 100), 0), &host("a"))
        .unwrap();
    (cluster, vm, claim)
}

fn alone(generation: Generation, replica: &str) -> Claim {
    Claim { generation, primary: ReplicaId::new(replica), secondary: None }
}

#[test]
fn a_generation_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, vm, first) = vm_in(&folder.path().join("cluster.vms"));
    let arbiter = StoreArbiter::new(cluster.store().clone(), &vm);
    assert_eq!(arbiter.read().unwrap(), first);
    let (a, b) = (alone(first.generation.next(), "a"), alone(first.generation.next(), "b"));
    assert_eq!(arbiter.compare_and_swap(first.generation, &b).unwrap(), Verdict::Won);
    assert_eq!(arbiter.compare_and_swap(first.generation, &a).unwrap(), Verdict::Lost(b.clone()));
    assert_eq!(arbiter.read().unwrap(), b);
    // Whoever asks again because the answer was lost sees that it is what it asked for.
    assert_eq!(arbiter.compare_and_swap(first.generation, &b).unwrap(), Verdict::Lost(b));
}

#[test]
fn what_is_no_question_gets_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, vm, first) = vm_in(&folder.path().join("cluster.vms"));
    let arbiter = StoreArbiter::new(cluster.store().clone(), &vm);
    let last = Generation::new(u64::MAX);
    for (expected, generation) in [
        (first.generation, first.generation),
        (first.generation, Generation::new(99)),
        (last, Generation::NONE),
        (last, last),
    ] {
        assert!(arbiter.compare_and_swap(expected, &alone(generation, "b")).is_err());
    }
    assert_eq!(arbiter.read().unwrap(), first);
    for name in ["nobody", "", "a/b", "redis/claim"] {
        let nobody = StoreArbiter::new(cluster.store().clone(), name);
        assert!(nobody.read().is_err());
        assert!(nobody.compare_and_swap(Generation::new(1), &alone(Generation::new(2), "b")).is_err());
    }
    cluster.delete_vm(&vm, None).unwrap();
    assert!(arbiter.compare_and_swap(first.generation, &alone(first.generation.next(), "a")).is_err());
}

#[test]
fn a_store_that_is_away_gives_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.vms");
    let (_, vm, first) = vm_in(&path);
    let arbiter = StoreArbiter::new(Arc::new(FolderStore::open(&path).unwrap()), &vm);
    let away = folder.path().join("away");
    fs::rename(&path, &away).unwrap();
    let next = alone(first.generation.next(), "a");
    assert!(arbiter.compare_and_swap(first.generation, &next).unwrap_err().0.contains("deleted or moved"));
    // Another one in its place would be another arbiter.
    FolderStore::create(&path).unwrap();
    assert!(arbiter.compare_and_swap(first.generation, &next).unwrap_err().0.contains("another folder"));
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert_eq!(arbiter.compare_and_swap(first.generation, &next).unwrap(), Verdict::Won);
}

#[test]
fn hosts_that_had_a_replica_are_remembered_the_latest_first() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, vm, first) = vm_in(&folder.path().join("cluster.vms"));
    let arbiter = StoreArbiter::new(cluster.store().clone(), &vm);
    let mut generation = first.generation;
    let mut claim = |primary: &str, secondary: Option<&str>| {
        let new = Claim { secondary: secondary.map(ReplicaId::new), ..alone(generation.next(), primary) };
        assert_eq!(arbiter.compare_and_swap(generation, &new).unwrap(), Verdict::Won);
        generation = generation.next();
        let copies = cluster.claim(&vm).unwrap().copies;
        copies.iter().map(|replica| replica.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(claim("a", Some("b")), [""; 0]);
    assert_eq!(claim("b", None), ["a"]);
    assert_eq!(claim("b", Some("c")), ["a"]);
    assert_eq!(claim("b", None), ["c", "a"]);
    assert_eq!(claim("b", Some("a")), ["c"]);
    assert_eq!(claim("a", None), ["b", "c"]);
    for number in 0..2 * COPIES_MAX {
        claim("a", Some(&format!("h{number}")));
    }
    assert_eq!(claim("a", None).len(), COPIES_MAX);
}

#[test]
fn of_racing_threads_one_wins_each_generation() {
    const REPLICAS: usize = 6;
    const GENERATIONS: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.vms");
    let (_, vm, first) = vm_in(&path);
    let start = Arc::new(Barrier::new(REPLICAS));
    let racers: Vec<_> = (0..REPLICAS)
        .map(|number| {
            let (path, vm, start, first) = (path.clone(), vm.clone(), start.clone(), first.generation);
            thread::spawn(move || {
                let arbiter = StoreArbiter::new(Arc::new(FolderStore::open(&path).unwrap()), &vm);
                let me = format!("r{number}");
                let mut won = Vec::new();
                for expected in first.number()..first.number() + GENERATIONS {
                    let expected = Generation::new(expected);
                    start.wait();
                    match arbiter.compare_and_swap(expected, &alone(expected.next(), &me)).unwrap() {
                        Verdict::Won => won.push(expected.next()),
                        Verdict::Lost(current) => assert_eq!(current.generation, expected.next()),
                    }
                    start.wait();
                }
                won
            })
        })
        .collect();
    let mut winners: Vec<Generation> = racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect();
    winners.sort_unstable();
    let first = first.generation.number();
    assert_eq!(winners, (first + 1..=first + GENERATIONS).map(Generation::new).collect::<Vec<_>>());
}

/// A process that takes generation after generation, and says so once it has one.
struct Racer {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
    name: String,
}

impl Racer {
    fn start(path: &Path, name: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "race", "--ignored", "--nocapture", "--quiet"])
            .env("STORE", path)
            .env("REPLICA", name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines, name: name.to_owned() }
    }

    /// The next generation that it won; none when it has ended. A line that was cut short does not count.
    fn next_win(&mut self) -> Option<Generation> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return None;
            }
            if let Some(generation) = line.trim().strip_prefix("won ") {
                return Some(Generation::new(generation.parse().unwrap()));
            }
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
#[ignore = "run by of_racing_processes_one_wins_each_generation_though_some_are_killed"]
fn race() {
    let path = std::env::var_os("STORE").expect("run by another test");
    let me = std::env::var("REPLICA").unwrap();
    let arbiter = StoreArbiter::new(Arc::new(FolderStore::open(Path::new(&path)).unwrap()), "redis");
    loop {
        let current = arbiter.read().unwrap().generation;
        if let Verdict::Won = arbiter.compare_and_swap(current, &alone(current.next(), &me)).unwrap() {
            println!("won {}", current.next());
        }
    }
}

/// A process that was stopped while it held a lock kept all others from arbitrating. Here each is stopped, wherever it happens to be, again and again.
#[test]
fn a_stopped_process_keeps_nobody_from_arbitrating() {
    const STOPS: usize = 24;
    /// More than are kept: whoever was stopped for so long finds that what it was about to do is long past.
    const LONG: usize = 900;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.vms");
    let (cluster, vm, first) = vm_in(&path);
    let mut racers: Vec<Racer> = (0..3).map(|number| Racer::start(&path, &format!("r{number}"))).collect();
    let mut winners: BTreeMap<Generation, String> = BTreeMap::new();
    let mut win = |racer: &mut Racer| {
        let generation = racer.next_win().expect("it goes on until it is killed");
        let earlier = winners.insert(generation, racer.name.clone());
        assert_eq!(earlier, None, "generation {generation} was won by {} too", racer.name);
    };
    for stop in 0..STOPS {
        let (stopped, free) = (stop % 3, (stop + 1) % 3);
        racers[stopped].signal("STOP");
        // Two of three stand still: what is in the pipe of the third does not suffice for this.
        racers[(stop + 2) % 3].signal("STOP");
        for _ in 0..if stop == STOPS / 2 { LONG } else { 40 } {
            win(&mut racers[free]);
        }
        for racer in &racers {
            racer.signal("CONT");
        }
        win(&mut racers[stopped]);
    }
    for racer in &mut racers {
        racer.kill();
        while let Some(generation) = racer.next_win() {
            assert_eq!(winners.insert(generation, racer.name.clone()), None, "generation {generation} was won twice");
        }
    }
    let last = cluster.claim(&vm).unwrap().claim.generation;
    assert!(winners.keys().all(|generation| (first.generation..=last).contains(generation)));
    // Each racer may have won once more when it was killed, without having said so.
    let won = usize::try_from(last.number() - first.generation.number()).unwrap();
    assert!((won - 3..=won).contains(&winners.len()), "{} of {won}", winners.len());
    // What is long past is not kept.
    assert!(fs::read_dir(&path).unwrap().count() < 1_000);
}

#[test]
fn of_racing_processes_one_wins_each_generation_though_some_are_killed() {
    const KILLS: usize = 12;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.vms");
    let (cluster, vm, first) = vm_in(&path);
    let mut racers: Vec<Racer> = (0..3).map(|number| Racer::start(&path, &format!("r{number}"))).collect();
    let mut winners: BTreeMap<Generation, String> = BTreeMap::new();
    let mut note = |racer: &str, generation| {
        let earlier = winners.insert(generation, racer.to_owned());
        assert_eq!(earlier, None, "generation {generation} was won by {racer} too");
    };
    for kill in 0..KILLS {
        // Others go on meanwhile, and what they have won waits in their pipes.
        let racer = &mut racers[kill % 3];
        for _ in 0..5 {
            let generation = racer.next_win().expect("it goes on until it is killed");
            note(&racer.name, generation);
        }
        racer.kill();
        while let Some(generation) = racer.next_win() {
            note(&racer.name, generation);
        }
        racers[kill % 3] = Racer::start(&path, &format!("r{}", kill + 3));
    }
    for racer in &mut racers {
        racer.kill();
        while let Some(generation) = racer.next_win() {
            note(&racer.name, generation);
        }
    }
    // Who was killed may have won once more, without having said so.
    let last = cluster.claim(&vm).unwrap().claim;
    let generations = last.generation.number() - first.generation.number();
    let known = winners.len() as u64;
    assert!((generations - (KILLS as u64 + 3)..=generations).contains(&known), "{known} of {generations}");
    assert!(*winners.keys().next_back().unwrap() <= last.generation);
    if let Some(winner) = winners.get(&last.generation) {
        assert_eq!(*winner, last.primary.as_str());
    }
    // Whoever comes next finds a store that works.
    let arbiter = StoreArbiter::new(Arc::new(FolderStore::open(&path).unwrap()), &vm);
    assert_eq!(arbiter.compare_and_swap(last.generation, &alone(last.generation.next(), "z")).unwrap(), Verdict::Won);
}
