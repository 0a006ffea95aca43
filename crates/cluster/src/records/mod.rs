//! What the cluster store holds, as JSON under string keys.
//!
//! | key | record |
//! | --- | --- |
//! | `cluster` | by which host the cluster was made, and what was before it was moved here |
//! | `moved` | where all of it was moved, or is being moved ([`Marker`](crate::store::Marker)) |
//! | `hosts/NAME` | [`HostRecord`]: what a host offers |
//! | `alive/NAME` | the instance of a host that is alive: it goes with that one's lease |
//! | `runs/NAME` | that host's run lease, for as long as it lasts: nobody else starts VMs that run under it |
//! | `admission` | [`AdmissionPolicy`](spec::AdmissionPolicy): what is kept free for restarts |
//! | `datastores/NAME` | [`DatastoreRecord`]: named storage for disks |
//! | `tokens/DIGEST` | [`TokenRecord`]: a token with which a host may join, by the digest of its secret |
//! | `vms/NAME` | [`VmRecord`]: what a VM is and what its administrator wants of it |
//! | `vms/NAME/claim` | [`ClaimRecord`]: which replicas may run it |
//!
//! Fields that this version does not know are kept when a record is written back. A record that it cannot read, because a field
//! has a value of a newer version, is refused by name and does not keep the others from being read.

mod admission;
mod claim;
mod cluster;
mod datastore;
mod error;
mod host;
mod operation;
mod run_lease;
mod seen;
mod spec_text;
mod state;
mod store_move;
mod succession;
mod token;
mod tokens;
mod vm;

pub use crate::store::BootTime;
pub use claim::{COPIES_MAX, ClaimRecord};
pub use cluster::Cluster;
pub use datastore::{DatastoreKind, DatastoreRecord, DatastoreSpace};
pub use error::ClusterError;
pub use host::{HostRecord, Lease};
pub use operation::{Operation, OperationKind, OperationResult};
pub use spec_text::SpecText;
pub use state::{ClusterState, Unreadable, VmState};
pub use store_move::{MoveError, MoveStep, StoreMove};
pub use succession::{Succession, succession};
pub use token::{TokenRecord, TokenUse};
pub use vm::{FtSettings, HaSettings, Power, VmRecord};

/// Fields of a record that a newer version has written, kept as they are.
pub type UnknownFields = serde_json::Map<String, serde_json::Value>;

pub(crate) use cluster::claim_key;
pub(crate) use state::{decode, encode};
