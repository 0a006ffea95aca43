//! One vCPU: its loop from exit to exit.

use std::sync::Arc;

use cpu::VcpuState;
use cpu::msr::index;
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use spec::CpuProfile;

use super::kick::ImmediateExit;
use super::support::Support;
use super::{KernelVm, cpuid, ioctl, kvm_error, msrs, state, tsc};
use crate::engine::{EngineError, RunEnd};

/// A vCPU. Its thread has it during a run, and whoever saves it between two.
pub(super) struct Vcpu {
    fd: VcpuFd,
    number: usize,
    immediate_exit: Arc<ImmediateExit>,
    support: Arc<Support>,
    profile: Arc<CpuProfile>,
}

impl Vcpu {
    /// Creates vCPU `number` of `count`, a `profile` whose time-stamp counter runs at `tsc_hz` (0: the host's rate). It has no state yet.
    pub(super) fn new(
        support: &Arc<Support>,
        vm: &VmFd,
        number: usize,
        count: usize,
        profile: &Arc<CpuProfile>,
        tsc_hz: u64,
    ) -> Result<Self, EngineError> {
        let fd = vm.create_vcpu(number as u64).map_err(kvm_error("create a vCPU"))?;
        fd.set_cpuid2(&cpuid::entries(profile, number, count)?).map_err(kvm_error("set CPUID"))?;
        ioctl::setup_mce(&fd, cpu::msr::MCE_BANKS)?;
        tsc::set_rate(&fd, support, tsc_hz)?;
        // KVM would offer CPUID faulting, whose switch no other engine has.
        msrs::set(&fd, &[(index::PLATFORM_INFO, 0)])?;
        let immediate_exit = Arc::new(ImmediateExit::new(&fd)?);
        Ok(Self { fd, number, immediate_exit, support: support.clone(), profile: profile.clone() })
    }

    /// Gives it a state. Its time-stamp counter has been set before: a deadline is understood when it is set.
    pub(super) fn restore(&self, saved: &VcpuState) -> Result<(), EngineError> {
        state::set_vcpu(&self.fd, &self.support, &self.profile, saved)
    }

    /// The kernel's vCPU.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The kernel's vCPU, for whoever runs it in its own way.
    pub(super) fn into_fd(self) -> VcpuFd {
        self.fd
    }

    /// Which one it is, from 0.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// What keeps it out of the guest.
    pub(super) fn immediate_exit(&self) -> &Arc<ImmediateExit> {
        &self.immediate_exit
    }

    /// The state between two runs.
    pub(super) fn save(&self) -> Result<VcpuState, EngineError> {
        state::get_vcpu(&self.fd, &self.support, &self.profile)
    }

    /// Rate of the time-stamp counter, in ticks a second; 0 if the kernel does not say.
    pub(super) fn tsc_hz(&self) -> u64 {
        self.fd.get_tsc_khz().map_or(0, |khz| u64::from(khz) * 1000)
    }

    /// Runs until the run ends, for whatever reason, and leaves the vCPU between two instructions.
    pub(super) fn run(&mut self, kernel: &KernelVm) {
        while !kernel.barrier.is_stopping() {
            self.step(kernel);
        }
        // The kernel completes the last port or memory access when it is entered again, and one instruction may need several of them:
        // the state is that of an instruction boundary when it has nothing more to ask for.
        self.immediate_exit.set(true);
        while let Step::Exit = self.step(kernel) {}
    }

    /// Enters the guest once, does what it left for, and ends the run if that has to be.
    fn step(&mut self, kernel: &KernelVm) -> Step {
        let step = self.run_once(kernel).unwrap_or_else(|error| {
            kernel.end_run(Err(error));
            Step::Stuck
        });
        if kernel.platform.has_event() {
            kernel.stop_run();
        }
        step
    }

    /// Enters the guest once and does what it left for.
    fn run_once(&mut self, kernel: &KernelVm) -> Result<Step, EngineError> {
        let platform = &*kernel.platform;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Step::Interrupted),
            Err(error) => return Err(kvm_error("run a vCPU")(error)),
        };
        platform.follow_host_clock();
        match exit {
            // A repeated string instruction comes as one exit with all its data.
            VcpuExit::IoIn(port, data) => each_access(data, |unit| platform.port_read(port, unit)),
            VcpuExit::IoOut(port, data) => match data.len() {
                1 | 2 | 4 => platform.port_write(port, data),
                _ => data.iter().for_each(|byte| platform.port_write(port, &[*byte])),
            },
            VcpuExit::MmioRead(address, data) => platform.mmio_read(address, data),
            VcpuExit::MmioWrite(address, data) => {
                if !platform.acknowledge_interrupt(address, data) {
                    platform.mmio_write(address, data);
                }
            }
            VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::TprAccess => {}
            VcpuExit::Shutdown => {
                kernel.end_run(Ok(RunEnd::Shutdown { vcpu: self.number as u32 }));
                return Ok(Step::Stuck);
            }
            // All of it is marked in guest RAM, and the ring has room again.
            VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => kernel.dirty.empty_rings()?,
            VcpuExit::FailEntry(reason, cpu) => {
                return Err(EngineError::KvmExit(format!("entry failed with reason {reason:#x} on host CPU {cpu}")));
            }
            VcpuExit::InternalError => {
                let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
                return Err(EngineError::KvmExit(format!(
                    "vCPU {} met an instruction at {rip:#x} that the host's KVM cannot emulate; try --engine soft",
                    self.number
                )));
            }
            other => return Err(EngineError::KvmExit(format!("unexpected exit {other:?}"))),
        }
        kernel.carry_pins()?;
        Ok(Step::Exit)
    }
}

/// What one entry into the guest came to.
enum Step {
    /// An access that was served, or nothing at all: there may be more.
    Exit,
    /// A signal, or the flag that stands for one: the vCPU is between two instructions.
    Interrupted,
    /// A triple fault or an error: the vCPU cannot go on, and the run ends.
    Stuck,
}

fn each_access(data: &mut [u8], mut access: impl FnMut(&mut [u8])) {
    match data.len() {
        1 | 2 | 4 => access(data),
        _ => data.chunks_mut(1).for_each(access),
    }
}
