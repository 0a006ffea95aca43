//! A Debian machine in an emulator, running: commands go in by one serial port and their output comes back, another one is its console.

pub mod disk;
pub mod qemu;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What a machine sources to be a shell on its second serial port.
pub const SHELL: &[u8] = include_bytes!("shell");
/// The file in a machine's folder that its console goes to.
pub const CONSOLE: &str = "console";

/// How long an emulator may take to start before it counts as hung.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How much of the console is shown with an error.
const CONSOLE_TAIL_BYTES: usize = 8192;

/// What a command came to.
pub struct Outcome {
    pub status: i32,
    pub output: String,
}

/// A machine that takes commands. When it is dropped, it loses its power: what its kernel has not written to its disks is gone.
pub struct Machine {
    process: Child,
    control: TcpStream,
    folder: Arc<TempDir>,
}

impl Machine {
    /// Starts what `emulator` makes of the machine's folder and of the TCP port of 127.0.0.1 that the second serial port is to be connected to.
    ///
    /// # Errors
    /// The emulator does not start; says why.
    pub fn start(folder: &Arc<TempDir>, emulator: impl FnOnce(&Path, u16) -> Command) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut command = emulator(folder.path(), listener.local_addr().unwrap().port());
        let log = File::create(folder.path().join("emulator.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut process =
            command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error} (`make setup` installs it)"));
        let Some(control) = accept(&listener, &mut process) else {
            let _ = process.kill();
            let _ = process.wait();
            let log = fs::read_to_string(folder.path().join("emulator.log")).unwrap_or_default();
            return Err(format!("{command:?} does not start:\n{log}"));
        };
        Ok(Self { process, control, folder: folder.clone() })
    }

    /// Waits until it takes commands.
    ///
    /// # Errors
    /// It does not come up; says what its console said.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<(), String> {
        self.read_until(|text| text.ends_with("machine: ready\n"), limit).map(drop)
    }

    /// Runs a shell command of one line.
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
        let console = fs::read(self.folder.path().join(CONSOLE)).unwrap_or_default();
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

/// A command of one line that does what a script of several does.
pub fn one_line(script: &str) -> String {
    let quoted = script.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
    format!("eval $'{quoted}'")
}

/// Waits for the emulator to connect the serial port.
fn accept(listener: &TcpListener, process: &mut Child) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < START_LIMIT && process.try_wait().unwrap().is_none() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

/// The output before the line by which the shell says how a command ended, and its status.
fn status_line(text: &str) -> Option<(&str, i32)> {
    let (output, status) = text.strip_suffix('\n')?.rsplit_once("\nmachine: status ")?;
    Some((output, status.parse().ok()?))
}
