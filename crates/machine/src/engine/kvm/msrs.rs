//! Model-specific registers of a vCPU.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::kvm_error;
use crate::engine::EngineError;

/// Sets registers in this order. One that this host does not have makes no difference if it is to be 0.
pub(super) fn set(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), EngineError> {
    let entries: Vec<_> =
        values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() }).collect();
    let mut rest = &entries[..];
    while !rest.is_empty() {
        // The kernel stops at the first one that it does not take.
        let done = fd.set_msrs(&list(rest)?).map_err(kvm_error("set model-specific registers"))?;
        if let Some(kvm_msr_entry { index, data, .. }) = rest.get(done).filter(|refused| refused.data != 0) {
            return Err(EngineError::State(format!("this host's KVM refuses MSR {index:#x} = {data:#x}")));
        }
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Reads registers, leaving out those that this host does not have.
pub(super) fn get(fd: &VcpuFd, indices: impl Iterator<Item = u32>) -> Result<Vec<(u32, u64)>, EngineError> {
    let wanted: Vec<_> = indices.map(|index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut values = Vec::with_capacity(wanted.len());
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let mut entries = list(rest)?;
        // The kernel stops at the first one it does not know.
        let found = fd.get_msrs(&mut entries).map_err(kvm_error("get model-specific registers"))?;
        values.extend(entries.as_slice().iter().take(found).map(|entry| (entry.index, entry.data)));
        rest = rest.get(found + 1..).unwrap_or_default();
    }
    Ok(values)
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, EngineError> {
    Msrs::from_entries(entries).map_err(|error| EngineError::State(format!("MSRs: {error:?}")))
}
