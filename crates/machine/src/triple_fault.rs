//! Triple faults: a vCPU meets an exception that it cannot deliver, nor the double fault that follows from it, and stops.
//!
//! A PC resets then, and some guests reset that way on purpose (Linux with `reboot=t`). Far more often it is a crash before the guest could
//! say anything, so each is counted, and what is known of the place is logged.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cpu::VcpuState;
use cpu::state::{PendingEvent, TableState};

/// RIP and the base of CS after INIT (Intel SDM volume 3, table 10-1; AMD APM volume 2, table 14-1).
const INIT_RIP: u64 = 0xfff0;
const INIT_CODE_BASE: u64 = 0xffff_0000;
/// CR0: protected mode.
const PROTECTED_MODE: u64 = 1;
/// Index of CS among the segments.
const CS: usize = 1;

/// A triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault {
    /// The vCPU.
    pub vcpu: u32,
    /// Where, if that is known: AMD processors lose it, and KVM shows a vCPU after INIT.
    pub place: Option<Place>,
}

/// What a vCPU was at when it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instruction.
    pub rip: u64,
    /// The stack, onto which the exception may not have gone.
    pub rsp: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// The page tables.
    pub cr3: u64,
    /// The interrupt descriptor table.
    pub idt: TableState,
    /// The event that could not be delivered, where the engine knows it.
    pub vector: Option<u8>,
}

impl TripleFault {
    /// What the state of the vCPU that stopped says.
    pub fn of(vcpu: u32, state: &VcpuState) -> Self {
        let is_after_init = state.rip == INIT_RIP
            && state.segments.get(CS).is_some_and(|code| code.base == INIT_CODE_BASE)
            && state.cr0 & PROTECTED_MODE == 0;
        let vector = state.pending.map(|event| match event {
            PendingEvent::Exception { vector, .. } | PendingEvent::Interrupt { vector } => vector,
        });
        let place =
            Place { rip: state.rip, rsp: state.gpr[4], cr2: state.cr2, cr3: state.cr3, idt: state.idtr, vector };
        Self { vcpu, place: (!is_after_init).then_some(place) }
    }
}

impl fmt::Display for TripleFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.vcpu)?;
        let Some(Place { rip, rsp, cr2, cr3, idt, vector }) = self.place else {
            return write!(f, ", at an unknown place: the host's processor does not keep it");
        };
        write!(f, " at rip {rip:#x}")?;
        if let Some(vector) = vector {
            write!(f, " with vector {vector} to be delivered")?;
        }
        write!(f, ", rsp {rsp:#x}, cr2 {cr2:#x}, cr3 {cr3:#x}, idt {:#x} with limit {:#x}", idt.base, idt.limit)
    }
}

/// A triple fault, and when it was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenTripleFault {
    /// The fault.
    pub fault: TripleFault,
    /// When, in ms since 1970.
    pub at_unix_ms: u64,
}

/// The triple faults of one VM, over all its resets.
#[derive(Debug, Default)]
pub struct TripleFaults(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    count: u64,
    last: Option<SeenTripleFault>,
    logged: Option<Instant>,
    /// How many came since the last line in the log.
    unlogged: u64,
}

/// A guest may do it a thousand times a second: one line in so long, at most.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

impl TripleFaults {
    /// Counts one, and logs it unless one was logged just before.
    pub fn note(&self, fault: TripleFault) {
        let at_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let seen = SeenTripleFault { fault, at_unix_ms: u64::try_from(at_unix_ms).unwrap_or(u64::MAX) };
        let mut noted = self.noted();
        let line = noted.note(seen, Instant::now());
        let count = noted.count;
        drop(noted);
        if let Some(unlogged) = line {
            tracing::warn!(%fault, count, unlogged, "the guest is reset by a triple fault: as a rule, it has crashed");
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.noted().count
    }

    /// The last one.
    pub fn last(&self) -> Option<SeenTripleFault> {
        self.noted().last
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    /// Takes one in. If it is to be logged: how many before it were not.
    fn note(&mut self, seen: SeenTripleFault, now: Instant) -> Option<u64> {
        self.count += 1;
        self.last = Some(seen);
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < LOG_INTERVAL) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_told_with_what_is_known_of_it() {
        let mut state = VcpuState::reset(0);
        state.cr0 = 0x8001_0033;
        (state.rip, state.cr2, state.cr3) = (0xffff_ffff_8100_0000, 0xfee1_dead, 0x9000);
        state.idtr = TableState { base: 0x7000, limit: 0xfff };
        let fault = TripleFault::of(1, &state);
        let text = fault.to_string();
        for part in
            ["vCPU 1 at rip 0xffffffff81000000, ", "cr2 0xfee1dead", "cr3 0x9000", "idt 0x7000 with limit 0xfff"]
        {
            assert!(text.contains(part), "{text}");
        }
        state.pending = Some(PendingEvent::Exception { vector: 14, error_code: Some(2), payload: None });
        assert!(TripleFault::of(1, &state).to_string().contains("with vector 14"));
    }

    /// KVM on AMD answers a shutdown with INIT, as the processor leaves nothing to read.
    #[test]
    fn a_vcpu_after_init_says_nothing_of_the_place() {
        let fault = TripleFault::of(0, &VcpuState::reset(0));
        assert_eq!(fault.place, None);
        assert!(fault.to_string().contains("unknown place"), "{fault}");
    }

    #[test]
    fn every_one_is_counted_and_one_in_ten_seconds_logged() {
        let (mut noted, start) = (Noted::default(), Instant::now());
        let seen = SeenTripleFault { fault: TripleFault { vcpu: 0, place: None }, at_unix_ms: 1 };
        assert_eq!(noted.note(seen, start), Some(0));
        for ms in 1..=1000 {
            assert_eq!(noted.note(seen, start + Duration::from_millis(ms)), None);
        }
        assert_eq!(noted.note(seen, start + LOG_INTERVAL), Some(1000));
        assert_eq!(noted.note(seen, start + LOG_INTERVAL * 2), Some(0));
        assert_eq!(noted.count, 1003);
    }
}
