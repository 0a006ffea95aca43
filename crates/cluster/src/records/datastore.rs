use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::{DatastoreName, HostName};

use super::cluster::{ATTEMPTS_MAX, Cluster, read_from};
use super::{ClusterError, HostRecord, UnknownFields, decode, encode};
use crate::store::{Compare, Op, Outcome};

/// Where datastores are.
pub(super) const DATASTORES: &str = "datastores/";

fn datastore_key(name: &DatastoreName) -> String {
    format!("{DATASTORES}{name}")
}

/// Named storage for disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreRecord {
    /// Its name.
    pub name: DatastoreName,
    /// Whether hosts share it.
    pub kind: DatastoreKind,
    /// Its folder, at this path on each host.
    pub path: PathBuf,
    /// What the file in that folder says by which a host knows it from another one, and from the empty folder that it is mounted at.
    pub id: String,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Kinds of datastores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// A folder of one host.
    Local,
    /// One folder that several hosts reach, with locks that hold among them: NFS, or a cluster file system.
    Shared,
}

impl DatastoreKind {
    /// As people call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Shared => "shared",
        }
    }
}

/// What a host has measured of a datastore that it reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreSpace {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is free, in bytes.
    pub free_bytes: u64,
}

impl Cluster {
    /// Makes a datastore known.
    ///
    /// # Errors
    /// [`ClusterError::DatastoreExists`] if there is one of that name.
    pub fn add_datastore(&self, datastore: &DatastoreRecord) -> Result<(), ClusterError> {
        let key = datastore_key(&datastore.name);
        let value = encode(&key, datastore)?;
        let there_is_none = Compare { key: &key, version: 0 };
        let put = Op::Put { key: &key, value: &value, lease: None };
        match self.hosts_store().transact(&[there_is_none], &[put])? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::DatastoreExists(datastore.name.clone())),
        }
    }

    /// All datastores whose records can be read, in order of their names.
    pub fn datastores(&self) -> Result<Vec<DatastoreRecord>, ClusterError> {
        let entries = self.hosts_store().list(DATASTORES)?.entries;
        Ok(entries.iter().filter_map(|(key, entry)| decode(key, &entry.value).ok()).collect())
    }

    /// Forgets a datastore; what is in its folder stays.
    ///
    /// # Errors
    /// [`ClusterError::NoDatastore`] if there is none of that name, [`ClusterError::DatastoreInUse`] if a disk of a VM names it.
    pub fn remove_datastore(&self, name: &DatastoreName) -> Result<(), ClusterError> {
        for vm in self.state()?.vms {
            let specs = std::iter::once(vm.record.spec.as_str()).chain(vm.record.next_spec.as_deref());
            let mut disks = specs.filter_map(|spec| spec::VmSpec::parse(spec).ok()).flat_map(|spec| spec.disks);
            if disks.any(|disk| disk.datastore.as_ref() == Some(name)) {
                return Err(ClusterError::DatastoreInUse { datastore: name.clone(), vm: vm.record.name });
            }
        }
        let key = datastore_key(name);
        let entry = self.hosts_store().get(&key)?.ok_or_else(|| ClusterError::NoDatastore(name.clone()))?;
        match self
            .hosts_store()
            .transact(&[Compare { key: &key, version: entry.version }], &[Op::Delete { key: &key }])?
        {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::Contended(key)),
        }
    }

    /// Notes which datastores a host reaches that is served by `instance`. Only the host itself does that.
    ///
    /// # Errors
    /// [`ClusterError::NoHost`] if it is not registered, [`ClusterError::OtherInstance`] if another daemon is with its identity.
    pub fn note_datastores(
        &self,
        host: &HostName,
        instance: &str,
        reached: &BTreeMap<DatastoreName, DatastoreSpace>,
    ) -> Result<(), ClusterError> {
        self.update_host(host, instance, |record| record.reached.clone_from(reached))
    }

    /// Changes the record of a host that is served by `instance`.
    pub(super) fn update_host(
        &self,
        host: &HostName,
        instance: &str,
        change: impl Fn(&mut HostRecord),
    ) -> Result<(), ClusterError> {
        let key = super::cluster::host_key(host);
        for _ in 0..ATTEMPTS_MAX {
            let read = read_from(&**self.hosts_store(), &key)?;
            let (mut record, version): (HostRecord, u64) = read.ok_or_else(|| ClusterError::NoHost(host.clone()))?;
            if record.instance != instance {
                return Err(ClusterError::OtherInstance(host.clone()));
            }
            change(&mut record);
            let value = encode(&key, &record)?;
            let put = Op::Put { key: &key, value: &value, lease: None };
            if let Outcome::Done { .. } = self.hosts_store().transact(&[Compare { key: &key, version }], &[put])? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended(key))
    }
}
