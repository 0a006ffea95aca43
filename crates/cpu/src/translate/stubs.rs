//! Code that every translation uses: the way in, the ways out, and calls of the interpreter.
//!
//! **Where things are while translated code runs.** RBX holds the address of the [`Cpu`], R14 the virtual address of the running block's
//! first byte, R15 the instruction count at its start minus the limit (so it is negative or zero). [`PINNED`] says which guest
//! registers live in which host registers; the others stay in the [`Cpu`]. RAX, RCX and RDX are free for each instruction. The stack
//! pointer is a multiple of 16.
#![allow(unsafe_code)]

use crate::block::BlockCache;
use crate::bus::Bus;
use crate::context::Context;
use crate::core::{BLOCK_BASE, Cpu};
use crate::op::Op;
use crate::stop::Stop;
use crate::translate::asm::{
    Alu, Assembler, Operand, R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Register,
    Size, condition,
};
use crate::translate::field::{field, home};

/// The guest registers that live in host registers, and which: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI and R8.
pub(super) const PINNED: [Register; 9] = [R8, R9, R10, R11, R12, RBP, RSI, RDI, R13];

/// Host registers that a function must leave as it found them (System V ABI).
const KEPT_BY_CALLEES: [Register; 6] = [RBX, RBP, R12, R13, R14, R15];

/// The pinned ones that a function may change.
const CHANGED_BY_CALLEES: [Register; 6] = [R8, R9, R10, R11, RSI, RDI];

/// How translated code was left, in RAX.
pub(super) mod left {
    /// For a block that is not translated, or is none yet; [`super::Cpu::rip`] is it.
    pub const FOR_UNKNOWN: u64 = 0x100;
    /// As [`FOR_UNKNOWN`], through a jump that can be led to the block: its offset is in the context.
    pub const THROUGH_JUMP: u64 = 0x101;
    /// Before a block that is longer than the limit allows.
    pub const AT_LIMIT: u64 = 0x102;
}

/// Offsets of the shared code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stubs {
    /// `fn(cpu, code address) -> how it was left`, with the System V ABI.
    pub enter: usize,
    /// Jumped to where a block may be entered that is found by its address, R14.
    pub find: usize,
    /// Jumped to with the jump's offset in RAX, where it does not lead to a block yet.
    pub unlinked: usize,
    /// Jumped to at the head of a block that is longer than the limit allows.
    pub at_limit: usize,
    /// Called with the address of an op in RDX; returns 0 or one more than its [`Stop`] in EAX. Changes host flags.
    pub run_op: usize,
    /// Jumped to with the address of an op in RSI and its stop, plus one, in EAX.
    pub stopped: usize,
    /// Called to have the guest's arithmetic flags in the host's.
    pub load_flags: usize,
}

impl Stubs {
    /// Writes all of them.
    pub(super) fn assemble(asm: &mut Assembler) -> Self {
        let enter = asm.here();
        for register in KEPT_BY_CALLEES {
            asm.push(register);
        }
        asm.lea(RSP, RSP, -8);
        asm.load(Size::B8, RBX, RDI);
        asm.load(Size::B8, RAX, RSI);
        load_pinned(asm);
        asm.load(Size::B8, R14, field!(rip));
        asm.load(Size::B8, R15, field!(count));
        asm.alu(Alu::Sub, Size::B8, R15, field!(context.limit));
        asm.jump_register(RAX);

        let stopped = asm.here();
        asm.store(Size::B8, field!(context.op), RSI);
        asm.alu_immediate(Alu::Sub, Size::B4, RAX, 1);
        // What a handler leaves is in the `Cpu` already, and it may have set RIP.
        leave(asm);

        let at_limit = asm.here();
        asm.store_immediate(Size::B4, RAX.into(), left::AT_LIMIT as i32);
        let next = leave_at_block(asm);

        let unlinked = asm.here();
        asm.store(Size::B8, field!(context.jump), RAX);
        asm.store_immediate(Size::B4, RAX.into(), left::THROUGH_JUMP as i32);
        asm.jump(next);

        let find = asm.here();
        for register in CHANGED_BY_CALLEES {
            asm.push(register);
        }
        asm.load(Size::B8, RDI, RBX);
        asm.load(Size::B8, RSI, R14);
        asm.load_immediate_64(RAX, find_code as *const () as u64);
        asm.call_register(RAX);
        for register in CHANGED_BY_CALLEES.into_iter().rev() {
            asm.pop(register);
        }
        asm.alu(Alu::Or, Size::B8, RAX, RAX);
        let none = asm.jump_if_later(condition::ZERO);
        asm.jump_register(RAX);
        asm.land(none);
        asm.store_immediate(Size::B4, RAX.into(), left::FOR_UNKNOWN as i32);
        asm.jump(next);

        Self { enter, find, unlinked, at_limit, run_op: run_op(asm), stopped, load_flags: load_flags(asm) }
    }
}

fn load_pinned(asm: &mut Assembler) {
    for (number, register) in (0..).zip(PINNED) {
        asm.load(Size::B8, register, home(number));
    }
}

fn store_pinned(asm: &mut Assembler) {
    for (number, register) in (0..).zip(PINNED) {
        asm.store(Size::B8, home(number), register);
    }
}

/// [`Cpu::count`] becomes what it was when the block began. Changes RCX.
fn store_count(asm: &mut Assembler) {
    asm.load(Size::B8, RCX, R15);
    asm.alu(Alu::Add, Size::B8, RCX, field!(context.limit));
    asm.store(Size::B8, field!(count), RCX);
}

/// Leaves at the head of the block at R14. Returns where that is done.
fn leave_at_block(asm: &mut Assembler) -> usize {
    let here = asm.here();
    store_pinned(asm);
    asm.store(Size::B8, field!(rip), R14);
    store_count(asm);
    leave(asm);
    here
}

fn leave(asm: &mut Assembler) {
    asm.lea(RSP, RSP, 8);
    for register in KEPT_BY_CALLEES.into_iter().rev() {
        asm.pop(register);
    }
    asm.ret();
}

fn run_op(asm: &mut Assembler) -> usize {
    let here = asm.here();
    asm.lea(RSP, RSP, -8);
    store_pinned(asm);
    asm.store(Size::B8, home(BLOCK_BASE), R14);
    store_count(asm);
    asm.load(Size::B8, RDI, RBX);
    asm.load(Size::B8, RSI, RDX);
    asm.load_immediate_64(RAX, run_handler as *const () as u64);
    asm.call_register(RAX);
    load_pinned(asm);
    asm.lea(RSP, RSP, 8);
    asm.ret();
    here
}

fn load_flags(asm: &mut Assembler) -> usize {
    let here = asm.here();
    for register in CHANGED_BY_CALLEES {
        asm.push(register);
    }
    asm.lea(RSP, RSP, -8);
    asm.load(Size::B8, RDI, RBX);
    asm.load_immediate_64(RAX, flags_of as *const () as u64);
    asm.call_register(RAX);
    asm.lea(RSP, RSP, 8);
    for register in CHANGED_BY_CALLEES.into_iter().rev() {
        asm.pop(register);
    }
    asm.push(RAX);
    asm.pop_flags();
    asm.ret();
    here
}

/// Runs an op by its handler. 0, or one more than the number of its stop.
///
/// # Safety
/// Called by translated code only: `cpu` is the processor that it runs for, whose context holds addresses that are valid, and `op` one of the
/// ops that its translation keeps.
unsafe extern "sysv64" fn run_handler(cpu: *mut Cpu, op: *const Op) -> u32 {
    // SAFETY: see above. While translated code runs nothing else refers to the processor or the bus.
    let (cpu, op, bus) = unsafe {
        let cpu = &mut *cpu;
        let bus = cpu.context.bus as *mut &mut dyn Bus;
        (cpu, &*op, &mut **bus)
    };
    let result = (op.run)(cpu, op, bus);
    cpu.context.tlb_table = cpu.tlb.table_address(cpu.tlb_table);
    match result {
        Ok(()) => 0,
        Err(stop) => stop as u32 + 1,
    }
}

/// The address of the code for the block at `rip`, or 0.
///
/// # Safety
/// As for [`run_handler`].
unsafe extern "sysv64" fn find_code(cpu: *mut Cpu, rip: u64) -> u64 {
    // SAFETY: see `run_handler`. The cache is not changed while translated code runs.
    let (cpu, cache) = unsafe {
        let cpu = &*cpu;
        (cpu, &*(cpu.context.cache as *const BlockCache))
    };
    cpu.fetch_hit(rip).and_then(|offset| cache.find(offset, cpu.mode)).map_or(0, |id| cache.code_address(id))
}

/// The guest's arithmetic flags.
///
/// # Safety
/// As for [`run_handler`].
unsafe extern "sysv64" fn flags_of(cpu: *const Cpu) -> u64 {
    // SAFETY: see `run_handler`.
    unsafe { (*cpu).flags.bits() }
}

/// The stop with a number that [`run_handler`] returned, less one.
pub(super) fn stop_of(number: u64) -> Stop {
    const ALL: [Stop; 9] = [
        Stop::Branch,
        Stop::Sync,
        Stop::Fault,
        Stop::Repeat,
        Stop::Transfer,
        Stop::Alone,
        Stop::Halt,
        Stop::Pause,
        Stop::Shutdown,
    ];
    ALL.get(number as usize).copied().unwrap_or(Stop::Shutdown)
}

const _: () = {
    assert!(Stop::Branch as u8 == 0 && Stop::Shutdown as u8 == 8);
    assert!(matches!(PINNED[4], R12));
};

/// Runs the code at the address `code`, from the block at [`Cpu::rip`] on, by way of that at `enter`, and says how it was left.
///
/// Both are addresses that the translator of `cache` gave.
pub(super) fn call(cpu: &mut Cpu, cache: &BlockCache, enter: u64, code: u64, limit: u64, mut bus: &mut dyn Bus) -> u64 {
    cpu.context = Context {
        limit,
        tlb_table: cpu.tlb.table_address(cpu.tlb_table),
        ram: cpu.ram.host_address(),
        bus: std::ptr::from_mut(&mut bus) as u64,
        cache: std::ptr::from_ref(cache) as u64,
        ..Context::default()
    };
    // SAFETY: `enter` is the address of `Stubs::enter`, which has this type by its making, in memory that the cache's translator keeps
    // mapped, as it does the code that it calls. That code reaches the processor, what the context names, which outlives the call, and
    // RAM where the TLB says that it is.
    let enter: extern "sysv64" fn(*mut Cpu, u64) -> u64 = unsafe { std::mem::transmute(enter) };
    enter(cpu, code)
}

/// The op that ended in another way than with the next one, after translated code was left by it.
pub(super) fn stopped_op(cpu: &Cpu) -> Op {
    // SAFETY: translated code has just stored the address of one of the ops that its translator keeps.
    unsafe { *(cpu.context.op as *const Op) }
}

/// Where a guest register lives: in a host register, or in the [`Cpu`].
pub(super) fn place(number: u8) -> Operand {
    PINNED.get(usize::from(number)).map_or(home(number), |&register| register.into())
}
