//! [`NextStore`]: where the cluster's store is to be, and what a host is let in with there, while and after it moves.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cluster::store::{EtcdKeys, Marker, StoreLocation};
use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};

/// The file, in a host's folder.
const FILE: &str = "store.next";

/// Where the store is to be, and what this host is let in with there. It is written before the store moves, for the daemon and the brokers of the host, which learn
/// from the old store when it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextStore {
    /// Where it is to be.
    pub store: StoreLocation,
    /// What this host is let in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_keys: Option<EtcdKeys>,
}

impl NextStore {
    /// Keeps it in the folder of a host.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, host_folder: &Path) -> Result<()> {
        let (path, text) = (host_folder.join(FILE), toml::to_string(self).context("cannot write TOML")?);
        durable::write(&path, text.as_bytes(), Readers::Owner)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// That of a host, for a store that was moved.
    ///
    /// # Errors
    /// If there is none, or the store was moved to another place.
    pub fn of(host_folder: &Path, marker: &Marker) -> Result<Self> {
        let path = host_folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "the cluster store was moved to {}, and this host has no keys for it: give `twinvm cluster migrate-store` again on the host with the folder `authority`",
                marker.to
            ),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let next: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        if next.store.to_string() != marker.to {
            bail!("the cluster store was moved to {}, and {} is for {}", marker.to, path.display(), next.store);
        }
        Ok(next)
    }
}
