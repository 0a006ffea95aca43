//! A secondary whose primary is the test.

#[path = "../../../../machine/tests/engines/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use protocol::{Arbiter, Claim, Replica, Unreachable, Verdict};
use spec::{CpuProfile, EngineKind, ReplicaId};
use storage::disk::{DiskImage, DiskOptions};
use tempfile::TempDir;

use super::super::message::{Ack, ExecutionFormat, Kind, Welcome};
use super::super::secondary::{MakeVm, SecondaryParts};
use super::super::{ConsoleHistory, ConsoleInput, ConsolePiece, ConsolePlace, MirrorOptions};
use super::*;
use crate::channel::{self, Connection, Identity, Listener};
use crate::disk::{CopyMark, CopyState, DiskOp, DiskSet, DiskWrite};

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
        for host in ["a", "b", "c"] {
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
        let console = guest::Console::default();
        self.secondary_with(Box::new(move |ram, state| Ok(guest::restore(ram, state, EngineKind::Soft, 1, &console))))
    }

    fn secondary_with(&self, make_vm: MakeVm) -> (Secondary, std::net::SocketAddr) {
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
            make_vm,
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
        self.follower_of(self.secondary())
    }

    fn follower_of(&self, (secondary, address): (Secondary, std::net::SocketAddr)) -> (Follower, Receiver, Connection) {
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
        generation: Generation::new(2),
        engine: EngineKind::Soft,
        profile: CpuProfile::in_order(),
        disks: disks.describe().unwrap(),
        suspicion_ms: 20_000,
        suspicion_ms_min: 20_000,
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
    for kind in [Kind::HandOver.into(), u8::MAX] {
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
            if Kind::of(&frame) == Ok(Kind::Failed) {
                break String::from_utf8(frame.payload.to_vec()).unwrap();
            }
        };
        assert!(failed.contains("the disks cannot be written"), "{failed}");
        let SecondaryEnd::Stopped { reason, .. } = following.join().unwrap() else { panic!("it took over") };
        assert_eq!(reason, StopReason::Failed);
        assert_eq!(world.store.0.lock().unwrap().generation, Generation::new(2), "the primary goes on");
    }
}

/// Entitled, and with a checkpoint that the VM can be made of.
fn holding(mut follower: Follower) -> Follower {
    let replica = &mut follower.secondary.parts.replica;
    replica.handle(Event::CheckpointHeld { epoch: Epoch::new(1) });
    replica.handle(Event::Entitled { generation: Generation::new(2) });
    let mut vm = guest::start(EngineKind::Soft, 1, 1, &guest::Console::default());
    let content = Content::Checkpoint { state: Box::new(vm.save().unwrap()), inputs: Vec::new() };
    follower.held = Some(Held { epoch: Epoch::new(1), content, since: clock::now() });
    follower
}

/// What could fail is tried before the store is asked: else the store names a replica that cannot run the VM, and stops one that does.
#[test]
fn a_secondary_that_cannot_make_the_vm_leaves_it_to_its_primary_until_it_can() {
    let world = World::new();
    let (can, tries) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let (ready, count, console) = (can.clone(), tries.clone(), guest::Console::default());
    let secondary = world.secondary_with(Box::new(move |ram, state| {
        count.fetch_add(1, Ordering::AcqRel);
        if !ready.load(Ordering::Acquire) {
            return Err("no network end".to_owned());
        }
        Ok(guest::restore(ram, state, EngineKind::Soft, 1, &console))
    }));
    let (follower, receiver, far) = world.follower_of(secondary);
    let (follower, handle) = (holding(follower), world.store.clone());
    let status = follower.secondary.handle();
    let following = thread::spawn(move || follower.follow(receiver));
    drop(far);
    while tries.load(Ordering::Acquire) < 3 {
        assert_eq!(handle.read().unwrap().generation, Generation::new(2), "the store was asked");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status.status().obstacle.as_deref(), Some("no network end"));
    // But for the moments in which it tries again.
    while status.status().protocol.reason != Some(protocol::Reason::NotReady) {
        assert_eq!(handle.read().unwrap().generation, Generation::new(2), "the store was asked");
        thread::sleep(Duration::from_millis(1));
    }
    can.store(true, Ordering::Release);
    let SecondaryEnd::TakenOver(_) = following.join().unwrap() else { panic!("it did not take over") };
    assert_eq!(handle.read().unwrap().primary, ReplicaId::new("b"));
}

#[test]
fn a_primary_that_hands_over_hears_at_once_that_the_secondary_could_not_run_the_vm() {
    let world = World::new();
    let secondary = world.secondary_with(Box::new(|_, _| Err("no network end".to_owned())));
    let (follower, receiver, far) = world.follower_of(secondary);
    let follower = holding(follower);
    let following = thread::spawn(move || follower.follow(receiver));
    let (mut sender, mut receiver, _closer) = far.split();
    sender.send(Kind::HandOver, &[]).unwrap();
    sender.flush().unwrap();
    let failed = loop {
        let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
        if Kind::of(&frame) == Ok(Kind::Failed) {
            break String::from_utf8(frame.payload.to_vec()).unwrap();
        }
    };
    assert_eq!(failed, "no network end");
    // It goes on alone, and the secondary finds that out.
    let alone = Claim { generation: Generation::new(3), primary: ReplicaId::new("a"), secondary: None };
    assert_eq!(world.store.compare_and_swap(Generation::new(2), &alone).unwrap(), Verdict::Won);
    let SecondaryEnd::Stopped { reason, .. } = following.join().unwrap() else { panic!("it took over") };
    assert_eq!(reason, StopReason::Superseded);
}

#[test]
fn what_is_held_is_replaced_by_whole_checkpoints_only() {
    let world = World::new();
    let (mut follower, _receiver, _far) = world.follower();
    for kind in [Kind::Pages, Kind::DiskWrites] {
        assert!(follower.hear(&Frame { kind: kind.into(), payload: &[] }).is_ok(), "part of the first copy");
    }
    let state = guest::start(EngineKind::Soft, 1, 1, &guest::Console::default()).save().unwrap();
    let content = Content::Checkpoint { state: Box::new(state), inputs: Vec::new() };
    follower.held = Some(Held { epoch: Epoch::new(1), content, since: clock::now() });
    for kind in [Kind::Pages, Kind::DiskWrites] {
        let refused = follower.hear(&Frame { kind: kind.into(), payload: &[] });
        assert!(matches!(refused, Err(Parting::Lost(LossReason::Protocol, _))));
    }
}

/// Row 30: what the state shows is older than when it was captured, it was under way, and a VM takes its time to be made.
#[test]
fn a_guests_clock_goes_on_where_the_primary_said_that_it_is() {
    const MAKING: Duration = Duration::from_millis(80);
    let (ahead, behind) = (Duration::from_secs(40), Duration::from_secs(5));
    for told in [None, Some(behind), Some(ahead)] {
        let (world, console) = (World::new(), guest::Console::default());
        let secondary = world.secondary_with(Box::new(move |ram, state| {
            let vm = guest::restore(ram, state, EngineKind::Soft, 1, &console);
            thread::sleep(MAKING);
            Ok(vm)
        }));
        let (follower, receiver, far) = world.follower_of(secondary);
        let mut follower = holding(follower);
        let Some(Held { content: Content::Checkpoint { state, .. }, since, .. }) = &mut follower.held else { panic!() };
        state.advance_clock(10_000_000_000);
        let held = GuestClock { shows: Duration::from_nanos(state.platform.clock_ns), at: *since };
        let following = thread::spawn(move || follower.follow(receiver));
        let (mut sender, _receiver, closer) = far.split();
        let said = told.map(|shows| GuestClock { shows, at: clock::now() });
        for (number, guest_clock) in [(1, said), (2, None)] {
            let heartbeat = postcard::to_stdvec(&Heartbeat { number, guest_clock }).unwrap();
            sender.send(Kind::Heartbeat, &[&heartbeat]).unwrap();
        }
        sender.flush().unwrap();
        // As a primary's that is killed.
        closer.close();
        let SecondaryEnd::TakenOver(mut taken_over) = following.join().unwrap() else { panic!("it did not take over") };
        let due = if told == Some(ahead) { said.unwrap() } else { held };
        let before = due.at(clock::now());
        let shows = taken_over.vm.clock().unwrap().shows;
        assert!((before..=due.at(clock::now())).contains(&shows), "{told:?}: {shows:?} instead of {before:?}");
        assert!(shows >= due.shows + MAKING);
    }
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<ConsolePiece>>);

impl ConsoleHistory for Heard {
    fn after(&self, _: ConsolePlace, _: usize) -> ConsolePiece {
        unreachable!("a secondary passes nothing on")
    }

    fn go_on_with(&self, piece: &ConsolePiece) {
        self.0.lock().unwrap().push(piece.clone());
    }

    fn hand_over(&self) -> ConsoleInput {
        unreachable!("a secondary hands nothing over")
    }

    fn keep(&self) {}

    fn take_over(&self, _: ConsoleInput) {}
}

#[test]
fn what_the_guest_has_written_to_its_console_is_kept_also_within_a_checkpoint() {
    let world = World::new();
    let (mut follower, _receiver, _far) = world.follower();
    let heard = Arc::new(Heard::default());
    follower.secondary.parts.options.console = Some(heard.clone());
    let piece = ConsolePiece { from: ConsolePlace { run: 7, bytes: 900 }, bytes: b"login: ".to_vec() };
    let payload = postcard::to_stdvec(&piece).unwrap();
    assert!(follower.hear(&Frame { kind: Kind::Console.into(), payload: &payload }).is_ok());
    assert!(follower.hear(&Frame { kind: Kind::Begin.into(), payload: &2u64.to_le_bytes() }).is_ok());
    assert!(follower.hear(&Frame { kind: Kind::Console.into(), payload: &payload }).is_ok());
    assert_eq!(*heard.0.lock().unwrap(), [piece.clone(), piece]);
    let refused = follower.hear(&Frame { kind: Kind::Console.into(), payload: &payload[..3] });
    assert!(matches!(refused, Err(Parting::Lost(LossReason::Protocol, _))));
}

/// A primary whose disks are broken cannot wait for the end of a checkpoint that is on its way.
#[test]
fn a_primary_may_hand_over_within_a_checkpoint() {
    let world = World::new();
    let (follower, _receiver, _far) = world.follower();
    let mut follower = holding(follower);
    let begin = 2u64.to_le_bytes();
    assert!(follower.hear(&Frame { kind: Kind::Begin.into(), payload: &begin }).is_ok());
    assert!(matches!(follower.hear(&Frame { kind: Kind::HandOver.into(), payload: &[] }), Err(Parting::HandOver)));
    assert!(follower.held.is_some_and(|held| held.epoch == Epoch::new(1)));
}

/// A power failure at any instant leaves a copy that is marked as incomplete, or one that is whole.
#[test]
fn a_copy_is_marked_as_incomplete_before_it_is_written_and_as_consistent_when_it_is_whole() {
    let world = World::new();
    let (mut follower, _receiver, _far) = world.follower();
    let disk = world.folder.path().join("disk");
    let write = DiskWrite { disk: 0, op: DiskOp::Write { offset: 0, data: vec![1; 512] } };
    // Where it cannot be marked, nothing is written.
    let nowhere = CopyMark::of(&world.folder.path().join("nowhere"));
    follower.secondary.parts.options.copy_mark = Some(nowhere);
    assert!(matches!(follower.copy_disks(std::slice::from_ref(&write)), Err(Parting::Lost(LossReason::Failed, _))));
    assert_eq!(std::fs::read(&disk).unwrap(), [0; 4096]);

    let (mut follower, _receiver, _far) = {
        drop(follower);
        world.follower()
    };
    let mark = CopyMark::of(world.folder.path());
    follower.secondary.parts.options.copy_mark = Some(mark.clone());
    assert!(follower.copy_disks(&[write]).is_ok());
    assert_eq!(std::fs::read(&disk).unwrap()[0], 1);
    let incomplete = mark.read().unwrap();
    assert!(matches!(incomplete, Some(CopyState::Incomplete { generation: 2, .. })), "{incomplete:?}");
    // What fails to be applied is not whole.
    let copy = follower.notes.after_checkpoint().unwrap();
    follower.note_copy(copy);
    follower.secondary.applier.drain().unwrap();
    assert!(matches!(mark.read().unwrap(), Some(CopyState::Consistent { generation: 2, .. })));
    follower.secondary.applier.push(writes_that_fail_in_the_end());
    let copy = follower.notes.after_entitled(Generation::new(3));
    follower.note_copy(copy);
    assert!(follower.secondary.applier.drain().is_err());
    assert!(matches!(mark.read().unwrap(), Some(CopyState::Consistent { generation: 2, .. })));
}

#[test]
fn a_secondary_whose_host_cannot_be_the_vm_s_processor_refuses_it() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let usual = hello(&secondary.parts.disks);
    thread::spawn(move || secondary.run());
    let (mut sender, mut receiver, _closer) = world.connect(address).split();
    let profile = CpuProfile { tsc_hz: Some(2_600_000_000), ..CpuProfile::in_order() };
    sender.send(Kind::Hello, &[&postcard::to_stdvec(&Hello { profile, ..usual }).unwrap()]).unwrap();
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
    let max = 20_000;
    for (suspicion_ms_min, suspicion_ms, accepted) in
        [(0, 0, false), (19, 19, false), (max, u32::MAX, false), (9, max, false), (max + 1, max, false), (20, 20, true)]
    {
        let (mut sender, mut receiver, _closer) = world.connect(address).split();
        let hello = Hello { suspicion_ms, suspicion_ms_min, ..usual.clone() };
        sender.send(Kind::Hello, &[&postcard::to_stdvec(&hello).unwrap()]).unwrap();
        sender.flush().unwrap();
        let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
        assert_eq!(Kind::of(&frame), Ok(Kind::Welcome));
        let welcome: Welcome = postcard::from_bytes(frame.payload).unwrap();
        assert_eq!(matches!(welcome, Welcome::Accepted { .. }), accepted, "{suspicion_ms} ms: {welcome:?}");
    }
}

/// How the secondary at `address` answers `hello` from `host`.
fn answer(world: &World, address: std::net::SocketAddr, host: &str, hello: &Hello) -> Welcome {
    // No longer than a primary waits.
    let connection = channel::connect(address, &world.identity(host), "b", Duration::from_secs(5)).unwrap();
    let (mut sender, mut receiver, _closer) = connection.split();
    sender.send(Kind::Hello, &[&postcard::to_stdvec(hello).unwrap()]).unwrap();
    sender.flush().unwrap();
    let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
    assert_eq!(Kind::of(&frame), Ok(Kind::Welcome));
    postcard::from_bytes(frame.payload).unwrap()
}

#[test]
fn connections_that_say_nothing_do_not_keep_the_primary_waiting() {
    for idle in [3, 100] {
        let world = World::new();
        let (secondary, address) = world.secondary();
        let hello = hello(&secondary.parts.disks);
        thread::spawn(move || secondary.run());
        let _idle: Vec<_> = (0..idle).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        // Some have proved who they are, and then say nothing.
        let _mute: Vec<_> =
            (0..3).map(|_| channel::connect(address, &world.identity("c"), "b", TIMEOUT).unwrap()).collect();
        let welcome = answer(&world, address, "a", &hello);
        assert!(matches!(welcome, Welcome::Accepted { .. }), "{idle} idle: {welcome:?}");
    }
}

#[test]
fn a_host_of_the_cluster_that_is_not_the_primary_is_not_followed() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let hello = hello(&secondary.parts.disks);
    thread::spawn(move || secondary.run());
    let other = Hello { primary: ReplicaId::new("c"), ..hello.clone() };
    for (host, said) in [("c", &other), ("c", &hello)] {
        let welcome = answer(&world, address, host, said);
        assert!(matches!(&welcome, Welcome::Refused(why) if why.contains('c')), "{welcome:?}");
    }
    assert!(matches!(answer(&world, address, "a", &hello), Welcome::Accepted { .. }));
}

#[test]
fn a_primary_of_another_generation_is_not_followed() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let hello = hello(&secondary.parts.disks);
    thread::spawn(move || secondary.run());
    for generation in [1, 3] {
        let welcome = answer(&world, address, "a", &Hello { generation: Generation::new(generation), ..hello.clone() });
        assert!(matches!(&welcome, Welcome::Refused(why) if why.contains("generation")), "{welcome:?}");
    }
    assert!(matches!(answer(&world, address, "a", &hello), Welcome::Accepted { .. }));
}

/// The primary measures by them how fast the copy is taken in.
#[test]
fn heartbeats_of_a_first_copy_are_answered_at_once() {
    let world = World::new();
    let (follower, receiver, far) = world.follower();
    let following = thread::spawn(move || follower.follow(receiver));
    let (mut sender, mut receiver, closer) = far.split();
    let begun = Instant::now();
    for number in 1..=10u64 {
        let heartbeat = Heartbeat { number, guest_clock: None };
        sender.send(Kind::Heartbeat, &[&postcard::to_stdvec(&heartbeat).unwrap()]).unwrap();
        sender.flush().unwrap();
        loop {
            let frame = receiver.recv(Some(TIMEOUT)).unwrap().unwrap();
            if Kind::of(&frame) != Ok(Kind::Ack) {
                continue;
            }
            let ack: Ack = postcard::from_bytes(frame.payload).unwrap();
            if ack.heard >= number {
                // What it promises after the last heartbeat is what it keeps, and not less than was agreed upon.
                assert_eq!(ack.patience_us, 20_000_000);
                break;
            }
        }
    }
    // An ack comes every 4 s in any case.
    assert!(begun.elapsed() < Duration::from_secs(20), "ten heartbeats took {:?}", begun.elapsed());
    closer.close();
    let SecondaryEnd::Stopped { .. } = following.join().unwrap() else { panic!("it took over") };
}

/// A link that carries 8 KiB each 100 ms to `target`; where it begins.
fn slow_link(target: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut near, mut far) = (listener.accept().unwrap().0, std::net::TcpStream::connect(target).unwrap());
        let (mut back, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back, &mut to));
        let mut buffer = [0; 8192];
        while let Ok(read @ 1..) = std::io::Read::read(&mut near, &mut buffer) {
            thread::sleep(Duration::from_millis(100));
            if std::io::Write::write_all(&mut far, &buffer[..read]).is_err() {
                break;
            }
        }
    });
    address
}

#[test]
fn a_primary_whose_message_takes_longer_than_the_suspicion_time_to_arrive_is_not_silent() {
    let world = World::new();
    let (secondary, address) = world.secondary();
    let (near, far) = thread::scope(|scope| {
        let far = scope.spawn(|| world.connect(slow_link(address)));
        (secondary.parts.listener.accept().unwrap(), far.join().unwrap())
    });
    let (sender, receiver, closer) = near.split();
    let hello = Hello { suspicion_ms: 2000, suspicion_ms_min: 1000, ..hello(&secondary.parts.disks) };
    let follower = Follower::new(secondary, &hello, sender, closer);
    let following = thread::spawn(move || follower.follow(receiver));
    let (mut sender, _receiver, _closer) = far.split();
    // Heard of when the last of four seconds' worth of it has come.
    sender.send(u8::MAX, &[&[0; 320 << 10]]).unwrap();
    sender.flush().unwrap();
    let SecondaryEnd::Stopped { why, .. } = following.join().unwrap() else { panic!("it took over") };
    assert!(why.contains("a message of kind 255"), "{why}");
}
