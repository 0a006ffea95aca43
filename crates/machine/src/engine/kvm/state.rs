//! Neutral state to KVM's structures and back.

use cpu::VcpuState;
use cpu::cpuid::has_msr;
use cpu::msr::index;
use cpu::state::{ApicState, InterruptShadow, PendingEvent, RunState, SegmentState, TableState};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use spec::CpuProfile;
use spec::processor::bit;

use super::support::Support;
use super::{fpu, kvm_error, msrs};
use crate::devices::ioapic::IoApicState;
use crate::engine::EngineError;

const SHADOW_MOV_SS: u8 = KVM_X86_SHADOW_INT_MOV_SS as u8;
const SHADOW_STI: u8 = KVM_X86_SHADOW_INT_STI as u8;
/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// Gives a fresh vCPU its state; its time-stamp counter has been set before. The order matters: the APIC's base before its registers.
pub(super) fn set_vcpu(
    fd: &VcpuFd,
    support: &Support,
    profile: &CpuProfile,
    state: &VcpuState,
) -> Result<(), EngineError> {
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
    set_xcr0(fd, support, state.xcr0)?;
    fpu::set(fd, profile, state)?;
    let [db0, db1, db2, db3, dr6, dr7] = state.debug;
    fd.set_debug_regs(&kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..kvm_debugregs::default() })
        .map_err(kvm_error("set debug registers"))?;
    fd.set_lapic(&lapic(&state.apic)).map_err(kvm_error("set the local APIC"))?;
    let mut values: Vec<_> = state.msrs.clone();
    if has_msr(profile, index::ARCH_CAPABILITIES) {
        values.push((index::ARCH_CAPABILITIES, profile.arch_capabilities));
    }
    values.push((index::TSC_DEADLINE, state.apic.tsc_deadline));
    msrs::set(fd, &values)?;
    fd.set_vcpu_events(&events(state)).map_err(kvm_error("set pending events"))
}

/// The state of a vCPU that is outside of the guest.
pub(super) fn get_vcpu(fd: &VcpuFd, support: &Support, profile: &CpuProfile) -> Result<VcpuState, EngineError> {
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
    if support.has_xcrs {
        state.xcr0 = fd.get_xcrs().map_err(kvm_error("get XCR0"))?.xcrs[0].value;
    }
    (state.fpu, state.extended) = fpu::get(fd, profile)?;
    let debug = fd.get_debug_regs().map_err(kvm_error("get debug registers"))?;
    state.debug = [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7];
    let page = fd.get_lapic().map_err(kvm_error("get the local APIC"))?;
    state.apic = ApicState {
        registers: page.regs.iter().map(|&byte| byte as u8).collect(),
        base_msr: sregs.apic_base,
        tsc_deadline: 0,
    };
    state.msrs = Vec::new();
    let deadline = profile.features.has(bit::TSC_DEADLINE).then_some(index::TSC_DEADLINE);
    let held = cpu::msr::neutral().filter(|&index| has_msr(profile, index));
    for (number, value) in msrs::get(fd, [index::TSC].into_iter().chain(deadline).chain(held))? {
        match number {
            index::TSC => state.tsc = value,
            index::TSC_DEADLINE => state.apic.tsc_deadline = value,
            _ => state.msrs.push((number, value)),
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
    state.interrupt_shadow = interrupt_shadow(events.interrupt.shadow, state.rflags);
    state.nmi_blocked = events.nmi.masked != 0;
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    Ok(state)
}

/// A host without XSAVE has no XCR0, and its guests are offered none: theirs is as after reset.
fn set_xcr0(fd: &VcpuFd, support: &Support, xcr0: u64) -> Result<(), EngineError> {
    if !support.has_xcrs {
        let at_reset = VcpuState::reset(0).xcr0;
        return if xcr0 == at_reset {
            Ok(())
        } else {
            Err(EngineError::State(format!("its XCR0 is {xcr0:#x}, and this host's processor or its KVM has no XSAVE")))
        };
    }
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0].value = xcr0;
    fd.set_xcrs(&xcrs).map_err(kvm_error("set XCR0"))
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
            | bit(if segment.unusable == 0 { segment.present } else { 0 }, 7)
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
    events.interrupt.shadow = match state.interrupt_shadow {
        Some(InterruptShadow::Sti) => SHADOW_STI,
        Some(InterruptShadow::MovSs) => SHADOW_MOV_SS,
        None => 0,
    };
    events.nmi.pending = state.nmi_pending.into();
    events.nmi.masked = state.nmi_blocked.into();
    events
}

/// AMD's processors have one shadow, which KVM reports as both. Only a load of SS leaves one behind while interrupts are off, and Intel's
/// processors refuse to enter a guest with STI's then.
fn interrupt_shadow(shadow: u8, rflags: u64) -> Option<InterruptShadow> {
    match (shadow & SHADOW_STI != 0, shadow & SHADOW_MOV_SS != 0) {
        (false, false) => None,
        (true, _) if rflags & INTERRUPT_FLAG != 0 => Some(InterruptShadow::Sti),
        _ => Some(InterruptShadow::MovSs),
    }
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
