//! A processor for each replica, as if each were on a machine of its own.

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use super::view::View;

/// How often a process's threads are gone through: one may start another meanwhile.
const ROUNDS: usize = 2;

/// Which processors replicas have for themselves.
#[derive(Clone, Debug, Serialize)]
pub struct Pins {
    /// The primary's, all threads.
    primary: usize,
    /// The secondary's, all threads.
    secondary: usize,
    /// Those of the client, the network end and the hosts' daemons: with only two, they share the primary's with it. There they take
    /// the same from it with and without protection, whereas a secondary that has to share would slow the primary down.
    others: Vec<usize>,
    /// Processes that were pinned last: the primary, the secondary.
    #[serde(skip)]
    pinned: (Option<u32>, Option<u32>),
}

impl Pins {
    /// As the processors that this process may use allow.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot tell which processors may be used")?;
        Self::of((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
    }

    fn of(cpus: Vec<usize>) -> Result<Self> {
        match *cpus {
            [primary, secondary] => Ok(Self { primary, secondary, others: vec![primary], pinned: (None, None) }),
            [primary, secondary, ref others @ ..] => {
                Ok(Self { primary, secondary, others: others.to_vec(), pinned: (None, None) })
            }
            _ => bail!("replicas cannot have a processor each: there is only one"),
        }
    }

    /// Keeps this process, and what it starts from now on, to the processors that are nobody's own.
    pub fn pin_self(&self) -> Result<()> {
        pin(std::process::id(), &self.others)
    }

    /// Keeps each replica to its processor, in the role that it has now.
    pub fn pin_replicas(&mut self, view: &View) -> Result<()> {
        let now = (view.primary().map(|replica| replica.pid), view.secondary().map(|replica| replica.pid));
        if now == self.pinned {
            return Ok(());
        }
        for (pid, cpu) in [(now.0, self.primary), (now.1, self.secondary)] {
            if let Some(pid) = pid {
                pin(pid, &[cpu])?;
            }
        }
        self.pinned = now;
        Ok(())
    }

    /// What is where, for people.
    pub fn describe(&self) -> String {
        let Self { primary, secondary, others, .. } = self;
        let others: Vec<String> = others.iter().map(usize::to_string).collect();
        format!(
            "primary on processor {primary}, secondary on {secondary}; client, network end and daemons on {}",
            others.join(", ")
        )
    }
}

/// Keeps all threads of a process, and those that they start, to these processors. One that has ended is no error.
fn pin(pid: u32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    for _ in 0..ROUNDS {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(()) };
        for thread in threads.flatten() {
            let id = thread.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
            // None would be this thread.
            let Some(id) = id else { continue };
            match sched_setaffinity(Some(id), &set) {
                Err(error) if error != rustix::io::Errno::SRCH => {
                    return Err(error).with_context(|| format!("cannot keep process {pid} to processors {cpus:?}"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_have_processors_of_their_own() {
        let pins = Pins::of(vec![3, 5]).unwrap();
        assert_eq!((pins.primary, pins.secondary, pins.others), (3, 5, vec![3]));
        let pins = Pins::of(vec![0, 1, 2, 6]).unwrap();
        assert_eq!((pins.primary, pins.secondary, pins.others), (0, 1, vec![2, 6]));
        assert!(Pins::of(vec![0]).is_err());
    }

    #[test]
    fn all_threads_of_a_process_are_kept() {
        let mut process = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
        pin(process.id(), &[cpu]).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        assert!(status.lines().any(|line| line == format!("Cpus_allowed_list:\t{cpu}")), "{status}");
        process.kill().unwrap();
        process.wait().unwrap();
        pin(process.id(), &[cpu]).unwrap();
    }
}
