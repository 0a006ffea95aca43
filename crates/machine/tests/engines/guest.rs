//! A bare-metal guest that computes, keeps a value in a vector register, writes scattered pages and prints.
//!
//! It does without vector arithmetic, which a KVM that emulates supervisor mode does not know.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use cpu::VcpuState;
use iced_x86::code_asm::*;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::rng::SeededEntropy;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::platform::Parts;
use machine::vm::{Boot, SnapshotHead, Vm, VmConfig, VmError, VmState};
use memory::GuestRam;
use spec::EngineKind;
use storage::disk::Spill;

pub const MEMORY_BYTES: u64 = 8 << 20;
pub const PROGRAM: u64 = 0x10_0000;
pub const DATA: u64 = 0x20_0000;
const RESULT: u64 = DATA - 16;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// One character for so many rounds, a power of two.
const ROUNDS_PER_CHARACTER: u64 = 2048;

/// Counts up to RSI; each round adds a hash of the count to one of 256 pages. XMM1 is loaded at the start and stored at the end.
pub fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut again, mut quiet) = (a.create_label(), a.create_label());
    // OSFXSR and OSXMMEXCPT: SSE is usable.
    a.mov(rax, cr4).unwrap();
    a.or(rax, 0x600).unwrap();
    a.mov(cr4, rax).unwrap();
    a.mov(rdi, DATA).unwrap();
    a.mov(r8, MULTIPLIER).unwrap();
    a.mov(qword_ptr(rdi - 32), r8).unwrap();
    a.mov(qword_ptr(rdi - 24), rdi).unwrap();
    a.movdqu(xmm1, xmmword_ptr(rdi - 32)).unwrap();
    a.xor(r9d, r9d).unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(r9).unwrap();
    a.mov(rbx, r9).unwrap();
    a.imul_2(rbx, r8).unwrap();
    a.mov(rcx, rbx).unwrap();
    a.shr(rcx, 56).unwrap();
    a.shl(rcx, 12).unwrap();
    a.add(qword_ptr(rdi + rcx), rbx).unwrap();
    a.test(r9d, ROUNDS_PER_CHARACTER as i32 - 1).unwrap();
    a.jnz(quiet).unwrap();
    a.mov(dx, 0x3f8u32).unwrap();
    a.mov(al, '.' as u32).unwrap();
    a.out(dx, al).unwrap();
    a.set_label(&mut quiet).unwrap();
    a.cmp(r9, rsi).unwrap();
    a.jne(again).unwrap();
    a.movdqu(xmmword_ptr(rdi - 16), xmm1).unwrap();
    a.mov(dx, 0xcf9u32).unwrap();
    a.mov(al, 6u32).unwrap();
    a.out(dx, al).unwrap();
    a.hlt().unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// A snapshot file of a paused VM.
pub fn snapshot(vm: &mut Vm, head: &SnapshotHead) -> Vec<u8> {
    let spill = Arc::new(Spill::new(tempfile::tempfile().unwrap()));
    vm.freeze(head, &spill).unwrap().write(head, Vec::new(), &AtomicBool::new(false)).unwrap()
}

/// Where [`wide_program`] has the content of its register from, and where it leaves it.
pub const WIDE: [u64; 2] = [DATA - 64, DATA - 32];

/// Counts up to RSI and prints as [`program`] does. YMM1 is loaded at the start and stored at the end.
pub fn wide_program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut again, mut quiet) = (a.create_label(), a.create_label());
    // OSFXSR, OSXMMEXCPT and OSXSAVE, then XCR0: x87, SSE and AVX.
    a.mov(rax, cr4).unwrap();
    a.or(rax, 0x4_0600).unwrap();
    a.mov(cr4, rax).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.xor(edx, edx).unwrap();
    a.mov(eax, 7).unwrap();
    a.xsetbv().unwrap();
    a.mov(rdi, DATA).unwrap();
    a.mov(r8, MULTIPLIER).unwrap();
    for word in 0..4 {
        a.mov(qword_ptr(rdi - 64 + word * 8), r8).unwrap();
        a.rol(r8, 7).unwrap();
    }
    a.vmovdqu(ymm1, ymmword_ptr(rdi - 64)).unwrap();
    a.xor(r9d, r9d).unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(r9).unwrap();
    a.test(r9d, ROUNDS_PER_CHARACTER as i32 - 1).unwrap();
    a.jnz(quiet).unwrap();
    a.mov(dx, 0x3f8u32).unwrap();
    a.mov(al, '.' as u32).unwrap();
    a.out(dx, al).unwrap();
    a.set_label(&mut quiet).unwrap();
    a.cmp(r9, rsi).unwrap();
    a.jne(again).unwrap();
    a.vmovdqu(ymmword_ptr(rdi - 32), ymm1).unwrap();
    a.mov(dx, 0xcf9u32).unwrap();
    a.mov(al, 6u32).unwrap();
    a.out(dx, al).unwrap();
    a.hlt().unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// Real-mode code for the other vCPUs: counts itself at [`STARTED`] and halts.
///
/// ```text
///        xor ax, ax
///        mov ds, ax
///        lock inc word ptr [0x6000]
///        hlt
///        jmp $-1
/// ```
const TRAMPOLINE: [u8; 12] = [0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xff, 0x06, 0x00, 0x60, 0xf4, 0xeb, 0xfd];
const TRAMPOLINE_ADDRESS: u64 = 0x1_0000;
pub const STARTED: u64 = 0x6000;

/// Starts all other vCPUs by INIT and start-up messages (Intel SDM volume 3, 10.4.4) and waits until RSI have counted themselves.
fn starter() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut wait = a.create_label();
    a.mov(rax, u64::from_le_bytes(TRAMPOLINE[..8].try_into().unwrap())).unwrap();
    a.mov(edi, TRAMPOLINE_ADDRESS as u32).unwrap();
    a.mov(qword_ptr(rdi), rax).unwrap();
    a.mov(dword_ptr(rdi + 8), u32::from_le_bytes(TRAMPOLINE[8..].try_into().unwrap())).unwrap();
    a.mov(edi, 0xfee0_0000u32).unwrap();
    a.mov(dword_ptr(rdi + 0xf0), 0x1ff).unwrap();
    a.mov(dword_ptr(rdi + 0x300), 0x000c_4500).unwrap();
    a.mov(dword_ptr(rdi + 0x300), 0x000c_4600 + (TRAMPOLINE_ADDRESS >> 12) as i32).unwrap();
    a.set_label(&mut wait).unwrap();
    a.pause().unwrap();
    a.cmp(word_ptr(STARTED), si).unwrap();
    a.jne(wait).unwrap();
    a.mov(dx, 0xcf9u32).unwrap();
    a.mov(al, 6u32).unwrap();
    a.out(dx, al).unwrap();
    a.hlt().unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// What the program leaves behind: the vector register, and one word of each page.
pub fn expected(rounds: u64) -> (u128, Vec<u64>) {
    let mut words = vec![0u64; 256];
    for count in 1..=rounds {
        let hash = count.wrapping_mul(MULTIPLIER);
        let word = &mut words[(hash >> 56) as usize];
        *word = word.wrapping_add(hash);
    }
    (u128::from(DATA) << 64 | u128::from(MULTIPLIER), words)
}

pub fn expected_output(rounds: u64) -> String {
    ".".repeat((rounds / ROUNDS_PER_CHARACTER) as usize)
}

pub fn result(vm: &Vm) -> (u128, Vec<u64>) {
    let ram = vm.platform().ram();
    let words = (0..256).map(|page| ram.load(DATA + page * 4096).unwrap()).collect();
    (ram.load(RESULT).unwrap(), words)
}

#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl ConsoleSink for Console {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

pub fn parts(console: &Console) -> Parts {
    Parts {
        disks: Vec::new(),
        cards: Vec::new(),
        console: Box::new(console.clone()),
        entropy: Box::new(SeededEntropy::new(1, 0)),
    }
}

pub fn config(cpus: u32) -> VmConfig {
    VmConfig {
        name: "bare".into(),
        cpus,
        memory_bytes: MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    }
}

pub fn start(engine: EngineKind, rounds: u64, cpus: u32, console: &Console) -> Vm {
    boot(config(cpus), engine, rounds, console).unwrap()
}

pub fn boot(config: VmConfig, engine: EngineKind, rounds: u64, console: &Console) -> Result<Vm, VmError> {
    boot_program(&program(), config, engine, rounds, console)
}

/// A VM that runs one of the programs that count.
pub fn boot_program(
    program: &[u8],
    config: VmConfig,
    engine: EngineKind,
    rounds: u64,
    console: &Console,
) -> Result<Vm, VmError> {
    let boot = Boot::Flat { program, address: PROGRAM, rsi: rounds };
    Vm::boot(config, &boot, parts(console), engine, InputMode::Live)
}

/// A VM that runs these bytes.
pub fn start_flat(engine: EngineKind, program: &[u8]) -> Vm {
    let boot = Boot::Flat { program, address: PROGRAM, rsi: 0 };
    Vm::boot(config(1), &boot, parts(&Console::default()), engine, InputMode::Live).unwrap()
}

/// A VM whose first vCPU starts the others.
pub fn start_all(engine: EngineKind, cpus: u32) -> Vm {
    let boot = Boot::Flat { program: &starter(), address: PROGRAM, rsi: u64::from(cpus) - 1 };
    Vm::boot(config(cpus), &boot, parts(&Console::default()), engine, InputMode::Live).unwrap()
}

/// Whatever KVM is here, it restores this guest: it uses no more than every processor has, so what it was promised can be less.
pub fn restore(ram: &GuestRam, mut state: VmState, engine: EngineKind, cpus: u32, console: &Console) -> Vm {
    let (offer, profile) = (machine::engine::cpu_offer(engine).unwrap(), &mut state.engine.processors.profile);
    profile.features = profile.features.and(offer.features);
    profile.physical_bits = profile.physical_bits.min(offer.physical_bits);
    Vm::restore(config(cpus), ram, state, parts(console), engine, InputMode::Live).unwrap()
}

pub fn finish(vm: &mut Vm) {
    assert_eq!(vm.run(None).unwrap(), RunEnd::Guest(GuestEvent::Reset));
}

/// Compares two vCPUs field by field, so that a difference is readable.
pub fn compare(before: &VcpuState, after: &VcpuState, what: &str) {
    assert_eq!(before.gpr, after.gpr, "{what}");
    assert_eq!((before.rip, before.rflags), (after.rip, after.rflags), "{what}");
    assert_eq!(before.segments, after.segments, "{what}");
    assert_eq!((before.ldtr, before.tr), (after.ldtr, after.tr), "{what}");
    assert_eq!(before.fpu, after.fpu, "{what}");
    assert_eq!(before.msrs, after.msrs, "{what}");
    assert_eq!(before.apic, after.apic, "{what}");
    assert_eq!(before, after, "{what}");
}
