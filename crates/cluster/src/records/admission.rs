use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use spec::HostName;

use super::cluster::{Cluster, read_from};
use super::{ClusterError, encode};
use crate::store::{Compare, Op, Outcome};

/// Where the policy is.
pub(super) const ADMISSION: &str = "admission";

/// What is kept free so that VMs can be restarted, checked whenever one is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case")]
pub enum Admission {
    /// Nothing.
    #[default]
    Off,
    /// Whichever hosts are lost, so many at once, all VMs can be restarted that should be. Each set of hosts is tried.
    HostFailures {
        /// How many: 1 to [`Admission::HOST_FAILURES_MAX`].
        hosts: u32,
    },
    /// A part of the memory and of the vCPUs of all hosts that are alive.
    Percent {
        /// Of the memory: 0 to 100.
        memory: u32,
        /// Of the vCPUs: 0 to 100.
        cpus: u32,
    },
    /// These hosts: nothing is started there but what is restarted.
    DedicatedHosts {
        /// Their names.
        hosts: BTreeSet<HostName>,
    },
}

impl Admission {
    /// Most hosts whose loss at once is tolerated: sets of more are too many to be tried.
    pub const HOST_FAILURES_MAX: u32 = 3;
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off: nothing is kept for restarts"),
            Self::HostFailures { hosts } => {
                write!(f, "host-failures {hosts}: all VMs can be restarted whichever {hosts} are lost")
            }
            Self::Percent { memory, cpus } => {
                write!(f, "percent: {memory}% of the memory and {cpus}% of the vCPUs are kept for restarts")
            }
            Self::DedicatedHosts { hosts } => {
                let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
                write!(f, "dedicated hosts: {} are kept for restarts", hosts.join(" "))
            }
        }
    }
}

impl Cluster {
    /// What is kept free so that VMs can be restarted.
    pub fn admission(&self) -> Result<Admission, ClusterError> {
        Ok(read_from(&**self.hosts_store(), ADMISSION)?.map_or(Admission::Off, |(policy, _)| policy))
    }

    /// Sets it.
    ///
    /// # Errors
    /// [`ClusterError::Contended`] if somebody else has set it at the same time.
    pub fn set_admission(&self, policy: &Admission) -> Result<(), ClusterError> {
        let value = encode(ADMISSION, policy)?;
        let version = self.hosts_store().get(ADMISSION)?.map_or(0, |entry| entry.version);
        let put = Op::Put { key: ADMISSION, value: &value, lease: None };
        match self.hosts_store().transact(&[Compare { key: ADMISSION, version }], &[put])? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::Contended(ADMISSION.to_owned())),
        }
    }
}
