//! What the API's requests and answers hold.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::{
    ByteSize, DiskFormat, DiskSpec, EngineKind, FailureDomain, FtMode, MacAddr, Maintenance, PortForward, Priority,
    SnapshotName,
};

use crate::status::{Protection, ReplicaStatus};
use crate::suspicion::SuspicionMs;

/// A host, as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// Where its API listens.
    pub api: String,
    /// Whether its lease is valid: its daemon was alive a moment ago.
    pub alive: bool,
    /// Whether it takes no replicas, and its VMs leave it.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Time since the host that answers has seen its lease to be good, in ms; since it registered, if it never has.
    pub lease_age_ms: u64,
    /// Memory for VMs, in bytes.
    pub memory_bytes: u64,
    /// Memory that VMs have reserved, secondaries included, in bytes.
    pub memory_reserved_bytes: u64,
    /// vCPUs for VMs.
    pub cpus: u32,
    /// vCPUs that VMs have reserved, secondaries included.
    pub cpus_reserved: u32,
    /// Engines that it runs, the preferred one first.
    pub engines: Vec<EngineKind>,
    /// What it fails together with; none if that is its machine.
    #[serde(default)]
    pub domain: Option<FailureDomain>,
    /// Bridges that it reaches.
    pub networks: Vec<String>,
    /// Named storage that it reaches.
    pub datastores: Vec<String>,
    /// VMs whose primary it is.
    pub primaries: Vec<String>,
    /// VMs whose secondary it is.
    pub secondaries: Vec<String>,
}

/// What administrators want of fault tolerance for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtWanted {
    /// It is turned on.
    pub enabled: bool,
    /// It is turned on, but no secondary is kept for now.
    pub suspended: bool,
    /// How the secondary follows its primary, also of a VM for which it is not turned on.
    #[serde(default)]
    pub mode: FtMode,
}

/// A VM, as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmView {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
    /// The host that runs it, or whose disks it starts from.
    pub host: String,
    /// The host of the secondary that can take over.
    pub secondary: Option<String>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// What executes its vCPUs, while it runs.
    pub engine: Option<EngineKind>,
    /// Goes up whenever the set of replicas that may run changes.
    pub generation: u64,
    /// What the administrator wants of the VM's protection.
    pub ft: FtWanted,
    /// Lockstep: how far the secondary may be behind before the guest waits for it, in ms.
    pub lag_ms_max: u32,
    /// The silence after which one replica takes the other for lost; nothing if a host of another version says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion_ms: Option<SuspicionMs>,
    /// How far the VM is protected now.
    pub protection: Protection,
    /// Whether it is restarted when its host is lost, if that is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ha: Option<HaView>,
    /// Why it runs no more, or why it could not be protected last time. In the answer to a start or a change, what there is to say of that.
    pub note: Option<String>,
    /// What its replicas say, the primary first.
    pub replicas: Vec<ReplicaStatus>,
    /// Its disks, as they are on the host that runs it or is its home; the first is /dev/vda.
    #[serde(default)]
    pub disks: Vec<DiskView>,
    /// Its network cards; the first is eth0.
    #[serde(default)]
    pub cards: Vec<CardView>,
    /// The spec, as TOML. Files that it names were copied when the VM was created, and need not be there any more.
    pub spec: String,
    /// The spec that it has from its next start on, if that is another one.
    #[serde(default)]
    pub next_spec: Option<String>,
    /// Whether its host starts it when the machine has booted.
    #[serde(default)]
    pub autostart: bool,
    /// Which of several VMs comes first where not all can at once.
    #[serde(default)]
    pub priority: Priority,
    /// What was asked for last that happens once.
    #[serde(default)]
    pub operation: Option<OperationView>,
}

/// High availability of a VM for which it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaView {
    /// Whether another host restarts it when its own is lost.
    pub restarts: bool,
    /// Why not, or what is to be known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// Something that was asked of a VM and happens once, as a start or a hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationView {
    /// Tells it from others of the VM: each has the next number.
    pub id: u64,
    /// What it is, in words.
    pub what: String,
    /// A migration: the host that the VM moves to.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether it has ended. Until then the VM's host goes on with it, also after its daemon was killed.
    pub is_over: bool,
    /// Why it was not done.
    pub failure: Option<String>,
}

/// A disk of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// The file; nothing if the host that has it does not answer.
    pub path: Option<PathBuf>,
    /// The disk's format.
    pub format: Option<DiskFormat>,
    /// The disk's size, in bytes.
    pub size_bytes: Option<u64>,
    /// What the file takes on its host, in bytes.
    pub allocated_bytes: Option<u64>,
    /// Whether the guest may only read it.
    pub readonly: bool,
    /// What it is based on.
    pub base: Option<PathBuf>,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardView {
    /// The card's address.
    pub mac: MacAddr,
    /// The bridge that it is a port of; nothing if its network is a user-mode one.
    pub bridge: Option<String>,
    /// The guest's address, which a user-mode network gives it by DHCP.
    pub address: Option<Ipv4Addr>,
    /// Ports of the host that lead to it.
    pub forward: Vec<PortForward>,
}

/// The disks of a VM in one host's folder of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalDisks {
    /// The VM.
    pub vm: String,
    /// In the order of the spec.
    pub disks: Vec<DiskView>,
}

/// Asks for a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its spec, as TOML. Paths are absolute, on the host that is asked.
    pub spec: String,
    /// Start it.
    #[serde(default)]
    pub start: bool,
}

/// Asks for changes of a VM. What is not named stays as it is. A VM that runs has them from its next start on, but for what is said to change at once or only of a
/// VM that is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVm {
    /// The whole spec, as TOML. What follows is applied to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// Memory, such as `512M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// All forwarded ports of its first user-mode network: at once where that is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<PortForward>>,
    /// Which of several VMs comes first where not all can at once: at once, whether it runs or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What becomes of it when its host is lost: `none` or `ha`. A VM that runs is restarted by others once it was started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<spec::Protection>,
    /// Whether its host starts it when the machine has booted: at once, whether it runs or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// The silence after which one replica takes the other for lost, for replicas that start from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion_ms: Option<SuspicionMs>,
    /// New sizes of disks, by number, in bytes: larger ones, of a VM that is off.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disk_bytes: BTreeMap<usize, u64>,
    /// Numbers of disks that it is to have no more; of a VM that is off. Those behind get lower numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove_disk: Vec<usize>,
    /// Disks that it gets behind those that it has, as copies unless they are read-only; of a VM that is off. Paths are absolute, on its host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_disk: Vec<DiskSpec>,
    /// A kernel that is copied from this file of its host; of a VM that is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Asks for another VM with copies of a VM's disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVm {
    /// Its name.
    pub name: String,
    /// All forwarded ports of its first user-mode network; without, those of the VM that it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<PortForward>>,
}

/// Asks for another name of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameVm {
    /// The name.
    pub name: String,
}

/// Asks for a start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVm {
    /// Start from this host's copy of the disks though another host's is newer or may be.
    #[serde(default)]
    pub from_stale_disks: bool,
}

/// Asks for a stop.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Pull the plug.
    #[serde(default)]
    pub force: bool,
}

/// Asks for a reboot: the guest is shut down, and started again with what was set meanwhile.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebootVm {
    /// Pull the plug instead of pressing the power button.
    #[serde(default)]
    pub force: bool,
    /// How long the guest may take to shut down, in seconds. After that the VM goes on, and is not started again when it ends.
    #[serde(default = "shutdown_s_default")]
    pub timeout_s: u64,
}

fn shutdown_s_default() -> u64 {
    180
}

impl Default for RebootVm {
    fn default() -> Self {
        Self { force: false, timeout_s: shutdown_s_default() }
    }
}

/// Asks for the move of a VM that runs to another host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateVm {
    /// The host; without, that of its secondary, or else one that has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Also if a protected VM is without a secondary while it is copied: the host is not that of its secondary.
    #[serde(default)]
    pub interrupt_ft: bool,
}

/// A snapshot of a VM: the content of its disks at one moment, and its memory and devices if it ran and they were wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Its name.
    pub name: SnapshotName,
    /// The VM that it is of.
    pub vm: String,
    /// The host that keeps it.
    pub host: String,
    /// When it was taken, by the clock of that host, in ms since 1970.
    pub created_unix_ms: u64,
    /// Size of its file, in bytes.
    pub bytes: u64,
    /// It has the memory of the running VM, which goes on from it; otherwise it brings back the disks of a VM that is off. Unknown of one that cannot be
    /// read.
    pub memory: Option<bool>,
    /// Of one with memory: whether the guest notices that it is restored, and makes other random numbers.
    pub notices: Option<bool>,
    /// Of one that was just taken of a VM that runs: how long the guest stood still for it, in ms, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
}

/// Asks for a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name, which no other snapshot of the VM has.
    pub name: SnapshotName,
    /// Of a VM that runs, memory and devices too. One that is off has none.
    #[serde(default = "yes")]
    pub memory: bool,
}

fn yes() -> bool {
    true
}

/// Asks for the removal of a VM.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveVm {
    /// Though the host that holds it is not alive: what is on that host stays there. Also a VM whose record cannot be read: then all files stay.
    #[serde(default)]
    pub force: bool,
}

/// What has become of a VM that was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedVm {
    /// The VM.
    pub removed: String,
    /// Disks that were left where they are, as nobody can tell what they are worth: only those of a VM whose record could not be read.
    #[serde(default)]
    pub kept: Vec<KeptDisk>,
    /// Hosts that did not say what they have of it.
    #[serde(default)]
    pub unanswered: Vec<String>,
}

/// A disk that was left when its VM was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisk {
    /// The host that it is on.
    pub host: String,
    /// The disk's file on that host.
    pub path: PathBuf,
}

/// What protection of a VM costs: this much, reserved on the secondary's host beside the primary's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtPrice {
    /// The VM.
    pub vm: String,
    /// The host that runs it.
    pub primary: String,
    /// The host that would take the secondary now.
    pub secondary: Option<String>,
    /// Why there is none.
    pub obstacle: Option<String>,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Disk space that the copies can grow to, in bytes.
    pub disk_bytes: u64,
}

/// What can be done about fault tolerance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FtAction {
    /// Turn it on.
    On,
    /// Change the FT mode, at once if the VM is protected.
    Mode,
    /// Turn it off: the secondary and its disks are removed, and its reservation is given back.
    Off,
    /// Let the secondary go for now; its disks are kept, and so is its reservation until the VM is off.
    Suspend,
    /// Find a secondary again.
    Resume,
    /// Test: kill the primary's process.
    Failover,
    /// Hand the VM over to the secondary.
    Switchover,
    /// End the secondary and make it anew.
    RestartSecondary,
}

impl FtAction {
    /// As in the path of a request.
    pub fn label(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Mode => "mode",
            Self::Off => "off",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Failover => "failover",
            Self::Switchover => "switchover",
            Self::RestartSecondary => "restart-secondary",
        }
    }
}

/// What an action on fault tolerance takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FtOptions {
    /// The mode that is wanted: [`FtAction::Mode`] needs it, [`FtAction::On`] leaves what is recorded without it, others refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FtMode>,
}

/// What a VM's folder holds; kept in it as `vm.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmContents {
    /// When the VM was created, in ms since 1970: tells it from an earlier one of the same name.
    pub created_unix_ms: u64,
    /// The size of each disk, in bytes.
    pub disk_bytes: Vec<u64>,
    /// How often its kernel or initial RAM disk were changed since.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub boot_changes: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// With what one of the two replicas of a VM proves to the other who it is: keys for one session, under an authority of its own. Each part is PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionKeys {
    /// The certificate of the session's authority.
    pub authority: String,
    /// The replica's certificate, in the name of its host.
    pub certificate: String,
    /// The replica's private key.
    pub key: String,
}

/// It holds a key: nobody needs to see that.
impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKeys").finish_non_exhaustive()
    }
}

/// Asks a host to prepare a secondary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareSecondary {
    /// The primary's host, which gives the kernel.
    pub primary: String,
    /// The VM's generation when this host was chosen: if it is another one by now, somebody else may have been.
    pub generation: u64,
    /// The spec as the cluster keeps it: it names the kernel's command line.
    pub spec: String,
    /// The primary's engine.
    pub engine: EngineKind,
    /// What the primary's folder holds.
    pub contents: VmContents,
    /// The secondary's keys.
    pub session: SessionKeys,
}

/// A secondary that waits for its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSecondary {
    /// Where it listens.
    pub address: SocketAddr,
}

/// How a secondary is ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropSecondary {
    /// Remove its copies of the disks too.
    #[serde(default)]
    pub remove_disks: bool,
    /// Remove the VM's snapshots there with them.
    #[serde(default)]
    pub remove_snapshots: bool,
    /// When the VM was created, in ms since 1970: the folder of another VM of its name is set aside, not removed.
    #[serde(default)]
    pub created_unix_ms: Option<u64>,
}

/// What one host knows about VMs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalVms {
    /// What the replicas that run on it say.
    pub replicas: Vec<ReplicaStatus>,
    /// What there is to say about VMs beyond that.
    pub notes: Vec<VmNote>,
    /// The copies of disks that it holds.
    #[serde(default)]
    pub disks: Vec<LocalDisks>,
}

/// Something to say about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNote {
    /// The VM.
    pub vm: String,
    /// Why it runs no more, or why no secondary was found for it.
    pub text: String,
    /// Since when, in ms since 1970.
    pub since_unix_ms: u64,
}

/// Asks a daemon to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopHost {
    /// Stop its VMs too. Without it they go on.
    #[serde(default)]
    pub with_vms: bool,
}

/// What this host's daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonView {
    /// The host's name.
    pub host: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The daemon's process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The cluster store.
    pub store: String,
    /// What this host's kernel offers to confine replicas and network ends.
    #[serde(default)]
    pub sandbox: String,
}
