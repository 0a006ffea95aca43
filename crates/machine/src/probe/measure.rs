//! How fast an engine runs a tight loop, in supervisor and in user mode.

use std::thread;
use std::time::{Duration, Instant};

use spec::EngineKind;

use super::Speed;
use crate::devices::serial::ConsoleSink;
use crate::devices::virtio::rng::SeededEntropy;
use crate::engine::soft::InputMode;
use crate::engine::{EngineError, RunEnd};
use crate::map;
use crate::platform::Parts;
use crate::vm::{Boot, Vm, VmConfig, VmError};

/// Where the measuring program is loaded.
const PROGRAM_ADDRESS: u64 = map::HIGH_MEMORY;
/// Memory of the measuring VM.
const MEMORY_BYTES: u64 = 4 << 20;

/// Counts rounds in RSI, four instructions each, for ever:
///
/// ```text
/// round: add rax, rsi
///        xor rdx, rax
///        inc rsi
///        jmp round
/// ```
const ROUNDS: [u8; 11] = [
    0x48, 0x01, 0xf0, // add rax, rsi
    0x48, 0x31, 0xc2, // xor rdx, rax
    0x48, 0xff, 0xc6, // inc rsi
    0xeb, 0xf5, // jmp round
];
const INSTRUCTIONS_PER_ROUND: u64 = 4;
/// Number of RSI among the general-purpose registers.
const RSI: usize = 6;

/// Makes the boot page tables' first 2 MiB accessible to user mode, and goes on in user mode right behind itself:
///
/// ```text
///        or byte [0x9000], 4
///        or byte [0xa000], 4
///        or byte [0xb000], 4
///        mov rax, cr3
///        mov cr3, rax
///        mov ecx, 0xc0000081
///        xor eax, eax
///        mov edx, 0x00130010
///        wrmsr
///        mov ecx, 0xc0000080
///        rdmsr
///        or al, 1
///        wrmsr
///        lea rcx, [user]
///        mov r11d, 2
///        sysretq
/// user:
/// ```
const ENTER_USER_MODE: [u8; 71] = [
    0x80, 0x0c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x04, // PML4 entry 0: user
    0x80, 0x0c, 0x25, 0x00, 0xa0, 0x00, 0x00, 0x04, // PDPT entry 0: user
    0x80, 0x0c, 0x25, 0x00, 0xb0, 0x00, 0x00, 0x04, // page directory entry 0: user
    0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, // flush the TLB
    0xb9, 0x81, 0x00, 0x00, 0xc0, // IA32_STAR
    0x31, 0xc0, // xor eax, eax
    0xba, 0x10, 0x00, 0x13, 0x00, // SYSRET loads CS and SS from 0x13
    0x0f, 0x30, // wrmsr
    0xb9, 0x80, 0x00, 0x00, 0xc0, // IA32_EFER
    0x0f, 0x32, // rdmsr
    0x0c, 0x01, // SCE
    0x0f, 0x30, // wrmsr
    0x48, 0x8d, 0x0d, 0x09, 0x00, 0x00, 0x00, // lea rcx, [user]
    0x41, 0xbb, 0x02, 0x00, 0x00, 0x00, // mov r11d, RFLAGS
    0x48, 0x0f, 0x07, // sysretq
];
const _: () = assert!(map::BOOT_PAGE_TABLES == 0x9000);

/// What the first entry into a guest costs is over by then.
const WARM_UP: Duration = Duration::from_millis(5);
/// The guest runs for so long: starting and stopping it, some ten microseconds on hardware and up to a millisecond in an emulator, hardly
/// count then.
const MEASURED: Duration = Duration::from_millis(50);

struct NoConsole;

impl ConsoleSink for NoConsole {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// Measures an engine.
///
/// # Errors
/// [`VmError`] where it does not run here.
pub(super) fn speed(engine: EngineKind) -> Result<Speed, VmError> {
    let user = [&ENTER_USER_MODE[..], &ROUNDS].concat();
    Ok(Speed { supervisor_mips: mips(engine, &ROUNDS)?, user_mips: mips(engine, &user)? })
}

/// Million instructions per second of a program that comes to do [`ROUNDS`].
fn mips(engine: EngineKind, program: &[u8]) -> Result<f64, VmError> {
    let config = VmConfig {
        name: "probe".to_owned(),
        cpus: 1,
        memory_bytes: MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    };
    let boot = Boot::Flat { program, address: PROGRAM_ADDRESS, rsi: 0 };
    let parts = Parts {
        disks: Vec::new(),
        cards: Vec::new(),
        console: Box::new(NoConsole),
        entropy: Box::new(SeededEntropy::new(0, 0)),
    };
    let mut vm = Vm::boot(config, &boot, parts, engine, InputMode::Live)?;
    run_for(&mut vm, WARM_UP)?;
    let before = rounds(&mut vm)?;
    let start = Instant::now();
    run_for(&mut vm, MEASURED)?;
    let elapsed = start.elapsed();
    let done = rounds(&mut vm)?.saturating_sub(before);
    Ok((done * INSTRUCTIONS_PER_ROUND) as f64 / elapsed.as_secs_f64() / 1e6)
}

fn run_for(vm: &mut Vm, duration: Duration) -> Result<(), VmError> {
    let control = vm.control();
    let end = thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(duration);
            control.pause();
        });
        vm.run(None)
    })?;
    match end {
        RunEnd::Paused => Ok(()),
        other => Err(EngineError::State(format!("the measuring program ended with {other:?}")).into()),
    }
}

/// How many rounds the program has done.
fn rounds(vm: &mut Vm) -> Result<u64, VmError> {
    let state = vm.save()?;
    Ok(state.engine.processors.vcpus.first().map_or(0, |vcpu| vcpu.gpr[RSI]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed number of rounds timed little but starting and stopping where they were over in less: here the guest decides nothing, the
    /// time does.
    #[test]
    fn both_loops_run_for_their_time_on_every_engine_that_is_here() {
        let has_kvm = kvm_ioctls::Kvm::new().is_ok();
        for engine in [Some(EngineKind::Soft), has_kvm.then_some(EngineKind::Kvm)].into_iter().flatten() {
            let start = Instant::now();
            let speed = speed(engine).unwrap();
            assert!(start.elapsed() >= (WARM_UP + MEASURED) * 2);
            assert!(speed.supervisor_mips > 0.01 && speed.user_mips > 0.01, "{engine}: {speed:?}");
        }
    }
}
