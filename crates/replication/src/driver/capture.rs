//! A checkpoint as it is taken from a paused VM.

use std::time::Instant;

use machine::vm::{Vm, VmError, VmState};
use memory::encoding::{CapturedPages, PageContent};
use memory::{FrozenPages, Harvest};
use network::InputPosition;
use protocol::Epoch;
use spec::FtMode;

use super::early::EarlyCopies;
use super::figures::CaptureTimes;
use crate::disk::DiskWrite;
use crate::gate::{GatedFrame, OutputGate};

/// The pages of a checkpoint as they were in the pause.
pub(super) enum Pages {
    /// Copied then, into a buffer that is to be reused.
    Copied(CapturedPages),
    /// Copied later, or right before somebody writes to them.
    Frozen(FrozenPages),
}

impl Pages {
    /// Gives each page to `take`, until it fails.
    pub fn try_each<E>(&mut self, mut take: impl FnMut(u64, &PageContent) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Copied(pages) => pages.iter().try_for_each(|(page, content)| take(page, content)),
            Self::Frozen(pages) => {
                let mut content = [0; memory::PAGE_BYTES as usize];
                while let Some(page) = pages.copy_next(&mut content) {
                    take(page, &content)?;
                }
                Ok(())
            }
        }
    }
}

/// Everything that a checkpoint sends.
pub(super) struct Capture {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// The pages written during the epoch.
    pub pages: Pages,
    /// vCPUs and devices.
    pub state: VmState,
    /// The output that waits for it.
    pub output: Vec<GatedFrame>,
    /// What was written to disks during the epoch.
    pub writes: Vec<DiskWrite>,
    /// How far the machine had taken inbound frames.
    pub inputs: Vec<InputPosition>,
    /// What follows it.
    pub then: FtMode,
}

/// What is kept of a checkpoint until the secondary holds it.
pub(super) struct InFlight {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// Dirty again if the secondary never says that it holds them.
    pub harvest: Harvest,
    /// How long the capture took.
    pub times: CaptureTimes,
}

/// Captures a paused VM. `writes` is what it wrote to disks during the epoch, `early` are pages of the epoch that were copied before the pause,
/// `buffer` gives a buffer for copies of pages, if they have to be made now and there is none yet.
pub(super) fn capture(
    vm: &mut Vm,
    epoch: Epoch,
    then: FtMode,
    gate: &OutputGate,
    writes: Vec<DiskWrite>,
    early: EarlyCopies,
    buffer: impl FnOnce() -> CapturedPages,
) -> Result<(Capture, InFlight), VmError> {
    let captured_at = Instant::now();
    // In pause order: vCPUs and devices stand still already; what they did is collected before they are saved.
    let last = vm.harvest()?;
    let ram = vm.platform().ram();
    let tracking = captured_at.elapsed();
    let frozen = if vm.engine().can_freeze_pages() { ram.freeze(last.pages()) } else { None };
    let pages = match frozen {
        Some(frozen) => Pages::Frozen(frozen),
        None => {
            let mut copies = if early.harvest.is_some() { early.pages } else { buffer() };
            copies.append(ram, last.pages());
            Pages::Copied(copies)
        }
    };
    let harvest = match early.harvest {
        Some(mut early) => {
            early.merge(last);
            early
        }
        None => last,
    };
    let pages_done = captured_at.elapsed();
    let state = vm.save()?;
    let times = CaptureTimes { tracking, pages: pages_done, state: captured_at.elapsed() };
    let output = gate.close_epoch(epoch);
    let capture = Capture { epoch, pages, state, output, writes, inputs: gate.input_positions(), then };
    Ok((capture, InFlight { epoch, harvest, times }))
}
