//! Maintenance of hosts: what is asked for, and how it stands.

use serde::{Deserialize, Serialize};
use spec::Maintenance;

/// Asks for a host's maintenance, or for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMaintenance {
    /// Begin it.
    pub on: bool,
    /// Also if VMs are not protected then.
    #[serde(default)]
    pub force: bool,
}

/// How a host's maintenance stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceView {
    /// The host.
    pub host: String,
    /// How far it goes.
    pub maintenance: Maintenance,
    /// VMs with a replica or their disks there, while there is maintenance.
    pub vms: Vec<LeavingVm>,
}

/// What a host holds of a VM that is in maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldPart {
    /// It runs there.
    Primary,
    /// Its secondary is there, or is being made.
    Secondary,
    /// It is off, and its disks are there.
    Disks,
}

/// A VM on a host that is in maintenance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingVm {
    /// The VM.
    pub vm: String,
    /// What the host holds of it.
    pub holds: HeldPart,
    /// Whether it leaves the host by itself.
    pub leaves: bool,
    /// How, or why not.
    pub text: String,
}
