//! The work on QEMU's translator (TCG), in a process of its own.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use terminal::interrupt;

use super::cpu_time;
use super::stopwatch::{Run, Stopwatch};
use super::work::{MEMORY_BYTES, RUN_TIMEOUT, Work};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// How often a running guest is looked after.
const POLL: Duration = Duration::from_millis(100);

/// The version of the QEMU that is installed, if one is.
pub fn version() -> Result<Option<String>> {
    match Command::new(PROGRAM).arg("--version").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().next().and_then(|line| Some(line.rsplit_once("version ")?.1.to_owned())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(PROGRAM),
    }
}

/// A QEMU that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does the work once.
pub fn run(work: &Work) -> Result<Run> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["-accel", "tcg", "-machine", "pc", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-m", &format!("{}M", MEMORY_BYTES >> 20)])
        .arg("-kernel")
        .arg(&work.kernel_path)
        .arg("-initrd")
        .arg(&work.initrd_path)
        .args(["-append", &work.command_line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut stopwatch = Stopwatch::start(Duration::ZERO);
    let mut process = Process(command.spawn().context(PROGRAM)?);
    let pid = process.0.id();
    let mut console = process.0.stdout.take().context("QEMU has no output")?;
    let deadline = Instant::now() + RUN_TIMEOUT;
    let (done, is_done) = channel();
    let listener = thread::spawn(move || {
        let heard = listen(&mut console, &mut stopwatch, pid);
        // Nobody waits any more if the run was given up.
        let _ = done.send(());
        heard.map(|()| stopwatch)
    });
    while is_done.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
        if interrupt::is_requested() {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            bail!("{PROGRAM} did not finish within {} s", RUN_TIMEOUT.as_secs());
        }
    }
    let stopwatch = listener.join().ok().context("the thread that listens to QEMU panicked")??;
    let status = process.0.wait()?;
    if !status.success() {
        bail!("{PROGRAM}: {status}");
    }
    stopwatch.finish(None)
}

/// Listens to the console until QEMU closes it.
fn listen(console: &mut impl Read, stopwatch: &mut Stopwatch, pid: u32) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match console.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => stopwatch.hear(buffer.get(..len).unwrap_or_default(), || cpu_time::of_process(pid))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
