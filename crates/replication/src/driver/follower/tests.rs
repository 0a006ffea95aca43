//! A secondary whose primary is the test.

#[path = "../../../../machine/tests/engines/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::sync::Mutex;

use machine::engine::CpuProfile;
use protocol::{Arbiter, Claim, Replica, Unreachable, Verdict};
use spec::{EngineKind, ReplicaId};
use storage::disk::{DiskImage, DiskOptions};
use tempfile::TempDir;

use super::super::MirrorOptions;
use super::super::message::{ExecutionFormat, HELLO, WELCOME, Welcome};
use super::super::secondary::SecondaryParts;
use super::*;
use crate::channel::{self, Connection, Identity, Listener};
use crate::disk::{DiskOp, DiskWrite};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The claim, in memory.
struct Store(Mutex<Claim>);

impl Arbiter for Store {
    fn read(&self) -> Result<Claim, Unreachable> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        let mut claim = self.0.lock().unwrap();
        if claim.generation != expected {
            return Ok(Verdict::Lost(claim.clone()));
        }
        *claim = new.clone();
        Ok(Verdict::Won)
    }
}

struct World {
    folder: TempDir,
    store: Arc<Store>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        channel::create_authority(&authority).unwrap();
        for host in ["a", "b"] {
            channel::issue(&authority, host, &folder.path().join(host)).unwrap();
        }
        let claim = Claim {
            generation: Generation::new(2),
            primary: ReplicaId::new("a"),
            secondary: Some(ReplicaId::new("b")),
        };
        Self { folder, store: Arc::new(Store(Mutex::new(claim))) }
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.folder.path().join(host)).unwrap()
    }

    /// A secondary with one disk on host `b`, and where it listens.
    fn secondary(&self) -> (Secondary, std::net::SocketAddr) {
        let path = self.folder.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let disk = DiskImage::open(&path, DiskOptions::default()).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &self.identity("b")).unwrap();
        let address = listener.local_addr().unwrap();
        let secondary = Secondary::new(SecondaryParts {
            replica: Replica::secondary(ReplicaId::new("b")),
            listener,
            config: guest::config(1),
            engine: EngineKind::Soft,
            disks: DiskSet::new(vec![disk]),
            arbiter: self.store.clone(),
            options: MirrorOptions::new(ReplicaId::new("b")),
        });
        (secondary.unwrap(), address)
    }

    fn connect(&self, address: std::net::SocketAddr) -> Connection {
        channel::connect(address, &self.identity("a"), "b", TIMEOUT).unwrap()
    }

    /// A secondary that follows the test, which is at the other end.
    fn follower(&self) -> (Follower, Receiver, Connection) {
        let (secondary, address) = self.secondary();
        let (near, far) = thread::scope(|scope| {
            let far = scope.spawn(|| self.connect(address));
            (secondary.parts.listener.accept().unwrap(), far.join().unwrap())
        });
        let (sender, receiver, closer) = near.split();
        let hello = hello(&secondary.parts.disks);
        (Follower::new(secondary, &hello, sender, closer), receiver, far)
    }
}

fn hello(disks: &DiskSet) -> Hello {
    Hello {
        config: guest::config(1),
        primary: ReplicaId::new("a"),
        generation: Generation::new(1),
        engine: EngineKind::Soft,
        profile: CpuProfile::in_order(),
        disks: disks.describe().unwrap(),
        suspicion_ms: 20_000,
        execution: ExecutionFormat::here(),
    }
}

/// More than is written while a message comes, and then something that cannot be.
fn writes_that_fail_in_the_end() -> Vec<DiskWrite> {
    let write = DiskWrite { disk: 0, op: DiskOp::Write { offset: 0, data: vec![1; 512] } };
    let mut writes = vec![write; 50_000];
    writes.push(DiskWrite { disk: 0, op: DiskOp::Lost });
    writes
}

#[test]
fn a_secondary_whose_disks_fail_does_not_take_the_vm_from_its_primary() {
    for kind in [HAND_OVER, u8::MAX] {
        let world = World::new();
        let (mut follower, receiver, far) = world.follower();
        let replica = &mut follower.secondary.parts.replica;
        replica.handle(Event::CheckpointHeld { epoch: Epoch::new(1) });
        replica.handle(Event::Entitled { generation: Generation::new(2) });
        follower.secondary.applier.push(writes_that_fail_in_the_end());
        let following = thread::spawn(move || follower.follow(receiver));
        let (mut sender, mut receiver, _closer) = far.split();
        sender.send(kind, &[]).unwrap();
        sender.flush().unwrap();
        let failed = loop {
            let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
            if frame.kind == FAILED {
                break String::from_utf8(frame.payload.to_vec()).unwrap();
            }
        };
        assert!(failed.contains("the disks cannot be written"), "{failed}");
        let SecondaryEnd::Stopped { reason, .. } = following.join().unwrap() else { panic!("it took over") };
        assert_eq!(reason, StopReason::Failed);
        assert_eq!(world.store.0.lock().unwrap().generation, Generation::new(2), "the primary goes on");
    }
}

#[test]
fn what_is_held_is_replaced_by_whole_checkpoints_only() {
    let world = World::new();
    let (mut follower, _receiver, _far) = world.follower();
    for kind in [PAGES, DISK_WRITES] {
        assert!(follower.hear(&Frame { kind, payload: &[] }).is_ok(), "part of the first copy");
    }
    let state = guest::start(EngineKind::Soft, 1, 1, &guest::Console::default()).save().unwrap();
    let (transit, held_since) = (Duration::ZERO, Instant::now());
    let content = Content::Checkpoint { state: Box::new(state), inputs: Vec::new() };
    follower.held = Some(Held { epoch: Epoch::new(1), content, transit, held_since });
    for kind in [PAGES, DISK_WRITES] {
        let refused = follower.hear(&Frame { kind, payload: &[] });
        assert!(matches!(refused, Err(Parting::Lost(LossReason::Protocol, _))));
    }
}

#[test]
fn a_secondary_whose_host_cannot_be_the_vm_s_processor_refuses_it() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let usual = hello(&secondary.parts.disks);
    thread::spawn(move || secondary.run());
    let (mut sender, mut receiver, _closer) = world.connect(address).split();
    let profile = CpuProfile { tsc_hz: Some(2_600_000_000), ..CpuProfile::in_order() };
    sender.send(HELLO, &[&postcard::to_stdvec(&Hello { profile, ..usual }).unwrap()]).unwrap();
    sender.flush().unwrap();
    let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
    let welcome: Welcome = postcard::from_bytes(frame.payload).unwrap();
    assert!(matches!(&welcome, Welcome::Refused(why) if why.contains("2600 MHz")), "{welcome:?}");
}

#[test]
fn a_suspicion_time_that_makes_no_sense_is_refused() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let usual = hello(&secondary.parts.disks);
    // It goes on waiting for its primary.
    thread::spawn(move || secondary.run());
    for (suspicion_ms, accepted) in [(0, false), (19, false), (u32::MAX, false), (20, true)] {
        let (mut sender, mut receiver, _closer) = world.connect(address).split();
        let hello = Hello { suspicion_ms, ..usual.clone() };
        sender.send(HELLO, &[&postcard::to_stdvec(&hello).unwrap()]).unwrap();
        sender.flush().unwrap();
        let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
        assert_eq!(frame.kind, WELCOME);
        let welcome: Welcome = postcard::from_bytes(frame.payload).unwrap();
        assert_eq!(matches!(welcome, Welcome::Accepted { .. }), accepted, "{suspicion_ms} ms: {welcome:?}");
    }
}
