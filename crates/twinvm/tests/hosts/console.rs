//! A guest's console, as `twinvm vm console` gives it.

use std::fs;
use std::io::{Read, Write};
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::HUNG;
use crate::world::{VM, World};

/// Sends what comes from a stream until there is no more.
pub fn pass_on(mut stream: impl Read + Send + 'static, to: Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut bytes) {
            if to.send(bytes[..len].to_vec()).is_err() {
                break;
            }
        }
    });
}

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
        let (sender, output) = channel();
        pass_on(command.stdout.take().unwrap(), sender.clone());
        pass_on(command.stderr.take().unwrap(), sender);
        Self { command, output, seen: String::new() }
    }

    pub fn type_line(&mut self, line: &str) {
        let stdin = self.command.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\r").unwrap();
    }

    /// Types a line again and again until the guest writes this text.
    fn insist(&mut self, line: &str, text: &str) {
        let deadline = Instant::now() + HUNG;
        loop {
            self.type_line(line);
            if self.has_seen(text, Duration::from_secs(2)) {
                return;
            }
            assert!(Instant::now() < deadline, "waited for {text:?} on the console: {}", self.seen);
        }
    }

    /// Waits until the guest writes this text, or the command says it.
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

    /// Waits until the command ends by itself; what it has shown and said since text was last waited for.
    pub fn wait_for_end(self) -> String {
        self.wait_for_exit().0
    }

    /// The same, and whether it succeeded.
    fn wait_for_exit(mut self) -> (String, bool) {
        let deadline = Instant::now() + HUNG;
        while self.command.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the console does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        while let Ok(bytes) = self.output.recv() {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (std::mem::take(&mut self.seen), self.command.wait().unwrap().success())
    }

    /// Types this, and no more.
    pub fn type_last(&mut self, bytes: &[u8]) {
        let mut stdin = self.command.stdin.take().unwrap();
        stdin.write_all(bytes).unwrap();
    }

    /// Leaves by the end of input.
    pub fn leave(mut self) {
        self.type_last(&[]);
        assert!(self.command.wait().unwrap().success());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

/// What a console shows whose standard input is empty.
fn shown(world: &World, host: &str) -> String {
    world.done(host, &["vm", "console", VM])
}

#[test]
fn row_24_a_console_follows_its_vm_through_takeover_and_reboot_and_ends_with_it() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let mut console = Console::connect(&world, "b");
    console.type_line("echo before-$((40+2))");
    console.wait_for("before-42");
    // The secondary has it by then: it is passed on with heartbeats.
    world.wait_for_console_on_secondary("b", "before-42");
    // The state in which it was written is there a little later, and from one before it would be written again.
    let epoch = |view: &Value| view["replicas"][0]["figures"]["epoch"].as_u64();
    let written = epoch(&world.status("a"));
    world.wait("a", "the next two checkpoints", |view| epoch(view) > written.map(|epoch| epoch + 1));
    world.kill_replica("a");
    // Also who comes just now, to the host whose daemon has not seen it yet.
    assert!(shown(&world, "a").contains("before-42"));
    console.wait_for("connected again");
    console.insist("echo after-$((40+3))", "after-43");
    // Whoever looks now sees also what was written on the other host, once.
    let text = shown(&world, "a");
    assert_eq!(text.matches("before-42").count(), 1, "{text}");
    assert!(text.contains("after-43"), "{text}");
    let log = fs::read_to_string(world.vm_folder("b").join("console.log")).unwrap();
    assert!(log.contains("VM redis runs on host b") && log.contains("before-42"), "{log}");

    world.wait_until_protected("a", "b");
    world.done("a", &["vm", "reboot", VM, "--force"]);
    console.wait_for("the VM was started anew");
    world.wait_for_redis();
    console.insist("echo rebooted-$((40+4))", "rebooted-44");
    world.done("a", &["vm", "stop", VM, "--force"]);
    let end = console.wait_for_end();
    assert!(end.contains("VM redis is off"), "{end}");
}

/// Of what was piped in, 64 KiB arrived, and the command was gone before the guest had answered.
#[test]
fn row_17_all_that_is_piped_into_a_console_arrives_however_slowly_the_guest_reads() {
    const BYTES: usize = 405_715;
    let world = World::of(&["a"]);
    world.boot_redis("a");
    let mut console = Console::connect(&world, "a");
    console.type_line(&format!("stty raw -echo; echo ready-$((40+2)); sleep 2; head -c {BYTES} | md5sum"));
    console.wait_for("ready-42");
    // Among them is the one by which who types leaves.
    let bytes: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
    console.type_last(&bytes);
    let (end, is_done) = console.wait_for_exit();
    assert!(is_done && end.contains("0a3bc62f61f17b14e68b7193d410bc20"), "{end}");
}

/// What had not arrived by then was lost, and so was the answer, and the command succeeded.
#[test]
fn row_17_a_takeover_after_the_end_of_input_costs_no_output_and_is_no_success() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let mut console = Console::connect(&world, "b");
    console.type_last(b"n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo tick-$n; sleep 0.1; done; echo last-$((40+2))\r");
    console.wait_for("tick-10\r");
    world.kill_replica("a");
    let (end, is_done) = console.wait_for_exit();
    assert!(!is_done && end.contains("what was sent before may not have arrived"), "{end}");
    assert!(end.contains("connected again") && end.contains("last-42"), "{end}");
}

/// What was on its way then, or waited for the guest, was lost.
#[test]
fn row_17_nothing_that_is_typed_during_a_switchover_is_lost_in_either_mode() {
    const BYTES: usize = 405_715;
    for mode in ["mirror", "lockstep"] {
        let world = World::of(&["a", "b"]);
        world.boot_redis("a");
        world.done("a", &["ft", "on", VM, "--yes", "--mode", mode]);
        let mut console = Console::connect(&world, "b");
        console.type_line(&format!("stty raw -echo; echo ready-$((40+2)); sleep 3; head -c {BYTES} | md5sum"));
        console.wait_for("ready-42");
        let bytes: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
        let mut stdin = console.command.stdin.take().unwrap();
        let typing = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        world.done("a", &["ft", "switchover", VM]);
        typing.join().unwrap();
        let (end, is_done) = console.wait_for_exit();
        assert!(end.contains("connected again"), "{mode}: {end}");
        assert!(is_done && end.contains("0a3bc62f61f17b14e68b7193d410bc20"), "{mode}: {end}");
    }
}
