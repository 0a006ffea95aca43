//! `host.toml`: what an administrator decides about a host.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use cluster::store::{EtcdKeys, StoreLocation};
use serde::{Deserialize, Serialize};
use spec::{ByteSize, FailureDomain, HostName};

use super::folder::HostFolder;
use super::vm_users::UidRange;
use crate::replica::config::{epoch_ms_max_default, lag_ms_max_default, suspicion_ms_default};

/// Port of the REST API unless another is chosen.
pub const API_PORT: u16 = 7441;
/// Port of the metrics unless another is chosen.
pub const METRICS_PORT: u16 = 9441;

/// A host's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// The host's name: that of its certificate.
    pub name: String,
    /// Where the REST API listens. Other hosts reach it there, and secondaries listen at the same IP address.
    pub listen: SocketAddr,
    /// Where Prometheus metrics are served, over plain HTTP; an empty string turns them off.
    #[serde(with = "address_or_nothing")]
    pub metrics: Option<SocketAddr>,
    /// The cluster store: a file, beside which it has a folder, or etcd.
    pub store: StoreLocation,
    /// The folder of guest images.
    pub images: PathBuf,
    /// Folders below which VM specs may name files, beside the images and `files` in the host's folder. Who can write there can give a VM any file
    /// that is there.
    #[serde(default)]
    pub vm_folders: Vec<PathBuf>,
    /// What this host fails together with, such as `rack1/power2`: two replicas of a VM are never in one domain. See [`HostConfig::failure_domain`] for
    /// where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<FailureDomain>,
    /// The folder of the network ends that hosts of one machine share, if it is not where the store is: written when the store moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_ends: Option<PathBuf>,
    /// Bridges that VMs on this host can be connected to.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Named storage that this host reaches.
    #[serde(default)]
    pub datastores: Vec<String>,
    /// Memory that VMs may have in all; what the machine has if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// vCPUs that VMs may have in all; four for each processor of the machine if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Silence after which a replica suspects at the latest that its peer is gone, in ms: 20 to 10,000. A VM keeps what it was on the host
    /// where it was created.
    #[serde(default = "suspicion_ms_default")]
    pub suspicion_ms: u32,
    /// The least such silence, in ms: 10 to `suspicion_ms`. Between the two it follows what the link is like. Three quarters of `suspicion_ms` if it is not said. A VM
    /// keeps this too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion_ms_min: Option<u32>,
    /// Longest epoch of a protected VM, in ms: 1 to 10,000. A VM keeps this too.
    #[serde(default = "epoch_ms_max_default")]
    pub epoch_ms_max: u32,
    /// How far the secondary of a VM in lockstep may be behind before the guest waits for it, in ms: 10 to 10,000. A VM keeps
    /// this too.
    #[serde(default = "lag_ms_max_default")]
    pub lag_ms_max: u32,
    /// Most first copies that this host sends at a time: 1 to 64. Further VMs wait for their turn.
    #[serde(default = "first_copies_max_default")]
    pub first_copies_max: usize,
    /// Where the daemon is root: the users as which VMs run, a different one for each; an empty string has them run as the daemon's user.
    #[serde(default = "vm_uids_default", with = "range_or_nothing")]
    pub vm_uids: Option<UidRange>,
    /// Whether the daemon refuses to start where the machine cannot confine the processes of VMs, as its kernel is too old or a container does not let it: see
    /// [`crate::sandbox::Enforced::require`]. Otherwise it goes on with what there is, and says so.
    #[serde(default)]
    pub require_sandbox: bool,
    /// The files with which this host and etcd prove to each other who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_keys: Option<EtcdKeys>,
}

/// Two: a first copy takes what bandwidth it gets, and one that waits for its disks leaves some to the other.
pub fn first_copies_max_default() -> usize {
    2
}

/// [`UidRange::DEFAULT`], for serde.
pub fn vm_uids_default() -> Option<UidRange> {
    Some(UidRange::DEFAULT)
}

mod range_or_nothing {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::UidRange;

    pub fn serialize<S: Serializer>(range: &Option<UidRange>, serializer: S) -> Result<S::Ok, S::Error> {
        match range {
            Some(range) => serializer.collect_str(range),
            None => serializer.serialize_str(""),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UidRange>, D::Error> {
        match String::deserialize(deserializer)?.trim() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

mod address_or_nothing {
    use std::net::SocketAddr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(""),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        super::parse_address_or_nothing(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An address with a port, or nothing for an empty text.
pub fn parse_address_or_nothing(text: &str) -> Result<Option<SocketAddr>, String> {
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("`{text}` is not an address such as 127.0.0.1:9441")),
    }
}

impl HostConfig {
    /// Reads the configuration of the host whose folder this is.
    pub fn load(folder: &HostFolder) -> Result<Self> {
        let path = folder.config();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "there is no host in {}: make one with `twinvm host init`, or name its folder with --dir or TWINVM_HOST_DIR",
                folder.path().display()
            ),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line =
                error.span().map_or(0, |span| text.get(..span.start).map_or(0, |text| text.matches('\n').count()));
            anyhow::anyhow!("{}, line {}: {}", path.display(), line + 1, error.message())
        })?;
        config.validate().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Checks what parsing alone cannot.
    pub fn validate(&self) -> Result<()> {
        check_host_name(&self.name)?;
        if self.listen.ip().is_unspecified() {
            bail!("listen = \"{}\": name the address at which other hosts reach this one", self.listen);
        }
        if let Some(relative) = self.vm_folders.iter().find(|folder| !folder.is_absolute()) {
            bail!("vm_folders: {} is not an absolute path", relative.display());
        }
        if let (StoreLocation::File(path), Some(_)) = (&self.store, &self.store_keys) {
            bail!("store_keys are for etcd, and the store is the file {}", path.display());
        }
        for (name, value, range) in [
            ("suspicion_ms", self.suspicion_ms, 20..=10_000),
            ("epoch_ms_max", self.epoch_ms_max, 1..=10_000),
            ("lag_ms_max", self.lag_ms_max, 10..=10_000),
        ] {
            if !range.contains(&value) {
                bail!("{name} = {value}: must be {} to {}", range.start(), range.end());
            }
        }
        if let Some(min) = self.suspicion_ms_min.filter(|min| !(10..=self.suspicion_ms).contains(min)) {
            bail!("suspicion_ms_min = {min}: must be 10 to {}, which is suspicion_ms", self.suspicion_ms);
        }
        if !(1..=64).contains(&self.first_copies_max) {
            bail!("first_copies_max = {}: must be 1 to 64", self.first_copies_max);
        }
        Ok(())
    }

    /// What the host fails together with. Where nobody has said so, it is its machine (none), as of several daemons of one machine none outlives it. All hosts
    /// of a cluster whose store is a file are on one machine, which would leave no place for a secondary: there each is a domain of its own.
    ///
    /// # Errors
    /// If the host has no name that a host can have.
    pub fn failure_domain(&self) -> Result<Option<FailureDomain>> {
        match (&self.domain, &self.store) {
            (Some(domain), _) => Ok(Some(domain.clone())),
            (None, StoreLocation::File(_)) => Ok(Some(self.name.parse()?)),
            (None, StoreLocation::Etcd(_)) => Ok(None),
        }
    }

    /// The text of `host.toml`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write TOML")
    }

    /// The address at which secondaries listen.
    pub fn replication_ip(&self) -> IpAddr {
        self.listen.ip()
    }
}

/// Refuses a name that a host cannot have.
pub fn check_host_name(name: &str) -> Result<()> {
    name.parse::<HostName>()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::config::{LAG_MS_MAX_DEFAULT, SUSPICION_MS_DEFAULT};

    const GOOD: &str = "name = \"a\"\nlisten = \"127.0.0.1:7441\"\nmetrics = \"\"\nstore = \"/s\"\nimages = \"/i\"\n";

    #[test]
    fn a_configuration_survives_being_written_and_read() {
        let config: HostConfig = toml::from_str(GOOD).unwrap();
        assert_eq!((config.metrics, config.suspicion_ms), (None, SUSPICION_MS_DEFAULT));
        assert_eq!(config.lag_ms_max, LAG_MS_MAX_DEFAULT);
        assert_eq!(toml::from_str::<HostConfig>(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn hosts_of_one_machine_are_one_domain_unless_the_cluster_is_on_that_machine_or_it_is_said() {
        let domain = |text: &str| {
            let config: HostConfig = toml::from_str(text).unwrap();
            config.failure_domain().unwrap().map(|domain| domain.to_string())
        };
        let etcd = GOOD.replace("\"/s\"", "\"etcd://127.0.0.1:2379\"");
        assert_eq!((domain(GOOD).as_deref(), domain(&etcd)), (Some("a"), None));
        for text in [GOOD, &etcd] {
            assert_eq!(domain(&format!("domain = \"rack1/power2\"\n{text}")).as_deref(), Some("rack1/power2"));
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = HostFolder::find(Some(temporary.path())).unwrap();
        assert!(format!("{:#}", HostConfig::load(&folder).unwrap_err()).contains("twinvm host init"));
        for (from, to, expected) in [
            ("name = \"a\"", "name = \"A b\"", "cannot be the name of a host"),
            ("127.0.0.1:7441", "0.0.0.0:7441", "at which other hosts reach"),
            ("127.0.0.1:7441", "nowhere", "line 2"),
            ("metrics = \"\"", "metrics = \"x\"", "such as 127.0.0.1"),
            ("images", "colour = 1\nimages", "unknown field"),
            ("images", "vm_folders = [\"x\"]\nimages", "not an absolute path"),
            (
                "images = \"/i\"",
                "images = \"/i\"\n[store_keys]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"",
                "are for etcd",
            ),
            ("store = \"/s\"", "store = \"etcd://a\"", "has no port"),
            ("images", "domain = \"rack1//2\"\nimages", "such as rack1/power2"),
            ("images", "suspicion_ms = 1\nimages", "20 to 10000"),
            ("images", "suspicion_ms_min = 101\nimages", "10 to 100"),
            ("images", "suspicion_ms = 50\nsuspicion_ms_min = 9\nimages", "10 to 50"),
            ("images", "vm_uids = \"0-9\"\nimages", "no range of users"),
            ("images", "lag_ms_max = 9\nimages", "10 to 10000"),
        ] {
            fs::write(folder.config(), GOOD.replace(from, to)).unwrap();
            let message = format!("{:#}", HostConfig::load(&folder).unwrap_err());
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }
}
