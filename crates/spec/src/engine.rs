//! Which engine executes a VM's vCPUs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The engine a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// Whichever is faster on this host, by measurement.
    #[default]
    Auto,
    /// Hardware virtualization by /dev/kvm.
    Kvm,
    /// The software x86-64 processor.
    Soft,
}

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Hardware virtualization by /dev/kvm.
    Kvm,
    /// The software x86-64 processor.
    Soft,
}

/// Whether the soft engine translates hot code to host code. What a guest computes is the same either way, so two replicas may differ in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Translator {
    /// Hot code is translated.
    On,
    /// All code is interpreted.
    #[default]
    Off,
}

impl EngineKind {
    /// Whether a page can be copied right before a vCPU writes to it for the first time since dirty pages were collected: then pages can
    /// be frozen rather than copied while the VM stands still.
    pub fn can_freeze_pages(self) -> bool {
        match self {
            Self::Soft => true,
            // The kernel notes writes, and asks nobody.
            Self::Kvm => false,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}
