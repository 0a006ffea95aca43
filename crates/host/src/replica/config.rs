//! What a replica process is told at its start.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use api::status::Role;
use cluster::store::{EtcdKeys, StoreLocation};
use protocol::Suspicion;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use spec::{EngineKind, FtMode, SnapshotName, VmSpec};
use storage::plain_file;

/// How long a replica hears nothing from its peer before it suspects that the peer is gone, unless configured.
pub const SUSPICION_MS_DEFAULT: u32 = 100;
/// Longest epoch, unless configured.
pub const EPOCH_MS_MAX_DEFAULT: u32 = 100;
/// How far a secondary in lockstep may be behind, unless configured.
pub const LAG_MS_MAX_DEFAULT: u32 = 100;
/// Longest configuration file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A replica process's configuration: the file that `twinvm replica --config FILE` reads, as JSON.
///
/// The host daemon writes it, and starts the process when everything that it names is there: disks, kernel, network ends and,
/// for a primary, the claim in the cluster store that names this host as the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// The VM's name.
    pub vm: String,
    /// The name of the host that runs this replica.
    pub host: String,
    /// The VM spec as TOML, with this host's own files: kernel, initrd, command line and the copies of the disks are named by
    /// absolute path, images are not named.
    pub spec: String,
    /// What the replica starts as. It may change: see [`api::status::ReplicaStatus::role`].
    pub role: Role,
    /// What executes vCPUs. Both replicas of a VM have the same.
    pub engine: EngineKind,
    /// The cluster store.
    pub store: StoreLocation,
    /// The files with which its host and etcd prove to each other who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_keys: Option<EtcdKeys>,
    /// The folder of the keys with which the replica proves who it is to its peer: those of one session, never the host's. A primary is given its
    /// keys when it is asked to replicate the VM, if this names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
    /// The VM's folder on this host, which holds the control socket and what the process leaves when it ends.
    pub folder: PathBuf,
    /// The user as whom the process runs once it has opened what it needs: one of the VM's own, whose the folder is. It stays its daemon's user if
    /// there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The run lease of its host under which it runs: its broker ends it before that lease has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_lease: Option<u64>,
    /// A primary: the snapshot in the VM's folder that it goes on from, instead of power-on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotName>,
    /// The socket of the network end of each card, in the order of the spec.
    pub network_ends: Vec<PathBuf>,
    /// Where a secondary listens for its primary; port 0 lets the system choose one, which the status then names. A primary
    /// has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Silence of the peer after which it is taken for lost, in ms: 20 to 10,000.
    #[serde(default = "suspicion_ms_default")]
    pub suspicion_ms: u32,
    /// The least such silence, in ms: 10 to `suspicion_ms`; three quarters of that if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion_ms_min: Option<u32>,
    /// Longest epoch, in ms: 1 to 10,000.
    #[serde(default = "epoch_ms_max_default")]
    pub epoch_ms_max: u32,
    /// How the VM is replicated, until the replica is told otherwise.
    #[serde(default)]
    pub mode: FtMode,
    /// Lockstep: how far the secondary may be behind before the guest waits for it, in ms: 10 to 10,000.
    #[serde(default = "lag_ms_max_default")]
    pub lag_ms_max: u32,
}

/// [`SUSPICION_MS_DEFAULT`], for serde.
pub fn suspicion_ms_default() -> u32 {
    SUSPICION_MS_DEFAULT
}

/// [`EPOCH_MS_MAX_DEFAULT`], for serde.
pub fn epoch_ms_max_default() -> u32 {
    EPOCH_MS_MAX_DEFAULT
}

/// [`LAG_MS_MAX_DEFAULT`], for serde.
pub fn lag_ms_max_default() -> u32 {
    LAG_MS_MAX_DEFAULT
}

impl ReplicaConfig {
    /// Reads a configuration file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, path)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self> {
        serde_json::from_slice(text).with_context(|| format!("replica configuration {}", path.display()))
    }

    /// As [`Self::load`], a file that this user has written: a replica may replace it in its folder, where it runs as a user of its own.
    pub fn load_own(path: &Path) -> Result<Self> {
        let read = plain_file::open(path).and_then(|file| {
            if file.metadata()?.uid() != geteuid().as_raw() {
                return Err(io::Error::other("it was not written by this user"));
            }
            plain_file::read_open(&file, BYTES_MAX)
        });
        Self::parse(&read.with_context(|| format!("cannot read {}", path.display()))?, path)
    }

    /// Writes it anew, readable by its owner only: the spec may hold secrets on the kernel's command line.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        plain_file::write_anew(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// After how much silence the peer is taken for lost.
    pub fn suspicion(&self) -> Suspicion {
        let max = Duration::from_millis(self.suspicion_ms.into());
        match self.suspicion_ms_min {
            Some(min) => Suspicion::between(Duration::from_millis(min.into()), max),
            None => Suspicion::up_to(max),
        }
    }

    /// The VM spec.
    pub fn vm_spec(&self) -> Result<VmSpec> {
        VmSpec::parse(&self.spec).with_context(|| format!("the spec of VM {}", self.vm))
    }

    /// The control socket, at which [`super::control::ControlServer`] listens.
    pub fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }
}

/// The control socket of the replica whose VM folder this is.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("replica.sock")
}

/// The folder of the snapshots of the VM whose folder this is.
pub fn snapshots(folder: &Path) -> PathBuf {
    folder.join("snapshots")
}

/// A snapshot of the VM whose folder this is.
pub fn snapshot(folder: &Path, name: &SnapshotName) -> PathBuf {
    snapshots(folder).join(format!("{name}.snapshot"))
}

/// The log of the replica whose VM folder this is.
pub fn log(folder: &Path) -> PathBuf {
    folder.join("replica.log")
}

/// The log of the console of the VM whose folder this is, since it runs on this host.
pub fn console_log(folder: &Path) -> PathBuf {
    folder.join("console.log")
}

/// The configuration file of the replica whose VM folder this is.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("replica.json")
}
