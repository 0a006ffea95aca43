//! Ends a VM that runs under its host's run lease before that lease has ended: as the broker outlives neither the replica nor its place in the host, and knows
//! the store, it is the one that neither a daemon that is gone nor a replica that hangs keeps from it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cluster::controller::{Fence, FenceStep};
use cluster::records::Cluster;
use cluster::store::{LeaseId, Stores, boot_ms_now};
use machine::bus::lock;
use rustix::fd::OwnedFd;
use rustix::process::{PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};

use crate::replica::config::ReplicaConfig;
use crate::replica::end::ReplicaEnd;
use crate::run_lease;

/// How often it is looked whether the lease is still good.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long what is left for the daemon to read may delay the end.
const FAREWELL: Duration = Duration::from_millis(100);

/// Guards the replica that this broker was started by. Nothing is answered to it before this returns, so that its guest does not run either.
///
/// # Errors
/// If the lease is not good now, or cannot be watched: the replica must not run.
pub fn guard(config: &ReplicaConfig) -> Result<()> {
    let Some(id) = config.run_lease else { return Ok(()) };
    let host_folder = config.folder.parent().and_then(Path::parent).context("the VM's folder is in no host's")?;
    let replica = parent()?;
    let fence = Arc::new(Mutex::new(Fence::new(id)));
    let look = {
        let (fence, host_folder) = (fence.clone(), host_folder.to_owned());
        move || {
            let mut fence = lock(&fence);
            if let Some(lease) = run_lease::read(&host_folder) {
                fence.reads(&lease);
            }
            fence.next(boot_ms_now())
        }
    };
    if look() == FenceStep::Stop {
        bail!("the run lease of host {} is not good any more", config.host);
    }
    let (config, renews) = (config.clone(), Arc::new(AtomicBool::new(false)));
    let watch = move || loop {
        match look() {
            FenceStep::Wait => {}
            FenceStep::Renew if renews.swap(true, Ordering::AcqRel) => {}
            FenceStep::Renew => renew(&config, id, fence.clone(), renews.clone()),
            FenceStep::Stop => stop(&config, &replica),
        }
        thread::sleep(LOOK_INTERVAL);
    };
    thread::Builder::new().name("fence".to_owned()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// The process that has started this one.
fn parent() -> Result<OwnedFd> {
    let pid = getppid().context("the replica is gone")?;
    let opened = pidfd_open(pid, PidfdFlags::empty()).context("the replica cannot be watched")?;
    // Another process may have got its number.
    if getppid() != Some(pid) {
        bail!("the replica is gone");
    }
    Ok(opened)
}

/// Renews the lease in place of the daemon, on a thread of its own: a store that hangs is not to keep the VM from being ended.
fn renew(config: &ReplicaConfig, id: u64, fence: Arc<Mutex<Fence>>, renews: Arc<AtomicBool>) {
    let (store, keys) = (config.store.clone(), config.store_keys.clone());
    let ask = move || {
        let asked_ms = boot_ms_now();
        let stores = Stores::open(&store, keys.as_ref()).map(Cluster::new);
        if let Ok(Ok(was_there)) = stores.map(|cluster| cluster.renew_run_lease(LeaseId(id))) {
            lock(&fence).answered(asked_ms, was_there);
        }
        renews.store(false, Ordering::Release);
    };
    // Without a thread it is not renewed, and the VM ends in time.
    let _ = thread::Builder::new().name("renewal".to_owned()).spawn(ask);
}

/// Ends the replica, and this process.
fn stop(config: &ReplicaConfig, replica: &OwnedFd) -> ! {
    let (folder, host) = (config.folder.clone(), config.host.clone());
    let leave = move || {
        let message = format!(
            "host {host} could not renew its run lease in the cluster store, so that another host may be about to start the VM"
        );
        // The daemon says something vaguer without it.
        let _ = ReplicaEnd::Failed { message }.leave(&folder);
    };
    if let Ok(leaving) = thread::Builder::new().name("farewell".to_owned()).spawn(leave) {
        let mut waited = Duration::ZERO;
        while !leaving.is_finished() && waited < FAREWELL {
            let step = Duration::from_millis(5);
            thread::sleep(step);
            waited += step;
        }
    }
    // Also one that hangs. It is gone if it cannot be killed.
    let _ = pidfd_send_signal(replica, Signal::KILL);
    std::process::exit(1)
}
