//! What several commands let their user choose, in the words of the command line.

use clap::ValueEnum;
use spec::{EngineChoice, FtMode};

/// A mode of fault tolerance.
#[derive(Clone, Copy, ValueEnum)]
pub enum ModeName {
    /// It holds checkpoints of what has changed
    Mirror,
    /// It executes the same instructions; needs the soft engine
    Lockstep,
}

impl From<ModeName> for FtMode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Mirror => Self::Mirror,
            ModeName::Lockstep => Self::Lockstep,
        }
    }
}

/// What executes vCPUs.
#[derive(Clone, Copy, ValueEnum)]
pub enum EngineName {
    /// Whichever is faster here, by measurement
    Auto,
    /// Hardware virtualization by /dev/kvm
    Kvm,
    /// The software x86-64 processor
    Soft,
}

impl From<EngineName> for EngineChoice {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::Kvm => Self::Kvm,
            EngineName::Soft => Self::Soft,
        }
    }
}
