//! [`VcpuThreads`]: the threads of a VM's vCPUs, which live as long as the VM.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};

use super::KernelVm;
use super::kick::{ImmediateExit, KickSignal};
use super::vcpu::Vcpu;
use crate::bus::lock;
use crate::engine::EngineError;

/// One thread per vCPU, which waits at the barrier between two runs. Dropping this ends them.
pub(super) struct VcpuThreads {
    kernel: Arc<KernelVm>,
    signal: KickSignal,
    seats: Vec<Seat>,
}

/// A vCPU and the thread that runs it.
struct Seat {
    vcpu: Arc<Mutex<Vcpu>>,
    immediate_exit: Arc<ImmediateExit>,
    thread: JoinHandle<()>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU; none enters the guest yet.
    pub fn start(vcpus: Vec<Vcpu>, kernel: &Arc<KernelVm>) -> Result<Self, EngineError> {
        let mut threads =
            Self { kernel: kernel.clone(), signal: KickSignal::install()?, seats: Vec::with_capacity(vcpus.len()) };
        for vcpu in vcpus {
            let (number, immediate_exit) = (vcpu.number(), vcpu.immediate_exit().clone());
            let vcpu = Arc::new(Mutex::new(vcpu));
            let (own, kernel) = (vcpu.clone(), kernel.clone());
            let work = move || take_part(number, &own, &kernel);
            let thread = Builder::new().name(format!("vcpu-{number}")).spawn(work)?;
            threads.seats.push(Seat { vcpu, immediate_exit, thread });
        }
        Ok(threads)
    }

    /// Lets all vCPUs into the guest.
    pub fn release(&self) {
        for seat in &self.seats {
            seat.immediate_exit.set(false);
        }
        self.kernel.barrier.open(self.seats.len());
    }

    /// Takes all vCPUs out of the guest and waits until they are between two instructions.
    pub fn gather(&self) {
        self.kernel.barrier.stop();
        for seat in &self.seats {
            // The flag first: a thread that is on its way into the guest sees it, one that is there already gets the signal.
            seat.immediate_exit.set(true);
            self.signal.send(&seat.thread);
        }
        self.kernel.barrier.wait_for_all();
    }

    /// The vCPUs, in the order of their numbers, while no run is under way.
    pub fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> + '_ {
        self.seats.iter().map(|seat| lock(&seat.vcpu))
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.kernel.barrier.close();
        for seat in self.seats.drain(..) {
            // A panic in it was reported when it happened.
            let _ = seat.thread.join();
        }
    }
}

/// What the thread of a vCPU does.
fn take_part(number: usize, vcpu: &Mutex<Vcpu>, kernel: &KernelVm) {
    let mut last = 0;
    while let Some(run) = kernel.barrier.wait_for_run(last) {
        last = run;
        // Whatever a device was about to do when it panicked, the VM does not go on from there: its run ends with the error.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| lock(vcpu).run(kernel))) {
            kernel.end_run(Err(EngineError::VcpuPanicked { vcpu: number, message: message(&*panic) }));
        }
        kernel.barrier.arrive();
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
