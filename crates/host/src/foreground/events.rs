//! What a foreground run says besides the guest's console: lines for people, or JSON.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use machine::devices::serial::ConsoleSink;
use machine::generation::NOT_HEEDED;
use serde::Serialize;

use super::output::{Output, OutputSink};
use super::raw_terminal;

/// Something that happened to the VM.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The VM runs.
    Started {
        /// Its name.
        name: &'a str,
        /// Its engine.
        engine: String,
        /// Why that engine.
        reason: &'a str,
    },
    /// This machine's kernel cannot confine the VM's process to what it needs in every way.
    ConfinedInPart {
        /// What it does enforce.
        enforced: String,
    },
    /// Bytes on the console.
    Console {
        /// As text; bytes that are not UTF-8 are replaced.
        text: &'a str,
    },
    /// The guest asked for a reset and starts again.
    Reset,
    /// The guest is reset by a triple fault: as a rule, it has crashed. A reset follows.
    TripleFault {
        /// Which vCPU, and what is known of where it was.
        place: String,
        /// How many there were since the start, this one included.
        count: u64,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// A snapshot was written.
    Snapshot {
        /// The file.
        path: &'a Path,
    },
    /// The guest that is saved, or goes on, does not notice that it is restored.
    GenerationNotHeeded {
        /// What that means.
        message: &'static str,
    },
    /// The power button was pressed.
    PowerButton,
    /// What happens to the VM is recorded, for `twinvm replay`.
    Recording {
        /// The log's file.
        path: &'a Path,
    },
    /// The record cannot be written any more; the VM goes on.
    RecordingFailed {
        /// The log's file.
        path: &'a Path,
        /// Why the recording failed.
        reason: String,
    },
    /// The record is complete.
    Recorded {
        /// The log's file.
        path: &'a Path,
        /// Instructions retired since power-on.
        instructions: u64,
        /// Digest of the VM's last state.
        digest: String,
    },
    /// The VM has ended.
    Stopped {
        /// Why the VM has ended.
        reason: &'a str,
        /// Instructions retired, where the engine counts them.
        instructions: Option<u64>,
    },
}

/// Where events go.
#[derive(Clone)]
pub struct Reporter {
    json: bool,
    out: OutputSink,
    /// Console output is held back until it is valid UTF-8.
    partial: Arc<Mutex<Vec<u8>>>,
}

impl Reporter {
    /// JSON lines on standard output, or messages on standard error. Nobody who reports waits for a reader, or is ended by an error there; the output
    /// is complete when the second part of the result is dropped.
    pub fn start(json: bool) -> io::Result<(Self, Output)> {
        let output = if json {
            let left_out = |bytes| format!("{{\"event\":\"left-out\",\"bytes\":{bytes}}}\n");
            Output::start(io::stdout(), left_out)?
        } else {
            Output::start(io::stderr(), raw_terminal::left_out)?
        };
        Ok((Self { json, out: output.sink(), partial: Arc::default() }, output))
    }

    fn write(&self, text: &str) {
        // It takes everything.
        let _ = self.out.clone().write_all(text.as_bytes());
    }

    /// Says of a guest that is saved, or goes on, what its random numbers will be.
    pub fn report_generation(&self, is_heeded: bool) {
        if !is_heeded {
            self.report(&Event::GenerationNotHeeded { message: NOT_HEEDED });
        }
    }

    /// Says it.
    pub fn report(&self, event: &Event) {
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                self.write(&format!("{line}\n"));
            }
            return;
        }
        let message = match event {
            Event::Started { name, engine, reason } => {
                format!("VM {name} runs on the {engine} engine ({reason}); Ctrl-] presses its power button")
            }
            Event::ConfinedInPart { enforced } => format!("the sandbox is incomplete: {enforced}"),
            Event::Console { .. } => return,
            Event::Reset => "the guest resets".to_owned(),
            Event::TripleFault { place, count } => format!("triple fault {count}, the guest has crashed: {place}"),
            Event::Panicked => "the guest's kernel panicked".to_owned(),
            Event::Snapshot { path } => format!("snapshot written: {}", path.display()),
            Event::Recording { path } => format!("recording to {}", path.display()),
            Event::RecordingFailed { path, reason } => {
                format!("the record {} ends here, and the VM goes on: {reason}", path.display())
            }
            Event::Recorded { path, instructions, digest } => {
                format!("recorded: {}, {instructions} instructions, digest {digest}", path.display())
            }
            Event::GenerationNotHeeded { message } => format!("warning: {message}"),
            Event::PowerButton => "power button pressed; Ctrl-] again pulls the plug".to_owned(),
            Event::Stopped { reason, .. } => format!("VM stopped: {reason}"),
        };
        // The terminal is in raw mode: a new line needs both characters.
        self.write(&format!("\r\ntwinvm: {message}\r\n"));
    }
}

/// The console as events.
impl ConsoleSink for Reporter {
    fn write(&mut self, bytes: &[u8]) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        partial.extend_from_slice(bytes);
        let complete = match std::str::from_utf8(&partial) {
            Ok(_) => partial.len(),
            // A character that may still be completed waits; anything else is replaced.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => partial.len(),
        };
        if complete > 0 {
            let ready: Vec<u8> = partial.drain(..complete).collect();
            drop(partial);
            self.report(&Event::Console { text: &String::from_utf8_lossy(&ready) });
        }
    }
}
