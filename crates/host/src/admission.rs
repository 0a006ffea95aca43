//! What is kept for restarts: the policy, and what would become of VMs if hosts were lost.

use std::collections::BTreeSet;

use api::admission::{AskWhatIf, Fate, FateView, WhatIfView};
use cluster::planner::{AfterLoss, admits, after_loss};
use cluster::records::{ClusterError, ClusterState};
use spec::{AdmissionPolicy, HostName, VmName};

use super::daemon::Daemon;
use super::error::HostError;
use super::registry::KnownVm;

impl Daemon {
    /// The policy of the cluster.
    pub fn admission_policy(&self) -> Result<AdmissionPolicy, HostError> {
        Ok(self.registry.cluster().admission()?)
    }

    /// Sets it. What runs already goes on.
    pub fn set_admission_policy(&self, policy: &AdmissionPolicy) -> Result<AdmissionPolicy, HostError> {
        policy.check().map_err(|error| HostError::invalid(error.to_string()))?;
        if let AdmissionPolicy::DedicatedHosts { hosts } = policy {
            require_known(hosts, &self.registry.state()?)?;
        }
        self.registry.cluster().set_admission(policy)?;
        tracing::info!("admission: {policy}");
        self.admission_policy()
    }

    /// What would become of VMs if hosts were lost at once.
    pub fn what_if(&self, ask: &AskWhatIf) -> Result<WhatIfView, HostError> {
        let state = self.registry.state()?;
        require_known(&ask.lose, &state)?;
        Ok(fates(after_loss(&state, &ask.lose, &self.registry.now())))
    }

    /// Refuses the start of a VM here that the policy does not admit. What is restarted is what room is kept for.
    pub(super) fn require_admission(&self, vm: &KnownVm) -> Result<(), HostError> {
        let policy = self.registry.cluster().admission()?;
        if policy == AdmissionPolicy::Off {
            return Ok(());
        }
        let (name, host): (&VmName, &HostName) = (&vm.record.name, self.registry.host_name());
        admits(&policy, name, host, &self.registry.state()?, &self.registry.now()).map_err(|why| {
            HostError::refused(format!("VM {name} is not admitted on host {host}: {why}"))
                .hint("`twinvm cluster admission show` says what is kept for restarts")
        })
    }
}

fn require_known(hosts: &BTreeSet<HostName>, state: &ClusterState) -> Result<(), HostError> {
    match hosts.iter().find(|name| state.hosts.iter().all(|host| host.name != **name)) {
        Some(unknown) => Err(ClusterError::NoHost(unknown.clone()).into()),
        None => Ok(()),
    }
}

fn fates(after: AfterLoss) -> WhatIfView {
    let fate = |vm: VmName, fate, host: Option<HostName>| FateView {
        vm: vm.to_string(),
        fate,
        host: host.map(|host| host.to_string()),
        why: Vec::new(),
    };
    let AfterLoss { go_on, lose_secondary, restart, not_restarted, end } = after;
    let not_restarted = not_restarted.into_iter().map(|(vm, refusals)| FateView {
        why: refusals.iter().map(|(host, why)| format!("host {host} {why}")).collect(),
        ..fate(vm, Fate::CannotRestart, None)
    });
    let vms = go_on.into_iter().map(|(vm, host)| fate(vm, Fate::GoesOn, Some(host)));
    let vms = vms.chain(restart.into_iter().map(|(vm, host)| fate(vm, Fate::Restarts, Some(host))));
    let vms = vms.chain(not_restarted);
    let vms = vms.chain(end.into_iter().map(|vm| fate(vm, Fate::Ends, None)));
    WhatIfView { vms: vms.chain(lose_secondary.into_iter().map(|vm| fate(vm, Fate::LosesSecondary, None))).collect() }
}
