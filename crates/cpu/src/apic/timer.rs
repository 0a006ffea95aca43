//! The local APIC timer: one-shot, periodic, TSC deadline.

use crate::apic::local::{Apic, LVT_MASKED, register};
use crate::state::ApicState;

/// Timer modes in bits 17 and 18 of the timer's local vector table entry.
const MODE: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;

impl Apic {
    fn is_deadline_mode(&self) -> bool {
        self.registers[register::LVT_TIMER] & MODE == TSC_DEADLINE
    }

    /// Ticks of the time-stamp counter that one count takes.
    fn divisor(&self) -> u64 {
        let bits = self.registers[register::DIVIDE];
        let code = bits & 3 | bits >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.registers[register::INITIAL_COUNT]) * self.divisor()
    }

    /// The current-count register.
    pub(super) fn current_count(&self, machine_tsc: u64) -> u32 {
        let left = self.expiry.map_or(0, |expiry| expiry.saturating_sub(machine_tsc));
        left.div_ceil(self.divisor()) as u32
    }

    /// When the count-down timer of a saved register page reaches 0, if it runs.
    pub(crate) fn saved_expiry(&self, machine_tsc: u64) -> Option<u64> {
        let count = u64::from(self.registers[register::CURRENT_COUNT]);
        (count > 0 && !self.is_deadline_mode()).then(|| machine_tsc.wrapping_add(count * self.divisor()))
    }

    /// Brings the current count of a saved register page up to `machine_tsc`. A timer that would have reached 0 by then is left 1, so
    /// that an engine that goes on from the register fires it at once rather than not at all.
    pub(crate) fn advance_saved_count(state: &mut ApicState, expiry: Option<u64>, machine_tsc: u64) {
        const AT: usize = register::CURRENT_COUNT * 16;
        let count =
            Self::from_state(state, expiry).filter(|_| expiry.is_some()).map(|apic| apic.current_count(machine_tsc));
        if let (Some(count), Some(place)) = (count, state.registers.get_mut(AT..AT + 4)) {
            place.copy_from_slice(&count.max(1).to_le_bytes());
        }
    }

    /// When the count-down timer reaches 0.
    pub(crate) fn expiry(&self) -> Option<u64> {
        self.expiry
    }

    pub(super) fn set_initial_count(&mut self, count: u32, machine_tsc: u64) {
        if self.is_deadline_mode() {
            return;
        }
        self.registers[register::INITIAL_COUNT] = count;
        self.expiry = (count > 0).then(|| machine_tsc.wrapping_add(self.period()));
    }

    pub(super) fn set_divide(&mut self, value: u32, machine_tsc: u64) {
        let count = u64::from(self.current_count(machine_tsc));
        self.registers[register::DIVIDE] = value & 0xb;
        if self.expiry.is_some() {
            self.expiry = Some(machine_tsc.wrapping_add(count * self.divisor()));
        }
    }

    /// A change of mode disarms.
    pub(super) fn set_timer_entry(&mut self, value: u32) {
        let changed = (self.registers[register::LVT_TIMER] ^ value) & MODE;
        self.registers[register::LVT_TIMER] = value;
        if changed & TSC_DEADLINE != 0 {
            self.tsc_deadline = 0;
            self.expiry = None;
            self.registers[register::INITIAL_COUNT] = 0;
        }
    }

    /// IA32_TSC_DEADLINE.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Sets IA32_TSC_DEADLINE; outside deadline mode that does nothing.
    pub(crate) fn set_tsc_deadline(&mut self, value: u64) {
        if self.is_deadline_mode() {
            self.tsc_deadline = value;
        }
    }

    /// The machine's time-stamp counter when the timer next fires. `tsc_offset` is the processor's minus the machine's.
    #[inline]
    pub(crate) fn next_event(&self, tsc_offset: u64) -> Option<u64> {
        if self.tsc_deadline != 0 {
            // A deadline that the machine's counter passed before it wrapped to the offset lies in the past: 0.
            let machine = i128::from(self.tsc_deadline) - i128::from(tsc_offset as i64);
            return Some(machine.clamp(0, u64::MAX.into()) as u64);
        }
        self.expiry
    }

    /// Fires the timer if it is due.
    pub(crate) fn service_timer(&mut self, machine_tsc: u64, tsc_offset: u64) {
        let Some(due) = self.next_event(tsc_offset).filter(|&due| due <= machine_tsc) else {
            return;
        };
        if self.tsc_deadline != 0 {
            self.tsc_deadline = 0;
        } else {
            let period = self.period();
            let periodic = self.registers[register::LVT_TIMER] & MODE == PERIODIC && period > 0;
            // Periods that passed unseen are dropped: one interrupt stands for all of them.
            let periods = (machine_tsc - due) / period.max(1) + 1;
            self.expiry = periodic.then(|| due.saturating_add(periods.saturating_mul(period)));
        }
        let entry = self.registers[register::LVT_TIMER];
        if entry & LVT_MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }
}
