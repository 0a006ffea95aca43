//! Datastores: named storage for disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Asks for a folder to become a datastore, at this path on each host that is to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDatastore {
    /// Its name.
    pub name: String,
    /// Its folder, as an absolute path.
    pub path: PathBuf,
    /// Whether hosts share it: one folder, as of NFS, with locks that hold among them.
    pub shared: bool,
}

/// A datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreView {
    /// Its name.
    pub name: String,
    /// Whether hosts share it.
    pub shared: bool,
    /// Its folder.
    pub path: PathBuf,
    /// The hosts that reach it, as each has measured last.
    pub hosts: Vec<DatastoreHost>,
    /// VMs whose disks are on it.
    pub vms: Vec<String>,
}

/// A host that reaches a datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreHost {
    /// The host.
    pub name: String,
    /// All of its space, in bytes.
    pub total_bytes: u64,
    /// What is free of it, in bytes.
    pub free_bytes: u64,
}
