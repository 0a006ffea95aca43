//! The two programs that run the guest, each in a process of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use machine::bus::lock;
use terminal::interrupt;

use super::agent::{self, Agent};
use super::scene::{MEMORY_BYTES, Scene};
use crate::qemu::PROGRAM as QEMU;

/// What the guest says when all of its services answer.
const READY: &[u8] = b"twinvm: guest ready";
/// How long it may take until then: a bound that only a hung guest meets.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// How often is looked whether somebody wants the benchmark to end.
const POLL: Duration = Duration::from_millis(100);
/// What of the console is kept for messages, in bytes.
const CONSOLE_TAIL_BYTES: usize = 4096;

/// A program that runs virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// twinvm's kvm engine.
    Twinvm,
    /// QEMU's microvm on KVM.
    Qemu,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twinvm => "twinvm",
            Self::Qemu => "QEMU",
        })
    }
}

/// A guest that is ready. It ends with this value.
pub struct Guest {
    process: Child,
    console: Arc<Mutex<VecDeque<u8>>>,
    /// From the start of the program to the guest's word that it is ready.
    pub boot: Duration,
    /// Where its Redis is reached.
    pub redis: SocketAddr,
    /// Where its shells are reached.
    pub agent: Agent,
}

/// Ports of this machine that lead into the guest.
struct Ports {
    redis: u16,
    agent: u16,
}

impl Ports {
    /// Ports that were free a moment ago. Both are taken before either is given back: else they may be the same.
    fn free() -> Result<Self> {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1");
        let (redis, agent) = (bind()?, bind()?);
        Ok(Self { redis: redis.local_addr()?.port(), agent: agent.local_addr()?.port() })
    }
}

impl Vmm {
    /// Starts the guest and waits until it is ready.
    pub fn boot(self, scene: &Scene) -> Result<Guest> {
        let ports = Ports::free()?;
        let mut command = match self {
            Self::Twinvm => twinvm(scene, &ports)?,
            Self::Qemu => qemu(scene, &ports)?,
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut process = command.spawn().context("cannot start it")?;
        let output = process.stdout.take().context("it has no output")?;
        let console = Arc::new(Mutex::new(VecDeque::new()));
        let (ready, is_ready) = channel();
        thread::spawn({
            let console = console.clone();
            move || listen(output, &console, || _ = ready.send(Instant::now()))
        });
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (redis, agent) = (address(ports.redis), Agent(address(ports.agent)));
        let mut guest = Guest { process, console, boot: Duration::ZERO, redis, agent };
        guest.boot = wait(&is_ready, start).with_context(|| format!("its console:\n{}", guest.console_tail()))?;
        guest.agent.wait()?;
        Ok(guest)
    }
}

impl Guest {
    /// The end of what its console said.
    pub fn console_tail(&self) -> String {
        let bytes: Vec<u8> = lock(&self.console).iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait(is_ready: &Receiver<Instant>, start: Instant) -> Result<Duration> {
    loop {
        match is_ready.recv_timeout(POLL) {
            Ok(ready) => return Ok(ready.saturating_duration_since(start)),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended before the guest was ready"),
            Err(RecvTimeoutError::Timeout) if interrupt::is_requested() => bail!("interrupted"),
            Err(RecvTimeoutError::Timeout) if start.elapsed() > BOOT_TIMEOUT => {
                bail!("the guest was not ready within {} s", BOOT_TIMEOUT.as_secs())
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Listens to the console until it is closed; says when the guest is ready, once.
fn listen(mut output: impl Read, console: &Mutex<VecDeque<u8>>, ready: impl FnOnce()) {
    let mut ready = Some(ready);
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let len = match output.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = buffer.get(..len).unwrap_or_default();
        let mut tail = lock(console);
        tail.extend(bytes);
        let excess = tail.len().saturating_sub(CONSOLE_TAIL_BYTES);
        tail.drain(..excess);
        drop(tail);
        for &byte in bytes {
            if byte == b'\n' {
                line.clear();
            } else if line.len() < READY.len() {
                line.push(byte);
            }
            if line == READY
                && let Some(ready) = ready.take()
            {
                ready();
            }
        }
    }
}

fn twinvm(scene: &Scene, ports: &Ports) -> Result<Command> {
    let spec = format!(
        "name = \"bench-kvm-{pid}\"\ncpus = {cpus}\nmemory = \"{memory_mib}M\"\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
         cmdline = {cmdline:?}\n\
         [[disk]]\npath = {root:?}\nformat = \"qcow2\"\n\
         [[disk]]\npath = {data:?}\nformat = \"raw\"\n\
         [[network]]\nmode = \"user\"\n\
         forward = [\"tcp:127.0.0.1:{redis}-:6379\", \"tcp:127.0.0.1:{agent}-:{agent_port}\"]\n",
        pid = std::process::id(),
        cpus = scene.cpus,
        memory_mib = MEMORY_BYTES >> 20,
        kernel = scene.kernel,
        initrd = scene.initrd,
        cmdline = scene.command_line,
        root = scene.new_root()?,
        data = scene.data,
        redis = ports.redis,
        agent = ports.agent,
        agent_port = agent::PORT,
    );
    let path = scene.path("spec.toml");
    std::fs::write(&path, spec).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find the twinvm program")?);
    command.arg("run").arg(path).args(["--engine", "kvm"]);
    Ok(command)
}

fn qemu(scene: &Scene, ports: &Ports) -> Result<Command> {
    let mut command = Command::new(QEMU);
    command
        // Without the devices that twinvm's machine has not: timers and interrupt controllers of the PC/AT.
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "microvm,pit=off,pic=off,rtc=on"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-smp", &scene.cpus.to_string(), "-m", &format!("{}M", MEMORY_BYTES >> 20)])
        .arg("-kernel")
        .arg(&scene.kernel)
        .arg("-initrd")
        .arg(&scene.initrd)
        .args(["-append", &scene.command_line])
        .args(["-drive", &format!("if=none,id=root,format=qcow2,file={}", scene.new_root()?.display())])
        .args(["-drive", &format!("if=none,id=data,format=raw,file={}", scene.data.display())])
        .args(["-device", "virtio-blk-device,drive=root", "-device", "virtio-blk-device,drive=data"])
        .arg("-netdev")
        .arg(format!(
            "user,id=net,hostfwd=tcp:127.0.0.1:{}-:6379,hostfwd=tcp:127.0.0.1:{}-:{}",
            ports.redis,
            ports.agent,
            agent::PORT
        ))
        .args(["-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_ready_when_a_line_says_so() {
        let console = Mutex::default();
        let heard = |text: &[u8]| {
            let mut times = 0;
            listen(text, &console, || times += 1);
            times
        };
        assert_eq!(heard(b"[ 0.1] Command line: echo twinvm: guest ready\r\n"), 0);
        assert_eq!(heard(b"login\r\ntwinvm: guest ready\r\ntwinvm: guest ready\r\n"), 1);
        heard(&vec![b'x'; 2 * CONSOLE_TAIL_BYTES]);
        assert_eq!(lock(&console).len(), CONSOLE_TAIL_BYTES);
    }
}
