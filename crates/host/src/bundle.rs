//! What a further host is given to join the cluster: its name, its keys, and where the store is, in one file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use api::joining::EtcdCredentials;
use cluster::store::StoreLocation;
use replication::channel::PemKeys;
use serde::{Deserialize, Serialize};

use super::config::check_host_name;
use super::etcd_access::credential_files;
use super::folder::{private_folder, write_private};

/// Largest bundle, in bytes.
const BUNDLE_BYTES_MAX: u64 = 256 << 10;
/// Version of the format.
const VERSION: u32 = 1;

/// A bundle. It holds the new host's private key: whoever has the file is that host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    version: u32,
    /// The new host's name.
    pub host: String,
    /// The cluster store.
    pub store: StoreLocation,
    /// The files of its folder of keys, by name.
    keys: BTreeMap<String, String>,
}

impl Bundle {
    /// Packs the folder of keys that was made for `host`.
    pub fn pack(host: &str, store: &StoreLocation, keys: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(keys).with_context(|| format!("cannot look into {}", keys.display()))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().filter(|name| is_key_file(name));
            let name = name.with_context(|| format!("{} does not belong to the keys", entry.path().display()))?;
            files.insert(name, fs::read_to_string(entry.path())?);
        }
        Ok(Self { version: VERSION, host: host.to_owned(), store: store.clone(), keys: files })
    }

    /// A host's keys that were made here, and with what it is let in by etcd.
    pub fn of_keys(host: &str, store: &StoreLocation, keys: &PemKeys, etcd: Option<&EtcdCredentials>) -> Self {
        let mut files = BTreeMap::from(keys.files().map(|(name, text)| (name.to_owned(), text.to_owned())));
        let etcd = etcd.into_iter().flat_map(credential_files);
        files.extend(etcd.map(|(name, text)| (name.to_owned(), text.to_owned())));
        Self { version: VERSION, host: host.to_owned(), store: store.clone(), keys: files }
    }

    /// Writes it to a file that is not there yet, readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        serde_json::to_writer_pretty(&mut file, self)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(writeln!(file)?))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads one.
    pub fn load(path: &Path) -> Result<Self> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(BUNDLE_BYTES_MAX).read_to_string(&mut text))
            .with_context(|| format!("cannot read bundle {} (`twinvm host issue` makes one)", path.display()))?;
        let bundle: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a bundle made by `twinvm host issue`", path.display()))?;
        if bundle.version != VERSION {
            bail!("bundle {} is of version {}, this program knows {VERSION}", path.display(), bundle.version);
        }
        check_host_name(&bundle.host).with_context(|| format!("bundle {}", path.display()))?;
        if let Some(name) = bundle.keys.keys().find(|name| !is_key_file(name)) {
            bail!("bundle {}: {name:?} does not belong there", path.display());
        }
        Ok(bundle)
    }

    /// Unpacks the keys into a new folder.
    pub fn unpack(&self, keys: &Path) -> Result<()> {
        private_folder(keys)?;
        for (name, content) in &self.keys {
            write_private(&keys.join(name), content)?;
        }
        Ok(())
    }
}

/// Whether a file of keys can have this name: a plain one, so that a bundle cannot write anywhere else.
fn is_key_file(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_carries_keys_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        private_folder(&keys).unwrap();
        fs::write(keys.join("host.key"), "secret").unwrap();
        let bundle = Bundle::pack("b", &StoreLocation::File("/store".into()), &keys).unwrap();
        let file = folder.path().join("b.bundle");
        bundle.save(&file).unwrap();
        assert!(bundle.save(&file).is_err(), "a bundle was overwritten");
        assert_eq!(Bundle::load(&file).unwrap(), bundle);
        bundle.unpack(&folder.path().join("there")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("there/host.key")).unwrap(), "secret");

        let text = fs::read_to_string(&file).unwrap();
        for (from, to) in [("host.key", "../x"), ("\"b\"", "\"../b\""), ("\"version\": 1", "\"version\": 2")] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            fs::write(&file, changed).unwrap();
            assert!(Bundle::load(&file).is_err(), "{to}");
        }
    }
}
