use protocol::Claim;
use serde::{Deserialize, Serialize};
use spec::ReplicaId;

use super::UnknownFields;

/// Most hosts that [`ClaimRecord::copies`] remembers.
pub const COPIES_MAX: usize = 8;

/// The arbiter's record of one VM: the claim, and where older copies of its disks are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// The replicas that may run it.
    #[serde(flatten)]
    pub claim: Claim,
    /// Replicas of earlier claims, those of the latest first: their disks are out of date, and need only what differs.
    #[serde(default)]
    pub copies: Vec<ReplicaId>,
    /// Whether the primary runs under its host's run lease: then, and only then, another host may start the VM once that lease has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_lease: bool,
    /// Whether the primary's host could not start it, and nothing of it runs there: then others may, whatever that host's run lease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl ClaimRecord {
    /// The first claim of a VM.
    pub fn first(claim: Claim) -> Self {
        Self { claim, copies: Vec::new(), under_lease: false, given_up: false, unknown: UnknownFields::default() }
    }

    /// The record after `claim` has been won. A replica that claims its VM once more runs as it did.
    pub fn succeeded_by(&self, claim: Claim) -> Self {
        let in_it = |replica: &&ReplicaId| **replica != claim.primary && Some(*replica) != claim.secondary.as_ref();
        let mut copies: Vec<ReplicaId> = Vec::new();
        let earlier = std::iter::once(&self.claim.primary).chain(&self.claim.secondary).chain(&self.copies);
        for replica in earlier.filter(in_it) {
            if copies.len() < COPIES_MAX && !copies.contains(replica) {
                copies.push(replica.clone());
            }
        }
        let under_lease = self.under_lease && claim.primary == self.claim.primary && claim.secondary.is_none();
        Self { claim, copies, under_lease, given_up: false, unknown: self.unknown.clone() }
    }
}
