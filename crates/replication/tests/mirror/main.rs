//! A mirrored bare-metal guest on each engine: whatever happens to its primaries, it computes what it would have computed alone.

#[path = "../../../machine/tests/engines/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest::Console;
use machine::engine::EngineKind::{self, Kvm, Soft};
use machine::vm::Vm;
use replication::channel::{self, Identity, Listener};
use replication::disk::DiskSet;
use replication::gate::OutputGate;
use replication::mirror::{
    MirrorOptions, Primary, PrimaryEnd, PrimaryParts, Secondary, SecondaryEnd, SecondaryParts, TakenOver, Trigger,
};
use replication::protocol::{Arbiter, Claim, Generation, Replica, ReplicaId, Unreachable, Verdict};

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
}

impl Cable {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = Arc::<Mutex<Vec<TcpStream>>>::default();
        let cable = Self { address, sockets: sockets.clone() };
        thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = TcpStream::connect(target).unwrap();
            for socket in [&near, &far] {
                socket.set_nodelay(true).unwrap();
                sockets.lock().unwrap().push(socket.try_clone().unwrap());
            }
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                // It ends when the cable is cut.
                thread::spawn(move || std::io::copy(&mut from, &mut to));
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

struct World {
    engine: EngineKind,
    folder: tempfile::TempDir,
    store: Store,
    console: Console,
}

impl World {
    fn new(engine: EngineKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        channel::create_authority(&authority).unwrap();
        for host in HOSTS {
            channel::issue(&authority, host, &folder.path().join(host)).unwrap();
        }
        let claim = Claim { generation: 1, primary: ReplicaId::new(HOSTS[0]), secondary: None };
        Self { engine, folder, store: Store(Arc::new(Mutex::new(claim))), console: Console::default() }
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&Path::new(self.folder.path()).join(host)).unwrap()
    }

    fn options(&self, host: &str) -> MirrorOptions {
        MirrorOptions {
            suspicion: SUSPICION,
            epoch_length_max: Duration::from_millis(10),
            ..MirrorOptions::new(ReplicaId::new(host))
        }
    }

    fn reach(&self, lost: &Arc<AtomicBool>) -> Arc<dyn Arbiter> {
        Arc::new(Reach { store: self.store.clone(), lost: lost.clone() })
    }

    fn lead(&self, host: &'static str, replica: Replica, epoch: u64, mut vm: Vm) -> Leader {
        let lost = Arc::<AtomicBool>::default();
        let trigger = Arc::new(Trigger::default());
        let waiting = trigger.clone();
        let primary = Primary::new(PrimaryParts {
            replica,
            epoch,
            config: vm.config().clone(),
            engine: vm.engine(),
            ram: vm.platform().ram().clone(),
            gate: OutputGate::new(Box::new(move || waiting.output_waits())),
            trigger,
            disks: DiskSet::new(Vec::new()),
            control: vm.control(),
            arbiter: self.reach(&lost),
            options: self.options(host),
        });
        let running = primary.clone();
        let thread = thread::spawn(move || (running.run(&mut vm).unwrap(), vm));
        Leader { host, primary, lost, thread }
    }

    fn boot(&self) -> Leader {
        let vm = guest::start(self.engine, rounds(self.engine), 1, &self.console);
        let claim = self.store.0.lock().unwrap().clone();
        self.lead(HOSTS[0], Replica::primary(ReplicaId::new(HOSTS[0]), claim), 0, vm)
    }

    /// Protects the guest by a secondary on `host` until it holds some checkpoints, then loses the primary's host.
    fn fail_over(&self, leader: Leader, host: &'static str) -> Leader {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &self.identity(host)).unwrap();
        let cable = Cable::to(listener.local_addr().unwrap());
        let secondary = Secondary::new(SecondaryParts {
            replica: Replica::secondary(ReplicaId::new(host)),
            listener,
            config: guest::config(1),
            engine: self.engine,
            disks: DiskSet::new(Vec::new()),
            arbiter: self.reach(&Arc::default()),
            options: self.options(host),
        })
        .unwrap();
        let handle = secondary.handle();
        let following = thread::spawn(move || secondary.run());
        leader.primary.protect(ReplicaId::new(host), cable.address, &self.identity(leader.host)).unwrap();
        let wanted = leader.primary.status().figures.epoch + 5;
        wait("checkpoints", || {
            leader.primary.status().protocol.is_protected()
                && handle.status().epoch.is_some_and(|epoch| epoch >= wanted)
        });
        leader.lost.store(true, Ordering::Release);
        cable.cut();
        let SecondaryEnd::TakenOver(taken) = following.join().unwrap() else { panic!("it did not take over") };
        leader.primary.pull_the_plug();
        let (end, _) = leader.thread.join().unwrap();
        assert!(matches!(end, PrimaryEnd::PlugPulled | PrimaryEnd::Stopped(_)), "{end:?}");
        let TakenOver { replica, epoch, ram, state, .. } = *taken;
        let vm = guest::restore(&ram, state, self.engine, 1, &self.console);
        self.lead(host, replica, epoch, vm)
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
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
