//! What would become of VMs if hosts were lost.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use spec::HostName;

/// Asks what would become of VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskWhatIf {
    /// Hosts that are lost at once.
    pub lose: BTreeSet<HostName>,
}

/// What would become of each VM that runs, and is concerned, in the order in which it would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhatIfView {
    /// The VMs.
    pub vms: Vec<FateView>,
}

/// What would become of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FateView {
    /// The VM.
    pub vm: String,
    /// What would become of it.
    pub fate: Fate,
    /// The host that it would run on then, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Why it would not run: for each host that would be left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// Fates of VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Fault tolerant, it goes on without a break.
    GoesOn,
    /// Fault tolerant, it runs where it does, without a secondary until there is another one.
    LosesSecondary,
    /// It is restarted.
    Restarts,
    /// It should be restarted, and no host could.
    CannotRestart,
    /// It is off until a host is back: nothing protects it, or no more than what is lost did.
    Ends,
}

impl Fate {
    /// In words.
    pub fn label(self) -> &'static str {
        match self {
            Self::GoesOn => "goes on",
            Self::LosesSecondary => "loses its secondary",
            Self::Restarts => "restarts",
            Self::CannotRestart => "CANNOT restart",
            Self::Ends => "ends",
        }
    }
}
