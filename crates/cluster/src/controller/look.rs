//! [`Look`]: what one decision is made from.

use spec::{CpuProfile, HostName, Maintenance};

use super::action::Why;
use super::report::HostReport;
use crate::planner::{Basis, NoPlace, may_hold_secondary, place_secondary};
use crate::records::VmState;

/// What is wanted and what is seen, at one moment.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) basis: Basis<'a>,
    pub(super) seen: &'a HostReport,
}

impl Look<'_> {
    /// Whether a host can hold the secondary of a VM.
    pub(super) fn may_hold_secondary(
        &self,
        vm: &VmState,
        host: &HostName,
        processor: Option<&CpuProfile>,
    ) -> Result<(), NoPlace> {
        may_hold_secondary(vm, host, processor, &self.basis)
    }

    /// Whether one fault may take the primary of a protected VM and its secondary on host `by`: where hosts are was changed since it was placed there.
    fn shares_domain(&self, vm: &VmState, by: &HostName) -> bool {
        let primary = self.basis.state.host_of(&vm.claim.claim.primary);
        let secondary = self.basis.state.host(by);
        vm.record.ft.is_wanted() && primary.zip(secondary).is_some_and(|(one, other)| one.shares_domain(other))
    }

    /// How far the maintenance of a host goes.
    pub(super) fn maintenance(&self, host: &HostName) -> Maintenance {
        self.basis.state.host(host).map_or(Maintenance::Off, |host| host.maintenance)
    }

    /// Why the secondary of a VM on host `by`, or what is becoming that, is let go for one on another host; nothing if it stays. It goes only when there is
    /// a place for the next one, or somebody has said that the VM may do without.
    pub(super) fn replacement(&self, vm: &VmState, by: &HostName, processor: Option<&CpuProfile>) -> Option<Why> {
        if let Some(to) = vm.record.migrates_to(&vm.claim.claim) {
            let fits = to != by && self.may_hold_secondary(vm, to, processor).is_ok();
            return fits.then(|| Why::Migrates { to: to.clone() });
        }
        let has_place = || place_secondary(vm, processor, &self.basis).is_ok();
        // It may be about to end, or to be handed over.
        if vm.record.pending().is_some() {
            return None;
        }
        if self.shares_domain(vm, by) && has_place() {
            return Some(Why::SharesDomain { host: by.clone() });
        }
        let goes = match self.maintenance(by) {
            Maintenance::Off => false,
            Maintenance::On => has_place(),
            Maintenance::Forced => true,
        };
        goes.then(|| Why::Maintenance { host: by.clone() })
    }
}
