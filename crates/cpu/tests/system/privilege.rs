//! Changes of privilege and mode, and what user mode may not do.

use iced_x86::code_asm::*;
use spec::processor::{Features, vendor};

use crate::machine::{
    INTERRUPT_STACK, KERNEL_CODE, KERNEL_CS, SPARE, Setup, TSS, USER_CODE, USER_CS, USER_CS_32, USER_SS, USER_STACK,
};

const INVALID_OPCODE: u64 = 6;
const GENERAL_PROTECTION: u64 = 13;

fn set_msr(setup: &mut Setup, index: u32, value: u64) {
    setup.state.vcpus[0].msrs.push((index, value));
}

/// STAR, LSTAR and SFMASK: SYSCALL enters [`KERNEL_CODE`].
fn with_syscall() -> Setup {
    let mut setup = Setup::new(1);
    setup.start_in_user_mode();
    set_msr(&mut setup, 0xc000_0081, 0x1b << 48 | u64::from(KERNEL_CS) << 32);
    set_msr(&mut setup, 0xc000_0082, KERNEL_CODE);
    set_msr(&mut setup, 0xc000_0084, 0x300);
    setup
}

#[test]
fn syscall_and_sysret_go_there_and_back() {
    let mut setup = with_syscall();
    setup.state.vcpus[0].rflags |= 1 << 9;
    setup.code(USER_CODE, |code| {
        code.mov(eax, 7).unwrap();
        code.syscall().unwrap();
        code.mov(ebx, eax).unwrap();
        code.cli().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.mov(rdx, cr3).unwrap();
        code.pushfq().unwrap();
        code.pop(rsi).unwrap();
        code.add(eax, 1).unwrap();
        code.sysretq().unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    // CLI in user mode.
    assert_eq!((report.vector, report.rip, report.cs), (GENERAL_PROTECTION, USER_CODE + 9, u64::from(USER_CS)));
    assert_eq!(report.rflags >> 9 & 1, 1);
    let gpr = machine.vcpu(0).gpr;
    assert_eq!((gpr[3], gpr[1], gpr[6] >> 9 & 1), (8, USER_CODE + 7, 0));
}

#[test]
fn programs_of_32_bits_enter_the_kernel_by_syscall_where_the_maker_is_amd() {
    for (vendor, enters) in [(vendor::INTEL, false), (vendor::AMD, true)] {
        let mut setup = Setup::new(1);
        setup.start_in_compatibility_mode();
        setup.state.profile.vendor = vendor;
        set_msr(&mut setup, 0xc000_0081, u64::from(KERNEL_CS) << 32);
        set_msr(&mut setup, 0xc000_0083, KERNEL_CODE);
        setup.state.vcpus[0].efer |= 1;
        // SYSCALL
        setup.code_of(32, USER_CODE, |code| code.db(&[0x0f, 0x05]).unwrap());
        setup.code(KERNEL_CODE, |code| code.ud2().unwrap());
        let report = setup.start().report();
        let rip = if enters { KERNEL_CODE } else { USER_CODE };
        assert_eq!((report.vector, report.rip), (INVALID_OPCODE, rip), "{}", String::from_utf8_lossy(&vendor));
    }
}

#[test]
fn the_registers_of_defences_against_speculation_are_there_where_cpuid_says_so() {
    for (features, there) in [(Features::PORTABLE, false), (Features::PORTABLE.or(Features::MITIGATIONS), true)] {
        let mut setup = Setup::new(1);
        setup.state.profile.features = features;
        setup.state.profile.arch_capabilities = 0x23;
        setup.code(KERNEL_CODE, |code| {
            code.mov(ecx, 0x48).unwrap();
            code.mov(eax, 1).unwrap();
            code.xor(edx, edx).unwrap();
            code.wrmsr().unwrap();
            code.mov(ecx, 0x49).unwrap();
            code.wrmsr().unwrap();
            code.mov(ecx, 0x10a).unwrap();
            code.rdmsr().unwrap();
            code.ud2().unwrap();
        });
        let mut machine = setup.start();
        let report = machine.report();
        assert_eq!(report.vector, if there { INVALID_OPCODE } else { GENERAL_PROTECTION });
        assert_eq!(machine.vcpu(0).gpr[0], if there { 0x23 } else { 1 });
    }
}

#[test]
fn programs_of_32_bits_run_and_trap() {
    let mut setup = Setup::new(1);
    setup.start_in_compatibility_mode();
    setup.gate(0x80, KERNEL_CODE, 3, 0);
    setup.code_of(32, USER_CODE, |code| {
        code.mov(eax, 0x1111_2222).unwrap();
        code.push(eax).unwrap();
        code.pop(ebx).unwrap();
        code.int(0x80).unwrap();
        code.inc(eax).unwrap();
        code.hlt().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.mov(eax, 5).unwrap();
        code.mov(rdi, qword_ptr(rsp + 8)).unwrap();
        code.iretq().unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.cs, report.rsp), (GENERAL_PROTECTION, u64::from(USER_CS_32), USER_STACK));
    let gpr = machine.vcpu(0).gpr;
    assert_eq!((gpr[0], gpr[3], gpr[7]), (6, 0x1111_2222, u64::from(USER_CS_32)));
}

#[test]
fn sysenter_and_sysexit_serve_programs_of_32_bits() {
    let mut setup = Setup::new(1);
    setup.start_in_compatibility_mode();
    set_msr(&mut setup, 0x174, KERNEL_CS.into());
    set_msr(&mut setup, 0x175, INTERRUPT_STACK);
    set_msr(&mut setup, 0x176, KERNEL_CODE);
    setup.code_of(32, USER_CODE, |code| {
        code.sysenter().unwrap();
        code.inc(eax).unwrap();
        code.hlt().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, rsp).unwrap();
        code.mov(rdx, USER_CODE + 2).unwrap();
        code.mov(rcx, USER_STACK).unwrap();
        code.sysexit().unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.cs, report.rsp), (GENERAL_PROTECTION, u64::from(USER_CS_32), USER_STACK));
    assert_eq!(machine.vcpu(0).gpr[0], INTERRUPT_STACK + 1);
}

#[test]
fn iret_refuses_to_gain_privilege() {
    let mut setup = Setup::new(1);
    setup.start_in_user_mode();
    setup.code(USER_CODE, |code| {
        for value in [USER_SS.into(), 0x20000, 0x202, i32::from(KERNEL_CS), 0x10000] {
            code.push(value).unwrap();
        }
        code.iretq().unwrap();
    });
    let report = setup.start().report();
    assert_eq!((report.vector, report.error_code), (GENERAL_PROTECTION, u64::from(KERNEL_CS)));
}

#[test]
fn privileged_instructions_fault_in_user_mode() {
    type Write = fn(&mut CodeAssembler);
    let instructions: [(&str, Write); 14] = [
        ("hlt", |code| code.hlt().unwrap()),
        ("cli", |code| code.cli().unwrap()),
        ("mov cr0", |code| code.mov(cr0, rax).unwrap()),
        ("mov from cr3", |code| code.mov(rax, cr3).unwrap()),
        ("wrmsr", |code| code.wrmsr().unwrap()),
        ("rdmsr", |code| code.rdmsr().unwrap()),
        ("invlpg", |code| code.invlpg(byte_ptr(rsp)).unwrap()),
        ("lgdt", |code| code.lgdt(tbyte_ptr(rsp)).unwrap()),
        ("ltr", |code| code.ltr(ax).unwrap()),
        ("swapgs", |code| code.swapgs().unwrap()),
        ("wbinvd", |code| code.wbinvd().unwrap()),
        ("mov dr7", |code| code.mov(dr7, rax).unwrap()),
        ("in", |code| code.in_(al, 0x80).unwrap()),
        ("clts", |code| code.clts().unwrap()),
    ];
    for (name, write) in instructions {
        let mut setup = Setup::new(1);
        setup.start_in_user_mode();
        setup.code(USER_CODE, write);
        let report = setup.start().report();
        assert_eq!((report.vector, report.error_code, report.rip), (GENERAL_PROTECTION, 0, USER_CODE), "{name}");
    }
}

#[test]
fn the_permission_map_opens_single_ports_to_user_mode() {
    for (port, allowed) in [(0x80, true), (0x81, false), (0x1000, false)] {
        let mut setup = Setup::new(1);
        setup.start_in_user_mode();
        // A map of 32 bytes right after the TSS in which only port 80h is open.
        setup.state.vcpus[0].tr.limit = 0x68 + 32;
        setup.ram.write_bytes(TSS + 0x66, &0x68u16.to_le_bytes()).unwrap();
        let mut map = [0xff; 33];
        map[0x80 / 8] = 0xfe;
        setup.ram.write_bytes(TSS + 0x68, &map).unwrap();
        setup.state.vcpus[0].gpr[2] = port;
        setup.code(USER_CODE, |code| {
            code.out(dx, al).unwrap();
            code.hlt().unwrap();
        });
        let mut machine = setup.start();
        let report = machine.report();
        assert_eq!(report.rip, USER_CODE + u64::from(allowed), "port {port:#x}");
        assert_eq!(machine.bus.written.len(), usize::from(allowed));
    }
}

#[test]
fn segment_bases_follow_their_instructions() {
    let mut setup = Setup::new(1);
    set_msr(&mut setup, 0xc000_0102, 0x7777_0000);
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, SPARE).unwrap();
        code.wrfsbase(rax).unwrap();
        code.mov(qword_ptr(8).fs(), 9).unwrap();
        code.rdfsbase(rbx).unwrap();
        code.wrgsbase(rax).unwrap();
        code.swapgs().unwrap();
        code.rdgsbase(rcx).unwrap();
        // A null selector clears the base.
        code.xor(eax, eax).unwrap();
        code.mov(fs, eax).unwrap();
        code.rdfsbase(rdx).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    let gpr = machine.vcpu(0).gpr;
    assert_eq!([gpr[3], gpr[1], gpr[2]], [SPARE, 0x7777_0000, 0]);
    assert_eq!(machine.read64(SPARE + 8), 9);
}

#[test]
fn selectors_that_may_not_be_loaded_raise_faults_that_name_them() {
    // Beyond the table; a code segment in SS; kernel data for user mode.
    for (user, selector, stack) in [(false, 0x100u64, false), (false, 0x08, true), (true, 0x10, false)] {
        let mut setup = Setup::new(1);
        if user {
            setup.start_in_user_mode();
        }
        setup.state.vcpus[0].gpr[0] = selector;
        setup.code(if user { USER_CODE } else { KERNEL_CODE }, |code| {
            if stack {
                code.mov(ss, eax).unwrap();
            } else {
                code.mov(ds, eax).unwrap();
            }
        });
        let report = setup.start().report();
        assert_eq!((report.vector, report.error_code), (GENERAL_PROTECTION, selector));
    }
}

#[test]
fn limits_and_rights_are_told_where_privilege_allows() {
    let mut setup = Setup::new(1);
    setup.start_in_user_mode();
    setup.code(USER_CODE, |code| {
        code.mov(eax, u32::from(USER_SS)).unwrap();
        code.lsl(ebx, eax).unwrap();
        code.setz(dl).unwrap();
        code.mov(eax, u32::from(KERNEL_CS)).unwrap();
        code.lar(esi, eax).unwrap();
        code.setz(dh).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.report();
    let gpr = machine.vcpu(0).gpr;
    assert_eq!((gpr[3], gpr[2], gpr[6]), (0xffff_ffff, 1, 0));
}

#[test]
fn registers_that_do_not_exist_are_refused() {
    for (index, value, write) in [(0x1234u32, 0u32, false), (0x1234, 0, true), (0xc000_0080, 1 << 20, true)] {
        let setup = Setup::new(1);
        setup.code(KERNEL_CODE, |code| {
            code.mov(ecx, index).unwrap();
            code.mov(eax, value).unwrap();
            code.xor(edx, edx).unwrap();
            if write {
                code.wrmsr().unwrap();
            } else {
                code.rdmsr().unwrap();
            }
        });
        assert_eq!(setup.start().report().vector, GENERAL_PROTECTION);
    }
}

#[test]
fn the_paravirtual_clock_is_the_time_stamp_counter() {
    let mut setup = Setup::new(1);
    setup.config.power_on_unix_ns = 1_700_000_000_123_456_789;
    setup.code(KERNEL_CODE, |code| {
        for (index, address) in [(0x4b56_4d00u32, SPARE as u32 + 64), (0x4b56_4d01, SPARE as u32 | 1)] {
            code.mov(ecx, index).unwrap();
            code.mov(eax, address).unwrap();
            code.xor(edx, edx).unwrap();
            code.wrmsr().unwrap();
        }
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.read64(SPARE + 68), 1_700_000_000 | 123_456_789 << 32);
    // One tick is a nanosecond: shift 1, multiplier one half; flags: stable.
    assert_eq!(machine.read64(SPARE + 24), 1 << 31 | 1 << 32 | 1 << 40);
    assert_eq!((machine.read64(SPARE) as u32, machine.read64(SPARE + 16)), (2, 0));
}
