//! The VM that executes the log.

use std::io;
use std::sync::mpsc::Receiver;

use machine::devices::virtio::rng::EntropySource;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::input::{Input, Journal};
use machine::platform::Parts;
use machine::vm::{Vm, VmConfig, VmState};
use memory::GuestRam;
use replication::lockstep::StateDigest;
use replication::lockstep::log::{Entry, SegmentReader};
use spec::EngineKind;

use super::divergence::{Sample, describe, evidence_folder};
use super::pair::cpu_time_ns;

/// Longest piece that the log is executed in. The recording VM stops at other counts, and that must not matter.
const PIECE_INSTRUCTIONS_MAX: u64 = 50_000;

/// A source that has nothing: what the guest took is in the log.
pub struct NoEntropy;

impl EntropySource for NoEntropy {
    fn fill(&mut self, _buf: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("the log holds no more of it"))
    }
}

/// What came of it.
#[derive(Default)]
pub struct Replayed {
    pub inputs: u64,
    pub frames: u64,
    pub entropy: u64,
    pub clock_steps: u64,
    pub digests: u64,
    pub cpu_ns: u64,
    /// What differs.
    pub divergence: Option<String>,
}

pub struct Replayer {
    vm: Vm,
    journal: Journal,
    reader: SegmentReader,
    replayed: Replayed,
    /// State of the generator of pieces' lengths.
    random: u64,
}

impl Replayer {
    pub fn new(config: VmConfig, ram: &GuestRam, state: VmState, parts: Parts, reader: SegmentReader) -> Self {
        let journal = Journal::default();
        let mode = InputMode::Replay(journal.clone());
        let vm = Vm::restore(config, ram, state, parts, EngineKind::Soft, mode).unwrap();
        vm.platform().retry_transmits();
        Self { vm, journal, reader, replayed: Replayed::default(), random: 1 }
    }

    /// Executes the log to its end, or to the first difference.
    pub fn run(mut self, segments: &Receiver<Vec<u8>>, samples: &Receiver<Sample>) -> Replayed {
        let cpu_before_ns = cpu_time_ns();
        let divergence = segments.iter().find_map(|bytes| self.execute(&bytes, samples).err());
        self.replayed.divergence = divergence;
        self.replayed.cpu_ns = cpu_time_ns() - cpu_before_ns;
        self.replayed
    }

    fn execute(&mut self, bytes: &[u8], samples: &Receiver<Sample>) -> Result<(), String> {
        let segment = self.reader.read(bytes).unwrap();
        for entry in segment.entries {
            match entry {
                Entry::Input(event) => {
                    self.replayed.inputs += 1;
                    match event.input {
                        Input::Frame { .. } => self.replayed.frames += 1,
                        Input::Entropy(_) => self.replayed.entropy += 1,
                        Input::ClockStep(_) => self.replayed.clock_steps += 1,
                        _ => {}
                    }
                    self.journal.push(event);
                }
                Entry::Digest { instructions, digest } => {
                    self.run_to(instructions)?;
                    let expected = samples.recv().map_err(|_| "no sample belongs to a digest".to_owned())?;
                    assert_eq!((expected.state.instructions, expected.state.digest), (instructions, digest));
                    let found = StateDigest::take(&mut self.vm).unwrap();
                    if found != expected.state {
                        let found = Sample::new(found, self.vm.platform().ram());
                        return Err(describe(&expected, &found, self.replayed.digests, &evidence_folder()));
                    }
                    self.replayed.digests += 1;
                }
            }
        }
        self.run_to(segment.reached)
    }

    fn run_to(&mut self, reached: u64) -> Result<(), String> {
        loop {
            let piece_end = self.vm.instructions().unwrap() + self.piece_instructions();
            let end = self.vm.run(Some(reached.min(piece_end))).unwrap();
            let at = self.vm.instructions().unwrap();
            match end {
                RunEnd::LimitReached if at >= reached => return Ok(()),
                RunEnd::LimitReached if at >= piece_end => {}
                RunEnd::Guest(GuestEvent::Panicked | GuestEvent::CrashLoaded) => {}
                end => return Err(format!("stands still at {at} ({end:?}); the other one went on to {reached}")),
            }
        }
    }

    /// The length of the next piece: a linear congruential generator (Knuth, MMIX).
    fn piece_instructions(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.random >> 33) % PIECE_INSTRUCTIONS_MAX
    }
}
