//! A guest's console, as `twinvm vm console` gives it.

use std::io::{Read, Write};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::HUNG;
use crate::world::{VM, World};

/// A console that is connected.
pub struct Console {
    command: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Console {
    /// Connects on `host`, again and again until the guest's shell answers: what is typed before it reads is lost, and a client
    /// that does not keep up with the kernel's messages is cut off.
    pub fn connect(world: &World, host: &str) -> Self {
        let deadline = Instant::now() + HUNG;
        loop {
            let mut console = Self::open(world, host);
            console.type_line("echo shell-$((40+2))");
            if console.has_seen("shell-42", Duration::from_secs(2)) {
                return console;
            }
            assert!(Instant::now() < deadline, "no shell on the console: {}", console.seen);
        }
    }

    fn open(world: &World, host: &str) -> Self {
        let mut command = world.spawn(host, &["vm", "console", VM]);
        let mut stdout = command.stdout.take().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut bytes) {
                if sender.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { command, output, seen: String::new() }
    }

    pub fn type_line(&mut self, line: &str) {
        let stdin = self.command.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\r").unwrap();
    }

    pub fn wait_for(&mut self, text: &str) {
        assert!(self.has_seen(text, HUNG), "waited for {text:?} on the console: {}", self.seen);
    }

    /// Whether the guest writes this text in time. What it wrote up to then is forgotten if it does.
    fn has_seen(&mut self, text: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.seen.contains(text) {
            let Ok(bytes) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                return false;
            };
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.seen.clear();
        true
    }

    /// Waits until the command ends because the VM has; what it says.
    pub fn wait_for_end(mut self) -> String {
        let deadline = Instant::now() + HUNG;
        while self.command.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the console does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut text = String::new();
        self.command.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Leaves by Ctrl-].
    pub fn leave(mut self) {
        self.command.stdin.as_mut().unwrap().write_all(&[0x1d]).unwrap();
        assert!(self.command.wait().unwrap().success());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}
