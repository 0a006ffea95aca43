//! [`Claim`]: which replicas may run a VM.

use serde::{Deserialize, Serialize};

use super::ReplicaId;

/// Counts the changes of the set of replicas that may run a VM. The first claim of a VM has generation 1; 0 stands for none.
pub type Generation = u64;

/// Counts the checkpoints of a VM. Within a process it never goes back, whatever becomes of secondaries.
pub type Epoch = u64;

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
