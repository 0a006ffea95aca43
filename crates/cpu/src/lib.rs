//! A software x86-64 processor: decode, interpreter, MMU, block cache, local APIC.
//!
//! No I/O, no host clock, no threads: state after n instructions is a function of the state before, of memory, and of
//! what the [`Bus`] answered. Time is the instruction count plus steps that the owner adds.
//!
//! # How an instruction runs
//! `decode` turns an `iced_x86::Instruction` into an [`op::Op`]: a handler and its operands, resolved once. Ops of
//! a straight run of code form a block, cached by physical address (`block`). A block runs by calling its handlers
//! one after the other; a handler returns `Err(Stop)` only when the run cannot simply go on to the next op. RIP is not
//! kept per instruction: it is the block's base plus the op's offset. Arithmetic flags are lazy (`unit::flags`). Loads and
//! stores go through a software TLB whose writable entries imply that the page is marked dirty and holds no decoded code
//! (`mem`, `mmu`).

mod apic;
mod block;
mod bus;
mod context;
mod core;
pub mod cpuid;
mod decode;
mod digest;
mod int;
mod mem;
mod mmu;
pub mod msr;
mod op;
mod run;
mod signature;
mod sse;
pub mod state;
mod stop;
mod sys;
mod tlb;
mod translate;
mod unit;
mod width;
mod x87;

pub use crate::apic::{ApicMessage, DeliveryMode};
pub use crate::bus::Bus;
pub use crate::cpuid::TSC_HZ;
pub use crate::run::{CpuConfig, Exit, Processors, ProcessorsState, Registers, StateError, VCPUS_MAX};
pub use crate::signature::float_signature;
pub use crate::state::VcpuState;
pub use crate::sys::tell_stopped;
