//! The work on twinvm's software processor, in this process.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use machine::bus::lock;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::rng::OsEntropy;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::platform::Parts;
use machine::vm::{Boot, Vm, VmConfig};
use spec::EngineKind;
use terminal::interrupt;

use super::cpu_time;
use super::stopwatch::{Run, Stopwatch};
use super::work::{MEMORY_BYTES, RUN_TIMEOUT, Work};

/// How often a running guest is looked after.
const POLL: Duration = Duration::from_millis(100);

struct Listener(Arc<Mutex<Stopwatch>>);

impl ConsoleSink for Listener {
    fn write(&mut self, bytes: &[u8]) {
        // Called on the thread that runs the guest. It has a CPU clock: it was read when the stopwatch was started.
        let _ = lock(&self.0).hear(bytes, cpu_time::of_this_thread);
    }
}

/// Does the work once.
pub fn run(work: &Work) -> Result<Run> {
    let begin = cpu_time::of_this_thread()?;
    let stopwatch = Arc::new(Mutex::new(Stopwatch::start(begin)));
    let parts = Parts {
        disks: Vec::new(),
        cards: Vec::new(),
        console: Box::new(Listener(stopwatch.clone())),
        entropy: Box::new(OsEntropy::open().context("cannot open /dev/urandom")?),
    };
    let config = VmConfig {
        name: "bench".to_owned(),
        cpus: 1,
        memory_bytes: MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    };
    let boot = Boot::Linux { kernel: &work.kernel, initrd: Some(&work.initrd), command_line: &work.command_line };
    let mut vm = Vm::boot(config, &boot, parts, EngineKind::Soft, InputMode::Live)?;
    let control = vm.control();
    let end = thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let deadline = Instant::now() + RUN_TIMEOUT;
        scope.spawn(move || {
            while is_done.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if interrupt::is_requested() || Instant::now() > deadline {
                    control.pause();
                }
            }
        });
        let end = vm.run(None);
        drop(done);
        end
    });
    match end? {
        RunEnd::Guest(GuestEvent::PowerOff) => {}
        RunEnd::Paused if interrupt::is_requested() => bail!("interrupted"),
        other => drop(lock(&stopwatch).finish(None).with_context(|| format!("the run ended early: {other:?}"))?),
    }
    let cpu_us = (cpu_time::of_this_thread()? - begin).as_secs_f64() * 1e6;
    let mips = vm.instructions().map(|instructions| instructions as f64 / cpu_us);
    lock(&stopwatch).finish(mips)
}
