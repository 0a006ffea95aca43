use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use spec::{DatastoreName, HostName, ReplicaId, VmName};

use super::cluster::{CLAIM, VMS};
use super::{ClaimRecord, ClusterError, DatastoreRecord, HostRecord, VmRecord};
use crate::store::StoreError;
use crate::store::VALUE_BYTES_MAX;

/// The whole cluster as of one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// The revision: to be watched from.
    pub revision: u64,
    /// Hosts, in order of their names.
    pub hosts: Vec<HostRecord>,
    /// Hosts whose run leases are good: what runs under them, nobody else starts.
    pub run_leases: BTreeSet<HostName>,
    /// Datastores, in order of their names.
    pub datastores: Vec<DatastoreRecord>,
    /// VMs, in order of their names.
    pub vms: Vec<VmState>,
    /// Records that this version does not understand. What they would reserve is not known.
    pub unreadable: Vec<Unreadable>,
}

impl ClusterState {
    /// The host of that name.
    pub fn host(&self, name: &HostName) -> Option<&HostRecord> {
        self.named_host(name)
    }

    /// The host of a replica.
    pub fn host_of(&self, replica: &ReplicaId) -> Option<&HostRecord> {
        self.named_host(replica.as_str())
    }

    fn named_host(&self, name: &str) -> Option<&HostRecord> {
        debug_assert!(self.hosts.is_sorted_by(|one, next| one.name < next.name), "hosts are out of order");
        let index = self.hosts.binary_search_by(|host| host.name.as_str().cmp(name)).ok()?;
        self.hosts.get(index)
    }

    /// The datastore of that name.
    pub fn datastore(&self, name: &DatastoreName) -> Option<&DatastoreRecord> {
        self.datastores.iter().find(|datastore| datastore.name == *name)
    }

    /// The VM of that name.
    pub fn vm(&self, name: &VmName) -> Option<&VmState> {
        debug_assert!(self.vms.is_sorted_by(|one, next| one.record.name < next.record.name), "VMs are out of order");
        let index = self.vms.binary_search_by(|vm| vm.record.name.cmp(name)).ok()?;
        self.vms.get(index)
    }

    /// Has what specs say known here that is known in `before`, an earlier state, rather than found out once more.
    pub fn share_specs(&mut self, before: &Self) {
        let mut earlier = before.vms.iter().peekable();
        for VmState { record, .. } in &mut self.vms {
            while earlier.next_if(|vm| vm.record.name < record.name).is_some() {}
            if let Some(vm) = earlier.next_if(|vm| vm.record.name == record.name)
                && vm.record.spec == record.spec
            {
                record.spec = vm.record.spec.clone();
            }
        }
    }

    /// VMs of which this version cannot make sense, in order of their names, with the reason. What is in the place of a name need not be one.
    pub fn unreadable_vms(&self) -> Vec<(String, String)> {
        let unreadable = self.unreadable.iter().filter_map(|Unreadable { key, message }| {
            let name = key.strip_prefix(VMS)?;
            let why = ClusterError::Unreadable { key: key.clone(), message: message.clone() };
            Some((name.strip_suffix(CLAIM).unwrap_or(name).to_owned(), why.to_string()))
        });
        // Spec and form of a record are two things.
        let unknown = self.vms.iter().filter_map(|vm| {
            let message = vm.record.spec.read().err()?.to_string();
            let why = ClusterError::Unreadable { key: format!("{VMS}{}", vm.record.name), message };
            Some((vm.record.name.to_string(), why.to_string()))
        });
        // A record and its claim are one VM.
        unreadable.chain(unknown).collect::<BTreeMap<_, _>>().into_iter().collect()
    }
}

/// A VM with its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmState {
    /// What is wanted of the VM, and what hosts have written down of it.
    pub record: VmRecord,
    /// Which replicas may run it.
    pub claim: ClaimRecord,
}

impl VmState {
    /// The same, with what it needs reserved on the host that is given its first copy.
    pub fn promised_to(&self, host: &HostName) -> Self {
        let mut promised = self.clone();
        promised.record.syncing_to = Some(host.clone());
        promised
    }
}

/// A record that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The record's key.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a record.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ClusterError> {
    serde_json::from_slice(value)
        .map_err(|error| ClusterError::Unreadable { key: key.to_owned(), message: error.to_string() })
}

/// Writes a record.
pub(crate) fn encode<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, ClusterError> {
    let value = serde_json::to_vec(record)
        .map_err(|error| ClusterError::Unreadable { key: key.to_owned(), message: error.to_string() })?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::Refused(format!("{key}: {} bytes; at most {VALUE_BYTES_MAX}", value.len())).into());
    }
    Ok(value)
}
