//! x87, SSE and further state to KVM's XSAVE area and back.
//!
//! KVM_SET_FPU would be simpler, but it leaves MXCSR alone, and on some hosts the vector registers.

use cpu::VcpuState;
use cpu::state::{ExtendedState, FpuState};
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use spec::CpuProfile;
use spec::processor::XsaveComponent;

use super::kvm_error;
use crate::engine::EngineError;

/// Byte offsets in the legacy region of an XSAVE area (Intel SDM volume 1, table 10-2), and of its header.
mod at {
    pub const CONTROL: usize = 0;
    pub const STATUS: usize = 2;
    pub const TAGS: usize = 4;
    pub const OPCODE: usize = 6;
    pub const INSTRUCTION: usize = 8;
    pub const OPERAND: usize = 16;
    pub const MXCSR: usize = 24;
    pub const REGISTERS: usize = 32;
    pub const XMM: usize = 160;
    pub const XSTATE_BV: usize = 512;
    pub const EXTENDED: usize = 576;
    pub const END: usize = 4096;
}
/// Bits of XSTATE_BV.
const X87: u64 = 1;
const SSE: u64 = 2;
/// Both register files have slots of 16 bytes.
const SLOT_BYTES: usize = 16;

/// An XSAVE area in the standard format, as bytes.
struct Area([u8; at::END]);

impl Area {
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }

    /// A component beyond x87 and SSE; `None` if it does not lie in the area.
    fn component(&mut self, component: &XsaveComponent) -> Option<&mut [u8]> {
        let (offset, bytes) = (component.offset as usize, component.bytes as usize);
        self.0.get_mut(offset..offset.checked_add(bytes)?).filter(|_| offset >= at::EXTENDED)
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }
}

/// Physical register of ST(`index`): the area is ordered by the stack.
fn physical(status: u16, index: usize) -> usize {
    (usize::from(status >> 11 & 7) + index) % 8
}

/// Sets a vCPU's x87 and SSE registers, and what else of its state XSAVE saves.
#[allow(unsafe_code)]
pub(super) fn set(fd: &VcpuFd, profile: &CpuProfile, state: &VcpuState) -> Result<(), EngineError> {
    let mut xsave = kvm_xsave::default();
    let mut area = area(&state.fpu);
    put_extended(&mut area, &profile.xsave, &state.extended)?;
    for (word, bytes) in xsave.region.iter_mut().zip(area.0.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    // SAFETY: the structure is as long as any XSAVE area without dynamically enabled features, which no guest here has.
    unsafe { fd.set_xsave(&xsave) }.map_err(kvm_error("set x87 and SSE registers"))
}

/// A vCPU's x87 and SSE registers, and what else XSAVE saves.
pub(super) fn get(fd: &VcpuFd, profile: &CpuProfile) -> Result<(FpuState, Vec<ExtendedState>), EngineError> {
    let xsave = fd.get_xsave().map_err(kvm_error("get x87 and SSE registers"))?;
    let mut area = Area([0; at::END]);
    for (bytes, word) in area.0.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let extended = extended(&mut area, &profile.xsave);
    Ok((neutral(&area), extended))
}

fn put_extended(area: &mut Area, components: &[XsaveComponent], states: &[ExtendedState]) -> Result<(), EngineError> {
    for state in states {
        let component = components.iter().find(|component| component.number == state.component);
        let place = component.and_then(|component| area.component(component));
        let Some(place) = place.filter(|place| place.len() == state.bytes.len()) else {
            return Err(EngineError::State(format!(
                "{} bytes of XSAVE component {}, which its processor does not have as such",
                state.bytes.len(),
                state.component
            )));
        };
        place.copy_from_slice(&state.bytes);
        let present = u64::from_le_bytes(area.get(at::XSTATE_BV)) | 1 << (state.component & 63);
        area.put(at::XSTATE_BV, present.to_le_bytes());
    }
    Ok(())
}

fn extended(area: &mut Area, components: &[XsaveComponent]) -> Vec<ExtendedState> {
    let present = u64::from_le_bytes(area.get(at::XSTATE_BV));
    let saved = components.iter().filter(|component| present >> (component.number & 63) & 1 == 1);
    saved
        .filter_map(|component| {
            let bytes = area.component(component)?.to_vec();
            Some(ExtendedState { component: component.number, bytes })
        })
        .collect()
}

fn area(state: &FpuState) -> Area {
    let mut area = Area([0; at::END]);
    area.put(at::CONTROL, state.control.to_le_bytes());
    area.put(at::STATUS, state.status.to_le_bytes());
    area.put(at::TAGS, [state.valid]);
    area.put(at::OPCODE, state.last_opcode.to_le_bytes());
    area.put(at::INSTRUCTION, state.last_instruction.to_le_bytes());
    area.put(at::OPERAND, state.last_operand.to_le_bytes());
    area.put(at::MXCSR, state.mxcsr.to_le_bytes());
    for index in 0..8 {
        let (significand, sign_exponent) = state.registers[physical(state.status, index)];
        let value = u128::from(sign_exponent) << 64 | u128::from(significand);
        area.put(at::REGISTERS + index * SLOT_BYTES, value.to_le_bytes());
    }
    for (index, value) in state.xmm.iter().enumerate() {
        area.put(at::XMM + index * SLOT_BYTES, value.to_le_bytes());
    }
    area.put(at::XSTATE_BV, (X87 | SSE).to_le_bytes());
    area
}

/// A component whose bit in XSTATE_BV is clear is in its initial state, whatever the area holds.
fn neutral(area: &Area) -> FpuState {
    let components = u64::from_le_bytes(area.get(at::XSTATE_BV));
    let mut state = FpuState { mxcsr: u32::from_le_bytes(area.get(at::MXCSR)), ..FpuState::default() };
    if components & X87 != 0 {
        state.control = u16::from_le_bytes(area.get(at::CONTROL));
        state.status = u16::from_le_bytes(area.get(at::STATUS));
        [state.valid] = area.get(at::TAGS);
        state.last_opcode = u16::from_le_bytes(area.get(at::OPCODE));
        state.last_instruction = u64::from_le_bytes(area.get(at::INSTRUCTION));
        state.last_operand = u64::from_le_bytes(area.get(at::OPERAND));
        for index in 0..8 {
            let value = u128::from_le_bytes(area.get(at::REGISTERS + index * SLOT_BYTES));
            state.registers[physical(state.status, index)] = (value as u64, (value >> 64) as u16);
        }
    }
    if components & SSE != 0 {
        for (index, value) in state.xmm.iter_mut().enumerate() {
            *value = u128::from_le_bytes(area.get(at::XMM + index * SLOT_BYTES));
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_components_lie_where_the_profile_says_and_nowhere_else() {
        let avx = XsaveComponent { number: 2, offset: 576, bytes: 256 };
        let saved = ExtendedState { component: 2, bytes: (0..=255).collect() };
        let mut area = area(&FpuState::default());
        assert!(extended(&mut area, &[avx]).is_empty(), "as after reset");
        put_extended(&mut area, &[avx], std::slice::from_ref(&saved)).unwrap();
        assert_eq!(extended(&mut area, &[avx]), std::slice::from_ref(&saved));
        assert_eq!(neutral(&area), FpuState::default());
        for wrong in [
            XsaveComponent { number: 3, ..avx },
            XsaveComponent { bytes: 255, ..avx },
            XsaveComponent { offset: 4000, ..avx },
            XsaveComponent { offset: 512, ..avx },
        ] {
            assert!(put_extended(&mut area, &[wrong], std::slice::from_ref(&saved)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_area_holds_everything() {
        let mut state = FpuState { status: 5 << 11, valid: 0xa5, mxcsr: 0x1fa0, ..FpuState::default() };
        for (index, register) in state.registers.iter_mut().enumerate() {
            *register = (index as u64 * 0x0101_0101_0101, 0x3fff + index as u16);
        }
        for (index, register) in state.xmm.iter_mut().enumerate() {
            *register = u128::MAX / (index as u128 + 1);
        }
        assert_eq!(neutral(&area(&state)), state);
        let mut initial = area(&state);
        initial.put(at::XSTATE_BV, [0]);
        assert_eq!(neutral(&initial), FpuState { mxcsr: 0x1fa0, ..FpuState::default() });
    }
}
