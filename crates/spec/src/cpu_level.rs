//! [`CpuLevel`]: how much of a processor a VM asks for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of a processor a VM is given at power-on. The more it has, the fewer hosts can hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CpuLevel {
    /// The portable processor, x86-64-v2: either engine, and every host whose processor is of the same maker.
    #[default]
    #[serde(rename = "portable")]
    Portable,
    /// The portable processor and what x86-64-v3 adds (x86-64 psABI, table 3.1): AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE. KVM
    /// only.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// All that the host can give and that can be saved. KVM only, and hosts with the same or a newer processor.
    #[serde(rename = "host")]
    Host,
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::V3 => "x86-64-v3",
            Self::Host => "host",
        })
    }
}
