//! The host daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use api::client::Client;
use api::events::EventKind;
use api::messages::DaemonView;
use cluster::controller::{Controller, Settings};
use cluster::records::ClusterError;
use cluster::store::StoreError;
use machine::bus::lock;
use replication::channel::Identity;
use rustix::process::geteuid;
use sd_notify::NotifyState;
use spec::{EngineChoice, EngineKind, FtMode, VmName};
use storage::image::ImageStore;
use terminal::error_text::error_text;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::backups::UnderWay;
use super::config::HostConfig;
use super::error::HostError;
use super::events::EventLog;
use super::folder::{DaemonAddresses, HostFolder, private_folder};
use super::metrics;
use super::network_ends::NetworkEnds;
use super::operations::Attempts;
use super::owner::Owners;
use super::registry::{KnownVm, Registry};
use super::replicas::Replica;
use super::rest::server;
use super::run_lease::HeldRunLease;
use super::runtime::Undone;
use super::store_move::{follow, is_moving};
use super::vm_files::VmFiles;
use super::vm_folder::VmFolder;
use super::vm_users::{VmUsers, refuse_if_used};
use crate::sandbox::Enforced;

/// How often the lease is renewed.
const LEASE_RENEWAL: Duration = Duration::from_millis(500);
/// How long requests that are being answered may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The daemon of one host: answers the API, and keeps the replicas on this host as the cluster store wants them.
pub struct Daemon {
    pub(super) folder: HostFolder,
    pub(super) config: HostConfig,
    pub(super) registry: Registry,
    /// Under which VMs run that others may restart.
    pub(super) run_lease: HeldRunLease,
    /// The folder of network ends that hosts of this machine share.
    shared_ends: PathBuf,
    /// When the daemon before this one was last known to run.
    pub(super) alive_before: Option<SystemTime>,
    pub(super) images: ImageStore,
    pub(super) vm_files: VmFiles,
    pub(super) ends: NetworkEnds,
    pub(super) vm_users: VmUsers,
    /// What confines the processes of VMs here.
    sandbox: String,
    /// The replicas that run on this host, by VM.
    pub(super) replicas: Mutex<BTreeMap<String, Arc<Replica>>>,
    /// What is started for replicas and network ends: this program.
    pub(super) exe: PathBuf,
    addresses: DaemonAddresses,
    client: Client,
    runtime: Handle,
    /// Whatever changes a VM's state on this host is done by its owner.
    pub(super) owners: Owners,
    pub(super) controller: Mutex<Controller>,
    /// What the controller's last plan leaves undone.
    pub(super) undone: Mutex<Undone>,
    /// What has happened here.
    pub(super) events: EventLog,
    /// How the last attempts at operations have ended.
    pub(super) attempts: Attempts,
    /// VMs whose guests were powered off here, which their records may not say yet.
    pub(super) powered_off: Mutex<BTreeSet<VmName>>,
    /// VMs whose secondaries are being prepared, and the hosts that do.
    preparing: Mutex<BTreeSet<(String, String)>>,
    /// VMs of which a backup is being written.
    pub(super) backing_up: Mutex<BTreeMap<String, Arc<UnderWay>>>,
    admission: Mutex<()>,
    is_stopping: AtomicBool,
    /// VMs here are to end before it does.
    stops_vms: AtomicBool,
    /// VMs are still to be started, since the machine has booted.
    pub(super) is_autostart_due: AtomicBool,
    /// Whether a run lease has begun or ended that the controller does not know of.
    pub(super) are_run_leases_due: AtomicBool,
    is_store_reachable: AtomicBool,
    /// The store was moved since it was opened.
    has_store_moved: AtomicBool,
    stop: Notify,
}

/// Runs the daemon until SIGTERM, Ctrl-C or a request to stop. VMs go on: a later daemon finds their replicas.
pub fn run(folder: &HostFolder) -> Result<()> {
    let config = HostConfig::load(folder)?;
    let Some(lock) = folder.lock()? else {
        bail!("host {} runs already: see `twinvm host list`", config.name);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let config = follow(folder, config)?;
    let store = config.store.clone();
    let result = runtime.block_on(serve(folder, config));
    // A request that still waits for something must not keep the daemon.
    runtime.shutdown_timeout(Duration::from_secs(1));
    folder.unpublish();
    drop(lock);
    match result {
        Ok(End::Stopped) => Ok(()),
        // It began to move while the daemon started.
        Err(error) if !is_moving(&store) => Err(error),
        // In this process threads go on that know of the old store only. Replicas that it has started stay its children: of those that end the system
        // remembers that they were there, until the daemon ends.
        Ok(End::StoreMoved) | Err(_) => Err(Command::new(program()?).args(std::env::args_os().skip(1)).exec().into()),
    }
}

/// Why the daemon has ended.
enum End {
    /// Somebody has stopped it.
    Stopped,
    /// The cluster's store was moved: the next one goes on with the new one.
    StoreMoved,
}

async fn serve(folder: &HostFolder, config: HostConfig) -> Result<End> {
    let identity = Identity::load(&folder.keys()).context("the host's keys cannot be used")?;
    if identity.peer().host() != Some(&config.name) {
        bail!(
            "the certificate in {} is for {}, not for host {}",
            folder.keys().display(),
            identity.peer(),
            config.name
        );
    }
    private_folder(&folder.vms())?;
    let api = TcpListener::bind(config.listen).await;
    let api = api.with_context(|| format!("cannot listen at {} (listen in host.toml)", config.listen))?;
    let metrics = match config.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("cannot listen at {address} (metrics in host.toml)"))?)
        }
        None => None,
    };
    let addresses = DaemonAddresses {
        pid: std::process::id(),
        api: api.local_addr()?,
        metrics: metrics.as_ref().map(TcpListener::local_addr).transpose()?,
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let registry = Registry::open(&config, folder.path(), addresses.api)?;
    let daemon = make(folder, config, &identity, &addresses, registry)?;
    daemon.start_threads()?;
    let connections = server::Connections::default();
    let served = tokio::spawn(server::serve(
        api,
        identity.open_server_config(),
        server::router(daemon.clone()),
        connections.clone(),
    ));
    if let Some(listener) = metrics {
        tokio::spawn(metrics::serve(listener, daemon.clone()));
    }
    folder.publish(&addresses)?;
    let line = serde_json::json!({ "ready": daemon.config.name, "api": addresses.api, "metrics": addresses.metrics });
    // Whoever started the daemon need not read it.
    let _ = writeln!(std::io::stdout(), "{line}");
    // As a service it counts as started from now on: a command right after `systemctl start` is answered.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("the service manager cannot be told that the daemon is ready: {error}");
    }
    let started = format!("the daemon of host {} answers at {}", daemon.config.name, addresses.api);
    daemon.events.note(EventKind::HostStarted, None, started);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = daemon.stop.notified() => {}
    }
    daemon.begin_to_stop(false);
    served.abort();
    // Whoever asked for the end is to have the answer. Consoles do not end by themselves.
    connections.finish(FAREWELL).await;
    if let Err(error) = daemon.registry.end_lease() {
        tracing::debug!("the lease ends by itself: {error}");
    }
    let stopped = format!("the daemon of host {} has ended; replicas that still run go on", daemon.config.name);
    daemon.events.note(EventKind::HostStopped, None, stopped);
    Ok(if daemon.has_store_moved.load(Ordering::Acquire) { End::StoreMoved } else { End::Stopped })
}

fn make(
    folder: &HostFolder,
    config: HostConfig,
    identity: &Identity,
    addresses: &DaemonAddresses,
    registry: Registry,
) -> Result<Arc<Daemon>> {
    let exe = program()?;
    let (alive_before, shared_ends) = (folder.alive_before(), super::network_ends::shared_folder(&config)?);
    folder.note_alive();
    let (vm_users, sandbox) = find_sandbox(&config, &exe)?;
    Ok(Arc::new_cyclic(|daemon: &Weak<Daemon>| Daemon {
        is_autostart_due: AtomicBool::new(registry.is_autostart_due()),
        are_run_leases_due: AtomicBool::new(false),
        run_lease: HeldRunLease::of(folder.path(), &registry.now().boot_id),
        registry,
        images: ImageStore::new(&config.images),
        vm_files: VmFiles::of(folder, &config),
        ends: NetworkEnds::default(),
        vm_users,
        sandbox,
        shared_ends,
        alive_before,
        replicas: Mutex::default(),
        exe,
        addresses: addresses.clone(),
        client: Client::new(identity.client_config()),
        runtime: Handle::current(),
        owners: Owners::new({
            let daemon = daemon.clone();
            move |vm: &str| daemon.upgrade().is_some_and(|daemon| daemon.look_after(vm))
        }),
        controller: Mutex::new(Controller::new(Settings { first_copies_max: config.first_copies_max })),
        undone: Mutex::default(),
        events: EventLog::open(folder.path(), &config.name),
        attempts: Attempts::default(),
        powered_off: Mutex::default(),
        preparing: Mutex::default(),
        backing_up: Mutex::default(),
        admission: Mutex::default(),
        is_stopping: AtomicBool::default(),
        stops_vms: AtomicBool::default(),
        is_store_reachable: AtomicBool::new(true),
        has_store_moved: AtomicBool::default(),
        stop: Notify::new(),
        folder: folder.clone(),
        config,
    }))
}

impl Daemon {
    /// Starts what the daemon does by itself.
    fn start_threads(self: &Arc<Self>) -> Result<()> {
        let spawn = |name: &str, work: fn(&Arc<Self>)| {
            let daemon = self.clone();
            thread::Builder::new().name(name.to_owned()).spawn(move || work(&daemon)).map(drop)
        };
        spawn("lease", |daemon| daemon.keep_lease())?;
        spawn("store", |daemon| daemon.watch_store())?;
        spawn("run-lease", |daemon| daemon.keep_run_lease())?;
        spawn("run-leases", |daemon| daemon.watch_run_leases())?;
        spawn("datastores", |daemon| daemon.watch_datastores())?;
        self.finish_unfinished();
        self.adopt_replicas()?;
        self.remove_cut_restores();
        Ok(spawn("controller", Self::run_controller)?)
    }

    /// What it says of itself.
    pub fn view(&self) -> DaemonView {
        DaemonView {
            host: self.config.name.clone(),
            folder: self.folder.path().to_owned(),
            pid: self.addresses.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metrics: self.addresses.metrics,
            store: self.config.store.to_string(),
            sandbox: self.sandbox.clone(),
        }
    }

    /// Where its API listens.
    pub(super) fn api_address(&self) -> SocketAddr {
        self.addresses.api
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.config.name
    }

    /// Talks to other hosts.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cluster's records.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits for something asynchronous. Not for the runtime's own threads, which must not wait.
    pub(super) fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Where asynchronous work runs.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The folder of a VM here.
    pub(super) fn vm_folder(&self, vm: &str) -> VmFolder {
        VmFolder::new(self.folder.vm(vm))
    }

    /// The sockets of a VM's network ends.
    pub(super) fn end_sockets(&self, spec: &spec::VmSpec) -> Vec<PathBuf> {
        super::network_ends::sockets(spec, &self.shared_ends, &self.folder.vm(&spec.name))
    }

    /// The address at which secondaries listen: any port.
    pub(super) fn secondary_listen(&self) -> SocketAddr {
        SocketAddr::new(self.config.replication_ip(), 0)
    }

    /// What executes a VM when it is started here.
    pub(super) fn engine_of(&self, vm: &KnownVm) -> EngineKind {
        match vm.spec.engine_choice() {
            // Asked for on a host where `auto` means soft.
            EngineChoice::Auto if vm.record.ft.mode == FtMode::Lockstep => EngineKind::Soft,
            EngineChoice::Auto => self.registry.preferred_engine(),
            EngineChoice::Kvm => EngineKind::Kvm,
            EngineChoice::Soft => EngineKind::Soft,
        }
    }

    /// Has the owner of a VM do something, and waits for the answer. A name that no VM can have has no owner: `work` is to refuse it.
    pub fn owned<T: Send + 'static>(
        self: &Arc<Self>,
        vm: &str,
        work: impl FnOnce(&Arc<Self>) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        if vm.parse::<VmName>().is_err() {
            return work(self);
        }
        let daemon = self.clone();
        self.owners.run(vm, move || work(&daemon))?
    }

    /// The lock that is held from finding that there is room for a replica here until it takes that room.
    pub(super) fn admission(&self) -> MutexGuard<'_, ()> {
        lock(&self.admission)
    }

    /// Does something while a host prepares a secondary of a VM: in that time it gets what it needs from here.
    pub(super) fn while_preparing<T>(&self, vm: &str, host: &str, work: impl FnOnce() -> T) -> T {
        let prepared = (vm.to_owned(), host.to_owned());
        lock(&self.preparing).insert(prepared.clone());
        let done = work();
        lock(&self.preparing).remove(&prepared);
        done
    }

    /// Whether a host prepares a secondary of a VM, because this one has asked it to.
    pub(super) fn is_preparing(&self, vm: &str, host: &str) -> bool {
        lock(&self.preparing).contains(&(vm.to_owned(), host.to_owned()))
    }

    /// No new replicas from now on. `with_vms`: those that are here are to end too.
    pub(super) fn begin_to_stop(&self, with_vms: bool) {
        self.is_stopping.store(true, Ordering::Release);
        self.stops_vms.fetch_or(with_vms, Ordering::AcqRel);
    }

    /// New replicas may come again: the daemon does not end after all.
    pub(super) fn go_on(&self) {
        self.stops_vms.store(false, Ordering::Release);
        self.is_stopping.store(false, Ordering::Release);
    }

    /// Whether the daemon is about to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether VMs and secondaries here are to end with it.
    pub(super) fn stops_vms(&self) -> bool {
        self.stops_vms.load(Ordering::Acquire)
    }

    /// Ends the daemon.
    pub(super) fn request_stop(&self) {
        self.stop.notify_one();
    }

    /// Whether the cluster store could be written to lately.
    pub(super) fn is_store_reachable(&self) -> bool {
        self.is_store_reachable.load(Ordering::Acquire)
    }

    fn keep_lease(&self) {
        let (mut was_renewed, mut seen) = (true, None);
        loop {
            thread::sleep(LEASE_RENEWAL);
            let renewed = self.registry.renew_lease();
            self.folder.note_alive();
            let sight = self.registry.sight();
            if let Some(new) = sight.filter(|_| sight != seen) {
                match self.folder.note_store(new) {
                    Ok(()) => seen = sight,
                    Err(error) => tracing::warn!("{}", error_text(&error)),
                }
            }
            match &renewed {
                Err(error @ ClusterError::OtherInstance(_)) => {
                    tracing::error!("{error}: this one ends");
                    self.begin_to_stop(false);
                    return self.request_stop();
                }
                Err(error) if was_renewed => tracing::warn!("the lease cannot be renewed: {error}"),
                _ => {}
            }
            was_renewed = renewed.is_ok();
        }
    }

    /// Looks whether the cluster store can be written to. Apart from leases, which are in a file of their own and must not wait for this.
    fn watch_store(&self) {
        loop {
            thread::sleep(LEASE_RENEWAL);
            let writable = self.registry.check_writable();
            let was_reachable = self.is_store_reachable.swap(writable.is_ok(), Ordering::AcqRel);
            match writable {
                Ok(()) if !was_reachable => {
                    self.events.note(EventKind::StoreBack, None, "the cluster store answers again");
                }
                Err(ClusterError::Store(StoreError::Moved { to, is_over: true })) => {
                    let text = format!("the cluster store was moved to {to}: the daemon starts anew there; VMs go on");
                    self.events.note(EventKind::StoreLost, None, text);
                    self.has_store_moved.store(true, Ordering::Release);
                    self.begin_to_stop(false);
                    return self.request_stop();
                }
                Err(error) if was_reachable => self.events.note(EventKind::StoreLost, None, error.to_string()),
                _ => {}
            }
        }
    }
}

/// Finds out whether VMs can have users of their own, and what confines their processes, in words.
fn find_sandbox(config: &HostConfig, exe: &Path) -> Result<(VmUsers, String)> {
    let users = match config.vm_uids {
        _ if !geteuid().is_root() => VmUsers::none("it is not root"),
        None => VmUsers::none("vm_uids is empty"),
        Some(range) => {
            refuse_if_used(range)?;
            match Enforced::tried_by(exe, Some(range.first())) {
                Ok(_) => VmUsers::new(range),
                Err(why) => VmUsers::none(error_text(&why)),
            }
        }
    };
    let tried = Enforced::tried_by(exe, None);
    if config.require_sandbox {
        tried.as_ref().map_err(|error| anyhow!("{}", error_text(error))).and_then(Enforced::require)?;
    }
    let sandbox = match tried {
        Ok(enforced) if enforced.is_full() => format!("{enforced}; {users}"),
        Ok(enforced) => {
            tracing::warn!("replicas and network ends are confined only in part: {enforced}");
            format!("{enforced}; {users}")
        }
        Err(why) => {
            tracing::warn!("replicas and network ends cannot be confined: {}", error_text(&why));
            error_text(&why)
        }
    };
    Ok((users, sandbox))
}

/// This program, by its path: an upgrade is used for replicas that are started after it.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the twinvm program")
}

#[cfg(test)]
mod tests;
