//! [`Claim`]: which replicas may run a VM.

use spec::ReplicaId;

use serde::{Deserialize, Serialize};

use super::Generation;

/// The cluster store's record of one VM: who is primary, and who may take over from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which change of the record this is.
    pub generation: Generation,
    /// The replica whose output the world sees.
    pub primary: ReplicaId,
    /// The replica that may ask for the next generation when it has lost the primary.
    pub secondary: Option<ReplicaId>,
}
