//! A checkpoint as it is taken from a paused VM.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use machine::vm::{Vm, VmError, VmState};
use memory::Harvest;
use memory::encoding::CapturedPages;
use network::InputPosition;

use crate::disk::{DiskSet, DiskWrite};
use crate::gate::{GatedFrame, OutputGate};
use crate::protocol::Epoch;

/// Everything that a checkpoint sends.
pub(super) struct Capture {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// The pages written during the epoch.
    pub pages: CapturedPages,
    /// vCPUs and devices.
    pub state: VmState,
    /// The output that waits for it.
    pub output: Vec<GatedFrame>,
    /// What was written to disks during the epoch.
    pub writes: Vec<DiskWrite>,
    /// How far the machine had taken inbound frames.
    pub inputs: Vec<InputPosition>,
    /// When the guest was paused.
    pub captured_unix_ns: u64,
}

/// What is kept of a checkpoint until the secondary holds it.
pub(super) struct InFlight {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// When the guest was paused.
    pub captured_at: Instant,
    /// Dirty again if the secondary never says that it holds them.
    pub harvest: Harvest,
}

/// Captures a paused VM. `pages` is a buffer to reuse.
pub(super) fn capture(
    vm: &mut Vm,
    epoch: Epoch,
    gate: &OutputGate,
    disks: &DiskSet,
    mut pages: CapturedPages,
) -> Result<(Capture, InFlight), VmError> {
    let captured_at = Instant::now();
    let captured_unix_ns = unix_now_ns();
    // In pause order: vCPUs and devices stand still already; what they did is collected before they are saved.
    vm.collect_dirty()?;
    let harvest = vm.platform().ram().harvest();
    pages.capture(vm.platform().ram(), harvest.pages());
    let state = vm.save()?;
    let output = gate.close_epoch(epoch);
    let capture = Capture {
        epoch,
        pages,
        state,
        output,
        writes: disks.take_log(),
        inputs: gate.input_positions(),
        captured_unix_ns,
    };
    Ok((capture, InFlight { epoch, captured_at, harvest }))
}

pub(super) fn unix_now_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}
