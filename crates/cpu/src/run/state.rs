//! [`ProcessorsState`]: what all processors of a machine are between two instructions.

use serde::{Deserialize, Serialize};
use spec::CpuProfile;

use crate::apic::Apic;
use crate::core::tsc_at;
use crate::cpuid::TSC_HZ;
use crate::state::VcpuState;

/// All processors of a machine, and whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorsState {
    /// The processors by number.
    pub vcpus: Vec<VcpuState>,
    /// When the count-down timer of each processor's APIC reaches 0, by the machine's time-stamp counter. (The current-count
    /// register is too coarse to go on from exactly.)
    pub timers: Vec<Option<u64>>,
    /// The processor whose turn it is.
    pub turn_vcpu: u32,
    /// Instructions left of its turn.
    pub turn_left: u64,
    /// Instructions that all processors together have retired.
    pub instructions: u64,
    /// Ticks that clock steps have added to the time-stamp counter (modulo 2^64).
    pub clock_steps: u64,
    /// Rate of the processors' own time-stamp counters ([`VcpuState::tsc`]) where the state was saved, in ticks a second; 0 if
    /// the engine could not tell.
    pub tsc_hz: u64,
    /// What the guest was told that its processors are.
    pub profile: CpuProfile,
}

impl ProcessorsState {
    /// `vcpus` processors after power-on: the first at the reset vector, the others waiting to be started.
    pub fn reset(vcpus: u32) -> Self {
        Self::from_vcpus((0..vcpus).map(VcpuState::reset).collect())
    }

    /// Processors that another engine saved. The machine's time-stamp counter goes on from the first one's.
    pub fn from_vcpus(vcpus: Vec<VcpuState>) -> Self {
        let tsc = vcpus.first().map_or(0, |vcpu| vcpu.tsc);
        Self::from_vcpus_at(vcpus, tsc)
    }

    /// Processors that another engine saved when the machine's clock, in nanoseconds since power-on, stood at `clock_ns`: it
    /// becomes the machine's time-stamp counter, to which those of the processors keep their distance.
    pub fn from_vcpus_at(vcpus: Vec<VcpuState>, clock_ns: u64) -> Self {
        let timers = vcpus.iter().map(|vcpu| Apic::from_state(&vcpu.apic, None)?.saved_expiry(clock_ns)).collect();
        Self {
            vcpus,
            timers,
            turn_vcpu: 0,
            turn_left: 0,
            instructions: 0,
            clock_steps: clock_ns,
            tsc_hz: TSC_HZ,
            profile: CpuProfile::in_order(),
        }
    }

    /// The state as if `step_ns` nanoseconds had passed since it was saved: every clock is that much ahead. Timers stay armed for the same
    /// moment; those that are due by then fire once, when the processors run.
    pub fn advance_clock(&mut self, step_ns: u64) {
        let ticks = |hz: u64| (u128::from(step_ns) * u128::from(hz) / 1_000_000_000) as u64;
        self.clock_steps = self.clock_steps.wrapping_add(ticks(TSC_HZ));
        let (machine_tsc, vcpu_ticks) = (self.tsc(), ticks(self.tsc_hz));
        for (vcpu, &timer) in self.vcpus.iter_mut().zip(&self.timers) {
            vcpu.tsc = vcpu.tsc.wrapping_add(vcpu_ticks);
            Apic::advance_saved_count(&mut vcpu.apic, timer, machine_tsc);
        }
    }

    /// The machine's time-stamp counter.
    pub fn tsc(&self) -> u64 {
        tsc_at(self.instructions, self.clock_steps)
    }
}

/// Why processors cannot be made from a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// No processor, or more than [`crate::VCPUS_MAX`].
    #[error("{0} processors: there must be 1 to {max}", max = crate::VCPUS_MAX)]
    Count(usize),
    /// Not one timer a processor.
    #[error("{vcpus} processors, but {timers} timers")]
    Timers {
        /// Processors.
        vcpus: usize,
        /// Timers.
        timers: usize,
    },
    /// The turn belongs to a processor that is not there.
    #[error("it is the turn of processor {0}, which does not exist")]
    Turn(u32),
    /// More instructions than any machine can have executed.
    #[error("the instruction count {0} is not plausible")]
    Instructions(u64),
    /// The local APIC's register page has another size.
    #[error("processor {vcpu}: the APIC register page has {len} bytes instead of 1024")]
    ApicPage {
        /// Number of the processor.
        vcpu: usize,
        /// Bytes in the state.
        len: usize,
    },
    /// The guest was promised another processor; the text goes on after "because".
    #[error("the soft engine cannot be the VM's processor: {0}")]
    Profile(String),
    /// A feature that this processor does not have is switched on.
    #[error("processor {vcpu}: {register} is {value:#x}, which this engine does not support")]
    Unsupported {
        /// Number of the processor.
        vcpu: usize,
        /// The register.
        register: &'static str,
        /// Its value.
        value: u64,
    },
}
