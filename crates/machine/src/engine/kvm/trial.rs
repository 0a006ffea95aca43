//! What CPUID offers to a guest's kernel, tried out.
//!
//! A KVM without hardware below it has the processor run programs, and executes a kernel's instructions itself. Its CPUID offers what the
//! processor has, so that a kernel may meet an instruction which the emulator lacks, and dies there.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit};
use memory::GuestRam;
use spec::CpuLevel;

use super::dirty::{DirtyMethod, DirtyTracking};
use super::support::Support;
use super::vcpu::Vcpu;
use super::{create_vm, kvm_error, profile};
use crate::boot::flat;
use crate::engine::EngineError;
use crate::map;

/// Memory of the VM that tries.
const MEMORY_BYTES: u64 = 2 << 20;

/// ```text
/// lock cmpxchg16b [rsp - 16]
/// out  0x80, al
/// ```
pub(super) const CMPXCHG16B: &[u8] = &[0xf0, 0x48, 0x0f, 0xc7, 0x4c, 0x24, 0xf0, 0xe6, 0x80];

/// Whether a kernel gets through `code`, which ends with an access to a port.
pub(super) fn executes(kvm: &Kvm, support: &Arc<Support>, code: &[u8]) -> Result<bool, EngineError> {
    let failed = |error: &dyn std::error::Error| EngineError::State(format!("trying instructions out: {error}"));
    let ram = GuestRam::new(MEMORY_BYTES).map_err(|error| failed(&error))?;
    let start = flat::load(&ram, code, map::HIGH_MEMORY, 0).map_err(|error| failed(&error))?;
    let vm = Arc::new(create_vm(kvm)?);
    let memory = DirtyTracking::new(&vm, &ram, DirtyMethod::Bitmap { clears: false })?;
    let profile = Arc::new(profile::at_power_on(CpuLevel::Portable, support)?);
    let vcpu = Vcpu::new(support, &vm, 0, 1, &profile, 0)?;
    vcpu.restore(&start.vcpu())?;
    let mut fd = vcpu.into_fd();
    let gets_through = loop {
        match fd.run() {
            Ok(VcpuExit::IoOut(..)) => break true,
            Ok(VcpuExit::Intr) => {}
            Ok(_) => break false,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(kvm_error("run a vCPU")(error)),
        }
    };
    // It has been the guest's memory up to here.
    drop(memory);
    Ok(gets_through)
}
