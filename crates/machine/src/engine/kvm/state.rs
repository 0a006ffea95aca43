//! Neutral state to KVM's structures and back.

use cpu::VcpuState;
use cpu::cpuid::{self, CpuModel, Processor};
use cpu::state::{ApicState, PendingEvent, RunState, SegmentState, TableState};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_IRQCHIP_IOAPIC, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_irqchip, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{fpu, kvm_error};
use crate::devices::ioapic::IoApicState;
use crate::engine::EngineError;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// CPUID leaves that tell the rates of clocks.
const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;
/// KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI.
const SHADOW_ANY: u8 = 3;
const SHADOW_STI: u8 = 2;

/// CPUID as the guest of either engine sees it, without what this host's KVM cannot do.
pub(super) fn cpuid_entries(kvm: &Kvm, number: usize, count: usize) -> Result<CpuId, EngineError> {
    let supported =
        kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("read the host's CPUID"))?;
    let processor = Processor { number: number as u32, count: count as u32, model: CpuModel::OutOfOrder };
    let mut entries: Vec<kvm_cpuid_entry2> = cpuid::table(processor)
        .into_iter()
        // The TSC ticks at the host's rate here; the guest learns it from the paravirtual clock.
        .filter(|entry| !matches!(entry.leaf, LEAF_TSC | LEAF_FREQUENCY))
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf.unwrap_or_default(),
            flags: if entry.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: entry.registers.eax,
            ebx: entry.registers.ebx,
            ecx: entry.registers.ecx,
            edx: entry.registers.edx,
            ..kvm_cpuid_entry2::default()
        })
        .collect();
    for entry in &mut entries {
        let host =
            supported.as_slice().iter().find(|host| host.function == entry.function && host.index == entry.index);
        match entry.function {
            // Feature words only: what the host's KVM does not know must not be promised. X2APIC, TSC-deadline and the
            // hypervisor bit come from the in-kernel APIC and are not always listed.
            1 => {
                const FROM_KERNEL: u32 = 1 << 21 | 1 << 24 | 1 << 31;
                entry.ecx &= host.map_or(0, |host| host.ecx) | FROM_KERNEL;
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            7 => {
                entry.ebx &= host.map_or(0, |host| host.ebx);
                entry.ecx &= host.map_or(0, |host| host.ecx);
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            0x8000_0001 => {
                entry.ecx &= host.map_or(0, |host| host.ecx);
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            _ => {}
        }
    }
    CpuId::from_entries(&entries).map_err(|error| EngineError::State(format!("CPUID: {error:?}")))
}

/// Gives a fresh vCPU its state. The order matters: the APIC's base before its registers, the TSC before its deadline.
pub(super) fn set_vcpu(fd: &VcpuFd, state: &VcpuState) -> Result<(), EngineError> {
    fd.set_mp_state(kvm_mp_state {
        mp_state: match state.run_state {
            RunState::Running => KVM_MP_STATE_RUNNABLE,
            RunState::Halted => KVM_MP_STATE_HALTED,
            RunState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            RunState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        },
    })
    .map_err(kvm_error("set the run state"))?;
    fd.set_regs(&regs(state)).map_err(kvm_error("set general registers"))?;
    fd.set_sregs(&sregs(state)).map_err(kvm_error("set special registers"))?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0].value = state.xcr0;
    fd.set_xcrs(&xcrs).map_err(kvm_error("set XCR0"))?;
    fpu::set(fd, &state.fpu)?;
    let [db0, db1, db2, db3, dr6, dr7] = state.debug;
    fd.set_debug_regs(&kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..kvm_debugregs::default() })
        .map_err(kvm_error("set debug registers"))?;
    fd.set_lapic(&lapic(&state.apic)).map_err(kvm_error("set the local APIC"))?;
    let mut msrs = vec![(IA32_TSC, state.tsc)];
    msrs.extend(&state.msrs);
    msrs.push((IA32_TSC_DEADLINE, state.apic.tsc_deadline));
    for (index, data) in msrs {
        let entry = Msrs::from_entries(&[kvm_msr_entry { index, data, ..kvm_msr_entry::default() }])
            .map_err(|error| EngineError::State(format!("MSRs: {error:?}")))?;
        // A register that this host does not have and the guest never set makes no difference.
        if fd.set_msrs(&entry).map_err(kvm_error("set a model-specific register"))? == 0 && data != 0 {
            return Err(EngineError::State(format!("this host's KVM refuses MSR {index:#x} = {data:#x}")));
        }
    }
    fd.set_vcpu_events(&events(state)).map_err(kvm_error("set pending events"))
}

/// The state of a vCPU that is outside of the guest.
pub(super) fn get_vcpu(fd: &VcpuFd) -> Result<VcpuState, EngineError> {
    let mut state = VcpuState::reset(0);
    let regs = fd.get_regs().map_err(kvm_error("get general registers"))?;
    state.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    state.rip = regs.rip;
    state.rflags = regs.rflags;
    let sregs = fd.get_sregs().map_err(kvm_error("get special registers"))?;
    state.segments = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(neutral_segment);
    state.ldtr = neutral_segment(sregs.ldt);
    state.tr = neutral_segment(sregs.tr);
    state.gdtr = TableState { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = TableState { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4, state.cr8) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8);
    state.efer = sregs.efer;
    state.xcr0 = fd.get_xcrs().map_err(kvm_error("get XCR0"))?.xcrs[0].value;
    state.fpu = fpu::get(fd)?;
    let debug = fd.get_debug_regs().map_err(kvm_error("get debug registers"))?;
    state.debug = [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7];
    let page = fd.get_lapic().map_err(kvm_error("get the local APIC"))?;
    state.apic = ApicState {
        registers: page.regs.iter().map(|&byte| byte as u8).collect(),
        base_msr: sregs.apic_base,
        tsc_deadline: 0,
    };
    state.msrs = Vec::new();
    for (index, value) in get_msrs(fd, [IA32_TSC, IA32_TSC_DEADLINE].into_iter().chain(cpu::neutral_msrs()))? {
        match index {
            IA32_TSC => state.tsc = value,
            IA32_TSC_DEADLINE => state.apic.tsc_deadline = value,
            _ => state.msrs.push((index, value)),
        }
    }
    state.run_state = match fd.get_mp_state().map_err(kvm_error("get the run state"))?.mp_state {
        KVM_MP_STATE_HALTED => RunState::Halted,
        KVM_MP_STATE_UNINITIALIZED => RunState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => RunState::WaitForSipi,
        _ => RunState::Running,
    };
    let events = fd.get_vcpu_events().map_err(kvm_error("get pending events"))?;
    state.pending = pending(&events);
    state.interrupt_shadow = events.interrupt.shadow & SHADOW_ANY != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    Ok(state)
}

/// Reads model-specific registers, leaving out those that this host does not have.
fn get_msrs(fd: &VcpuFd, indices: impl Iterator<Item = u32>) -> Result<Vec<(u32, u64)>, EngineError> {
    let wanted: Vec<_> = indices.map(|index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut values = Vec::with_capacity(wanted.len());
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let mut entries = Msrs::from_entries(rest).map_err(|error| EngineError::State(format!("MSRs: {error:?}")))?;
        // The kernel stops at the first one it does not know.
        let found = fd.get_msrs(&mut entries).map_err(kvm_error("get model-specific registers"))?;
        values.extend(entries.as_slice().iter().take(found).map(|entry| (entry.index, entry.data)));
        rest = rest.get(found + 1..).unwrap_or_default();
    }
    Ok(values)
}

fn regs(state: &VcpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn sregs(state: &VcpuState) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.segments.map(kvm_segment_of);
    let table = |table: &TableState| kvm_dtable { base: table.base, limit: table.limit, ..kvm_dtable::default() };
    let mut sregs = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: kvm_segment_of(state.tr),
        ldt: kvm_segment_of(state.ldtr),
        gdt: table(&state.gdtr),
        idt: table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic.base_msr,
        ..kvm_sregs::default()
    };
    if let Some(PendingEvent::Interrupt { vector }) = state.pending {
        sregs.interrupt_bitmap[usize::from(vector) / 64] |= 1 << (vector % 64);
    }
    sregs
}

fn kvm_segment_of(segment: SegmentState) -> kvm_segment {
    let bit = |n: u16| (segment.attributes >> n & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.attributes & 15) as u8,
        s: bit(4),
        dpl: (segment.attributes >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: segment.unusable.into(),
        ..kvm_segment::default()
    }
}

fn neutral_segment(segment: kvm_segment) -> SegmentState {
    let bit = |value: u8, n: u16| u16::from(value & 1) << n;
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: u16::from(segment.type_ & 15)
            | bit(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | bit(segment.present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15),
        unusable: segment.unusable != 0,
    }
}

fn lapic(apic: &ApicState) -> kvm_lapic_state {
    let mut page = kvm_lapic_state::default();
    for (to, &from) in page.regs.iter_mut().zip(&apic.registers) {
        *to = from as _;
    }
    page
}

fn events(state: &VcpuState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    match state.pending {
        Some(PendingEvent::Exception { vector, error_code, .. }) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or_default();
        }
        Some(PendingEvent::Interrupt { vector }) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        None => {}
    }
    events.interrupt.shadow = if state.interrupt_shadow { SHADOW_STI } else { 0 };
    events.nmi.pending = state.nmi_pending.into();
    events.nmi.masked = state.nmi_blocked.into();
    events
}

fn pending(events: &kvm_vcpu_events) -> Option<PendingEvent> {
    if events.exception.injected != 0 || events.exception.pending != 0 {
        return Some(PendingEvent::Exception {
            vector: events.exception.nr,
            error_code: (events.exception.has_error_code != 0).then_some(events.exception.error_code),
            payload: (events.exception_has_payload != 0).then_some(events.exception_payload),
        });
    }
    // A soft interrupt (INT n) that was being delivered is executed again: RIP still points at it.
    (events.interrupt.injected != 0 && events.interrupt.soft == 0)
        .then_some(PendingEvent::Interrupt { vector: events.interrupt.nr })
}

/// Gives the kernel's I/O APIC its state.
pub(super) fn set_ioapic(vm: &VmFd, state: &IoApicState) -> Result<(), EngineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
    let ioapic = kvm_bindings::kvm_ioapic_state {
        base_address: state.base_address,
        ioregsel: state.ioregsel,
        id: state.id,
        irr: state.irr,
        pad: 0,
        redirtbl: state.redirection.map(|bits| kvm_bindings::kvm_ioapic_state__bindgen_ty_1 { bits }),
    };
    chip.chip.ioapic = ioapic;
    vm.set_irqchip(&chip).map_err(kvm_error("set the I/O APIC"))
}

/// The state of the kernel's I/O APIC.
#[allow(unsafe_code)]
pub(super) fn get_ioapic(vm: &VmFd) -> Result<IoApicState, EngineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
    vm.get_irqchip(&mut chip).map_err(kvm_error("get the I/O APIC"))?;
    // SAFETY: the kernel filled the union in as an I/O APIC, because `chip_id` says so; every bit pattern is valid.
    let ioapic = unsafe { chip.chip.ioapic };
    Ok(IoApicState {
        base_address: ioapic.base_address,
        ioregsel: ioapic.ioregsel,
        id: ioapic.id,
        irr: ioapic.irr,
        // SAFETY: both members of the union are the same 64 bits.
        redirection: ioapic.redirtbl.map(|entry| unsafe { entry.bits }),
    })
}
