//! Where the store of a cluster is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::etcd::{EtcdAddress, EtcdKeys, EtcdStore, SCHEME};
use super::{FolderStore, Sight, SqliteStore, Store, StoreError};

/// Where the store of a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreLocation {
    /// On one machine: an SQLite file with the hosts, by its absolute path. Beside it, with `.vms` at the end of its name, is a folder with the VMs.
    File(PathBuf),
    /// In etcd, which machines share.
    Etcd(EtcdAddress),
}

impl FromStr for StoreLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(SCHEME) {
            text.parse().map(Self::Etcd)
        } else if text.starts_with("etcd:") || text.contains("://") {
            Err(format!("{text} is neither a file nor etcd: write {SCHEME}HOST:PORT,HOST:PORT for etcd"))
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

impl TryFrom<String> for StoreLocation {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Etcd(address) => address.fmt(f),
        }
    }
}

impl From<StoreLocation> for String {
    fn from(location: StoreLocation) -> Self {
        location.to_string()
    }
}

impl StoreLocation {
    /// The same, with what is on this machine first, where it is in several places.
    pub fn nearest_first(&self) -> Self {
        match self {
            Self::File(_) => self.clone(),
            Self::Etcd(address) => Self::Etcd(address.nearest_first()),
        }
    }

    /// All its files and folders on this machine.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File(path) => ["", "-wal", "-shm", ".vms"].map(|ending| with_ending(path, ending)).into(),
            Self::Etcd(_) => Vec::new(),
        }
    }
}

/// The folder with VMs and their claims, beside the file of a store.
pub fn vms_folder(file: &Path) -> PathBuf {
    with_ending(file, ".vms")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(ending);
    path.into()
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
    /// Opens those of a cluster; etcd with these keys.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], [`FolderStore::open`] and [`EtcdStore::open`].
    pub fn open(location: &StoreLocation, keys: Option<&EtcdKeys>) -> Result<Self, StoreError> {
        Self::open_after(location, keys, None)
    }

    /// The same; an etcd only if it has not gone back behind what was seen of it before.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_after(
        location: &StoreLocation,
        keys: Option<&EtcdKeys>,
        sight: Option<Sight>,
    ) -> Result<Self, StoreError> {
        match location {
            StoreLocation::File(path) => {
                let hosts = Arc::new(SqliteStore::open(path)?);
                Ok(Self { vms: Arc::new(FolderStore::open(&vms_folder(path))?), hosts })
            }
            StoreLocation::Etcd(address) => Ok(Self::one(Arc::new(EtcdStore::open_after(address, keys, sight)?))),
        }
    }

    /// One store as all of them.
    pub fn one(store: Arc<dyn Store>) -> Self {
        Self { vms: store.clone(), hosts: store }
    }

    /// Makes those of a cluster, unless they are there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn create(location: &StoreLocation, keys: Option<&EtcdKeys>) -> Result<Self, StoreError> {
        if let StoreLocation::File(path) = location {
            SqliteStore::create(path)?;
            FolderStore::create(&vms_folder(path))?;
        }
        Self::open(location, keys)
    }
}

/// Opens what replicas arbitrate by, and nothing that has a lock.
///
/// # Errors
/// As [`Stores::open`].
pub fn open_vms(location: &StoreLocation, keys: Option<&EtcdKeys>) -> Result<Arc<dyn Store>, StoreError> {
    match location {
        StoreLocation::File(path) => Ok(Arc::new(FolderStore::open(&vms_folder(path))?)),
        StoreLocation::Etcd(_) => Ok(Stores::open(location, keys)?.vms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_file_or_etcd_and_nothing_that_looks_like_either() {
        for (text, location) in [
            ("/var/lib/twinvm/cluster.db", StoreLocation::File("/var/lib/twinvm/cluster.db".into())),
            ("hosts/cluster.db", StoreLocation::File("hosts/cluster.db".into())),
            ("etcd://a:1,b:2/lab", StoreLocation::Etcd("etcd://a:1,b:2/lab".parse().unwrap())),
        ] {
            assert_eq!(text.parse::<StoreLocation>().unwrap(), location);
            assert_eq!(serde_json::to_string(&location).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<StoreLocation>(&format!("\"{text}\"")).unwrap(), location);
        }
        for text in ["etcd:a:1", "http://a:1", "etcd://a"] {
            assert!(text.parse::<StoreLocation>().is_err(), "{text}");
        }
    }
}
