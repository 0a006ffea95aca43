//! The owners of VMs: one thread for each VM that this host has to do with. Whatever changes the VM's state on this host happens in it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use machine::bus::lock;

/// How often an owner looks at its VM while nobody wants anything of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long an owner stays that finds nothing to look at.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Something that an owner is to do.
type Order = Box<dyn FnOnce() + Send>;
/// Looks at a VM; whether there is anything of it here.
type Look = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The owners, by VM. Clones are the same.
#[derive(Clone)]
pub struct Owners {
    by_vm: Arc<Mutex<BTreeMap<String, Sender<Order>>>>,
    look: Look,
}

impl Owners {
    /// None yet. Each will call `look` with the name of its VM when it has nothing else to do.
    pub fn new(look: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { by_vm: Arc::default(), look: Arc::new(look) }
    }

    /// Has the owner of `vm` do `work` after all that it was asked to do before, and waits for the answer. Not to be called by the owner itself,
    /// which would wait for itself.
    ///
    /// # Errors
    /// If no thread can be started for it, or `work` panics.
    pub fn run<T: Send + 'static>(&self, vm: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = channel();
        // Whoever asked may have gone.
        self.post(vm, move || drop(answer.send(work())))?;
        answered.recv().context("it was not done")
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// If no thread can be started for it.
    pub fn post(&self, vm: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut by_vm = lock(&self.by_vm);
        let mut order: Order = Box::new(work);
        if let Some(owner) = by_vm.get(vm) {
            match owner.send(order) {
                Ok(()) => return Ok(()),
                // It has panicked: the next one goes on from what is there.
                Err(refused) => order = refused.0,
            }
        }
        let (orders, received) = channel();
        let (owners, name) = (self.clone(), vm.to_owned());
        thread::Builder::new()
            .name(format!("vm {vm}"))
            .spawn(move || owners.own(&name, &received))
            .context("cannot start a thread for the VM")?;
        // The thread that was just started has it.
        let _ = orders.send(order);
        by_vm.insert(vm.to_owned(), orders);
        Ok(())
    }

    fn own(&self, vm: &str, orders: &Receiver<Order>) {
        let mut busy_at = Instant::now();
        loop {
            match orders.recv_timeout(LOOK_INTERVAL) {
                Ok(order) => {
                    order();
                    busy_at = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if (self.look)(vm) {
                        busy_at = Instant::now();
                    } else if busy_at.elapsed() > IDLE_MAX && self.leave(vm, orders) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Ends the ownership, unless somebody has just asked for something.
    fn leave(&self, vm: &str, orders: &Receiver<Order>) -> bool {
        let mut by_vm = lock(&self.by_vm);
        match orders.try_recv() {
            Ok(order) => {
                drop(by_vm);
                order();
                false
            }
            Err(_) => {
                by_vm.remove(vm);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn orders_of_one_vm_are_carried_out_one_after_the_other() {
        let owners = Owners::new(|_| false);
        let inside = Arc::new(AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                let (owners, inside) = (owners.clone(), inside.clone());
                scope.spawn(move || {
                    for _ in 0..50 {
                        let inside = inside.clone();
                        owners
                            .run("v", move || {
                                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                                thread::yield_now();
                                inside.fetch_sub(1, Ordering::SeqCst);
                            })
                            .unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn vms_do_not_wait_for_each_other_and_a_panic_ends_nothing_else() {
        let owners = Owners::new(|_| false);
        let (let_go, held) = channel::<()>();
        owners.post("busy", move || assert!(held.recv().is_err())).unwrap();
        assert_eq!(owners.run("other", || 7).unwrap(), 7);
        drop(let_go);
        assert!(owners.run("other", || panic!("for a test")).is_err());
        let deadline = Instant::now() + Duration::from_secs(60);
        // The thread may take a moment to be gone.
        while owners.run("other", || 8).ok() != Some(8) {
            assert!(Instant::now() < deadline);
        }
    }

    #[test]
    fn an_idle_owner_looks_at_its_vm() {
        let (looked, seen) = channel();
        let owners = Owners::new(move |vm| looked.send(vm.to_owned()).is_ok());
        owners.run("v", || ()).unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(60)).unwrap(), "v");
    }
}
