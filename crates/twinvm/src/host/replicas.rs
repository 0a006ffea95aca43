//! The replicas that run on this host: found, watched, and looked after when they end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use machine::bus::lock;

use super::attempts::Attempts;
use super::daemon::Daemon;
use super::process::ReplicaProcess;
use crate::api::messages::{LocalVms, VmNote};
use crate::replica::config::socket;
use crate::replica::control::{self, Request};
use crate::replica::status::{ReplicaEnd, ReplicaStatus, Role, unix_ms_now};

/// How often a replica is asked how it is.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long its answer may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a secondary may wait for its primary before it is given up.
const UNCLAIMED_TIMEOUT: Duration = Duration::from_secs(60);

/// A replica that runs on this host.
pub struct Replica {
    /// Its VM.
    pub vm: String,
    socket: PathBuf,
    process: Mutex<ReplicaProcess>,
    status: Mutex<Option<ReplicaStatus>>,
    /// The search for its secondary, while it is the primary.
    pub attempts: Attempts,
}

impl Replica {
    /// What it said last.
    pub fn status(&self) -> Option<ReplicaStatus> {
        lock(&self.status).clone()
    }

    /// Whether it runs the VM, as far as is known.
    pub fn is_primary(&self) -> bool {
        lock(&self.status).as_ref().is_some_and(|status| status.role == Role::Primary)
    }

    /// Sends it a request and waits for the answer.
    pub fn ask(&self, request: &Request, timeout: Duration) -> Result<ReplicaStatus> {
        control::ask(&self.socket, request, timeout)
    }

    /// Its process.
    pub fn process(&self) -> MutexGuard<'_, ReplicaProcess> {
        lock(&self.process)
    }

    /// Waits until its process has ended; whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.process().is_gone() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Asks for its end, and kills it if it does not come.
    pub fn end(&self, patience: Duration) {
        let asked = self.ask(&Request::Stop { force: true }, POLL_TIMEOUT);
        if asked.is_err() || !self.wait(patience) {
            self.process().kill();
        }
    }
}

impl Daemon {
    /// Finds the replicas that an earlier daemon has started and that still run.
    pub(super) fn adopt_replicas(self: &Arc<Self>) -> Result<()> {
        let vms = self.folder.vms();
        for entry in fs::read_dir(&vms).with_context(|| format!("cannot look into {}", vms.display()))?.flatten() {
            let Some(vm) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if let Some(process) = ReplicaProcess::adopt(&entry.path()) {
                let status = process.status().ok();
                tracing::info!("VM {vm}: its replica still runs");
                self.watch_replica(vm, process, status)?;
            }
        }
        Ok(())
    }

    /// Takes a running replica into the daemon's care.
    pub(super) fn watch_replica(
        self: &Arc<Self>,
        vm: String,
        process: ReplicaProcess,
        status: Option<ReplicaStatus>,
    ) -> Result<Arc<Replica>> {
        let replica = Arc::new(Replica {
            vm: vm.clone(),
            socket: socket(&self.folder.vm(&vm)),
            process: Mutex::new(process),
            status: Mutex::new(status),
            attempts: Attempts::default(),
        });
        lock(&self.replicas).insert(vm.clone(), replica.clone());
        let (daemon, watched) = (self.clone(), replica.clone());
        thread::Builder::new().name(format!("vm {vm}")).spawn(move || daemon.watch(&watched))?;
        Ok(replica)
    }

    /// The replica of a VM here, if one runs.
    pub(super) fn replica(&self, vm: &str) -> Option<Arc<Replica>> {
        lock(&self.replicas).get(vm).cloned()
    }

    /// All of them.
    pub(super) fn all_replicas(&self) -> Vec<Arc<Replica>> {
        lock(&self.replicas).values().cloned().collect()
    }

    /// Takes a replica whose process is gone off the list.
    pub(super) fn forget_replica(&self, replica: &Arc<Replica>) {
        let mut replicas = lock(&self.replicas);
        if replicas.get(&replica.vm).is_some_and(|known| Arc::ptr_eq(known, replica)) {
            replicas.remove(&replica.vm);
        }
    }

    fn watch(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut unclaimed_since = Instant::now();
        loop {
            if replica.process().is_gone() {
                break;
            }
            // A replica that does not answer is stopped or very busy: what it said last stands until it is gone.
            if let Ok(status) = replica.ask(&Request::Status, POLL_TIMEOUT) {
                match status.role {
                    Role::Primary => self.consider_protection(replica, &status),
                    Role::Secondary if status.peer.is_some() => unclaimed_since = Instant::now(),
                    Role::Secondary => {}
                }
                let is_unclaimed = status.role == Role::Secondary && unclaimed_since.elapsed() > UNCLAIMED_TIMEOUT;
                *lock(&replica.status) = Some(status);
                if is_unclaimed {
                    tracing::info!("VM {}: no primary came to this secondary", replica.vm);
                    replica.end(POLL_TIMEOUT);
                }
            }
            thread::sleep(POLL_INTERVAL);
        }
        self.replica_ended(replica);
    }

    fn replica_ended(&self, replica: &Arc<Replica>) {
        let was_primary = replica.is_primary();
        tracing::info!("VM {}: replica ended: {}", replica.vm, replica.process().why_it_ended());
        self.forget_replica(replica);
        let end = ReplicaEnd::left_in(&self.folder.vm(&replica.vm));
        if was_primary && matches!(end, Some(ReplicaEnd::PoweredOff | ReplicaEnd::PlugPulled)) {
            self.vm_powered_off(&replica.vm);
        }
    }

    /// What is known here about VMs.
    pub fn local_vms(&self) -> LocalVms {
        let mut local = LocalVms::default();
        for replica in self.all_replicas() {
            if let Some((text, since_unix_ms)) = replica.attempts.obstacle() {
                local.notes.push(VmNote { vm: replica.vm.clone(), text, since_unix_ms });
            }
            local.replicas.extend(replica.status());
        }
        for entry in fs::read_dir(self.folder.vms()).into_iter().flatten().flatten() {
            let Some(vm) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if self.replica(&vm).is_none() {
                local.notes.extend(self.note_of_ended(vm, &entry.path()));
            }
        }
        local
    }

    /// How the last replica of a VM here ended.
    fn note_of_ended(&self, vm: String, folder: &Path) -> Option<VmNote> {
        let modified = |name: &str| fs::metadata(folder.join(name)).and_then(|file| file.modified()).ok();
        let since = modified("ended.json").or_else(|| modified("replica.log"))?;
        let since_unix_ms = since.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis();
        let text = match ReplicaEnd::left_in(folder) {
            Some(end) => end.to_string(),
            None => "the replica's process died".to_owned(),
        };
        Some(VmNote { vm, text, since_unix_ms: u64::try_from(since_unix_ms).unwrap_or_else(|_| unix_ms_now()) })
    }
}
