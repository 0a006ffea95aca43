//! Work that needs the VM paused, done by the thread that runs it.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use machine::control::Control;
use machine::vm::Vm;

type Job = Box<dyn FnOnce(&mut Vm) + Send>;

/// Jobs for the VM's thread.
#[derive(Default)]
pub(super) struct PauseQueue {
    jobs: Mutex<Option<Vec<Job>>>,
}

/// The VM does not run here any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the VM has stopped")]
pub struct VmStopped;

impl PauseQueue {
    pub fn new() -> Self {
        Self { jobs: Mutex::new(Some(Vec::new())) }
    }

    /// Pauses the VM, does `job` with it, and lets it go on; waits for that.
    pub fn run<R: Send + 'static>(
        &self,
        control: &Arc<Control>,
        job: impl FnOnce(&mut Vm) -> R + Send + 'static,
    ) -> Result<R, VmStopped> {
        let (done, result) = channel();
        {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.as_mut().ok_or(VmStopped)?.push(Box::new(move |vm| {
                // Nobody waits any more if the one who asked has panicked.
                let _ = done.send(job(vm));
            }));
        }
        control.pause();
        result.recv().map_err(|_| VmStopped)
    }

    /// Does what has come; for the VM's thread.
    pub fn work(&self, vm: &mut Vm) {
        let jobs = match &mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(jobs) => std::mem::take(jobs),
            None => return,
        };
        for job in jobs {
            job(vm);
        }
    }

    /// No more jobs: those that wait end with [`VmStopped`].
    pub fn close(&self) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
