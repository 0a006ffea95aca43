//! Instructions that control registers bar: x87, MMX and SSE with lazy context switching or without support by the system
//! (Intel SDM volume 3, tables 2-2 and 13-1).

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, undefined};
use crate::stop::{Stop, vector};
use crate::unit::Mode;

/// The handler that raises #UD or #NM in place of an instruction, if control registers bar it.
pub(super) fn barred(instruction: &Instruction, mode: Mode) -> Option<Handler> {
    use Mnemonic as M;
    let invalid: Option<Handler> = Some(undefined);
    let absent: Option<Handler> = Some(not_available);
    match instruction.mnemonic() {
        M::Wait => return if mode.monitors_coprocessor() && mode.task_switched() { absent } else { None },
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => {
            return if mode.fpu_emulated() || mode.task_switched() { absent } else { None };
        }
        M::Xsave | M::Xsave64 | M::Xrstor | M::Xrstor64 | M::Xsaveopt | M::Xsaveopt64 => {
            return if !mode.xsave() {
                invalid
            } else if mode.task_switched() {
                absent
            } else {
                None
            };
        }
        // Instructions of the SSE extensions that touch no SSE state.
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Sfence | M::Lfence => {
            return None;
        }
        M::Mfence | M::Movnti | M::Clflush | M::Pause | M::Popcnt | M::Crc32 => return None,
        _ => {}
    }
    for feature in instruction.cpuid_features() {
        match feature {
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => {
                return if mode.fpu_emulated() || mode.task_switched() { absent } else { None };
            }
            CpuidFeature::MMX => {
                return if mode.fpu_emulated() {
                    invalid
                } else if mode.task_switched() {
                    absent
                } else {
                    None
                };
            }
            CpuidFeature::SSE
            | CpuidFeature::SSE2
            | CpuidFeature::SSE3
            | CpuidFeature::SSSE3
            | CpuidFeature::SSE4_1
            | CpuidFeature::SSE4_2 => {
                return if mode.fpu_emulated() || !mode.fxsave() {
                    invalid
                } else if mode.task_switched() {
                    absent
                } else {
                    None
                };
            }
            _ => {}
        }
    }
    None
}

fn not_available(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.raise(vector::NM, None))
}
