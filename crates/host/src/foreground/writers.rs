//! Snapshots of a VM in the foreground that are written while it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use machine::bus::lock;
use machine::vm::Vm;

use super::events::{Event, Reporter};
use super::requests::{Pending, Request};
use super::snapshots::{Holds, Prepared};
use super::{Running, answer, status};

/// The threads that write. Dropping this gives up what is not complete, and waits until nobody has the disks open any more.
#[derive(Default)]
pub(super) struct Writers {
    is_over: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Writers {
    /// Freezes the paused VM and has a thread answer the request when its snapshot is written.
    pub fn begin(&self, vm: &mut Vm, running: &Running<'_>, mut request: Pending, reporter: &Reporter) {
        let Request::Snapshot { path, replaces } = &request.request else { return };
        let (path, replaces) = (path.clone(), *replaces);
        let cannot = format!("cannot write snapshot {}", path.display());
        let now = status(vm, running.spec, running.started);
        let frozen = request.files().and_then(|(file, spill)| {
            let prepared = Prepared::new(running.spec, running.disks, replaces, Holds::Memory, spill)?;
            Ok((prepared.freeze(vm)?, file))
        });
        let (frozen, file) = match frozen {
            Ok(frozen) => frozen,
            Err(error) => return request.answer(answer(Err(error).context(cannot), now)),
        };
        let (is_over, reporter) = (self.is_over.clone(), reporter.clone());
        let write = move || {
            let heeds_generation = frozen.heeds_generation();
            let done: Result<()> = frozen.write_to(file, &is_over).context(cannot);
            if done.is_ok() {
                reporter.report(&Event::Snapshot { path: &path });
                reporter.report_generation(heeds_generation);
            }
            request.answer(answer(done, now));
        };
        // Without a thread nobody answers, and who asked finds that out.
        if let Ok(thread) = thread::Builder::new().name("snapshot".to_owned()).spawn(write) {
            let mut threads = lock(&self.threads);
            threads.retain(|thread| !thread.is_finished());
            threads.push(thread);
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in lock(&self.threads).drain(..) {
            // One that has panicked has nothing open.
            let _ = thread.join();
        }
    }
}
