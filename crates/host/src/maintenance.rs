//! Maintenance of this host: it takes no replicas, and its VMs leave it. What is done about each is the controller's to decide; here it is said what that
//! comes to.

use std::sync::Arc;

use api::client::Target;
use api::events::EventKind;
use api::maintenance::{HeldPart, LeavingVm, MaintenanceView, SetMaintenance};
use cluster::planner::{Basis, Leaving, leaving};
use cluster::records::{ClusterError, ClusterState, OperationKind, VmState};
use machine::bus::lock;
use spec::{HostName, Maintenance};

use super::daemon::Daemon;
use super::error::HostError;

impl Daemon {
    /// Begins this host's maintenance, or ends it. Refused without `force` if VMs would not be protected any more.
    pub fn set_maintenance(self: &Arc<Self>, how: SetMaintenance) -> Result<MaintenanceView, HostError> {
        let host = self.host();
        if !how.on {
            self.registry.set_maintenance(Maintenance::Off)?;
            self.events.note(EventKind::MaintenanceOver, None, format!("the maintenance of host {host} is over"));
            return self.maintenance();
        }
        let wanted = if how.force { Maintenance::Forced } else { Maintenance::On };
        let lost = self.leaving(wanted)?.into_iter().filter_map(|(vm, leaving)| match leaving {
            Leaving::LosesProtection { why, .. } => Some(format!("VM {} ({why})", vm.record.name)),
            _ => None,
        });
        let lost: Vec<String> = lost.collect();
        if !how.force && !lost.is_empty() {
            return Err(HostError::refused(format!(
                "while host {host} is in maintenance, no host can be the second one of {}",
                lost.join(", ")
            ))
            .hint("add a host or make room on one, or let them go on unprotected with --force"));
        }
        self.registry.set_maintenance(wanted)?;
        self.events.note(EventKind::MaintenanceBegun, None, format!("host {host} is in maintenance"));
        self.maintenance()
    }

    /// How this host's maintenance stands.
    pub fn maintenance(&self) -> Result<MaintenanceView, HostError> {
        let maintenance = self.registry.maintenance();
        let vms = match maintenance {
            Maintenance::Off => Vec::new(),
            _ => {
                let (alive, leaving) = (self.registry.alive_hosts()?, self.leaving(maintenance)?);
                leaving.iter().map(|(vm, leaving)| self.leaving_view(vm, leaving, &alive)).collect()
            }
        };
        Ok(MaintenanceView { host: self.host().to_owned(), maintenance, vms })
    }

    /// The other host of that name, if it is not this one.
    pub fn other_host(&self, name: &str) -> Result<Option<Target>, HostError> {
        if name == self.host() {
            return Ok(None);
        }
        let host: HostName = name.parse().map_err(ClusterError::from)?;
        self.registry.cluster().host(&host)?;
        let target = self.registry.alive_host(&host)?;
        target
            .map(Some)
            .ok_or_else(|| HostError::unreachable(format!("host {host} is not alive")).hint("see `twinvm host list`"))
    }

    /// What becomes of each VM that is here, if this host is in maintenance.
    fn leaving(&self, maintenance: Maintenance) -> Result<Vec<(VmState, Leaving)>, HostError> {
        let (host, mut state) = (self.registry.host_name(), self.registry.state()?);
        for other in state.hosts.iter_mut().filter(|other| other.name == *host) {
            other.maintenance = maintenance;
        }
        let failures = lock(&self.controller).failures().clone();
        let here: Vec<VmState> = state.vms.iter().filter(|vm| is_here(vm, host)).cloned().collect();
        let decide = |vm: VmState| {
            let processor = self.replica(&vm.record.name).and_then(|replica| replica.processor());
            let basis = Basis { state: &state, failures: &failures, now: &self.registry.now() };
            let leaving = leaving(&vm, host, processor.as_ref(), &basis);
            // The next one finds the room that is left.
            take_place(&mut state, &vm, &leaving);
            (vm, leaving)
        };
        Ok(here.into_iter().map(decide).collect())
    }

    fn leaving_view(&self, vm: &VmState, leaving: &Leaving, alive: &[Target]) -> LeavingVm {
        let (name, claim) = (&vm.record.name, &vm.claim.claim);
        let is_forced = self.registry.maintenance() == Maintenance::Forced;
        let is_home = self.registry.host_name().is(&claim.primary);
        let runs = self.replica(name).is_some_and(|replica| replica.is_primary());
        let holds = match (is_home, runs) {
            (false, _) => HeldPart::Secondary,
            (true, true) => HeldPart::Primary,
            (true, false) => HeldPart::Disks,
        };
        let (leaves, text) = match (vm.record.migrates_to(claim), leaving) {
            _ if holds == HeldPart::Disks => (false, "its disks are there".to_owned()),
            _ if holds == HeldPart::Secondary && alive.iter().all(|home| home.host != claim.primary.as_str()) => {
                (false, format!("host {}, where it is at home, is not alive", claim.primary))
            }
            (Some(to), _) if holds == HeldPart::Primary => {
                let waiting = lock(&self.undone).waiting(name).map(|waiting| format!(": {waiting}"));
                (true, format!("moves to host {to}{}", waiting.unwrap_or_default()))
            }
            (_, Leaving::Moves { to, .. }) => (true, format!("moves to host {to} when it is its turn")),
            (_, Leaving::SecondaryMoves { to }) => (true, format!("its next secondary is made on host {to}")),
            (_, Leaving::Waits { to }) => (true, format!("has no secondary yet, and moves when host {to} is that")),
            (_, Leaving::LosesProtection { why, .. }) if is_forced => {
                (true, format!("leaves without protection: {why}"))
            }
            (_, Leaving::LosesProtection { why, .. }) => (false, format!("would not be protected elsewhere: {why}")),
            (_, Leaving::Stays { why }) => (false, why.clone()),
        };
        LeavingVm { vm: name.to_string(), holds, leaves, text }
    }
}

fn is_here(vm: &VmState, host: &HostName) -> bool {
    let claim = &vm.claim.claim;
    host.is(&claim.primary)
        || claim.secondary.as_ref().is_some_and(|secondary| host.is(secondary))
        // Of a suspended secondary there are only disks, which are kept for it.
        || vm.record.syncing_to.as_ref().is_some_and(|to| to == host && !vm.record.ft.suspended)
}

/// Reserves what a VM takes where it goes.
fn take_place(state: &mut ClusterState, vm: &VmState, leaving: &Leaving) {
    let Some(moved) = state.vms.iter_mut().find(|other| other.record.name == vm.record.name) else { return };
    match leaving {
        Leaving::Moves { to, .. } => {
            moved.record.ask(OperationKind::Migrate { to: to.clone() }, None, vm.claim.claim.generation);
        }
        Leaving::SecondaryMoves { to } | Leaving::Waits { to } => moved.record.syncing_to = Some(to.clone()),
        Leaving::LosesProtection { .. } | Leaving::Stays { .. } => {}
    }
}
