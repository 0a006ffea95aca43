//! [`FtMode`]: how a protected VM is replicated.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::EngineKind;

/// How a protected VM is replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FtMode {
    /// By checkpoints of what has changed.
    #[default]
    Mirror,
    /// The secondary executes the same instructions with the same inputs.
    Lockstep,
}

impl FtMode {
    /// Whether a VM that this engine executes can be replicated so.
    pub fn runs_on(self, engine: EngineKind) -> bool {
        match self {
            Self::Mirror => true,
            // Nothing counts the instructions of a processor that is not ours.
            Self::Lockstep => engine == EngineKind::Soft,
        }
    }
}

impl fmt::Display for FtMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mirror => "mirror",
            Self::Lockstep => "lockstep",
        })
    }
}

/// Not the name of an FT mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no FT mode {0:?}: it is mirror or lockstep")]
pub struct UnknownMode(String);

impl FromStr for FtMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        match name {
            "mirror" => Ok(Self::Mirror),
            "lockstep" => Ok(Self::Lockstep),
            other => Err(UnknownMode(other.to_owned())),
        }
    }
}
