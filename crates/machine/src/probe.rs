//! What this host offers: which engines run, and how fast.

use std::time::Instant;

use serde::Serialize;

use crate::devices::serial::ConsoleSink;
use crate::devices::virtio::rng::SeededEntropy;
use crate::engine::soft::InputMode;
use crate::engine::{EngineChoice, EngineError, EngineKind, RunEnd};
use crate::events::GuestEvent;
use crate::map;
use crate::platform::Parts;
use crate::vm::{Boot, Vm, VmConfig, VmError};

/// Where the measuring program is loaded.
const PROGRAM_ADDRESS: u64 = map::HIGH_MEMORY;
/// Memory of the measuring VM.
const MEMORY_BYTES: u64 = 4 << 20;

/// Counts ESI down in supervisor mode, four instructions a round, and then asks for a reset:
///
/// ```text
///        add rax, rsi
///        xor rdx, rax
///        dec rsi
///        jnz start
///        mov dx, 0xcf9
///        mov al, 6
///        out dx, al
///        hlt
///        jmp $-1
/// ```
const PROGRAM: [u8; 21] = [
    0x48, 0x01, 0xf0, // add rax, rsi
    0x48, 0x31, 0xc2, // xor rdx, rax
    0x48, 0xff, 0xce, // dec rsi
    0x75, 0xf5, // jnz
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, // mov al, 6
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to hlt
];
const INSTRUCTIONS_PER_ROUND: u64 = 4;
/// A few hundred thousand instructions: enough to tell hardware from emulation, at most a second on the slowest KVM seen.
const KVM_ROUNDS: u64 = 75_000;
const SOFT_ROUNDS: u64 = 2_500_000;

/// What one engine does on this host.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// The engine.
    pub engine: EngineKind,
    /// Million instructions per second in a tight supervisor-mode loop; `None` if the engine does not run here.
    pub mips: Option<f64>,
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
    /// Why.
    pub reason: String,
}

/// Measures both engines.
pub fn probe() -> ProbeReport {
    let [kvm, soft] = [(EngineKind::Kvm, KVM_ROUNDS), (EngineKind::Soft, SOFT_ROUNDS)].map(|(engine, rounds)| {
        match measure(engine, rounds) {
            Ok(mips) => EngineReport { engine, mips: Some(mips), error: None },
            Err(error) => EngineReport { engine, mips: None, error: Some(error.to_string()) },
        }
    });
    let soft_mips = soft.mips.unwrap_or_default();
    let (auto, reason) = match kvm.mips {
        None => (EngineKind::Soft, "KVM does not run here".to_owned()),
        Some(kvm_mips) if kvm_mips > soft_mips => {
            (EngineKind::Kvm, format!("KVM runs {kvm_mips:.0} MIPS in supervisor mode, soft {soft_mips:.0}"))
        }
        Some(kvm_mips) => (
            EngineKind::Soft,
            format!("KVM emulates supervisor mode here: {kvm_mips:.1} MIPS, soft runs {soft_mips:.0}"),
        ),
    };
    ProbeReport { engines: vec![kvm, soft], auto, reason }
}

/// The engine for a choice, and why.
pub fn choose(choice: EngineChoice) -> (EngineKind, String) {
    match choice {
        EngineChoice::Kvm => (EngineKind::Kvm, "as asked".to_owned()),
        EngineChoice::Soft => (EngineKind::Soft, "as asked".to_owned()),
        EngineChoice::Auto => {
            let report = probe();
            (report.auto, report.reason)
        }
    }
}

struct NoConsole;

impl ConsoleSink for NoConsole {
    fn write(&mut self, _bytes: &[u8]) {}
}

fn measure(engine: EngineKind, rounds: u64) -> Result<f64, VmError> {
    let config = VmConfig { name: "probe".to_owned(), cpus: 1, memory_bytes: MEMORY_BYTES };
    let boot = Boot::Flat { program: &PROGRAM, address: PROGRAM_ADDRESS, rsi: rounds };
    let parts = Parts {
        disks: Vec::new(),
        cards: Vec::new(),
        console: Box::new(NoConsole),
        entropy: Box::new(SeededEntropy::new(0, 0)),
    };
    let mut vm = Vm::boot(config, &boot, parts, engine, InputMode::Live)?;
    let start = Instant::now();
    match vm.run(None)? {
        RunEnd::Guest(GuestEvent::Reset) => {}
        other => return Err(EngineError::State(format!("the measuring program ended with {other:?}")).into()),
    }
    Ok((rounds * INSTRUCTIONS_PER_ROUND) as f64 / start.elapsed().as_secs_f64().max(1e-9) / 1e6)
}
