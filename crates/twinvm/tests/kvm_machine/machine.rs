//! The nested machine, running: commands go in by one serial port and their output comes back, another one is its console.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::emulator::{Disks, Emulator};

/// How long a boot may take before it counts as hung; in QEMU it takes some 10 s, in Bochs three minutes.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// The same for QEMU, which sometimes hangs.
const QEMU_BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How much of the console is shown with an error.
const CONSOLE_TAIL_BYTES: usize = 8192;

/// What a command came to.
pub struct Outcome {
    pub status: i32,
    pub output: String,
}

/// A machine that takes commands; powered off when dropped.
pub struct Machine {
    process: Child,
    control: TcpStream,
    folder: TempDir,
}

impl Machine {
    /// Boots a machine. None of what it writes to its disks is kept.
    ///
    /// # Errors
    /// It does not come up; says what its console said.
    pub fn boot(emulator: Emulator, disks: &Disks) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut process = emulator.start(disks, folder.path(), listener.local_addr().unwrap().port());
        let Some(control) = accept(&listener, &mut process) else {
            let _ = process.kill();
            let log = fs::read_to_string(folder.path().join("emulator.log")).unwrap_or_default();
            return Err(format!("{emulator:?} does not start:\n{log}"));
        };
        let mut machine = Self { process, control, folder };
        let limit = if emulator == Emulator::Qemu { QEMU_BOOT_LIMIT } else { BOOT_LIMIT };
        machine.read_until(|text| text.ends_with("machine: ready\n"), limit)?;
        Ok(machine)
    }

    /// Runs a shell command.
    ///
    /// # Errors
    /// The machine stops or hangs; it cannot be used then.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Outcome, String> {
        writeln!(self.control, "{command}").map_err(|error| self.lost(&error.to_string()))?;
        let text = self.read_until(|text| status_line(text).is_some(), limit)?;
        let (output, status) = status_line(&text).unwrap();
        Ok(Outcome { status, output: output.to_owned() })
    }

    fn read_until(&mut self, is_complete: impl Fn(&str) -> bool, limit: Duration) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        let (mut text, mut buffer) = (String::new(), [0; 65536]);
        self.control.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        while !is_complete(&text) {
            match self.control.read(&mut buffer) {
                Ok(0) => return Err(self.lost(&format!("it has stopped; its output so far:\n{text}"))),
                Ok(count) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(error) => return Err(self.lost(&format!("{error} after {limit:?}; its output so far:\n{text}"))),
            }
        }
        Ok(text)
    }

    fn lost(&self, why: &str) -> String {
        let console = fs::read(self.folder.path().join("console")).unwrap_or_default();
        let tail = &console[console.len().saturating_sub(CONSOLE_TAIL_BYTES)..];
        format!("the nested machine: {why}\nits console:\n{}", String::from_utf8_lossy(tail))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for the emulator to connect the serial port.
fn accept(listener: &TcpListener, process: &mut Child) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < BOOT_LIMIT && process.try_wait().unwrap().is_none() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

/// The output before the line by which the agent says how a command ended, and its status.
fn status_line(text: &str) -> Option<(&str, i32)> {
    let (output, status) = text.strip_suffix('\n')?.rsplit_once("\nmachine: status ")?;
    Some((output, status.parse().ok()?))
}
