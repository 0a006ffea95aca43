//! A mirrored bare-metal guest on each engine: whatever happens to its primaries, it computes what it would have computed alone.

mod first_copy;
#[path = "../../../machine/tests/engines/guest.rs"]
#[allow(dead_code)]
mod guest;
mod lockstep;
mod races;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest::Console;
use machine::vm::Vm;
use protocol::{
    Arbiter, Claim, DISK_PATIENCE, DropReason, Epoch, Generation, Reason, Replica, Suspicion, Unreachable, Verdict,
};
use replication::channel::{self, Identity, Listener};
use replication::disk::DiskSet;
use replication::driver::{
    MirrorOptions, Primary, PrimaryEnd, PrimaryParts, Secondary, SecondaryEnd, SecondaryHandle, SecondaryParts,
    TakenOver, Trigger,
};
use replication::gate::OutputGate;
use spec::{
    EngineKind::{self, Kvm, Soft},
    ReplicaId,
};

/// Longer than anything takes.
const HUNG: Duration = Duration::from_secs(120);
/// Long: this is not about silence, and the machine may be busy.
const SUSPICION: Duration = Duration::from_secs(20);
const HOSTS: [&str; 3] = ["a", "b", "c"];

/// Some seconds of work.
fn rounds(engine: EngineKind) -> u64 {
    match engine {
        Soft => 60_000_000,
        Kvm => 400_000,
    }
}

/// KVM is tested wherever it may be used.
fn engines() -> Vec<EngineKind> {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => vec![Soft, Kvm],
        Err(error) => {
            eprintln!("the KVM engine is not tested: /dev/kvm: {error}");
            vec![Soft]
        }
    }
}

/// The claim, in memory.
#[derive(Clone)]
struct Store(Arc<Mutex<Claim>>);

/// The store as one host reaches it, until that host is lost.
struct Reach {
    store: Store,
    lost: Arc<AtomicBool>,
}

impl Reach {
    fn claim(&self) -> Result<std::sync::MutexGuard<'_, Claim>, Unreachable> {
        if self.lost.load(Ordering::Acquire) {
            Err(Unreachable("lost".to_owned()))
        } else {
            Ok(self.store.0.lock().unwrap())
        }
    }
}

impl Arbiter for Reach {
    fn read(&self) -> Result<Claim, Unreachable> {
        Ok(self.claim()?.clone())
    }

    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        let mut claim = self.claim()?;
        if claim.generation != expected {
            return Ok(Verdict::Lost(claim.clone()));
        }
        *claim = new.clone();
        Ok(Verdict::Won)
    }
}

/// The cable between two hosts.
struct Cable {
    address: SocketAddr,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    /// Time that each KiB takes, in microseconds.
    us_per_kib: Arc<AtomicU64>,
}

/// Passes on what comes, until the cable is cut.
fn carry(mut from: TcpStream, mut to: TcpStream, us_per_kib: &AtomicU64) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let us = us_per_kib.load(Ordering::Acquire) * read as u64 / 1024;
        thread::sleep(Duration::from_micros(us));
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
}

impl Cable {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = Arc::<Mutex<Vec<TcpStream>>>::default();
        let cable = Self { address, sockets: sockets.clone(), us_per_kib: Arc::default() };
        let us_per_kib = cable.us_per_kib.clone();
        thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = TcpStream::connect(target).unwrap();
            for socket in [&near, &far] {
                socket.set_nodelay(true).unwrap();
                sockets.lock().unwrap().push(socket.try_clone().unwrap());
            }
            for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let us_per_kib = us_per_kib.clone();
                thread::spawn(move || carry(from, to, &us_per_kib));
            }
        });
        cable
    }

    fn cut(&self) {
        for socket in &*self.sockets.lock().unwrap() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A host that runs the guest.
struct Leader {
    host: &'static str,
    primary: Primary,
    lost: Arc<AtomicBool>,
    thread: JoinHandle<(PrimaryEnd, Vm)>,
}

/// A host that holds the guest.
struct Follower {
    host: &'static str,
    cable: Cable,
    handle: SecondaryHandle,
    thread: JoinHandle<SecondaryEnd>,
}

struct World {
    engine: EngineKind,
    too_slow_after: Duration,
    folder: tempfile::TempDir,
    store: Store,
    console: Console,
    /// A host on which every request to a disk counts as one that does not end.
    hanging: Option<&'static str>,
}

impl World {
    fn new(engine: EngineKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        channel::create_authority(&authority).unwrap();
        for host in HOSTS {
            channel::issue(&authority, host, &folder.path().join(host)).unwrap();
        }
        let claim = Claim { generation: Generation::new(1), primary: ReplicaId::new(HOSTS[0]), secondary: None };
        let (store, too_slow_after) = (Store(Arc::new(Mutex::new(claim))), Duration::from_secs(2));
        Self { engine, too_slow_after, folder, store, console: Console::default(), hanging: None }
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&Path::new(self.folder.path()).join(host)).unwrap()
    }

    fn options(&self, host: &str) -> MirrorOptions {
        MirrorOptions {
            suspicion: Suspicion::up_to(SUSPICION),
            epoch_length_max: Duration::from_millis(10),
            too_slow_after: self.too_slow_after,
            // Whatever the host has: on KVM, the guest writes enough pages in an epoch for all of them.
            encoding_threads: 3,
            disk_patience: if self.hanging == Some(host) { Duration::ZERO } else { DISK_PATIENCE },
            ..MirrorOptions::new(ReplicaId::new(host))
        }
    }

    fn reach(&self, lost: &Arc<AtomicBool>) -> Arc<dyn Arbiter> {
        Arc::new(Reach { store: self.store.clone(), lost: lost.clone() })
    }

    fn lead(&self, host: &'static str, replica: Replica, epoch: Epoch, vm: Vm) -> Leader {
        self.lead_with(host, replica, epoch, vm, DiskSet::new(Vec::new()))
    }

    fn lead_with(&self, host: &'static str, replica: Replica, epoch: Epoch, mut vm: Vm, disks: DiskSet) -> Leader {
        let lost = Arc::<AtomicBool>::default();
        let trigger = Arc::new(Trigger::default());
        let waiting = trigger.clone();
        let primary = Primary::new(PrimaryParts {
            replica,
            epoch,
            config: vm.config().clone(),
            engine: vm.engine(),
            profile: vm.profile().clone(),
            ram: vm.platform().ram().clone(),
            dirty_log: vm.dirty_log(),
            gate: OutputGate::new(Box::new(move || waiting.output_waits())),
            trigger,
            disks,
            control: vm.control(),
            arbiter: self.reach(&lost),
            options: self.options(host),
        });
        let running = primary.clone();
        let thread = thread::spawn(move || (running.run(&mut vm).unwrap(), vm));
        Leader { host, primary, lost, thread }
    }

    fn boot(&self) -> Leader {
        self.boot_with(guest::start(self.engine, rounds(self.engine), 1, &self.console), DiskSet::new(Vec::new()))
    }

    fn boot_with(&self, vm: Vm, disks: DiskSet) -> Leader {
        let claim = self.store.0.lock().unwrap().clone();
        self.lead_with(HOSTS[0], Replica::primary(ReplicaId::new(HOSTS[0]), claim), Epoch::NONE, vm, disks)
    }

    /// Protects the guest by a secondary on `host`, until that holds some checkpoints.
    fn protect(&self, leader: &Leader, host: &'static str) -> Follower {
        let follower = self.begin_to_protect(leader, host, DiskSet::new(Vec::new()), 0);
        let wanted = leader.primary.status().figures.epoch.number() + 5;
        wait("checkpoints", || {
            leader.primary.status().protocol.is_protected()
                && follower.handle.status().epoch.is_some_and(|epoch| epoch.number() >= wanted)
        });
        follower
    }

    /// Begins the first copy to a secondary on `host`, over a cable that takes so long for each KiB.
    fn begin_to_protect(&self, leader: &Leader, host: &'static str, disks: DiskSet, us_per_kib: u64) -> Follower {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &self.identity(host)).unwrap();
        let cable = Cable::to(listener.local_addr().unwrap());
        cable.us_per_kib.store(us_per_kib, Ordering::Release);
        let (engine, console) = (self.engine, self.console.clone());
        let secondary = Secondary::new(SecondaryParts {
            replica: Replica::secondary(ReplicaId::new(host)),
            listener,
            config: guest::config(1),
            engine: self.engine,
            disks,
            make_vm: Box::new(move |ram, state| Ok(guest::restore(ram, state, engine, 1, &console))),
            arbiter: self.reach(&Arc::default()),
            options: self.options(host),
        })
        .unwrap();
        let handle = secondary.handle();
        let thread = thread::spawn(move || secondary.run());
        leader.primary.protect(ReplicaId::new(host), cable.address, &self.identity(leader.host)).unwrap();
        Follower { host, cable, handle, thread }
    }

    /// Protects the guest, then loses the primary's host.
    fn fail_over(&self, leader: Leader, host: &'static str) -> Leader {
        let follower = self.protect(&leader, host);
        leader.lost.store(true, Ordering::Release);
        follower.cable.cut();
        let SecondaryEnd::TakenOver(taken) = follower.thread.join().unwrap() else { panic!("it did not take over") };
        leader.primary.pull_the_plug();
        let (end, _) = leader.thread.join().unwrap();
        assert!(matches!(end, PrimaryEnd::PlugPulled | PrimaryEnd::Stopped(_)), "{end:?}");
        let TakenOver { replica, epoch, vm, .. } = *taken;
        self.lead(follower.host, replica, epoch, vm)
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + HUNG;
    while !done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_guest_that_loses_three_primaries_computes_the_same() {
    for engine in engines() {
        let world = World::new(engine);
        let mut leader = world.boot();
        for host in ["b", "c", "a"] {
            leader = world.fail_over(leader, host);
        }
        let (end, vm) = leader.thread.join().unwrap();
        assert!(matches!(end, PrimaryEnd::Reset), "{engine}: {end:?}");
        assert_eq!(guest::result(&vm), guest::expected(rounds(engine)), "{engine}");
    }
}

#[test]
fn a_secondary_whose_disks_hang_says_so_and_is_given_up() {
    let mut world = World::new(Soft);
    world.hanging = Some("b");
    let leader = world.boot();
    let follower = world.begin_to_protect(&leader, "b", DiskSet::new(Vec::new()), 0);
    wait("the loss of the secondary", || leader.primary.status().failure.is_some());
    let status = leader.primary.status();
    assert!(status.failure.as_ref().is_some_and(|why| why.contains("does not end")), "{status:?}");
    follower.cable.cut();
    assert!(!matches!(follower.thread.join().unwrap(), SecondaryEnd::TakenOver(_)));
    leader.primary.pull_the_plug();
    leader.thread.join().unwrap();
}

/// The link carries less than the guest writes: the guest is slowed down, nothing piles up, and in the end the secondary is given up.
#[test]
fn a_secondary_that_stays_too_slow_slows_the_guest_down_and_is_given_up() {
    let world = World::new(Soft);
    let leader = world.boot();
    let follower = world.protect(&leader, "b");
    follower.cable.us_per_kib.store(50_000, Ordering::Release);
    let (mut lag_max, deadline) = (0, Instant::now() + HUNG);
    let status = loop {
        let status = leader.primary.status();
        lag_max = lag_max.max(status.figures.lag_epochs);
        if !status.protocol.is_protected() && status.secondary.is_none() {
            break status;
        }
        assert!(Instant::now() < deadline, "it is still kept: {status:?}");
        thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(status.protocol.reason, Some(Reason::Dropped(DropReason::TooSlow)));
    follower.cable.us_per_kib.store(0, Ordering::Release);
    assert!((1..=3).contains(&lag_max), "{lag_max} epochs waited for the secondary");
    let SecondaryEnd::Stopped { .. } = follower.thread.join().unwrap() else { panic!("it took over") };
    let (end, vm) = leader.thread.join().unwrap();
    assert!(matches!(end, PrimaryEnd::Reset), "{end:?}");
    assert_eq!(guest::result(&vm), guest::expected(rounds(Soft)));
}
