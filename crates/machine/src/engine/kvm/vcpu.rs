//! One vCPU: its loop from exit to exit.

use cpu::VcpuState;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::{KvmEngine, Run, kvm_error, state};
use crate::engine::{EngineError, RunEnd};

/// A vCPU that is owned by nobody's thread between runs.
pub(super) struct Vcpu {
    fd: VcpuFd,
    number: usize,
}

impl Vcpu {
    /// Creates vCPU `number` of `count` from `saved`.
    pub(super) fn new(
        kvm: &Kvm,
        vm: &VmFd,
        number: usize,
        count: usize,
        saved: &VcpuState,
    ) -> Result<Self, EngineError> {
        let fd = vm.create_vcpu(number as u64).map_err(kvm_error("create a vCPU"))?;
        fd.set_cpuid2(&state::cpuid_entries(kvm, number, count)?).map_err(kvm_error("set CPUID"))?;
        state::set_vcpu(&fd, saved)?;
        Ok(Self { fd, number })
    }

    /// The state between two runs.
    pub(super) fn save(&self) -> Result<VcpuState, EngineError> {
        state::get_vcpu(&self.fd)
    }

    /// Rate of the time-stamp counter, in ticks a second; 0 if the kernel does not say.
    pub(super) fn tsc_hz(&self) -> u64 {
        self.fd.get_tsc_khz().map_or(0, |khz| u64::from(khz) * 1000)
    }

    /// Runs until the run is over, for whatever reason.
    pub(super) fn run(&mut self, engine: &KvmEngine, run: &Run) {
        while !run.is_stopping() {
            match self.run_once(engine, run) {
                Ok(None) => {}
                Ok(Some(end)) => run.end(Ok(end)),
                Err(error) => run.end(Err(error)),
            }
        }
        // The last port or memory access is completed by the kernel at the next entry: enter and leave at once, so that
        // the state saved is that of an instruction boundary.
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn run_once(&mut self, engine: &KvmEngine, run: &Run) -> Result<Option<RunEnd>, EngineError> {
        let platform = run.platform;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(None),
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
            VcpuExit::MmioWrite(address, data) => platform.mmio_write(address, data),
            VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::TprAccess => {}
            VcpuExit::Shutdown => return Ok(Some(RunEnd::Shutdown { vcpu: self.number as u32 })),
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
        engine.carry_pins(platform.pins().levels())?;
        Ok(platform.take_event().map(RunEnd::Guest))
    }
}

fn each_access(data: &mut [u8], mut access: impl FnMut(&mut [u8])) {
    match data.len() {
        1 | 2 | 4 => access(data),
        _ => data.chunks_mut(1).for_each(access),
    }
}
