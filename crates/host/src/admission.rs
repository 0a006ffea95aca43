//! What is kept for restarts: the policy, and what would become of VMs if hosts were lost.

use std::collections::BTreeSet;

use api::admission::{AdmissionPolicy, AskWhatIf, Fate, FateView, WhatIfView};
use cluster::planner::{AfterLoss, admits, after_loss};
use cluster::records::{Admission, ClusterError};
use spec::{HostName, VmName};

use super::daemon::Daemon;
use super::error::HostError;
use super::registry::KnownVm;

impl Daemon {
    /// The policy of the cluster.
    pub fn admission_policy(&self) -> Result<AdmissionPolicy, HostError> {
        Ok(match self.registry.cluster().admission()? {
            Admission::Off => AdmissionPolicy::Off,
            Admission::HostFailures { hosts } => AdmissionPolicy::HostFailures { hosts },
            Admission::Percent { memory, cpus } => AdmissionPolicy::Percent { memory, cpus },
            Admission::DedicatedHosts { hosts } => {
                AdmissionPolicy::DedicatedHosts { hosts: hosts.iter().map(ToString::to_string).collect() }
            }
        })
    }

    /// Sets it. What runs already goes on.
    pub fn set_admission_policy(&self, policy: &AdmissionPolicy) -> Result<AdmissionPolicy, HostError> {
        let bad = |text: String| Err(HostError::bad_request(text));
        let wanted = match policy {
            AdmissionPolicy::Off => Admission::Off,
            AdmissionPolicy::HostFailures { hosts } if (1..=Admission::HOST_FAILURES_MAX).contains(hosts) => {
                Admission::HostFailures { hosts: *hosts }
            }
            AdmissionPolicy::HostFailures { .. } => {
                return bad(format!("host-failures: 1 to {} hosts", Admission::HOST_FAILURES_MAX));
            }
            AdmissionPolicy::Percent { memory, cpus } if *memory <= 100 && *cpus <= 100 => {
                Admission::Percent { memory: *memory, cpus: *cpus }
            }
            AdmissionPolicy::Percent { .. } => return bad("percent: 0 to 100".to_owned()),
            AdmissionPolicy::DedicatedHosts { hosts } => Admission::DedicatedHosts { hosts: self.known_hosts(hosts)? },
        };
        self.registry.cluster().set_admission(&wanted)?;
        tracing::info!("admission: {wanted}");
        self.admission_policy()
    }

    /// What would become of VMs if hosts were lost at once.
    pub fn what_if(&self, ask: &AskWhatIf) -> Result<WhatIfView, HostError> {
        let lost = self.known_hosts(&ask.lose)?;
        Ok(fates(after_loss(&self.registry.state()?, &lost, &self.registry.now())))
    }

    /// Refuses the start of a VM here that the policy does not admit. What is restarted is what room is kept for.
    pub(super) fn require_admission(&self, vm: &KnownVm) -> Result<(), HostError> {
        let policy = self.registry.cluster().admission()?;
        if policy == Admission::Off {
            return Ok(());
        }
        let (name, host): (&VmName, &HostName) = (&vm.record.name, self.registry.host_name());
        admits(&policy, name, host, &self.registry.state()?, &self.registry.now()).map_err(|why| {
            HostError::conflict(format!("VM {name} is not admitted on host {host}: {why}"))
                .hint("`twinvm cluster admission show` says what is kept for restarts")
        })
    }

    fn known_hosts(&self, names: &BTreeSet<String>) -> Result<BTreeSet<HostName>, HostError> {
        let known = self.registry.state()?.hosts;
        let check = |name: &String| {
            let name: HostName = name.parse().map_err(ClusterError::from)?;
            if known.iter().any(|host| host.name == name) { Ok(name) } else { Err(ClusterError::NoHost(name).into()) }
        };
        names.iter().map(check).collect()
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
