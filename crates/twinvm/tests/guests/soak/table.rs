//! The figures of a soak, as a table that documentation can show.

use std::fmt;
use std::time::Duration;

/// Of one number of vCPUs.
pub struct Figures {
    pub cpus: u32,
    pub guest_ns: u64,
    pub wall: Duration,
    pub instructions: u64,
    pub inputs: u64,
    pub frames: u64,
    pub frames_out: u64,
    pub entropy: u64,
    pub clock_steps: u64,
    pub digests: u64,
    pub log_bytes: u64,
    pub inbound_bytes: u64,
    pub record_cpu_ns: u64,
    pub replay_cpu_ns: u64,
    pub divergences: u64,
}

#[derive(Default)]
pub struct Table(Vec<Figures>);

impl Table {
    pub fn add(&mut self, figures: Figures) {
        self.0.push(figures);
    }

    pub fn divergences(&self) -> u64 {
        self.0.iter().map(|figures| figures.divergences).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| vCPUs | guest s | host s | 10^9 instructions | inputs | frames in | frames out | entropy | clock steps | digests | recorded, MIPS | replayed, MIPS | log, bytes/s | \
             frames in, bytes/s | divergences |"
        )?;
        writeln!(f, "|{}", " ---: |".repeat(15))?;
        for figures in &self.0 {
            let guest_s = figures.guest_ns as f64 / 1e9;
            let mips = |cpu_ns: u64| figures.instructions as f64 * 1e3 / cpu_ns as f64;
            writeln!(
                f,
                "| {} | {guest_s:.0} | {:.0} | {:.2} | {} | {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {} |",
                figures.cpus,
                figures.wall.as_secs_f64(),
                figures.instructions as f64 / 1e9,
                figures.inputs,
                figures.frames,
                figures.frames_out,
                figures.entropy,
                figures.clock_steps,
                figures.digests,
                mips(figures.record_cpu_ns),
                mips(figures.replay_cpu_ns),
                figures.log_bytes as f64 / guest_s,
                figures.inbound_bytes as f64 / guest_s,
                figures.divergences,
            )?;
        }
        Ok(())
    }
}
