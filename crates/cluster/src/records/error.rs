use spec::{DatastoreName, HostName, NameError, VmName};
use thiserror::Error;

use crate::store::StoreError;

/// Why something could not be done with the cluster's records.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClusterError {
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no such VM.
    #[error("there is no VM {0}")]
    NoVm(VmName),
    /// There is no such host.
    #[error("there is no host {0}")]
    NoHost(HostName),
    /// There is no such token for joining.
    #[error("the token is not known here: it has expired, or it is of another cluster")]
    NoToken,
    /// A token for joining was used.
    #[error("the token was used already")]
    TokenUsed,
    /// A cluster was made there already.
    #[error("there is a cluster in this store already")]
    ClusterExists,
    /// A VM of that name is there already.
    #[error("there is a VM {0} already")]
    VmExists(VmName),
    /// There is no such datastore.
    #[error("there is no datastore {0}")]
    NoDatastore(DatastoreName),
    /// A datastore of that name is there already.
    #[error("there is a datastore {0} already")]
    DatastoreExists(DatastoreName),
    /// A datastore cannot be removed while a VM needs it.
    #[error("a disk of VM {vm} is on datastore {datastore}: remove the VM first")]
    DatastoreInUse {
        /// The datastore.
        datastore: DatastoreName,
        /// One of the VMs.
        vm: VmName,
    },
    /// The host's lease has ended, as it was not renewed in time.
    #[error("the lease of host {0} has ended")]
    LeaseEnded(HostName),
    /// Another daemon has registered with the identity of this one.
    #[error("host {0} is served by another daemon, which was started later with the same keys")]
    OtherInstance(HostName),
    /// A host cannot be removed while a VM needs it.
    #[error("host {host} has a replica of VM {vm}: move or remove the VM first")]
    HostInUse {
        /// The host.
        host: HostName,
        /// One of the VMs.
        vm: VmName,
    },
    /// A record that this version does not understand.
    #[error("record {key} in the cluster store cannot be read ({message}); it may be that of a newer twinvm")]
    Unreadable {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// Others kept changing the record.
    #[error("record {0} in the cluster store keeps changing: try again")]
    Contended(String),
}
