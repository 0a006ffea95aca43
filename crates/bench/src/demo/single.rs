//! One VM in this process, and a client outside that talks to it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::foreground::open;
use indicatif::{ProgressBar, ProgressStyle};
use machine::devices::serial::ConsoleSink;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::vm::{Boot, Vm};
use redis::{Commands, Connection};
use serde::Serialize;
use spec::VmSpec;
use spec::{EngineChoice, EngineKind};
use terminal::interrupt;
use terminal::output::{is_stdout, print_line, write_json};

use super::{DemoArguments, IMAGE, build_image, free_port};

/// How long the guest may take to answer: a bound that only a hung guest meets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the guest may take to shut down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests of the measured part.
const SINGLE_REQUESTS: usize = 500;
const PIPELINED_REQUESTS: usize = 10_000;
const PIPELINE_DEPTH: usize = 64;

/// What the demo saw.
#[derive(Debug, Serialize)]
struct Outcome {
    engine: EngineKind,
    /// From power-on to the first answer.
    boot_s: f64,
    /// One request at a time.
    single_requests_per_s: f64,
    single_latency_p50_ms: f64,
    /// 64 requests under way.
    pipelined_requests_per_s: f64,
    /// Increments that the client was told of, and what the counter holds.
    acknowledged: i64,
    counter: i64,
    instructions: Option<u64>,
}

pub fn run(arguments: &DemoArguments) -> Result<ExitCode> {
    let quiet = is_stdout(arguments.json.as_deref());
    build_image()?;
    let folder = tempfile::Builder::new().prefix("twinvm-demo-").tempdir().context("cannot make a temporary folder")?;
    let port = free_port()?;
    let spec = VmSpec::parse(&format!(
        r#"
        name = "demo-{pid}"
        memory = "256M"
        image = "{IMAGE}"
        [[disk]]
        path = "{disk}"
        format = "qcow2"
        base_image = "{IMAGE}"
        [[network]]
        mode = "user"
        forward = ["tcp:127.0.0.1:{port}-:6379"]
        "#,
        pid = std::process::id(),
        disk = folder.path().join("root.qcow2").display(),
    ))?;
    let choice = EngineChoice::from(arguments.engine);
    let (engine, reason) = machine::probe::choose(choice);
    if !quiet {
        print_line(&format!("booting Debian with Redis on the {engine} engine ({reason})"))?;
    }
    let (mut outcome, instructions) = with_vm(&spec, engine, |is_running| exercise(is_running, port, engine, quiet))?;
    outcome.instructions = instructions;
    if outcome.acknowledged != outcome.counter {
        bail!("the counter holds {}, but {} increments were acknowledged", outcome.counter, outcome.acknowledged);
    }
    if let Some(path) = &arguments.json {
        write_json(path, &outcome)?;
    }
    if !quiet {
        print_line(&format!("power-on to first answer     {:>10.1} s", outcome.boot_s))?;
        print_line(&format!("one request at a time        {:>10.0} requests/s", outcome.single_requests_per_s))?;
        print_line(&format!("  latency p50                {:>10.2} ms", outcome.single_latency_p50_ms))?;
        print_line(&format!(
            "{PIPELINE_DEPTH} requests under way        {:>10.0} requests/s",
            outcome.pipelined_requests_per_s
        ))?;
        print_line(&format!("increments acknowledged      {:>10}", outcome.acknowledged))?;
        print_line(&format!("counter in the guest         {:>10}", outcome.counter))?;
        print_line("Redis in a Debian guest answered a client outside; the guest has shut down.")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The last of the console, to show if things go wrong.
#[derive(Clone, Default)]
struct ConsoleTail(Arc<std::sync::Mutex<Vec<u8>>>);

impl ConsoleSink for ConsoleTail {
    fn write(&mut self, bytes: &[u8]) {
        const TAIL_BYTES: usize = 4096;
        let mut tail = machine::bus::lock(&self.0);
        tail.extend_from_slice(bytes);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
}

/// Runs a VM in a thread while `work` uses it (and can ask whether it still runs); presses its power button afterwards, waits
/// until it is off, and says how many instructions it took.
fn with_vm<T>(
    spec: &VmSpec,
    engine: EngineKind,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T>,
) -> Result<(T, Option<u64>)> {
    let ends = open::Ends::start(&spec.name, &spec.networks)?;
    let console = ConsoleTail::default();
    let guest = open::guest(spec)?;
    let boot =
        Boot::Linux { kernel: &guest.kernel, initrd: guest.initrd.as_deref(), command_line: &guest.command_line };
    let parts = open::parts(open::disks(spec)?, ends.connect()?, Box::new(console.clone()))?;
    let mut vm = Vm::boot(open::config(spec)?, &boot, parts, engine, InputMode::Live)?;
    let control = vm.control();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            let end = vm.run(None);
            (end, vm.instructions())
        });
        let result = work(&|| !running.is_finished());
        control.press_power_button();
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while !running.is_finished() && Instant::now() < deadline && !interrupt::is_requested() {
            std::thread::sleep(Duration::from_millis(20));
        }
        control.pause();
        let (end, instructions) = running.join().map_err(|_| anyhow::anyhow!("the VM's thread panicked"))?;
        let result = result.and_then(|result| match end? {
            RunEnd::Guest(GuestEvent::PowerOff) => Ok((result, instructions)),
            other => bail!("the guest did not shut down by itself: {other:?}"),
        });
        result.with_context(|| {
            let tail = machine::bus::lock(&console.0);
            format!("the end of the guest's console:\n{}", String::from_utf8_lossy(&tail))
        })
    })
}

fn exercise(is_running: &dyn Fn() -> bool, port: u16, engine: EngineKind, quiet: bool) -> Result<Outcome> {
    let start = Instant::now();
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.set_style(ProgressStyle::with_template("{spinner} waiting for Redis in the guest, {elapsed}")?);
    let mut connection = loop {
        bar.tick();
        if interrupt::is_requested() {
            bail!("interrupted");
        }
        if !is_running() {
            bail!("the VM ended before Redis answered");
        }
        if start.elapsed() > ANSWER_TIMEOUT {
            bail!("no answer from Redis within {} s", ANSWER_TIMEOUT.as_secs());
        }
        match connect(port) {
            Ok(connection) => break connection,
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    let boot_s = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let mut acknowledged = 0;
    let mut latencies_ms = Vec::with_capacity(SINGLE_REQUESTS);
    let single = Instant::now();
    for _ in 0..SINGLE_REQUESTS {
        let sent = Instant::now();
        acknowledged = connection.incr("counter", 1)?;
        latencies_ms.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    let single_s = single.elapsed().as_secs_f64();
    latencies_ms.sort_by(f64::total_cmp);
    let pipelined = Instant::now();
    for _ in 0..PIPELINED_REQUESTS / PIPELINE_DEPTH {
        let mut pipeline = redis::pipe();
        for _ in 0..PIPELINE_DEPTH {
            pipeline.incr("counter", 1);
        }
        let answers: Vec<i64> = pipeline.query(&mut connection)?;
        acknowledged = answers.last().copied().unwrap_or(acknowledged);
    }
    let pipelined_s = pipelined.elapsed().as_secs_f64();
    Ok(Outcome {
        engine,
        boot_s,
        single_requests_per_s: SINGLE_REQUESTS as f64 / single_s,
        single_latency_p50_ms: latencies_ms.get(SINGLE_REQUESTS / 2).copied().unwrap_or_default(),
        pipelined_requests_per_s: (PIPELINED_REQUESTS / PIPELINE_DEPTH * PIPELINE_DEPTH) as f64 / pipelined_s,
        acknowledged,
        counter: connection.get("counter")?,
        instructions: None,
    })
}

fn connect(port: u16) -> redis::RedisResult<Connection> {
    let client = redis::Client::open(("127.0.0.1", port))?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let _: String = redis::cmd("PING").query(&mut connection)?;
    Ok(connection)
}
