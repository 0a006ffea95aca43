//! Whatever KVM can report of a vCPU is the same before a save and after a restore, or it is said here why not.

use cpu::VcpuState;
use cpu::msr::index;
use cpu::state::{ExtendedState, PendingEvent};
use kvm_bindings::{KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use spec::processor::XsaveComponent;
use spec::{CpuLevel, CpuProfile};

use super::Fixture;
use crate::engine::kvm::support::Support;

/// Model-specific registers that are left out, and why.
const LEFT_OUT: &[(u32, &str)] = &[
    (index::TSC, "goes on by itself: compared on its own"),
    (0x34, "MSR_SMI_COUNT: there is no system-management mode"),
    (0x3a, "IA32_FEAT_CTL: neither VMX nor SGX is offered"),
    (0xc1, "IA32_PMC0 and all of the performance counters: not offered, and disabled"),
    (0x186, "IA32_PERFEVTSEL0: likewise"),
    (0x345, "IA32_PERF_CAPABILITIES: likewise"),
    (0xce, "MSR_PLATFORM_INFO: CPUID faulting is not offered, and off"),
    (0x140, "MSR_MISC_FEATURES_ENABLES: likewise"),
    (0x1db, "last branches: not recorded"),
    (0x1dc, "last branches: not recorded"),
    (0x1dd, "last branches: not recorded"),
    (0x1de, "last branches: not recorded"),
    (0x1fc, "MSR_POWER_CTL: KVM keeps it and does nothing with it"),
    (0xe1, "IA32_UMWAIT_CONTROL: user-mode waits are not offered"),
    (0x122, "IA32_TSX_CTRL: TSX is not offered"),
    (0xda0, "IA32_XSS: XSAVES is not offered"),
    (0x1c4, "IA32_XFD: AMX is not offered"),
    (0x1c5, "IA32_XFD_ERR: AMX is not offered"),
    (index::BIOS_SIGN_ID, "the microcode's revision is the host's"),
    (index::ARCH_CAPABILITIES, "part of the profile, and constant"),
    (0x10f, "IA32_TSX_FORCE_ABORT: TSX is not offered"),
    (0xc000_0104, "MSR_AMD64_TSC_RATIO: SVM is not offered"),
    (0xc001_0117, "MSR_VM_HSAVE_PA: SVM is not offered"),
    (0xc001_0015, "MSR_K7_HWCR: KVM lets guests set what has no effect"),
    (0xc001_1029, "MSR_AMD64_DE_CFG: the host's, which guests cannot change"),
];
/// Ranges that are left out: performance counters of both makers, VMX's capabilities, last branches, the paravirtual features of KVM that are
/// not offered (asynchronous page faults, steal time, end of interrupt, polling, migration control), Hyper-V's.
const RANGES_LEFT_OUT: &[(u32, u32)] = &[
    (0xc1, 0xc8),
    (0x186, 0x18d),
    (0x309, 0x30b),
    (0x38d, 0x390),
    (0x3f1, 0x3f2),
    (0x480, 0x491),
    (0x4c1, 0x4c8),
    (0x14ce, 0x14cf),
    (0x4b56_4d02, 0x4b56_4d08),
    (0x4000_0000, 0x4000_0fff),
    (0xc000_0300, 0xc000_0302),
    (0xc001_0000, 0xc001_0007),
    (0xc001_0200, 0xc001_020b),
];
/// What has a meaning for the guest is tried first: addresses, then bits that most registers have.
const TRIED: [u64; 5] = [0xffff_8000_1234_5000, 0x0012_3450, 6, 1, 0];

fn is_left_out(index: u32) -> bool {
    LEFT_OUT.iter().any(|(left, _)| *left == index)
        || RANGES_LEFT_OUT.iter().any(|(first, last)| (*first..=*last).contains(&index))
}

fn read(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]).unwrap();
    (fd.get_msrs(&mut msrs).unwrap() == 1).then(|| msrs.as_slice()[0].data)
}

fn write(fd: &VcpuFd, index: u32, data: u64) -> bool {
    let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..kvm_msr_entry::default() }]).unwrap();
    fd.set_msrs(&msrs).unwrap() == 1
}

/// Every register that KVM lists or that a state carries, and that is not left out.
fn compared_registers(kvm: &Kvm) -> Vec<u32> {
    let mut list: Vec<u32> = kvm.get_msr_index_list().unwrap().as_slice().to_vec();
    list.extend(cpu::msr::neutral());
    list.retain(|&index| !is_left_out(index));
    list.sort_unstable();
    list.dedup();
    list
}

/// What KVM reports, piece by piece.
fn report(kvm: &Kvm, support: &Support, fd: &VcpuFd) -> Vec<(String, String)> {
    let xsave = fd.get_xsave().unwrap();
    let mut pieces = vec![
        ("general registers".to_owned(), format!("{:x?}", fd.get_regs().unwrap())),
        ("special registers".to_owned(), format!("{:x?}", fd.get_sregs().unwrap())),
        ("debug registers".to_owned(), format!("{:x?}", fd.get_debug_regs().unwrap())),
        ("XSAVE area".to_owned(), format!("{:x?}", xsave.region)),
        ("local APIC".to_owned(), format!("{:x?}", fd.get_lapic().unwrap().regs)),
        ("run state".to_owned(), format!("{:x?}", fd.get_mp_state().unwrap())),
        ("events".to_owned(), format!("{:x?}", fd.get_vcpu_events().unwrap())),
        ("rate of the TSC".to_owned(), format!("{} kHz", fd.get_tsc_khz().unwrap())),
    ];
    if support.has_xcrs {
        pieces.push(("XCRs".to_owned(), format!("{:x?}", fd.get_xcrs().unwrap())));
    }
    for index in compared_registers(kvm) {
        pieces.push((format!("MSR {index:#x}"), format!("{:x?}", read(fd, index))));
    }
    pieces
}

/// A state with something in every place.
fn interesting(profile: &CpuProfile) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.xcr0 = profile.xcr0();
    let component = |component: &XsaveComponent| ExtendedState {
        component: component.number,
        bytes: (0..component.bytes).map(|at| (at + 1) as u8 ^ component.number).collect(),
    };
    state.extended = profile.xsave.iter().map(component).collect();
    for (number, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x0123_4567_89ab_0000 + number as u64;
    }
    state.rip = 0x1234;
    state.rflags = 0x246;
    state.cr2 = 0xdead_b000;
    state.cr8 = 3;
    state.debug = [0x1000, 0x2000, 0x3000, 0x4000, 0xffff_0ff1, 0x401];
    for (number, register) in state.fpu.xmm.iter_mut().enumerate() {
        *register = u128::MAX / (number as u128 + 3);
    }
    state.fpu.registers[2] = (0x8000_0000_0000_0001, 0x3fff);
    state.fpu.valid = 4;
    state.fpu.status = 2 << 11;
    state.fpu.mxcsr = 0x1fa0;
    state.apic.registers[0xf0..0xf2].copy_from_slice(&0x1ff_u16.to_le_bytes());
    state.apic.registers[0x80] = 0x30;
    // An interrupt requested, one in service, and the entry of the timer.
    state.apic.registers[0x220] = 1 << 3;
    state.apic.registers[0x110] = 1 << 2;
    state.apic.registers[0x320..0x324].copy_from_slice(&0x2_0040_u32.to_le_bytes());
    state.nmi_pending = true;
    state.tsc = 0x0123_4567_89ab;
    state
}

#[test]
fn everything_that_kvm_reports_is_the_same_after_a_restore() {
    for (level, pending) in [
        (CpuLevel::Portable, None),
        (CpuLevel::Portable, Some(PendingEvent::Interrupt { vector: 0x41 })),
        (CpuLevel::Portable, Some(exception())),
        (CpuLevel::V3, None),
        (CpuLevel::Host, None),
    ] {
        let with_pending = |profile: &CpuProfile| VcpuState { pending, ..interesting(profile) };
        let Some(before) = Fixture::at_level(level, with_pending) else { continue };
        let kvm = Kvm::new().unwrap();
        let mut set = Vec::new();
        for index in compared_registers(&kvm) {
            // KVM's clock is left off: its page would be written at the next entry.
            let quiet = matches!(index, index::KVM_SYSTEM_TIME | index::KVM_WALL_CLOCK | 0x11 | 0x12);
            let taken = TRIED.iter().find(|&&value| !(quiet && value & 1 == 1) && write(before.fd(), index, value));
            set.extend(taken.filter(|value| **value != 0).map(|_| index));
        }
        eprintln!("registers that took a value: {set:x?}");
        assert!(set.len() > 20, "only {set:x?}");
        let events = before.fd().get_vcpu_events().unwrap();
        assert!(events.flags & KVM_VCPUEVENT_VALID_SHADOW != 0);
        let saved = before.vcpu.save().unwrap();
        // The upper halves of vector registers are as they were set; of others, some bits are for no use and are read as zero.
        let avx = before.support.offer.avx().filter(|avx| before.profile.xsave.contains(avx));
        let find = |state: &VcpuState| {
            state.extended.iter().find(|state| Some(state.component) == avx.map(|avx| avx.number)).cloned()
        };
        assert_eq!(find(&saved), find(&interesting(&before.profile)), "{level}");
        assert_eq!(find(&saved).is_some(), level == CpuLevel::V3 || avx.is_some(), "{level}");
        let after = Fixture::at_level(level, |_| saved.clone()).unwrap();
        let (first, second) = (report(&kvm, &before.support, before.fd()), report(&kvm, &after.support, after.fd()));
        let different: Vec<_> = first.iter().zip(&second).filter(|(first, second)| first != second).collect();
        assert!(different.is_empty(), "{level}, {pending:?}: {different:#?}");
        let again = after.vcpu.save().unwrap();
        assert_eq!(VcpuState { tsc: saved.tsc, ..again }, saved);
        assert!(read(after.fd(), index::TSC).unwrap() >= saved.tsc, "the time-stamp counter went back");
    }
}

fn exception() -> PendingEvent {
    PendingEvent::Exception { vector: 13, error_code: Some(0x18), payload: None }
}
