//! The replicas that run on this host: found, watched, and looked after when they end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use api::events::EventKind;
use api::messages::{LocalDisks, LocalVms, VmNote};
use api::status::{ReplicaStatus, Role};
use api::time::unix_ms_now;
use cluster::records::{ClusterState, SpecText};
use machine::bus::lock;
use spec::{CpuProfile, VmName, VmSpec};
use storage::plain_file;
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::process::ReplicaProcess;
use crate::replica::config::{self, ReplicaConfig, socket};
use crate::replica::control::{self, Request, Statement};
use crate::replica::end::ReplicaEnd;

/// How long a replica may take to answer how it is.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take to answer for somebody who looks at it now.
const FRESH_TIMEOUT: Duration = Duration::from_millis(500);
/// A replica that has not answered for so long is said not to answer.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How often it is tried to forward ports that could not be.
const PORTS_INTERVAL: Duration = Duration::from_secs(5);
/// What [`ReplicaEnd::leave`] writes; when it was written is when the replica ended.
const END_FILE: &str = "ended.json";

/// A replica that runs on this host.
pub struct Replica {
    /// Its VM.
    pub vm: String,
    socket: PathBuf,
    process: Mutex<ReplicaProcess>,
    answer: Mutex<Answer>,
    /// Since when no primary is connected to this secondary.
    unclaimed_since: Mutex<Instant>,
    ports: Mutex<Ports>,
}

/// What the network ends of a replica forward.
#[derive(Default)]
struct Ports {
    /// The spec in the VM's record whose ports those are; nothing as long as they are those that it was started with.
    followed: Option<SpecText>,
    /// When it was last tried to follow another one.
    tried: Option<Instant>,
    /// Why that failed.
    failed: Option<String>,
}

/// What a replica said last, and when.
struct Answer {
    status: Option<ReplicaStatus>,
    processor: Option<CpuProfile>,
    at: Instant,
}

impl Replica {
    /// What it said last.
    pub fn status(&self) -> Option<ReplicaStatus> {
        lock(&self.answer).status.clone()
    }

    /// What the guest was told that its processors are, if it runs the VM.
    pub fn processor(&self) -> Option<CpuProfile> {
        lock(&self.answer).processor.clone()
    }

    /// Whether it runs the VM, as far as is known.
    pub fn is_primary(&self) -> bool {
        lock(&self.answer).status.as_ref().is_some_and(|status| status.role == Role::Primary)
    }

    /// Sends it a request and waits for the answer.
    pub fn ask(&self, request: &Request, timeout: Duration) -> Result<ReplicaStatus> {
        Ok(self.exchange(request, timeout)?.status)
    }

    /// Has it take a snapshot; for how long the guest stood still for that, as far as it says.
    pub fn take_snapshot(&self, request: &Request, timeout: Duration) -> Result<Option<u64>> {
        Ok(self.exchange(request, timeout)?.pause_us)
    }

    fn exchange(&self, request: &Request, timeout: Duration) -> Result<Statement> {
        let said = control::ask(&self.socket, request, timeout)?;
        let (status, processor) = (Some(said.status.clone()), said.processor.clone());
        *lock(&self.answer) = Answer { status, processor, at: Instant::now() };
        Ok(said)
    }

    /// What it says now; if it does not answer, what it said last. One that has not answered for a while is not waited for.
    fn fresh_status(&self) -> Option<ReplicaStatus> {
        if self.silence().is_none() {
            // What it said last is the best there is.
            let _ = self.ask(&Request::Status, FRESH_TIMEOUT);
        }
        self.status()
    }

    /// For how long it has not answered, if that is worth a word.
    fn silence(&self) -> Option<Duration> {
        Some(lock(&self.answer).at.elapsed()).filter(|silence| *silence > SILENCE_MAX)
    }

    /// For how long no primary has been connected to this secondary.
    pub fn unclaimed_for(&self) -> Duration {
        lock(&self.unclaimed_since).elapsed()
    }

    /// Its process.
    pub fn process(&self) -> MutexGuard<'_, ReplicaProcess> {
        lock(&self.process)
    }

    /// Whether its process has ended.
    pub fn is_gone(&self) -> bool {
        self.process().is_gone()
    }

    /// Waits until its process has ended; whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.is_gone() {
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
    /// Finds the replicas that an earlier daemon has started and that still run, and notes those that have ended since.
    pub(super) fn adopt_replicas(self: &Arc<Self>) -> Result<()> {
        for (vm, folder) in self.vm_folders()? {
            if let Some(process) = ReplicaProcess::adopt(&folder) {
                let status = process.status().ok();
                tracing::info!("VM {vm}: its replica still runs");
                self.watch_replica(vm, process, status)?;
            } else if ReplicaProcess::was_started(&folder) && ReplicaEnd::left_in(&folder).is_none() {
                let message = "its process died, and the host's daemon did not run then".to_owned();
                let end = ReplicaEnd::Failed { message };
                // It ended after the daemon before did, as far as is known.
                if let Err(error) = leave_end(&end, &folder, self.alive_before) {
                    tracing::warn!("VM {vm}: {}", error_text(&error));
                }
            }
        }
        let is_off = |folder: &Path| {
            matches!(ReplicaEnd::left_in(folder), Some(ReplicaEnd::PoweredOff | ReplicaEnd::PlugPulled))
        };
        let ended = self.vm_folders()?.into_iter().filter(|(vm, folder)| self.replica(vm).is_none() && is_off(folder));
        self.find_powered_off(ended.map(|(vm, _)| vm));
        Ok(())
    }

    /// The VMs that have a folder here, and the folders.
    fn vm_folders(&self) -> Result<Vec<(String, PathBuf)>> {
        let vms = self.folder.vms();
        let entries = fs::read_dir(&vms).with_context(|| format!("cannot look into {}", vms.display()))?;
        let named = |entry: fs::DirEntry| Some((entry.file_name().to_str()?.to_owned(), entry.path()));
        Ok(entries.flatten().filter_map(named).collect())
    }

    /// Takes a running replica into the daemon's care.
    pub(super) fn watch_replica(
        self: &Arc<Self>,
        vm: String,
        process: ReplicaProcess,
        status: Option<ReplicaStatus>,
    ) -> Result<()> {
        let replica = Arc::new(Replica {
            vm: vm.clone(),
            socket: socket(&self.folder.vm(&vm)),
            process: Mutex::new(process),
            answer: Mutex::new(Answer { status, processor: None, at: Instant::now() }),
            unclaimed_since: Mutex::new(Instant::now()),
            ports: Mutex::default(),
        });
        if let Ok(name) = vm.parse::<VmName>() {
            lock(&self.powered_off).remove(&name);
        }
        lock(&self.replicas).insert(vm.clone(), replica);
        // The owner looks after it from now on, and there is one if it is not the caller.
        self.owners.post(&vm, || ())
    }

    /// The replica of a VM here, if one runs.
    pub(super) fn replica(&self, vm: &str) -> Option<Arc<Replica>> {
        lock(&self.replicas).get(vm).cloned()
    }

    /// All of them.
    pub(super) fn all_replicas(&self) -> Vec<Arc<Replica>> {
        lock(&self.replicas).values().cloned().collect()
    }

    /// Takes a replica off the list; whether it was on it.
    fn forget_replica(&self, replica: &Arc<Replica>) -> bool {
        let mut replicas = lock(&self.replicas);
        let is_known = replicas.get(&replica.vm).is_some_and(|known| Arc::ptr_eq(known, replica));
        if is_known {
            replicas.remove(&replica.vm);
        }
        is_known
    }

    /// Ends a replica that has no place any more, for the VM's owner. Its end has no consequences: the VM is not off.
    pub(super) fn retire(&self, replica: &Arc<Replica>, patience: Duration) {
        replica.end(patience);
        self.forget_replica(replica);
    }

    /// What the owner of a VM does now and then; whether there is a replica of it here.
    pub(super) fn look_after(&self, vm: &str) -> bool {
        let Some(replica) = self.replica(vm) else { return false };
        if replica.is_gone() {
            self.settle(&replica);
            return true;
        }
        // A replica that does not answer is stopped or very busy: what it said last stands until it is gone.
        if let Ok(status) = replica.ask(&Request::Status, POLL_TIMEOUT) {
            if status.peer.is_some() {
                *lock(&replica.unclaimed_since) = Instant::now();
            }
            if !status.faults.is_empty() {
                self.mend_ends(vm);
            }
        }
        true
    }

    /// Starts the network ends anew that a replica misses. Why that is not possible is for the replica to say, which goes on missing them.
    fn mend_ends(&self, vm: &str) {
        let config = ReplicaConfig::load_own(&config::file(&self.folder.vm(vm)));
        // Its ports may have been changed since it was started.
        let known = self.registry.vm(vm).ok().flatten();
        let mended = config.and_then(|config| Ok((config.vm_spec()?, config.network_ends, config.user))).and_then(
            |(spec, sockets, user)| {
                let networks = known.map_or_else(|| spec.networks.clone(), |known| known.spec.networks);
                self.ends.mend(&self.exe, &VmSpec { networks, ..spec }, &sockets, user)
            },
        );
        if let Err(error) = mended {
            tracing::warn!("VM {vm}: a network end is gone: {}", error_text(&error));
        }
    }

    /// Has the network ends of replicas here forward the ports that their VMs' records name by now: those of a secondary before it takes over.
    pub(super) fn follow_ports(self: &Arc<Self>, state: &ClusterState, replicas: &[Arc<Replica>]) {
        for replica in replicas {
            let Some(vm) = replica.vm.parse().ok().and_then(|name| state.vm(&name)) else { continue };
            let mut ports = lock(&replica.ports);
            let is_done = ports.followed.as_ref() == Some(&vm.record.spec);
            if is_done || ports.tried.is_some_and(|tried| tried.elapsed() < PORTS_INTERVAL) {
                continue;
            }
            ports.tried = Some(Instant::now());
            drop(ports);
            let (daemon, replica, text) = (self.clone(), replica.clone(), vm.record.spec.clone());
            let posted = self.owners.post(&vm.record.name, move || daemon.follow_ports_of(&replica, text));
            if let Err(error) = posted {
                tracing::warn!("{}", error_text(&error));
            }
        }
    }

    fn follow_ports_of(&self, replica: &Replica, text: SpecText) {
        let before = lock(&replica.ports).followed.clone();
        let followed = ReplicaConfig::load_own(&config::file(&self.folder.vm(&replica.vm))).and_then(|config| {
            let before = before.as_ref().map_or_else(|| config.vm_spec(), |text| Ok(text.read()?.clone()))?;
            let told = self.ends.forward(&before.networks, &text.read()?.networks, &config.network_ends)?;
            told.left.map_or(Ok(()), |why| anyhow::bail!(why))
        });
        let mut ports = lock(&replica.ports);
        match followed {
            Ok(()) => *ports = Ports { followed: Some(text), tried: None, failed: None },
            Err(error) => {
                let why = format!("its ports are not forwarded on this host: {}", error_text(&error));
                if ports.failed.as_ref() != Some(&why) {
                    self.events.note(EventKind::Failed, Some(&replica.vm), &*why);
                    ports.failed = Some(why);
                }
            }
        }
    }

    /// Draws the consequences of the end of a VM's replica here, if it has ended, for the VM's owner.
    pub(super) fn settle_gone(&self, vm: &str) {
        if let Some(replica) = self.replica(vm).filter(|replica| replica.is_gone()) {
            self.settle(&replica);
        }
    }

    /// Draws the consequences of a replica's end, for the VM's owner. Whoever comes second finds it done: what was started in its place is not
    /// touched.
    pub(super) fn settle(&self, replica: &Arc<Replica>) {
        if !self.forget_replica(replica) {
            return;
        }
        let folder = self.folder.vm(&replica.vm);
        let end = ReplicaEnd::left_in(&folder).unwrap_or_else(|| {
            let end = ReplicaEnd::Failed { message: replica.process().why_it_died() };
            // Without it, the next daemon says something vaguer.
            let _ = leave_end(&end, &folder, None);
            end
        });
        self.events.note(EventKind::Ended, Some(&replica.vm), format!("its replica here has ended: {end}"));
        if replica.is_primary() && matches!(end, ReplicaEnd::PoweredOff | ReplicaEnd::PlugPulled) {
            self.vm_powered_off(&replica.vm);
        }
    }

    /// What is known here about VMs.
    pub fn local_vms(&self) -> LocalVms {
        let mut local = LocalVms::default();
        let mut running = BTreeSet::new();
        for replica in self.all_replicas() {
            // Its end may not have been seen to yet.
            if replica.is_gone() {
                continue;
            }
            running.insert(replica.vm.clone());
            local.replicas.extend(replica.fresh_status());
            local.notes.extend(self.note_of(&replica));
        }
        for (vm, folder) in self.vm_folders().unwrap_or_default() {
            local.disks.push(LocalDisks { disks: self.vm_folder(&vm).disk_views(), vm: vm.clone() });
            if !running.contains(&vm) {
                local.notes.extend(note_of_ended(vm, &folder));
            }
        }
        local
    }

    /// What there is to say about a replica that runs: it does not answer, or no secondary is found for it.
    fn note_of(&self, replica: &Replica) -> Option<VmNote> {
        let vm = replica.vm.clone();
        if let Some(silence) = replica.silence() {
            let silent_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
            let text = "the replica's process runs but does not answer".to_owned();
            return Some(VmNote { vm, text, since_unix_ms: unix_ms_now().saturating_sub(silent_ms) });
        }
        let (text, since_unix_ms) = lock(&self.undone).obstacle(&vm)?;
        Some(VmNote { vm, text, since_unix_ms })
    }
}

/// Leaves in a VM's folder why its replica has ended, and since when if that is not now.
fn leave_end(end: &ReplicaEnd, folder: &Path, at: Option<SystemTime>) -> Result<()> {
    end.leave(folder)?;
    if let Some(at) = at {
        plain_file::open_to_write(&folder.join(END_FILE))?.set_modified(at)?;
    }
    Ok(())
}

/// How the last replica of a VM here ended.
fn note_of_ended(vm: String, folder: &Path) -> Option<VmNote> {
    let end = ReplicaEnd::left_in(folder)?;
    let since = fs::symlink_metadata(folder.join(END_FILE)).and_then(|file| file.modified()).ok()?;
    let since_unix_ms = u64::try_from(since.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
    Some(VmNote { vm, text: end.to_string(), since_unix_ms })
}
