//! What this host offers: which engines run and how fast, which one `auto` takes and why, and what fault tolerance finds in its KVM.

mod decision;
mod features;
mod host;
mod measure;

use serde::Serialize;
use spec::{EngineChoice, EngineKind};

pub use decision::{Decision, Speed, decide};
pub use features::{Feature, FeatureState, features};
pub use host::{HostFacts, HugePages, KvmAccess, KvmFacts};

/// What one engine does on this host.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// The engine.
    pub engine: EngineKind,
    /// Million instructions per second in a tight loop in supervisor mode, as a guest's kernel runs; `None` if the engine does not run here.
    pub mips: Option<f64>,
    /// The same in user mode, as a guest's programs run.
    pub user_mips: Option<f64>,
    /// Why it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What this host offers.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// The engines.
    pub engines: Vec<EngineReport>,
    /// The engine that `auto` takes.
    pub auto: EngineKind,
    /// Why `auto` takes that engine.
    pub reason: String,
    /// What fault tolerance finds here.
    pub features: Vec<Feature>,
}

/// Measures both engines, which takes some 0.3 s, and looks at what the host's kernel and processor have.
pub fn probe() -> ProbeReport {
    let (engines, Decision { engine: auto, reason }) = compare();
    ProbeReport { engines, auto, reason, features: features(&HostFacts::read()) }
}

/// The engine for a choice, and why.
pub fn choose(choice: EngineChoice) -> (EngineKind, String) {
    match choice {
        EngineChoice::Kvm => (EngineKind::Kvm, "as asked".to_owned()),
        EngineChoice::Soft => (EngineKind::Soft, "as asked".to_owned()),
        EngineChoice::Auto => {
            let (_, decision) = compare();
            (decision.engine, decision.reason)
        }
    }
}

fn compare() -> (Vec<EngineReport>, Decision) {
    let [kvm, soft] =
        [EngineKind::Kvm, EngineKind::Soft].map(|engine| measure::speed(engine).map_err(|e| e.to_string()));
    let decision = decide(kvm.as_ref().map_err(String::as_str).copied(), soft.as_ref().ok().copied());
    let engines = [(EngineKind::Kvm, kvm), (EngineKind::Soft, soft)].map(|(engine, speed)| match speed {
        Ok(speed) => {
            EngineReport { engine, mips: Some(speed.supervisor_mips), user_mips: Some(speed.user_mips), error: None }
        }
        Err(error) => EngineReport { engine, mips: None, user_mips: None, error: Some(error) },
    });
    (engines.into(), decision)
}
