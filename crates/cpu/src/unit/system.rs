//! [`System`]: segments, control registers, model-specific registers, interrupt state.

use std::sync::Arc;

use spec::CpuProfile;

use crate::state::{InterruptShadow, PendingEvent, RunState, TableState};
use crate::unit::msrs::Msrs;
use crate::unit::segment::Segment;

/// Segments, control and model-specific registers, interrupt state.
#[repr(C)]
pub(crate) struct System {
    /// ES, CS, SS, DS, FS, GS, then two unused so that a three-bit number is always in range.
    pub segments: [Segment; 8],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableState,
    pub idtr: TableState,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub efer: u64,
    /// DR0 to DR3, DR6, DR7. They hold values; breakpoints do not trigger.
    pub debug: [u64; 6],
    pub msrs: Msrs,
    /// This processor's time-stamp counter minus the machine's.
    pub tsc_offset: u64,
    /// Interrupts and single-step traps are held off until one more instruction has retired.
    pub interrupt_shadow: Option<InterruptShadow>,
    pub nmi_blocked: bool,
    pub nmi_pending: bool,
    /// An event from another engine that was not delivered yet.
    pub pending: Option<PendingEvent>,
    pub run_state: RunState,
    /// Number of the processor in its machine.
    pub number: u32,
    /// How many processors the machine has.
    pub processors: u32,
    /// What CPUID says.
    pub profile: Arc<CpuProfile>,
    /// Wall-clock time when the machine's time-stamp counter was 0, in nanoseconds since the Unix epoch.
    pub power_on_unix_ns: u64,
}

impl System {
    /// Base of segment `number` (ES 0 ... GS 5).
    #[inline(always)]
    pub(crate) fn segment_base(&self, number: u8) -> u64 {
        self.segments[usize::from(number & 7)].base
    }
}
