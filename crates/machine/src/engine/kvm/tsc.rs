//! Time-stamp counters: their rate, and that those of all vCPUs keep their distance.

use cpu::VcpuState;
use cpu::msr::index;
use kvm_ioctls::VcpuFd;
use spec::processor::{TscOffer, is_same_rate};

use super::support::Support;
use super::{ioctl, kvm_error, msrs};
use crate::engine::EngineError;

/// Gives a vCPU's counter the rate that it had where the state was saved, if the host can; 0 is the host's own. Whether a guest minds another
/// one is in its profile.
pub(super) fn set_rate(fd: &VcpuFd, support: &Support, hz: u64) -> Result<(), EngineError> {
    if hz == 0 || support.offer.tsc != TscOffer::Scaled || is_same_rate(hz, support.tsc_hz) {
        return Ok(());
    }
    let khz = u32::try_from(hz / 1000).map_err(|_| EngineError::State(format!("its TSC runs at {hz} Hz")))?;
    fd.set_tsc_khz(khz).map_err(kvm_error("set the rate of the time-stamp counter"))
}

/// Lets all counters go on from a state. The first one is set; the others follow at the distance that they had, to the tick.
pub(super) fn restore(vcpus: &[&VcpuFd], states: &[VcpuState], support: &Support) -> Result<(), EngineError> {
    let (Some((first, others)), Some(first_state)) = (vcpus.split_first(), states.first()) else { return Ok(()) };
    set(first, first_state.tsc, support)?;
    for (fd, state) in others.iter().zip(states.iter().skip(1)) {
        if support.has_tsc_offset {
            let distance = state.tsc.wrapping_sub(first_state.tsc);
            ioctl::set_tsc_offset(fd, ioctl::tsc_offset(first)?.wrapping_add(distance))?;
        } else {
            // KVM takes values that belong to one moment for an attempt to synchronise, and does it.
            msrs::set(fd, &[(index::TSC, state.tsc)])?;
        }
    }
    Ok(())
}

/// Lets a counter go on from a value. A write to IA32_TSC would do, were it not that kernels before 6.7 take one within a second of the counter's
/// creation for an attempt to synchronise it with that of 0 then, and leave it as it was.
fn set(fd: &VcpuFd, tsc: u64, support: &Support) -> Result<(), EngineError> {
    let now = msrs::get(fd, [index::TSC].into_iter())?.first().map(|&(_, now)| now);
    match now.filter(|_| support.has_tsc_offset) {
        Some(now) => ioctl::set_tsc_offset(fd, ioctl::tsc_offset(fd)?.wrapping_add(tsc.wrapping_sub(now))),
        None => msrs::set(fd, &[(index::TSC, tsc)]),
    }
}

/// Corrects counters that were read one after the other to what they are at one moment.
pub(super) fn align(vcpus: &[&VcpuFd], states: &mut [VcpuState], support: &Support) -> Result<(), EngineError> {
    let (Some(first), Some(tsc)) = (vcpus.first(), states.first().map(|state| state.tsc)) else { return Ok(()) };
    if !support.has_tsc_offset {
        return Ok(());
    }
    let base = ioctl::tsc_offset(first)?;
    for (fd, state) in vcpus.iter().zip(states) {
        state.tsc = tsc.wrapping_add(ioctl::tsc_offset(fd)?.wrapping_sub(base));
    }
    Ok(())
}
