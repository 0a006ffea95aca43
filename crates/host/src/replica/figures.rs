//! From what replication and devices measure to what administrators read.
//!
//! Each type is taken apart, and each is put together, with all of its fields by name: what is measured anew, or shown anew, does not compile before
//! somebody has said here what becomes of it.

use api::figures::{
    CardFigures, DiskFigures, Figures, LatencyFigures, LockstepFigures, PagesByEncoding, PauseClass, PauseFigures,
    PauseParts,
};
use machine::device_meter::DeviceMetrics;
use machine::devices::virtio::block::BlockMetrics;
use machine::devices::virtio::net::NetMetrics;
use protocol::{Epoch, Watched};
use replication::driver::{self, Encodings, Quantiles};
use replication::gate::GateStatus;

/// Those of a primary. What is of its process rather than of its replication is added by whoever knows that.
pub(super) fn of_primary(
    replication: &driver::Figures,
    gate: &GateStatus,
    watched: Option<Watched>,
    devices: &DeviceMetrics,
) -> Figures {
    let driver::Figures {
        epoch,
        epochs_per_s,
        epoch_us,
        dirty_pages,
        pause_us,
        pause_parts,
        pauses_by_pages,
        commit_us,
        dirty_bytes,
        sent_bytes,
        encodings,
        lag_epochs,
        throttled,
        throttled_us,
        lockstep: log,
    } = replication;
    // The others are for tests of the gate.
    let GateStatus {
        held: _,
        waiting_frames,
        waiting_bytes,
        oldest_wait_us: _,
        passed_frames: _,
        released_frames: _,
        dropped_frames: _,
        wait_us_p50,
        wait_us_p99,
    } = *gate;
    let DeviceMetrics { disks, cards } = devices;
    Figures {
        epoch: epoch.number(),
        epochs_per_s: *epochs_per_s,
        epoch_ms: ms(epoch_us.p50),
        dirty_pages: dirty_pages.p50,
        pause_us: pauses(pause_us),
        pause_parts_us: parts(pause_parts),
        pauses_by_pages: pauses_by_pages.iter().map(class).collect(),
        dirty_bytes: *dirty_bytes,
        sent_bytes: *sent_bytes,
        pages: pages(encodings),
        latency_added_ms: LatencyFigures { p50: ms(wait_us_p50), p99: ms(wait_us_p99) },
        commit_ms: LatencyFigures { p50: ms(commit_us.p50), p99: ms(commit_us.p99) },
        lag_epochs: *lag_epochs,
        waiting_frames,
        waiting_bytes,
        throttled: *throttled,
        throttled_ms: ms(*throttled_us),
        lockstep: log.map(lockstep),
        disks: disks.iter().map(disk).collect(),
        cards: cards.iter().map(card).collect(),
        ..of_link(watched)
    }
}

/// Those of a secondary that holds everything through `epoch`, if it holds anything.
pub(super) fn of_secondary(epoch: Option<Epoch>, watched: Option<Watched>) -> Figures {
    Figures { epoch: epoch.unwrap_or(Epoch::NONE).number(), ..of_link(watched) }
}

/// Of the way to the other replica, while there is one.
fn of_link(watched: Option<Watched>) -> Figures {
    let Watched { suspicion_time, longest_gap } = watched.unwrap_or_default();
    Figures {
        suspicion_ms: suspicion_time.as_secs_f64() * 1e3,
        silence_ms_max: longest_gap.as_secs_f64() * 1e3,
        // Of a primary.
        epoch: 0,
        epochs_per_s: 0.0,
        epoch_ms: 0.0,
        dirty_pages: 0,
        pause_us: PauseFigures::default(),
        pause_parts_us: PauseParts::default(),
        pauses_by_pages: Vec::new(),
        dirty_bytes: 0,
        sent_bytes: 0,
        pages: PagesByEncoding::default(),
        latency_added_ms: LatencyFigures::default(),
        commit_ms: LatencyFigures::default(),
        lag_epochs: 0,
        waiting_frames: 0,
        waiting_bytes: 0,
        throttled: 0,
        throttled_ms: 0.0,
        lockstep: None,
        disks: Vec::new(),
        cards: Vec::new(),
        // Of the process.
        memory_bytes: 0,
        failovers: 0,
        last_takeover: None,
        triple_faults: 0,
        last_triple_fault: None,
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

fn pauses(quantiles: &Quantiles) -> PauseFigures {
    let Quantiles { p50, p99, last, max: _ } = *quantiles;
    PauseFigures { p50: p50 as f64, p99: p99 as f64, last: last as f64 }
}

fn parts(parts: &driver::PauseParts) -> PauseParts {
    let driver::PauseParts { stop_us, tracking_us, pages_us, state_us } = parts;
    PauseParts {
        stop: stop_us.p50 as f64,
        tracking: tracking_us.p50 as f64,
        pages: pages_us.p50 as f64,
        state: state_us.p50 as f64,
    }
}

fn class(class: &driver::PauseClass) -> PauseClass {
    let driver::PauseClass { pages_min, pages_max, checkpoints, dirty_pages, pause_us } = class;
    PauseClass {
        pages_min: *pages_min,
        pages_max: Some(*pages_max).filter(|&pages| pages != u64::MAX),
        checkpoints: *checkpoints,
        dirty_pages: dirty_pages.p50,
        pause_us: pauses(pause_us),
    }
}

fn pages(encodings: &Encodings) -> PagesByEncoding {
    let Encodings { zero, unchanged, word_runs, delta, lz4, raw } = *encodings;
    PagesByEncoding { zero, unchanged, word_runs, delta, lz4, raw }
}

fn lockstep(log: replication::lockstep::LockstepFigures) -> LockstepFigures {
    let replication::lockstep::LockstepFigures {
        lag_instructions,
        lag_ms,
        log_bytes,
        log_bits_per_s,
        inbound_bytes,
        segments,
        digests,
        divergences,
    } = log;
    LockstepFigures {
        lag_instructions,
        lag_ms,
        log_bytes,
        log_bits_per_s,
        inbound_bytes,
        segments,
        digests,
        divergences,
    }
}

fn disk(did: &BlockMetrics) -> DiskFigures {
    let BlockMetrics {
        reads,
        read_bytes,
        writes,
        written_bytes,
        flushes,
        discards,
        write_zeroes,
        refused,
        backend_errors,
    } = *did;
    DiskFigures {
        reads,
        read_bytes,
        writes,
        written_bytes,
        flushes,
        discards: discards + write_zeroes,
        errors: refused + backend_errors,
    }
}

fn card(did: &NetMetrics) -> CardFigures {
    let NetMetrics {
        rx_frames,
        rx_bytes,
        rx_waited: _,
        rx_dropped_full,
        rx_dropped_no_driver,
        rx_dropped_unfit,
        tx_frames,
        tx_bytes,
        tx_waited: _,
        tx_dropped_full,
        tx_dropped_refused,
        tx_dropped_malformed,
    } = *did;
    CardFigures {
        received_frames: rx_frames,
        received_bytes: rx_bytes,
        received_dropped: rx_dropped_full + rx_dropped_no_driver + rx_dropped_unfit,
        sent_frames: tx_frames,
        sent_bytes: tx_bytes,
        sent_dropped: tx_dropped_full + tx_dropped_refused + tx_dropped_malformed,
    }
}
