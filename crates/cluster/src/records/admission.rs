use spec::AdmissionPolicy;

use super::cluster::{Cluster, read_from};
use super::{ClusterError, encode};
use crate::store::{Compare, Op, Outcome};

/// Where the policy is.
pub(super) const ADMISSION: &str = "admission";

impl Cluster {
    /// What is kept free so that VMs can be restarted.
    pub fn admission(&self) -> Result<AdmissionPolicy, ClusterError> {
        Ok(read_from(&**self.hosts_store(), ADMISSION)?.map_or(AdmissionPolicy::Off, |(policy, _)| policy))
    }

    /// Sets it.
    ///
    /// # Errors
    /// [`ClusterError::Contended`] if somebody else has set it at the same time.
    pub fn set_admission(&self, policy: &AdmissionPolicy) -> Result<(), ClusterError> {
        let value = encode(ADMISSION, policy)?;
        let version = self.hosts_store().get(ADMISSION)?.map_or(0, |entry| entry.version);
        let put = Op::Put { key: ADMISSION, value: &value, lease: None };
        match self.hosts_store().transact(&[Compare { key: ADMISSION, version }], &[put])? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::Contended(ADMISSION.to_owned())),
        }
    }
}
