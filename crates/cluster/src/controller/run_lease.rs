//! Run leases: for how long a host may run what others start when it is gone.
//!
//! A host has one in the cluster store, for all VMs that it runs under it. Its daemon renews it and writes down until when it is good; each VM's broker has a
//! [`Fence`], which reads that, renews the lease itself where the daemon does not, and ends the VM before the lease can have ended. The time of an
//! answer does not count but that of the question: the store lets a lease begin anew after it was asked to, never before. So no two clocks are compared, only two
//! spans of time, and what [`STOP_BEFORE_MS`] leaves is for clocks that run at different rates and for the end of a process.

use serde::{Deserialize, Serialize};

/// How long a lease is good after it was renewed, in ms.
pub const RUN_LEASE_MS: u64 = 3_000;
/// How often a daemon renews it, in ms.
pub const RENEWAL_MS: u64 = 500;
/// How long before its end what runs under it is ended, in ms.
pub const STOP_BEFORE_MS: u64 = 700;
/// How long a daemon may be late until others renew its lease, in ms.
const LATE_MS: u64 = 700;

/// A host's run lease, as its daemon knows it and writes it down for those who run under it. Times are in ms since the machine was booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLease {
    /// Its number in the store. Another number is another lease: what ran under the one before has ended.
    pub id: u64,
    /// The boot of the machine.
    pub boot_id: String,
    /// Until when it is good at least.
    pub good_until_ms: u64,
}

impl RunLease {
    /// One that the store was asked for at `asked_ms`, and gave.
    pub fn granted(id: u64, boot_id: String, asked_ms: u64) -> Self {
        Self { id, boot_id, good_until_ms: asked_ms.saturating_add(RUN_LEASE_MS) }
    }

    /// The store was asked to renew it at `asked_ms`, and has.
    pub fn renewed(&mut self, asked_ms: u64) {
        self.good_until_ms = self.good_until_ms.max(asked_ms.saturating_add(RUN_LEASE_MS));
    }

    /// Whether a VM may be started under it now.
    pub fn is_good(&self, now_ms: u64) -> bool {
        now_ms.saturating_add(STOP_BEFORE_MS) < self.good_until_ms
    }
}

/// What ends a VM before its host's run lease has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    id: u64,
    /// None before anything was heard of the lease.
    good_until_ms: Option<u64>,
    is_lost: bool,
}

/// What a fence has done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceStep {
    /// Nothing.
    Wait,
    /// Ask the store to renew the lease: whoever else should have has not. The VM runs on meanwhile.
    Renew,
    /// End the VM, at once and for good.
    Stop,
}

impl Fence {
    /// That of a VM which was started under this lease. Before it has heard of that lease it lets nothing run.
    pub fn new(id: u64) -> Self {
        Self { id, good_until_ms: None, is_lost: false }
    }

    /// The host's lease is this one, by what its daemon has written down.
    pub fn reads(&mut self, lease: &RunLease) {
        if lease.id == self.id {
            self.good_until_ms = self.good_until_ms.max(Some(lease.good_until_ms));
        } else {
            self.is_lost = true;
        }
    }

    /// The store was asked to renew the lease at `asked_ms`; whether it did, as there was such a lease.
    pub fn answered(&mut self, asked_ms: u64, was_there: bool) {
        if was_there {
            self.good_until_ms = self.good_until_ms.max(Some(asked_ms.saturating_add(RUN_LEASE_MS)));
        } else {
            self.is_lost = true;
        }
    }

    /// What is to be done now.
    pub fn next(&mut self, now_ms: u64) -> FenceStep {
        let left_ms = self.good_until_ms.map_or(0, |until_ms| until_ms.saturating_sub(now_ms));
        // For good: the lease may have been given to what others have started, and a later one is not this VM's.
        self.is_lost |= left_ms <= STOP_BEFORE_MS;
        if self.is_lost {
            FenceStep::Stop
        } else if left_ms + RENEWAL_MS + LATE_MS < RUN_LEASE_MS {
            FenceStep::Renew
        } else {
            FenceStep::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u64, good_until_ms: u64) -> RunLease {
        RunLease { id, boot_id: "boot".to_owned(), good_until_ms }
    }

    #[test]
    fn nothing_runs_before_the_lease_is_known_to_be_good() {
        assert_eq!(Fence::new(1).next(0), FenceStep::Stop);
        let mut fence = Fence::new(1);
        fence.reads(&lease(1, 3_000));
        assert_eq!(fence.next(0), FenceStep::Wait);
    }

    #[test]
    fn a_vm_is_ended_before_its_lease_is_and_for_good() {
        let mut fence = Fence::new(1);
        fence.reads(&lease(1, 3_000));
        assert_eq!([0, 1_200, 1_801, 2_299].map(|ms| fence.clone().next(ms)), {
            use FenceStep::{Renew, Wait};
            [Wait, Wait, Renew, Renew]
        });
        assert_eq!(fence.next(3_000 - STOP_BEFORE_MS), FenceStep::Stop);
        // What comes too late changes nothing.
        fence.answered(3_000, true);
        assert_eq!(fence.next(3_001), FenceStep::Stop);
    }

    #[test]
    fn the_time_of_the_question_counts() {
        let mut fence = Fence::new(1);
        fence.reads(&lease(1, 3_000));
        fence.answered(500, true);
        assert_eq!(fence.next(2_799), FenceStep::Renew);
        assert_eq!(fence.next(2_800), FenceStep::Stop);
        let mut held = RunLease::granted(1, "boot".to_owned(), 100);
        held.renewed(50);
        assert_eq!(held.good_until_ms, 3_100, "an answer that was late takes nothing away");
        assert!(held.is_good(2_399) && !held.is_good(2_400));
    }

    #[test]
    fn another_lease_or_none_ends_the_vm() {
        let mut fence = Fence::new(1);
        fence.reads(&lease(1, 3_000));
        fence.reads(&lease(2, 90_000));
        assert_eq!(fence.next(0), FenceStep::Stop);
        let mut fence = Fence::new(1);
        fence.reads(&lease(1, 3_000));
        fence.answered(0, false);
        assert_eq!(fence.next(0), FenceStep::Stop);
    }
}
