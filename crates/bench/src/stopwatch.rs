//! Timing a guest by what it says on its console.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::work::MARKS;

/// Most bytes of a console line that are looked at.
const LINE_BYTES_MAX: usize = 1024;
/// Lines of the console that are kept for messages.
const LINES_KEPT: usize = 20;

/// A moment on both clocks.
#[derive(Clone, Copy)]
struct Moment {
    wall: Instant,
    cpu: Duration,
}

/// Time between two moments.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lap {
    /// Wall-clock time.
    pub wall_s: f64,
    /// CPU time of the emulator.
    pub cpu_s: f64,
}

/// One run of the work.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// From power-on to the first line of the work's script.
    pub boot: Lap,
    /// 100,000 steps of a shell loop.
    pub shell_loop: Lap,
    /// The MD5 digest of 64 MiB that come through a pipe.
    pub md5: Lap,
    /// Instructions that the guest retired per microsecond of CPU time from power-on to power-off, where they are counted.
    pub mips: Option<f64>,
}

/// Notes when the console said each of [`MARKS`].
pub struct Stopwatch {
    moments: Vec<Moment>,
    /// Complete lines of the console, the last ones of them.
    lines: VecDeque<String>,
    line: Vec<u8>,
}

impl Stopwatch {
    /// Starts, where the emulator has taken `cpu` so far.
    pub fn start(cpu: Duration) -> Self {
        Self { moments: vec![Moment { wall: Instant::now(), cpu }], lines: VecDeque::new(), line: Vec::new() }
    }

    /// Takes console output. `cpu` reads the emulator's CPU time.
    pub fn hear(&mut self, bytes: &[u8], cpu: impl Fn() -> io::Result<Duration>) -> io::Result<()> {
        for &byte in bytes {
            if byte != b'\n' {
                // What does not fit is lost; no mark is that long.
                if self.line.len() < LINE_BYTES_MAX {
                    self.line.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
            if self.next_mark().is_some_and(|mark| line.starts_with(mark)) {
                self.moments.push(Moment { wall: Instant::now(), cpu: cpu()? });
            }
            if self.lines.len() == LINES_KEPT {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
        Ok(())
    }

    fn next_mark(&self) -> Option<&'static str> {
        MARKS.get(self.moments.len() - 1).copied()
    }

    /// The times, once the guest has ended.
    pub fn finish(&self, mips: Option<f64>) -> Result<Run> {
        let laps: Vec<Lap> = self.moments.windows(2).map(lap).collect();
        let [boot, shell_loop, md5] = laps[..] else {
            let missing = self.next_mark().unwrap_or_default();
            let console = self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
            bail!("the guest ended before it said {missing:?}; the end of its console:\n{console}");
        };
        Ok(Run { boot, shell_loop, md5, mips })
    }
}

fn lap(pair: &[Moment]) -> Lap {
    match pair {
        [begin, end] => Lap {
            wall_s: (end.wall - begin.wall).as_secs_f64(),
            cpu_s: end.cpu.saturating_sub(begin.cpu).as_secs_f64(),
        },
        _ => Lap { wall_s: 0.0, cpu_s: 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(stopwatch: &mut Stopwatch, text: &str, cpu_s: u64) {
        stopwatch.hear(text.as_bytes(), || Ok(Duration::from_secs(cpu_s))).unwrap();
    }

    #[test]
    fn marks_are_timed_in_their_order() {
        let mut stopwatch = Stopwatch::start(Duration::from_secs(1));
        hear(&mut stopwatch, "bench: 100000\r\n[ 1.0] Command line: echo bench: ready;\r\nbench: re", 2);
        hear(&mut stopwatch, "ady\r\n", 4);
        hear(&mut stopwatch, "bench: 100000\r", 5);
        hear(&mut stopwatch, "\n7f614da9329cd3aebf59b91aadc30bf0  -\r\n", 9);
        let run = stopwatch.finish(None).unwrap();
        assert_eq!([run.boot.cpu_s, run.shell_loop.cpu_s, run.md5.cpu_s], [3.0, 5.0, 0.0]);
    }

    #[test]
    fn a_wrong_digest_is_no_result() {
        let mut stopwatch = Stopwatch::start(Duration::ZERO);
        hear(&mut stopwatch, "bench: ready\nbench: 100000\n00000000000000000000000000000000  -\n", 1);
        let message = stopwatch.finish(None).unwrap_err().to_string();
        assert!(message.contains("before it said \"7f614") && message.contains("00000"), "{message}");
    }
}
