//! What a real daemon with many VMs costs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cpu_time;
use crate::demo::{Hosts, Setup, pause};
use crate::report::{Progress, median};

/// How often VMs are listed.
const LISTS: u32 = 20;
/// How long the daemon is left alone before it counts as idle.
const SETTLED: Duration = Duration::from_secs(3);

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DaemonFigures {
    /// `twinvm vm list`, from its start to its end; the median.
    pub list_ms: f64,
    /// CPU time of the daemon while nobody asks it anything, in percent of one core.
    pub idle_cpu_percent: f64,
}

/// Starts a daemon, gives it VMs that are off, and looks at what it does.
pub fn measure(records: u32, seconds: u32, progress: &Progress) -> Result<DaemonFigures> {
    let hosts = Hosts::start(Setup { count: 1, suspicion_ms: None })?;
    progress.say(&format!("creating {records} VMs on a host"))?;
    let kernel = hosts.files().join("kernel");
    // Nothing starts it.
    fs::write(&kernel, "no kernel").context("cannot write a file for a kernel")?;
    let spec = hosts.files().join("spec.toml");
    for number in 0..records {
        let text = format!("name = \"vm{number:05}\"\nmemory = \"64M\"\nkernel = {kernel:?}\n");
        fs::write(&spec, text).context("cannot write a VM spec")?;
        hosts.ask(&["vm", "create", &spec.to_string_lossy()])?;
    }
    progress.say(&format!("listing them, and leaving the daemon alone for {seconds} s"))?;
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let begin = Instant::now();
        let text = hosts.ask(&["vm", "list"])?;
        lists.push(begin.elapsed().as_secs_f64() * 1e3);
        let listed = text.lines().filter(|line| line.starts_with("vm")).count();
        ensure!(listed == records as usize, "`vm list` lists {listed} of {records} VMs");
    }
    wait(SETTLED)?;
    let pid = hosts.daemon_pid("a").context("the daemon has ended")?;
    let (begin, before) = (Instant::now(), cpu_time::of_process(pid)?);
    wait(Duration::from_secs(seconds.into()))?;
    let spent = cpu_time::of_process(pid)?.saturating_sub(before);
    let idle_cpu_percent = 100.0 * spent.as_secs_f64() / begin.elapsed().as_secs_f64();
    Ok(DaemonFigures { list_ms: median(lists).context("nothing was listed")?, idle_cpu_percent })
}

fn wait(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        pause()?;
    }
    Ok(())
}
