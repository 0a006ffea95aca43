//! [`AdmissionPolicy`]: what is kept free so that VMs can be restarted when hosts are lost.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::HostName;

/// What is kept free so that VMs can be restarted when hosts are lost, checked whenever one is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdmissionPolicy {
    /// Nothing.
    #[default]
    Off,
    /// Whichever hosts are lost, so many at once, all VMs can be restarted that should be. Each set of hosts is tried.
    HostFailures {
        /// How many: 1 to [`AdmissionPolicy::HOST_FAILURES_MAX`].
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

/// A policy asks for what cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionPolicyError {
    /// No host, or more than are tried.
    #[error("host-failures: 1 to {} hosts", AdmissionPolicy::HOST_FAILURES_MAX)]
    HostFailures,
    /// More than all of the memory or of the vCPUs.
    #[error("percent: 0 to 100")]
    Percent,
}

impl AdmissionPolicy {
    /// Most hosts whose loss at once is tolerated: sets of more are too many to be tried.
    pub const HOST_FAILURES_MAX: u32 = 3;

    /// Whether its numbers are within their ranges. Whether the hosts of [`AdmissionPolicy::DedicatedHosts`] exist, only their cluster knows.
    ///
    /// # Errors
    /// The range that one is out of.
    pub fn check(&self) -> Result<(), AdmissionPolicyError> {
        match self {
            Self::HostFailures { hosts } if !(1..=Self::HOST_FAILURES_MAX).contains(hosts) => {
                Err(AdmissionPolicyError::HostFailures)
            }
            Self::Percent { memory, cpus } if *memory > 100 || *cpus > 100 => Err(AdmissionPolicyError::Percent),
            Self::Off | Self::HostFailures { .. } | Self::Percent { .. } | Self::DedicatedHosts { .. } => Ok(()),
        }
    }
}

impl fmt::Display for AdmissionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off: nothing is kept for restarts"),
            Self::HostFailures { hosts } => write!(
                f,
                "host-failures {hosts}: a VM is started only if all can still be restarted, whichever {hosts} of the hosts are lost"
            ),
            Self::Percent { memory, cpus } => {
                write!(
                    f,
                    "percent: {memory}% of the memory and {cpus}% of the vCPUs of all hosts are kept for restarts"
                )
            }
            Self::DedicatedHosts { hosts } => {
                let hosts: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
                write!(f, "dedicated hosts: {} are kept for restarts", hosts.join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_out_of_its_range_is_refused() {
        let host_failures = |hosts| AdmissionPolicy::HostFailures { hosts }.check();
        assert_eq!(host_failures(0), Err(AdmissionPolicyError::HostFailures));
        assert_eq!(host_failures(1), Ok(()));
        assert_eq!(host_failures(3), Ok(()));
        assert_eq!(host_failures(4), Err(AdmissionPolicyError::HostFailures));
        let percent = |memory, cpus| AdmissionPolicy::Percent { memory, cpus }.check();
        assert_eq!(percent(100, 100), Ok(()));
        assert_eq!(percent(101, 0), Err(AdmissionPolicyError::Percent));
        assert_eq!(percent(0, 101), Err(AdmissionPolicyError::Percent));
        assert_eq!(AdmissionPolicy::Off.check(), Ok(()));
    }

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        let hosts = ["a", "b"].map(|name| name.parse().unwrap()).into();
        for policy in [
            AdmissionPolicy::Off,
            AdmissionPolicy::HostFailures { hosts: 2 },
            AdmissionPolicy::Percent { memory: 25, cpus: 0 },
            AdmissionPolicy::DedicatedHosts { hosts },
        ] {
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<AdmissionPolicy>(&text).unwrap(), policy, "{text}");
        }
    }
}
