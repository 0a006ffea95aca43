//! The same guest, run from one state with the same inputs, ends in the same state: interrupts, disk and network in play.
//!
//! A Redis in a Debian guest is brought up and saved. From there it serves a client and writes to its disk while its inputs are
//! recorded. Replaying the record from the saved state, without clock, network or client, must end in the same digest of memory,
//! processors and devices, however the run is cut into pieces, and whether its code is translated or interpreted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use machine::digest::Digest;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::input::Journal;
use machine::vm::{Vm, VmConfig, VmState};
use memory::GuestRam;
use redis::Commands;
use spec::{EngineKind, Translator};

use crate::support;
use crate::support::guest::{Guest, Network};
use crate::support::replay::{Nowhere, copy_of};

/// Increments that the client makes during the recorded run; `TWINVM_DETERMINISM_REQUESTS` for more.
const REQUESTS: usize = 300;

fn requests() -> usize {
    std::env::var("TWINVM_DETERMINISM_REQUESTS").ok().and_then(|number| number.parse().ok()).unwrap_or(REQUESTS)
}

struct Saved {
    ram: GuestRam,
    state: VmState,
}

impl Saved {
    fn entropy_bytes(&self) -> u64 {
        self.state.platform.rng.device.taken_bytes
    }
}

/// How a recorded run is repeated.
struct Repeat<'a> {
    /// It stops every so many instructions on the way.
    piece: u64,
    translator: Translator,
    disk: &'a Path,
}

/// Replays the journal and returns the digest after `instructions`.
fn replay(guest: &Guest, saved: &Saved, journal: &Journal, instructions: u64, how: &Repeat) -> Digest {
    let parts = guest.parts(how.disk, Box::new(Nowhere::new().unwrap()), saved.entropy_bytes());
    let mode = InputMode::Replay(Journal::new(journal.events()));
    let ram = copy_of(&saved.ram);
    let config = VmConfig { translator: how.translator, ..guest.config() };
    let mut vm = Vm::restore(config, &ram, saved.state.clone(), parts, EngineKind::Soft, mode).unwrap();
    loop {
        let now = vm.instructions().unwrap();
        let target = now.saturating_add(how.piece).min(instructions);
        assert_eq!(vm.run(Some(target)).unwrap(), RunEnd::LimitReached);
        if target == instructions {
            assert_eq!(vm.instructions(), Some(instructions), "the replay stopped early");
            return vm.digest().unwrap();
        }
    }
}

#[test]
fn a_replay_ends_in_the_same_state() {
    for cpus in [1, 2] {
        let guest = Guest::redis(cpus);
        let network = Network::user(&[6379]);
        let disk = guest.disk("recorded.qcow2");
        let mut vm = guest.boot(&disk, network.link());
        support::run_until(&mut vm, || network.redis(6379).is_ok());
        let saved = Saved { state: vm.save().unwrap(), ram: copy_of(vm.platform().ram()) };
        vm.platform().flush_disks().unwrap();
        drop(vm);
        let copies = ["first.qcow2", "second.qcow2"].map(|name| guest.folder().join(name));
        for copy in &copies {
            fs::copy(&disk, copy).unwrap();
        }

        let journal = Journal::default();
        let parts = guest.parts(&disk, network.link(), saved.entropy_bytes());
        let mode = InputMode::Record(Arc::new(journal.clone()));
        let ram = copy_of(&saved.ram);
        let mut vm = Vm::restore(guest.config(), &ram, saved.state.clone(), parts, EngineKind::Soft, mode).unwrap();
        support::run_while(&mut vm, || {
            let mut connection = network.redis(6379).unwrap();
            for number in 1..=requests() {
                let counter: usize = connection.incr("counter", 1).unwrap();
                assert_eq!(counter, number);
            }
            let _: String = redis::cmd("SAVE").query(&mut connection).unwrap();
        });
        let (recorded, instructions) = (vm.digest().unwrap(), vm.instructions().unwrap());
        drop(vm);
        let start = saved.state.engine.processors.instructions;
        eprintln!("{cpus} vCPUs: {} inputs in {} instructions", journal.events().len(), instructions - start);
        assert!(journal.events().len() > requests());

        let whole = Repeat { piece: u64::MAX, translator: Translator::Off, disk: &copies[0] };
        assert_eq!(replay(&guest, &saved, &journal, instructions, &whole), recorded, "interpreted");
        let pieces = Repeat { piece: 1_234_567, translator: Translator::On, disk: &copies[1] };
        assert_eq!(replay(&guest, &saved, &journal, instructions, &pieces), recorded, "translated, in pieces");
        assert!(fs::read(&copies[0]).unwrap() == fs::read(&copies[1]).unwrap(), "the disks differ");
    }
}
