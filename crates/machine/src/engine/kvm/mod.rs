//! The KVM engine: hardware virtualization through /dev/kvm, a thread per vCPU, interrupt controllers in the kernel.

mod fpu;
mod signal;
mod state;
mod vcpu;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cpu::ProcessorsState;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_clock_data, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory::{GuestRam, PAGE_SHIFT, Slot};

use super::soft::InputMode;
use super::{Engine, EngineError, EngineKind, EngineState, RunEnd};
use crate::bus::lock;
use crate::clock::MachineClock;
use crate::control::Control;
use crate::platform::Platform;
use signal::{KickSignal, RunningThread};
use vcpu::Vcpu;

/// Three pages of guest-physical address space that KVM on Intel needs for itself (KVM_SET_TSS_ADDR), and one for its
/// identity map, right below 4 GiB and outside of RAM and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// How long to wait for a vCPU thread to leave the guest before it is signalled again.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// The KVM engine.
pub struct KvmEngine {
    vm: VmFd,
    vcpus: Vec<Vcpu>,
    slots: Vec<Slot>,
    ram: GuestRam,
    /// Levels of the interrupt pins as the kernel knows them.
    lines: Mutex<u32>,
    clock: Arc<MachineClock>,
}

impl KvmEngine {
    /// Creates the VM in the kernel, for `platform`, and starts it from `state`.
    pub fn new(platform: &Platform, state: &EngineState) -> Result<Self, EngineError> {
        let ram = platform.ram();
        let kvm = Kvm::new().map_err(kvm_error("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
        if vm.check_extension(Cap::SetTssAddr) {
            vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(kvm_error("set the identity map"))?;
            vm.set_tss_address(TSS_ADDRESS).map_err(kvm_error("set the TSS address"))?;
        }
        vm.create_irq_chip().map_err(kvm_error("create the interrupt controllers"))?;
        let slots = ram.layout().slots();
        for (number, slot) in slots.iter().enumerate() {
            add_slot(&vm, ram, number, slot)?;
        }
        // The guest's paravirtual clock goes on from the machine's, whichever engine it came from.
        let clock = kvm_clock_data { clock: platform.clock().now_ns(), ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(kvm_error("set the paravirtual clock"))?;
        let vcpus = state
            .processors
            .vcpus
            .iter()
            .enumerate()
            .map(|(number, vcpu)| Vcpu::new(&kvm, &vm, number, state.processors.vcpus.len(), vcpu))
            .collect::<Result<Vec<_>, _>>()?;
        state::set_ioapic(&vm, &state.ioapic)?;
        let engine = Self { vm, vcpus, slots, ram: ram.clone(), lines: Mutex::new(0), clock: platform.clock().clone() };
        engine.carry_pins(platform.pins().levels())?;
        Ok(engine)
    }

    /// Tells the kernel about pins that changed.
    fn carry_pins(&self, levels: u32) -> Result<(), EngineError> {
        let mut lines = lock(&self.lines);
        let mut changed = *lines ^ levels;
        while changed != 0 {
            let pin = changed.trailing_zeros();
            self.vm.set_irq_line(pin, levels >> pin & 1 == 1).map_err(kvm_error("set an interrupt line"))?;
            changed &= changed - 1;
        }
        *lines = levels;
        Ok(())
    }
}

#[allow(unsafe_code)]
fn add_slot(vm: &VmFd, ram: &GuestRam, number: usize, slot: &Slot) -> Result<(), EngineError> {
    let region = kvm_userspace_memory_region {
        slot: number as u32,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: slot.guest_address,
        memory_size: slot.len_bytes,
        userspace_addr: ram.host_address() + slot.offset,
    };
    // SAFETY: the range lies within the RAM mapping, which the engine keeps alive (`ram`) longer than the VM, and nobody
    // holds references into it.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("give the VM its memory"))
}

/// What the vCPU threads and the I/O thread of one run share.
struct Run<'a> {
    platform: &'a Platform,
    stop: AtomicBool,
    progress: Mutex<Progress>,
    stopped: Condvar,
}

struct Progress {
    /// vCPU threads that have not ended.
    running: Vec<RunningThread>,
    /// How many of them were started and are not on the list yet.
    starting: usize,
    /// Why the run ends: the first reason given.
    end: Option<Result<RunEnd, EngineError>>,
}

impl Run<'_> {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: Result<RunEnd, EngineError>) {
        self.progress().end.get_or_insert(end);
        self.stop.store(true, Ordering::Release);
        // The I/O thread sleeps in poll and kicks the others.
        self.platform.wake();
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl KvmEngine {
    /// Feeds the devices until the run ends.
    fn serve_inputs(&self, run: &Run, control: &Control) -> Result<(), EngineError> {
        let mut inputs = Vec::new();
        while !run.is_stopping() {
            control.acknowledge();
            run.platform.acknowledge_wake();
            if control.take_pause() {
                run.end(Ok(RunEnd::Paused));
                break;
            }
            run.platform.collect_inputs(control, &mut inputs);
            if inputs.is_empty() && !run.is_stopping() {
                run.platform.wait_for_input(control, None)?;
            }
            for input in inputs.drain(..) {
                run.platform.deliver(&input);
            }
            self.carry_pins(run.platform.pins().levels())?;
        }
        Ok(())
    }
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn run(&mut self, platform: &Platform, control: &Control, _: Option<u64>) -> Result<RunEnd, EngineError> {
        let signal = KickSignal::install()?;
        let mut vcpus = std::mem::take(&mut self.vcpus);
        let run = Run {
            platform,
            stop: AtomicBool::new(false),
            progress: Mutex::new(Progress { running: Vec::new(), starting: vcpus.len(), end: None }),
            stopped: Condvar::new(),
        };
        let engine = &*self;
        std::thread::scope(|scope| {
            for vcpu in &mut vcpus {
                let run = &run;
                scope.spawn(move || {
                    let thread = RunningThread::current();
                    let mut progress = run.progress();
                    progress.running.push(thread);
                    progress.starting -= 1;
                    drop(progress);
                    vcpu.run(engine, run);
                    run.progress().running.retain(|running| *running != thread);
                    run.stopped.notify_all();
                });
            }
            if let Err(error) = engine.serve_inputs(&run, control) {
                run.end(Err(error));
            }
            // A signal that arrives before the thread enters the guest is lost, so it is repeated until all are out.
            let mut progress = run.progress();
            while progress.starting > 0 || !progress.running.is_empty() {
                for &thread in &progress.running {
                    signal.kick(thread);
                }
                progress = run
                    .stopped
                    .wait_timeout(progress, KICK_INTERVAL)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
            }
        });
        self.vcpus = vcpus;
        platform.follow_host_clock();
        // The kernel's paravirtual clock and the one that devices follow have different sources on the host and drift apart. A VM
        // that goes on from the state must not see either of them go back.
        let clock = self.vm.get_clock().map_err(kvm_error("read the paravirtual clock"))?;
        platform.clock().advance_to(clock.clock);
        let end = run.progress().end.take();
        end.unwrap_or(Ok(RunEnd::Paused))
    }

    fn save(&mut self) -> Result<EngineState, EngineError> {
        let vcpus = self.vcpus.iter().map(Vcpu::save).collect::<Result<Vec<_>, _>>()?;
        let mut processors = ProcessorsState::from_vcpus_at(vcpus, self.clock.now_ns());
        processors.tsc_hz = self.vcpus.first().map_or(0, Vcpu::tsc_hz);
        Ok(EngineState { processors, ioapic: state::get_ioapic(&self.vm)? })
    }

    fn collect_dirty(&mut self) -> Result<(), EngineError> {
        for (number, slot) in self.slots.iter().enumerate() {
            let words = self
                .vm
                .get_dirty_log(number as u32, slot.len_bytes as usize)
                .map_err(kvm_error("read the dirty log"))?;
            self.ram.merge_dirty_words(slot.offset >> PAGE_SHIFT, &words);
        }
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    fn set_input_mode(&mut self, _platform: &Platform, mode: InputMode) -> Result<(), EngineError> {
        match mode {
            InputMode::Live => Ok(()),
            InputMode::Record(_) | InputMode::Replay(_) | InputMode::Rerecord(..) => {
                Err(EngineError::NoCount(EngineKind::Kvm))
            }
        }
    }
}
