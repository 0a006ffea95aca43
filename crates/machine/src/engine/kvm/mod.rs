//! The KVM engine: hardware virtualization through /dev/kvm, a thread per vCPU, interrupt controllers in the kernel.

mod barrier;
mod cpuid;
mod device;
mod dirty;
mod fpu;
mod ioctl;
mod kick;
mod msrs;
mod pins;
mod profile;
mod registers;
mod state;
mod support;
#[cfg(test)]
mod tests;
mod threads;
mod trial;
mod tsc;
mod vcpu;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu::ProcessorsState;
use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_clock_data, kvm_enable_cap};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use memory::Harvest;
use spec::{CpuLevel, CpuOffer, CpuProfile, EngineKind};

use super::soft::InputMode;
use super::{DirtyLog, Engine, EngineError, EngineState, RunEnd};
use crate::clock::ClockReading;
use crate::control::Control;
use crate::platform::{Platform, Ready};
use barrier::Barrier;
pub use device::keep_open;
use dirty::{DirtyMethod, DirtyTracking};
use pins::PinCarrier;
use support::Support;
use threads::VcpuThreads;
use vcpu::Vcpu;

/// Three pages of guest-physical address space that KVM on Intel needs for itself (KVM_SET_TSS_ADDR), and one for its
/// identity map, right below 4 GiB and outside of RAM and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// The KVM engine.
///
/// The VM's thread calls [`Engine::run`]: it lets the vCPU threads go, serves the devices while they run, and gathers them
/// again. Between two runs they wait at a barrier.
pub struct KvmEngine {
    // Dropped first: its threads use the rest.
    threads: VcpuThreads,
    kernel: Arc<KernelVm>,
    support: Arc<Support>,
    profile: CpuProfile,
    /// How long the vCPUs took to stand still the last time.
    stop_time: Duration,
}

/// The VM as all of its threads know it.
struct KernelVm {
    vm: Arc<VmFd>,
    pins: PinCarrier,
    platform: Arc<Platform>,
    barrier: Barrier,
    dirty: Arc<DirtyTracking>,
}

impl KernelVm {
    /// Tells the kernel about pins that changed.
    fn carry_pins(&self) -> Result<(), EngineError> {
        let tell = |pin, level| self.vm.set_irq_line(pin, level).map_err(kvm_error("set an interrupt line"));
        self.pins.carry(|| self.platform.pins().levels(), tell)
    }

    /// Ends the run under way, as a vCPU's thread.
    fn stop_run(&self) {
        self.barrier.stop();
        // The VM's thread sleeps until something comes from outside, and takes the other vCPUs out.
        self.platform.wake();
    }

    /// Ends the run under way, as a vCPU's thread, and says why.
    fn end_run(&self, end: Result<RunEnd, EngineError>) {
        self.barrier.end(end);
        self.stop_run();
    }
}

impl KvmEngine {
    /// Creates the VM in the kernel, for `platform`, and starts it from `state`.
    pub fn new(platform: &Arc<Platform>, state: &EngineState) -> Result<Self, EngineError> {
        Self::with_dirty_method(platform, state, DirtyMethod::set_up)
    }

    fn with_dirty_method(
        platform: &Arc<Platform>,
        state: &EngineState,
        method: impl FnOnce(&Kvm, &VmFd, u64) -> DirtyMethod,
    ) -> Result<Self, EngineError> {
        let ram = platform.ram();
        let kvm = device::open()?;
        let support = Support::here(&kvm)?;
        if let Some(why) = support.offer.refusal(&state.processors.profile) {
            return Err(EngineError::Profile { engine: EngineKind::Kvm, why });
        }
        if state.processors.profile.is_in_order() {
            tracing::warn!(
                "the guest was started on the soft engine, and defends itself against no attack by speculation"
            );
        }
        let vm = Arc::new(create_vm(&kvm)?);
        let method = method(&kvm, &vm, ram.pages());
        let dirty = Arc::new(DirtyTracking::new(&vm, ram, method)?);
        if let Some(registers) = platform.registers() {
            registers::show(&vm, ram.layout().slots().len(), registers)?;
        }
        // The guest's paravirtual clock goes on from the machine's, whichever engine it came from. Devices follow the host's clock from the
        // platform's making on, and the kernel's clock runs from here on: set to the saved time, it would stay behind theirs.
        set_clock(&vm, platform.host_clock_ns())?;
        let vcpus = create_vcpus(&vm, &support, &state.processors)?;
        vcpus.iter().try_for_each(|vcpu| dirty.add_vcpu(vcpu.fd(), method))?;
        state::set_ioapic(&vm, &state.ioapic)?;
        // A notification wakes the thread that serves the devices, and its vCPU goes on at once.
        for notification in platform.notifications() {
            let address = IoEventAddress::Mmio(notification.address);
            vm.register_ioevent(&notification.event, &address, notification.queue)
                .map_err(kvm_error("register a queue notification"))?;
        }
        let kernel = Arc::new(KernelVm {
            vm,
            pins: PinCarrier::default(),
            platform: platform.clone(),
            barrier: Barrier::default(),
            dirty,
        });
        kernel.carry_pins()?;
        let profile = state.processors.profile.clone();
        let threads = VcpuThreads::start(vcpus, &kernel)?;
        Ok(Self { threads, kernel, support, profile, stop_time: Duration::ZERO })
    }

    /// Serves the devices until the run ends: what comes from outside, queues that the guest notified of, requests that have been done.
    /// Returns whether it ends because a pause was asked for.
    fn serve_devices(&self, control: &Control) -> Result<bool, EngineError> {
        let (platform, barrier) = (&*self.kernel.platform, &self.kernel.barrier);
        platform.carry_on();
        let mut inputs = Vec::new();
        // What waits already made no descriptor readable since.
        let mut ready = Ready { inputs: true, queues: true };
        while !barrier.is_stopping() {
            if ready.inputs {
                control.acknowledge();
                platform.acknowledge_wake();
                if control.take_pause() {
                    return Ok(true);
                }
                platform.collect_inputs(control, &mut inputs);
            }
            // Where more waits than is taken at once, the next look follows without a wait.
            let mut has_more = !inputs.is_empty();
            for input in inputs.drain(..) {
                platform.deliver(&input);
            }
            if ready.queues {
                has_more |= platform.serve_queues();
            }
            self.kernel.carry_pins()?;
            if barrier.is_stopping() {
                break;
            }
            let found = platform.wait_for_work(control, has_more.then_some(Duration::ZERO))?;
            ready = Ready { inputs: found.inputs || has_more, queues: found.queues || has_more };
        }
        Ok(false)
    }
}

/// A VM in the kernel, with interrupt controllers and without memory.
fn create_vm(kvm: &Kvm) -> Result<VmFd, EngineError> {
    let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(kvm_error("set the identity map"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(kvm_error("set the TSS address"))?;
    }
    vm.create_irq_chip().map_err(kvm_error("create the interrupt controllers"))?;
    Ok(vm)
}

fn get_clock(vm: &VmFd) -> Result<u64, EngineError> {
    Ok(vm.get_clock().map_err(kvm_error("read the paravirtual clock"))?.clock)
}

fn set_clock(vm: &VmFd, clock_ns: u64) -> Result<(), EngineError> {
    let clock = kvm_clock_data { clock: clock_ns, ..kvm_clock_data::default() };
    vm.set_clock(&clock).map_err(kvm_error("set the paravirtual clock"))
}

/// What KVM can be on this host.
pub(super) fn cpu_offer() -> Result<CpuOffer, EngineError> {
    let kvm = device::open()?;
    Ok(Support::here(&kvm)?.offer.clone())
}

/// The processor of a VM that is started on KVM of this host.
pub(super) fn cpu_profile(level: CpuLevel) -> Result<CpuProfile, EngineError> {
    let kvm = device::open()?;
    let support = Support::here(&kvm)?;
    profile::at_power_on(level, &support)
}

fn create_vcpus(vm: &VmFd, support: &Arc<Support>, state: &ProcessorsState) -> Result<Vec<Vcpu>, EngineError> {
    disable_performance_counters(vm)?;
    let profile = Arc::new(state.profile.clone());
    let count = state.vcpus.len();
    let vcpus = (0..count)
        .map(|number| Vcpu::new(support, vm, number, count, &profile, state.tsc_hz))
        .collect::<Result<Vec<_>, _>>()?;
    tsc::restore(&vcpus.iter().map(Vcpu::fd).collect::<Vec<_>>(), &state.vcpus, support)?;
    for (vcpu, saved) in vcpus.iter().zip(&state.vcpus) {
        vcpu.restore(saved)?;
    }
    Ok(vcpus)
}

/// Kernels use those of AMD's processors without being told of them, and their state is not saved.
fn disable_performance_counters(vm: &VmFd) -> Result<(), EngineError> {
    if vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) as u32 & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut capability = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..kvm_enable_cap::default() };
    capability.args[0] = KVM_PMU_CAP_DISABLE.into();
    vm.enable_cap(&capability).map_err(kvm_error("disable performance counters"))
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn run(&mut self, control: &Control, _: Option<u64>) -> Result<RunEnd, EngineError> {
        let (platform, barrier) = (&*self.kernel.platform, &self.kernel.barrier);
        self.threads.release();
        let served = self.serve_devices(control);
        let told_at = Instant::now();
        self.threads.gather();
        self.stop_time = told_at.elapsed();
        platform.keep_notifications();
        platform.follow_host_clock();
        // The kernel's paravirtual clock and the one that devices follow have different sources on the host and drift apart. A VM
        // that goes on from the state must not see either of them go back.
        platform.clock().advance_to(get_clock(&self.kernel.vm)?);
        let asked = served?;
        let end = match barrier.take_end() {
            Some(Err(error)) => return Err(error),
            Some(Ok(end)) => Some(end),
            None => None,
        };
        // What the guest asked for is told before a pause: a state saved in that pause is past the request and would lose it.
        let end = platform.take_event().map(RunEnd::Guest).or(end);
        if asked && end.is_some() {
            control.pause();
        }
        Ok(end.unwrap_or(RunEnd::Paused))
    }

    fn stop_time(&self) -> Duration {
        self.stop_time
    }

    fn save(&mut self) -> Result<EngineState, EngineError> {
        let vcpus: Vec<_> = self.threads.vcpus().collect();
        let mut states = vcpus.iter().map(|vcpu| vcpu.save()).collect::<Result<Vec<_>, _>>()?;
        tsc::align(&vcpus.iter().map(|vcpu| vcpu.fd()).collect::<Vec<_>>(), &mut states, &self.support)?;
        let mut processors = ProcessorsState::from_vcpus_at(states, self.kernel.platform.clock().now_ns());
        processors.tsc_hz = vcpus.first().map_or(0, |vcpu| vcpu.tsc_hz());
        processors.profile = self.profile.clone();
        Ok(EngineState { processors, ioapic: state::get_ioapic(&self.kernel.vm)? })
    }

    fn clock(&mut self) -> Result<ClockReading, EngineError> {
        // Before it is read: what is said of it is not behind it, however long that takes.
        let at = Instant::now();
        let shows_ns = get_clock(&self.kernel.vm)?.max(self.kernel.platform.clock().now_ns());
        Ok(ClockReading { shows: Duration::from_nanos(shows_ns), at })
    }

    /// The paravirtual clock alone, which went on from the saved state while the rest was made. The time-stamp counters are behind by as much:
    /// guests that were promised no rate of them read the clock.
    fn go_on_from(&mut self, clock: ClockReading) -> Result<(), EngineError> {
        let shown_ns = get_clock(&self.kernel.vm)?;
        let due_ns = clock.now_ns();
        if due_ns > shown_ns {
            set_clock(&self.kernel.vm, due_ns)?;
        }
        Ok(())
    }

    fn harvest(&mut self) -> Result<Harvest, EngineError> {
        self.kernel.dirty.harvest()
    }

    fn dirty_log(&self) -> Option<Arc<dyn DirtyLog>> {
        Some(self.kernel.dirty.clone())
    }

    fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    fn set_input_mode(&mut self, mode: InputMode) -> Result<(), EngineError> {
        match mode {
            InputMode::Live => Ok(()),
            InputMode::Record(_) | InputMode::Replay(_) | InputMode::Rerecord(..) => {
                Err(EngineError::NoCount(EngineKind::Kvm))
            }
        }
    }
}
