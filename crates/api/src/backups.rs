//! Backups: recovery points of VMs, in repositories.

use serde::{Deserialize, Serialize};
use spec::PortForward;

/// A repository that a host knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryView {
    /// Its name on that host.
    pub name: String,
    /// Its folder.
    pub path: String,
}

/// Asks for a backup of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackUpVm {
    /// To which repository; not needed where the VM's home knows only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// How far a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProgress {
    /// Bytes of data that were read so far; none while the disks are copied within the host.
    pub bytes: u64,
}

/// A disk or file in a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// `kernel`, `initrd`, or `disk` with its number.
    pub name: String,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointView {
    /// Its name: 16 hexadecimal digits.
    pub id: String,
    /// The repository that keeps it.
    pub repository: String,
    /// The VM that it is of, unless it cannot be read.
    pub vm: Option<String>,
    /// The host that wrote it.
    pub host: Option<String>,
    /// When the disks were as they are in it, by the clock of that host, in ms since 1970.
    pub taken_unix_ms: Option<u64>,
    /// When it was finished.
    pub finished_unix_ms: Option<u64>,
    /// The disks and files that the recovery point holds.
    pub volumes: Vec<VolumeView>,
    /// Bytes that are not zero.
    pub data_bytes: u64,
    /// Bytes by which the repository grew.
    pub added_bytes: u64,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Asks for a VM from a recovery point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePoint {
    /// Its name; without, that of the VM that the point is of. One that is restored under another name has addresses and an identity of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All forwarded ports of its first user-mode network; without, those of the VM that the point is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<PortForward>>,
    /// Start it.
    #[serde(default)]
    pub start: bool,
}

/// Asks for recovery points to be forgotten that are not to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForgetPoints {
    /// Those of this VM; without, of each VM by itself.
    pub vm: Option<String>,
    /// Keep the newest ones.
    pub last: u32,
    /// Keep the newest of so many hours that have one.
    pub hourly: u32,
    /// Of so many days.
    pub daily: u32,
    /// Of so many weeks.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
    /// Only say which.
    pub dry_run: bool,
}

/// Recovery points that were forgotten, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Their names.
    pub points: Vec<String>,
    /// So many are left.
    pub kept: u64,
}

/// Asks for space to be given back that no recovery point needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneRepository {
    /// At once: refused while there is a backup.
    pub now: bool,
}
