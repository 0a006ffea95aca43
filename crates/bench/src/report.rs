//! What a benchmark found, for people and programs.

use std::fs;

use anyhow::Result;
use serde::Serialize;
use terminal::output::{print_line, print_table, say, table};

use super::stopwatch::Run;

/// Says how far a benchmark is: on standard output, unless the result goes there.
pub struct Progress {
    is_stdout_taken: bool,
}

impl Progress {
    /// With the result on standard output or not.
    pub fn new(is_stdout_taken: bool) -> Self {
        Self { is_stdout_taken }
    }

    /// Says one line.
    pub fn say(&self, line: &str) -> Result<()> {
        if self.is_stdout_taken {
            say(line);
            return Ok(());
        }
        print_line(line)
    }
}

/// Medians of some runs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Medians {
    /// Wall-clock time of the shell loop.
    pub shell_loop_s: Option<f64>,
    /// Wall-clock time of the MD5 digest.
    pub md5_s: Option<f64>,
    /// Wall-clock time from power-on to init.
    pub boot_s: Option<f64>,
    /// CPU time of the shell loop.
    pub shell_loop_cpu_s: Option<f64>,
    /// CPU time of the MD5 digest.
    pub md5_cpu_s: Option<f64>,
    /// CPU time from power-on to init.
    pub boot_cpu_s: Option<f64>,
    /// Million guest instructions per second of CPU time, over the whole work.
    pub mips: Option<f64>,
}

impl Medians {
    fn of(runs: &[Run]) -> Self {
        let of = |value: fn(&Run) -> Option<f64>| median(runs.iter().filter_map(value).collect());
        Self {
            shell_loop_s: of(|run| Some(run.shell_loop.wall_s)),
            md5_s: of(|run| Some(run.md5.wall_s)),
            boot_s: of(|run| Some(run.boot.wall_s)),
            shell_loop_cpu_s: of(|run| Some(run.shell_loop.cpu_s)),
            md5_cpu_s: of(|run| Some(run.md5.cpu_s)),
            boot_cpu_s: of(|run| Some(run.boot.cpu_s)),
            mips: of(|run| run.mips),
        }
    }
}

/// The result of `twinvm bench cpu`. Times that were not measured are null.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Runs of each side.
    pub runs: u32,
    /// twinvm's software processor.
    #[serde(flatten)]
    pub ours: Medians,
    /// Speed of the shell loop relative to the peer's, by wall-clock time; more is better.
    pub ratio_shell_loop: Option<f64>,
    /// Speed of the MD5 digest relative to the peer's, by wall-clock time.
    pub ratio_md5: Option<f64>,
    /// Speed of the shell loop relative to the peer's, by CPU time.
    pub ratio_shell_loop_cpu: Option<f64>,
    /// Speed of the MD5 digest relative to the peer's, by CPU time.
    pub ratio_md5_cpu: Option<f64>,
    /// QEMU's translator.
    pub peer: Medians,
    /// Every run.
    pub each: Each,
    /// What was measured, and where.
    pub subject: Subject,
}

/// Every run, in the order in which they took turns.
#[derive(Debug, Serialize)]
pub struct Each {
    /// twinvm's.
    pub ours: Vec<Run>,
    /// QEMU's.
    pub peer: Vec<Run>,
}

/// What was measured, and where.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Version of twinvm.
    pub twinvm_version: &'static str,
    /// Version of QEMU, if it is installed.
    pub qemu_version: Option<String>,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// The host's processor.
    pub host_cpu: Option<String>,
    /// Processors of the host.
    pub host_cpus: usize,
}

impl Report {
    /// The report of some runs.
    pub fn new(runs: u32, each: Each, subject: Subject) -> Self {
        let (ours, peer) = (Medians::of(&each.ours), Medians::of(&each.peer));
        Self {
            runs,
            ours,
            ratio_shell_loop: speed(ours.shell_loop_s, peer.shell_loop_s),
            ratio_md5: speed(ours.md5_s, peer.md5_s),
            ratio_shell_loop_cpu: speed(ours.shell_loop_cpu_s, peer.shell_loop_cpu_s),
            ratio_md5_cpu: speed(ours.md5_cpu_s, peer.md5_cpu_s),
            peer,
            each,
            subject,
        }
    }

    /// Prints it for people.
    pub fn print(&self) -> Result<()> {
        let (ours, peer) = (&self.ours, &self.peer);
        let qemu = self.subject.qemu_version.as_deref().unwrap_or("-");
        print_line(&format!(
            "guest: Linux {}; host: {}; QEMU {qemu}; medians of {}\n",
            self.subject.guest_kernel,
            self.subject.host_cpu.as_deref().unwrap_or("unknown processor"),
            self.runs
        ))?;
        let mut rows = table(&["WORK", "TWINVM", "QEMU", "SPEED"]);
        for (work, ours, peer) in [
            ("boot to init, CPU s", ours.boot_cpu_s, peer.boot_cpu_s),
            ("shell loop, s", ours.shell_loop_s, peer.shell_loop_s),
            ("shell loop, CPU s", ours.shell_loop_cpu_s, peer.shell_loop_cpu_s),
            ("md5 of 64 MiB, s", ours.md5_s, peer.md5_s),
            ("md5 of 64 MiB, CPU s", ours.md5_cpu_s, peer.md5_cpu_s),
        ] {
            rows.add_row([work.to_owned(), number(ours), number(peer), number(speed(ours, peer))]);
        }
        rows.add_row(["million instructions/s".to_owned(), number(ours.mips), "-".to_owned(), "-".to_owned()]);
        print_table(&rows)
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

/// Speed relative to the peer, from the times that both took.
fn speed(ours_s: Option<f64>, peer_s: Option<f64>) -> Option<f64> {
    Some(peer_s? / ours_s.filter(|&ours_s| ours_s > 0.0)?)
}

/// The value in the middle, or between the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(lower.midpoint(upper))
}

/// The name that the host's processor gives itself.
pub fn host_cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn speed_is_relative_to_the_peer() {
        assert_eq!(speed(Some(2.0), Some(1.0)), Some(0.5));
        assert_eq!(speed(Some(2.0), None), None);
        assert_eq!(speed(Some(0.0), Some(1.0)), None);
    }
}
