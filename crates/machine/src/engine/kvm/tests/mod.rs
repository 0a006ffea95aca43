//! The state of a vCPU, on whatever /dev/kvm is here.

mod everything;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cpu::msr::index;
use cpu::state::InterruptShadow;
use cpu::{ProcessorsState, VcpuState};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::GuestRam;
use spec::processor::bit;
use spec::{CpuLevel, CpuProfile};

use super::support::Support;
use super::vcpu::Vcpu;
use super::{KvmEngine, get_clock, msrs, profile, state, trial, tsc};
use crate::devices::ioapic::IoApicState;
use crate::devices::serial::ConsoleSink;
use crate::devices::virtio::rng::SeededEntropy;
use crate::engine::EngineState;
use crate::platform::{Parts, Platform};

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _: &[u8]) {}
}

/// All of a machine but its processors, without disks and cards.
pub(super) fn platform(ram: &GuestRam) -> Arc<Platform> {
    let entropy = Box::new(SeededEntropy::new(1, 0));
    let parts = Parts { disks: Vec::new(), cards: Vec::new(), console: Box::new(Silent), entropy };
    Arc::new(Platform::new(ram, 0, parts).unwrap())
}

/// A VM with one vCPU that has a state.
struct Fixture {
    support: Arc<Support>,
    profile: Arc<CpuProfile>,
    _vm: VmFd,
    vcpu: Vcpu,
}

impl Fixture {
    /// `None` where there is no KVM to test.
    fn with(saved: &VcpuState) -> Option<Self> {
        Self::at_level(CpuLevel::Portable, |_| saved.clone())
    }

    /// The state for a processor of a level; `None` where there is none to test.
    fn at_level(level: CpuLevel, state: impl FnOnce(&CpuProfile) -> VcpuState) -> Option<Self> {
        let kvm = Kvm::new().inspect_err(|error| eprintln!("not tested: /dev/kvm: {error}")).ok()?;
        let support = Support::here(&kvm).unwrap();
        let profile = profile::at_power_on(level, &support);
        let profile = Arc::new(profile.inspect_err(|error| eprintln!("not tested: {error}")).ok()?);
        let saved = &state(&profile);
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = Vcpu::new(&support, &vm, 0, 1, &profile, 0).unwrap();
        tsc::restore(&[vcpu.fd()], std::slice::from_ref(saved), &support).unwrap();
        vcpu.restore(saved).unwrap();
        Some(Self { support, profile, _vm: vm, vcpu })
    }

    fn fd(&self) -> &VcpuFd {
        self.vcpu.fd()
    }
}

#[test]
fn a_guest_finds_model_specific_registers_as_firmware_leaves_them() {
    let Some(fixture) = Fixture::with(&VcpuState::reset(0)) else { return };
    let wanted = [index::MISC_ENABLE, index::PAT, index::MTRR_DEFAULT, index::MCG_CAPABILITIES];
    let found = msrs::get(fixture.fd(), wanted.into_iter()).unwrap();
    let value = |wanted: u32| found.iter().find(|(index, _)| *index == wanted).map(|(_, value)| *value).unwrap();
    assert_eq!(value(index::MISC_ENABLE) & 1, 1, "fast string operations are off");
    assert_eq!(value(index::PAT), 0x0007_0406_0007_0406);
    // MTRRs are on (bit 11), and memory is write-back (6) where no range says otherwise.
    assert_eq!(value(index::MTRR_DEFAULT), 0x806);
    assert_eq!(value(index::MCG_CAPABILITIES) & 0xff, cpu::msr::MCE_BANKS);
}

#[test]
fn a_host_without_xsave_takes_a_state_that_does_not_use_it_and_no_other() {
    let Some(fixture) = Fixture::with(&VcpuState::reset(0)) else { return };
    let without = Support { has_xcrs: false, ..(*fixture.support).clone() };
    let set = |state: &VcpuState| state::set_vcpu(fixture.fd(), &without, &fixture.profile, state);
    set(&VcpuState::reset(0)).unwrap();
    assert_eq!(state::get_vcpu(fixture.fd(), &without, &fixture.profile).unwrap().xcr0, 1);
    let error = set(&VcpuState { xcr0: 3, ..VcpuState::reset(0) }).unwrap_err();
    assert!(error.to_string().contains("no XSAVE"), "{error}");
}

#[test]
fn a_shadow_comes_back_as_the_kind_it_was() {
    const INTERRUPTS_ON: u64 = 0x202;
    for (rflags, shadow) in [
        (INTERRUPTS_ON, Some(InterruptShadow::Sti)),
        (INTERRUPTS_ON, Some(InterruptShadow::MovSs)),
        (2, Some(InterruptShadow::MovSs)),
        (2, None),
    ] {
        let saved = VcpuState { rflags, interrupt_shadow: shadow, ..VcpuState::reset(0) };
        let Some(fixture) = Fixture::with(&saved) else { return };
        let found = fixture.vcpu.save().unwrap().interrupt_shadow;
        // AMD's processors have one shadow for both; what it was is told from RFLAGS then.
        assert!(found == shadow || found.is_some() && shadow.is_some() && rflags != 2, "{shadow:?}: {found:?}");
    }
}

#[test]
fn a_kernel_is_offered_no_instruction_that_it_would_die_of() {
    const OUT: u8 = 0xe6;
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let Ok(kvm) = Kvm::new() else { return };
    let support = Support::here(&kvm).unwrap();
    let executes = |code: &[u8]| trial::executes(&kvm, &support, code).unwrap();
    assert!(executes(&[OUT, 0x80]));
    assert!(!executes(&[UD2.as_slice(), &[OUT, 0x80]].concat()));
    assert_eq!(support.offer.features.has(bit::CMPXCHG16B), executes(trial::CMPXCHG16B));
}

#[test]
fn a_counter_of_a_vm_that_has_only_just_begun_does_not_go_back() {
    for tsc in [1_000_000, 100_000_000, 900_000_000] {
        let Some(fixture) = Fixture::with(&VcpuState { tsc, ..VcpuState::reset(0) }) else { return };
        let found = fixture.vcpu.save().unwrap().tsc;
        assert!(found >= tsc, "{tsc} went back to {found}");
    }
}

#[test]
fn counters_keep_their_distance_to_the_tick() {
    const DISTANCE: u64 = 12_345;
    let Ok(kvm) = Kvm::new() else { return };
    let support = Support::here(&kvm).unwrap();
    if !support.has_tsc_offset {
        return;
    }
    let profile = Arc::new(profile::at_power_on(CpuLevel::Portable, &support).unwrap());
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let vcpus = [0, 1, 2].map(|number| Vcpu::new(&support, &vm, number, 3, &profile, 0).unwrap());
    let fds: Vec<_> = vcpus.iter().map(Vcpu::fd).collect();
    let tsc = 0x0123_4567_89ab;
    let saved = [tsc, tsc, tsc - DISTANCE].map(|tsc| VcpuState { tsc, ..VcpuState::reset(0) });
    tsc::restore(&fds, &saved, &support).unwrap();
    let mut again: Vec<_> = vcpus.iter().map(|vcpu| vcpu.save().unwrap()).collect();
    tsc::align(&fds, &mut again, &support).unwrap();
    assert_eq!([again[0].tsc - again[1].tsc, again[0].tsc - again[2].tsc], [0, DISTANCE]);
}

#[test]
fn the_paravirtual_clock_begins_where_the_devices_clock_is_by_then() {
    const SINCE: Duration = Duration::from_millis(30);
    if Kvm::new().is_err() {
        return;
    }
    let platform = platform(&GuestRam::new(2 << 20).unwrap());
    thread::sleep(SINCE);
    let mut processors = ProcessorsState::from_vcpus_at(vec![VcpuState::reset(0)], 0);
    processors.profile = super::cpu_profile(CpuLevel::Portable).unwrap();
    let engine = KvmEngine::new(&platform, &EngineState { processors, ioapic: IoApicState::default() }).unwrap();
    let shown = Duration::from_nanos(get_clock(&engine.kernel.vm).unwrap());
    assert!(shown >= SINCE, "it shows {shown:?}, and devices would go on from {SINCE:?} at least");
}
