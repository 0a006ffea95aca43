//! A VM that serves its clients, and one that executes the log of its inputs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::vm::{Vm, VmState};
use memory::{GuestRam, PAGE_BYTES};
use protocol::Epoch;
use replication::lockstep::log::{SegmentReader, SegmentWriter};
use replication::lockstep::{ClosedSegment, LogRecorder, StateDigest, next_digest_at};

use super::divergence::{Sample, evidence_folder};
use super::load::{self, Schedule};
use super::replayer::{NoEntropy, Replayer};
use super::service::{Service, bring_up};
use super::table::Figures;
use super::tap::{Output, Sink, Tap};
use crate::support;
use crate::support::guest::{Console, Guest, Network};
use crate::support::replay::{Nowhere, copy_of};

/// Segments that may wait for the replaying VM, before the recording one waits for it.
const SEGMENTS_WAITING_MAX: usize = 64;
/// The same of digests.
const SAMPLES_WAITING_MAX: usize = 8;
const TICKS_PER_MINUTE: u64 = 60 * 1_000_000_000;

pub struct Pair {
    guest: Guest,
    network: Network,
    disks: [PathBuf; 2],
    vm: Vm,
    ram: GuestRam,
    recorder: Arc<OnceLock<Arc<LogRecorder>>>,
    output: Output,
    state: VmState,
}

impl Pair {
    /// Brings a guest up, and copies its disk and memory.
    pub fn start(service: &Service, cpus: u32) -> Self {
        let (guest, disk, network) = service.start(cpus);
        let recorder = Arc::new(OnceLock::new());
        let output = Output::default();
        let tap = Tap { link: network.link(), recorder: recorder.clone(), output: output.clone() };
        let mut vm = guest.boot(&disk, Box::new(tap));
        bring_up(&mut vm, &network);
        vm.platform().flush_disks().unwrap();
        let copy = guest.folder().join("replayed.qcow2");
        std::fs::copy(&disk, &copy).unwrap();
        // From here on pages count as touched, in both.
        vm.harvest().unwrap().acknowledge();
        let (state, ram) = (vm.save().unwrap(), copy_of(vm.platform().ram()));
        ram.harvest().acknowledge();
        Self { guest, network, disks: [disk, copy], vm, ram, recorder, output, state }
    }

    /// Runs the load on one VM while the other follows.
    pub fn run(self, schedule: &Schedule) -> Figures {
        let Self { guest, network, disks, mut vm, ram, recorder: tap, output, state } = self;
        let cpus = guest.config().cpus;
        let start = state.engine.processors.instructions;
        let positions = state.platform.cards.iter().map(|_| network::InputPosition::default()).collect::<Vec<_>>();

        let (segments_in, segments) = sync_channel::<Vec<u8>>(SEGMENTS_WAITING_MAX);
        let (samples_in, samples) = sync_channel(SAMPLES_WAITING_MAX);
        let log_bytes = Arc::new(AtomicU64::new(0));
        let inbound_bytes = Arc::new(AtomicU64::new(0));
        let recorder = {
            let (log_bytes, inbound_bytes) = (log_bytes.clone(), inbound_bytes.clone());
            let on_closed = move |segment: ClosedSegment| {
                log_bytes.fetch_add(segment.bytes.len() as u64, Ordering::Relaxed);
                inbound_bytes.fetch_add(segment.inbound_bytes, Ordering::Relaxed);
                // Nobody takes it any more if the two have diverged.
                let _ = segments_in.send(segment.bytes);
            };
            Arc::new(LogRecorder::new(SegmentWriter::new(Epoch::NONE, start, &positions), start, Box::new(on_closed)))
        };
        let replayed_output = Output::default();
        let sink = Sink { link: Nowhere::new().unwrap(), output: replayed_output.clone() };
        let mut parts = guest.parts(&disks[1], Box::new(sink), 0);
        parts.entropy = Box::new(NoEntropy);
        let (console_before, replayed_console) = (guest.console().len(), Console::default());
        parts.console = Box::new(replayed_console.clone());
        let replayer = Replayer::new(
            guest.config(),
            &ram,
            state.clone(),
            parts,
            SegmentReader::new(Epoch::NONE, start, &positions),
        );
        let replaying = thread::Builder::new().name("replay".into()).spawn(move || replayer.run(&segments, &samples));
        let replaying = replaying.unwrap();

        vm.set_input_mode(InputMode::Record(recorder.clone())).unwrap();
        assert!(tap.set(recorder.clone()).is_ok());
        let mut recording =
            Recording { vm, recorder, samples: Some(samples_in), state, minutes: 0, begin: Instant::now() };
        let cpu_before_ns = cpu_time_ns();
        let control = recording.vm.control();
        recording.run_while(|| load::run(&guest, &control, &network, schedule), cpus);
        let record_cpu_ns = cpu_time_ns() - cpu_before_ns;
        recording.finish();
        let Recording { mut vm, recorder, begin, state: first, .. } = recording;
        let wall = begin.elapsed();
        let last = vm.save().unwrap();
        let instructions = vm.instructions().unwrap() - start;
        let guest_ns = last.engine.processors.tsc() - first.engine.processors.tsc();
        let recorded_ram = vm.platform().ram().clone();
        // With the last one that could write it the log ends, and then the other VM.
        drop((vm, tap, recorder));
        let replayed = replaying.join().unwrap();

        let divergence = replayed.divergence.or_else(|| compare_memory(&recorded_ram, &ram)).or_else(|| {
            let consoles = (&guest.console()[console_before..], &*replayed_console.text());
            // What waits for room in the host's network has not left yet, on one side.
            let outputs = (output.so_far(), replayed_output.so_far());
            let outputs = (none_waits(&first) && none_waits(&last)).then_some(outputs);
            compare_effects(outputs, consoles, &disks)
        });
        if let Some(what) = &divergence {
            keep(&disks, what, cpus);
        }
        Figures {
            cpus,
            guest_ns,
            wall,
            instructions,
            inputs: replayed.inputs,
            frames_out: replayed_output.so_far().0,
            frames: replayed.frames,
            entropy: replayed.entropy,
            clock_steps: replayed.clock_steps,
            digests: replayed.digests,
            log_bytes: log_bytes.load(Ordering::Relaxed),
            inbound_bytes: inbound_bytes.load(Ordering::Relaxed),
            record_cpu_ns,
            replay_cpu_ns: replayed.cpu_ns,
            divergences: u64::from(divergence.is_some()),
        }
    }
}

/// Says what differs, and keeps the disks for whoever looks for the cause.
fn keep(disks: &[PathBuf; 2], what: &str, cpus: u32) {
    let folder = evidence_folder();
    for disk in disks {
        std::fs::copy(disk, folder.join(disk.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.join("divergence.txt"), what).unwrap();
    eprintln!("{cpus} vCPUs: DIVERGENCE; evidence is in {}\n{what}", folder.display());
}

/// The VM that serves its clients, and what it is in the eyes of the other one's thread.
struct Recording {
    vm: Vm,
    recorder: Arc<LogRecorder>,
    /// Until the other one does not want any more.
    samples: Option<SyncSender<Sample>>,
    state: VmState,
    minutes: u64,
    begin: Instant,
}

impl Recording {
    /// Runs the VM while `work` uses it.
    fn run_while(&mut self, work: impl FnOnce() + Send, cpus: u32) {
        let control = self.vm.control();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let _pause = support::Pause::new(&control, &done);
                work();
            });
            while !done.load(Ordering::Acquire) {
                let due = next_digest_at(self.vm.instructions().unwrap());
                match self.vm.run(Some(due)).unwrap() {
                    RunEnd::LimitReached => self.take_sample(),
                    RunEnd::Paused => {}
                    end => panic!("the guest has ended: {end:?}"),
                }
                self.tell_progress(cpus);
            }
            worker.join().unwrap();
        });
    }

    fn take_sample(&mut self) {
        let Some(samples) = &self.samples else { return };
        let state = StateDigest::take(&mut self.vm).unwrap();
        self.recorder.digest(state.instructions, state.digest);
        if samples.send(Sample::new(state, self.vm.platform().ram())).is_err() {
            // It goes on alone, like a primary.
            self.recorder.stop();
            self.samples = None;
        }
    }

    /// The last digest, and the end of the log.
    fn finish(&mut self) {
        self.take_sample();
        self.recorder.close(self.vm.instructions().unwrap());
        self.samples = None;
    }

    fn tell_progress(&mut self, cpus: u32) {
        let instructions = self.vm.instructions().unwrap() - self.state.engine.processors.instructions;
        let guest_ns = self.vm.platform().clock().now_ns() - self.state.platform.clock_ns;
        if guest_ns / TICKS_PER_MINUTE > self.minutes {
            self.minutes = guest_ns / TICKS_PER_MINUTE;
            let wall_s = self.begin.elapsed().as_secs();
            let note = if self.samples.is_some() { "" } else { " (diverged)" };
            eprintln!("{cpus} vCPUs: minute {} in {wall_s} s, {instructions} instructions{note}", self.minutes);
        }
    }
}

/// What of the two memories differs, although all digests were the same.
fn compare_memory(recorded: &GuestRam, replayed: &GuestRam) -> Option<String> {
    let (mut left, mut right) = (vec![0; PAGE_BYTES as usize], vec![0; PAGE_BYTES as usize]);
    let differing: Vec<u64> = (0..recorded.pages())
        .filter(|page| {
            recorded.read_offset(page * PAGE_BYTES, &mut left);
            replayed.read_offset(page * PAGE_BYTES, &mut right);
            left != right
        })
        .collect();
    (!differing.is_empty()).then(|| format!("pages that differ though all digests were the same: {differing:x?}"))
}

/// Whether all that the VM sent has found room in the host's network.
fn none_waits(state: &VmState) -> bool {
    state.platform.cards.iter().all(|card| card.device.waiting_tx.is_empty())
}

/// What differs of what the two VMs did outside of themselves: frames sent (number and digest, where they can be compared), consoles
/// and disks, the recorded one's first.
fn compare_effects(
    frames: Option<((u64, u64), (u64, u64))>,
    consoles: (&str, &str),
    disks: &[PathBuf; 2],
) -> Option<String> {
    if frames.is_some_and(|(recorded, replayed)| recorded != replayed) {
        return Some(format!("the frames sent differ (number, digest): {frames:?}"));
    }
    if consoles.0 != consoles.1 {
        return Some(format!("the consoles differ; the replaying VM's:\n{}", consoles.1));
    }
    (std::fs::read(&disks[0]).unwrap() != std::fs::read(&disks[1]).unwrap()).then(|| "the disks differ".to_owned())
}

/// Processor time that this thread has taken.
pub fn cpu_time_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
