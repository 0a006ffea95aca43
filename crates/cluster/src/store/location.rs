//! Where the store of a cluster is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FolderStore, SqliteStore, Store, StoreError};

/// Where the store of a cluster is: a file, by its absolute path. Beside it, with `.vms` at the end of its name, is a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreLocation(PathBuf);

impl StoreLocation {
    /// That of the store with this file.
    pub fn file(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder with VMs and their claims.
    pub fn vms(&self) -> PathBuf {
        self.ending(".vms")
    }

    /// All its files and folders.
    pub fn files(&self) -> Vec<PathBuf> {
        ["", "-wal", "-shm", ".vms"].map(|ending| self.ending(ending)).into()
    }

    fn ending(&self, ending: &str) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(ending);
        path.into()
    }
}

/// The stores of a cluster. One store may be both.
#[derive(Clone)]
pub struct Stores {
    /// What replicas arbitrate by: VMs and their claims.
    pub vms: Arc<dyn Store>,
    /// Hosts, which renew their leases there all the time.
    pub hosts: Arc<dyn Store>,
}

impl Stores {
    /// Opens those of a cluster.
    ///
    /// # Errors
    /// As [`SqliteStore::open`] and [`FolderStore::open`].
    pub fn open(location: &StoreLocation) -> Result<Self, StoreError> {
        let hosts = Arc::new(SqliteStore::open(location.path())?);
        Ok(Self { vms: open_vms(location)?, hosts })
    }

    /// One store as all of them.
    pub fn one(store: Arc<dyn Store>) -> Self {
        Self { vms: store.clone(), hosts: store }
    }

    /// Makes those of a cluster, unless they are there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn create(location: &StoreLocation) -> Result<Self, StoreError> {
        let hosts = Arc::new(SqliteStore::create(location.path())?);
        Ok(Self { vms: Arc::new(FolderStore::create(&location.vms())?), hosts })
    }
}

/// Opens what replicas arbitrate by, and nothing that has a lock.
///
/// # Errors
/// As [`FolderStore::open`].
pub fn open_vms(location: &StoreLocation) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(FolderStore::open(&location.vms())?))
}
