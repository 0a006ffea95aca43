//! What the same kind of work costs under QEMU's COLO, for comparison.

use serde::Serialize;

/// Where the figures are from.
pub const SOURCE: &str = "QEMU COLO 11.1.3, measured on a 2-core machine";

/// Medians of one way to set COLO up. The guest had 512 MiB, one vCPU under TCG, and a TCP service that counts; primary,
/// secondary and client shared the two cores.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Colo {
    /// Checkpoint period and channel.
    pub setup: &'static str,
    /// Pause for each checkpoint, in us.
    pub pause_us: Option<f64>,
    /// A CPU-bound loop, in s.
    pub cpu_s: f64,
    /// Requests per second, 64 under way.
    pub pipelined_requests_per_s: f64,
    /// Latency of one request at a time, half of them, in ms.
    pub latency_p50_ms: f64,
    /// Latency that 99 of 100 stay below, in ms.
    pub latency_p99_ms: f64,
    /// Gap on the client's connection after `kill -9` of the primary, detection not included, in ms.
    pub blackout_ms: Option<f64>,
    /// The longest of those gaps, in ms.
    pub blackout_ms_max: Option<f64>,
    /// Resident memory of the secondary, in MB.
    pub secondary_memory_mb: Option<f64>,
    /// Resident memory of the primary, in MB.
    pub primary_memory_mb: Option<f64>,
}

/// QEMU without COLO.
pub const UNPROTECTED: Colo = Colo {
    setup: "unprotected",
    pause_us: None,
    cpu_s: 2.59,
    pipelined_requests_per_s: 68_000.0,
    latency_p50_ms: 0.52,
    latency_p99_ms: 2.3,
    blackout_ms: None,
    blackout_ms_max: None,
    secondary_memory_mb: None,
    primary_memory_mb: None,
};

/// A checkpoint each 20 s, and whenever replies differ.
pub const DEFAULT: Colo = Colo {
    setup: "checkpoint each 20 s (default)",
    pause_us: Some(49_000.0),
    cpu_s: 2.75,
    pipelined_requests_per_s: 34_000.0,
    latency_p50_ms: 1.23,
    latency_p99_ms: 5.4,
    blackout_ms: Some(212.0),
    blackout_ms_max: Some(217.0),
    secondary_memory_mb: Some(683.0),
    primary_memory_mb: Some(224.0),
};

/// A checkpoint each 200 ms over a Unix socket.
pub const FREQUENT: Colo = Colo {
    setup: "checkpoint each 200 ms, Unix socket",
    pause_us: Some(9_600.0),
    cpu_s: 2.79,
    pipelined_requests_per_s: 28_000.0,
    latency_p50_ms: 1.36,
    latency_p99_ms: 10.8,
    blackout_ms: Some(209.0),
    blackout_ms_max: Some(306.0),
    secondary_memory_mb: Some(684.0),
    primary_memory_mb: Some(262.0),
};

impl Colo {
    /// Speed of the CPU-bound loop relative to no protection.
    pub fn cpu_ratio(&self) -> f64 {
        UNPROTECTED.cpu_s / self.cpu_s
    }

    /// Requests with 64 under way, relative to no protection.
    pub fn pipelined_ratio(&self) -> f64 {
        self.pipelined_requests_per_s / UNPROTECTED.pipelined_requests_per_s
    }

    /// What protection adds to the latency, half of the requests, in ms.
    pub fn added_latency_p50_ms(&self) -> f64 {
        self.latency_p50_ms - UNPROTECTED.latency_p50_ms
    }

    /// What it adds to that of 99 of 100, in ms.
    pub fn added_latency_p99_ms(&self) -> f64 {
        self.latency_p99_ms - UNPROTECTED.latency_p99_ms
    }

    /// Memory of the secondary relative to the primary's: what an unprotected one takes was not measured.
    pub fn secondary_memory_ratio(&self) -> Option<f64> {
        Some(self.secondary_memory_mb? / self.primary_memory_mb?)
    }
}
