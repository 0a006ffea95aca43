//! KVM's paravirtual clock (Linux `Documentation/virt/kvm/x86/msr.rst`).

use memory::GuestRam;

use crate::core::Cpu;
use crate::cpuid::TSC_HZ;
use crate::msr::index;
use crate::state::VcpuState;

const NANOSECONDS: u64 = 1_000_000_000;
/// Bit of the system-time MSR: the structure is in use.
const ENABLED: u64 = 1;
/// `flags`: readings on different processors agree.
const STABLE: u8 = 1;
/// `flags`: the guest stood still, so that its watchdogs are not to take that for a hang. It is set by whoever restores a VM and cleared by the
/// guest.
const GUEST_STOPPED: u8 = 2;
/// `tsc_shift`, and with it `tsc_to_system_mul`: ticks * 2^shift * mul / 2^32 are nanoseconds. TSC_HZ is one a nanosecond.
const SHIFT: u8 = 1;
const MULTIPLIER: u32 = 1 << 31;

/// Offset of `flags`.
const FLAGS: u64 = 29;

const _: () = assert!(TSC_HZ == NANOSECONDS);

impl Cpu {
    /// Fills `struct pvclock_vcpu_time_info` where the guest wants it: system time is the machine's time-stamp counter.
    pub(crate) fn write_system_time(&mut self) {
        let address = self.system.msrs.get(index::KVM_SYSTEM_TIME).unwrap_or(0);
        if address & ENABLED == 0 {
            return;
        }
        let address = address & !ENABLED;
        // As KVM does, what the guest has not seen yet stays.
        let mut flags = [0];
        let _ = self.ram.read_bytes(address.wrapping_add(FLAGS), &mut flags);
        let flags = STABLE | flags[0] & GUEST_STOPPED;
        let mut info = [0; 32];
        let fields: [(usize, &[u8]); 5] = [
            // An even version: no update is under way.
            (0, &2u32.to_le_bytes()),
            (8, &self.system.tsc_offset.to_le_bytes()),
            (24, &MULTIPLIER.to_le_bytes()),
            (28, &[SHIFT]),
            (FLAGS as usize, &[flags]),
        ];
        for (at, bytes) in fields {
            if let Some(place) = info.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        // Where there is no RAM the guest gets no clock.
        let _ = self.ram.write_bytes(address, &info);
    }

    /// Fills `struct pvclock_wall_clock`: the time of day when system time was zero.
    pub(super) fn write_wall_clock(&mut self) {
        let address = self.system.msrs.get(index::KVM_WALL_CLOCK).unwrap_or(0);
        let power_on = self.system.power_on_unix_ns;
        let mut clock = [0; 12];
        let fields = [2, (power_on / NANOSECONDS) as u32, (power_on % NANOSECONDS) as u32];
        for (place, field) in clock.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let _ = self.ram.write_bytes(address, &clock);
    }
}

/// Says in each processor's paravirtual clock that the guest stood still; whoever reads it there forgives its watchdogs the time.
pub fn tell_stopped(vcpus: &[VcpuState], ram: &GuestRam) {
    let values = vcpus.iter().flat_map(|vcpu| &vcpu.msrs);
    for (_, value) in values.filter(|(number, value)| *number == index::KVM_SYSTEM_TIME && value & ENABLED != 0) {
        let place = (value & !ENABLED).wrapping_add(FLAGS);
        let mut flags = [0];
        // Where there is no RAM there is no clock.
        if ram.read_bytes(place, &mut flags).is_ok() {
            let _ = ram.write_bytes(place, &[flags[0] | GUEST_STOPPED]);
        }
    }
}
