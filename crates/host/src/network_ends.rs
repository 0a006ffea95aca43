//! The network ends of VMs on this host.
//!
//! A user-mode end holds its guest's connections in its own process. It is shared by all hosts of this machine, so that it
//! outlives any of them: its socket is in a folder that those hosts have in common. A bridge is
//! another one on each host, and so is its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cluster::store::StoreLocation;
use machine::bus::lock;
use network::end::{self, ControlError, EndConfig, EndProcess, EndStatus, Lifetime};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Signal, kill_process};
use spec::{NetworkSpec, PortForward, UserSpec, VmSpec};

use super::config::HostConfig;
use super::folder::{check_socket_path, private_folder};
use crate::paths::runtime_dir;

/// How long an end waits for a replica before it ends by itself, in s. A VM whose hosts all fail is back sooner or not at all.
const WITHOUT_CLIENT_S: u32 = 60;

/// How long an end that cannot be started is left alone.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// How long a killed end may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Network ends that this daemon has started, by socket.
#[derive(Default)]
pub struct NetworkEnds {
    started: Mutex<BTreeMap<PathBuf, EndProcess>>,
    /// When those that a replica misses could last not be started.
    failed: Mutex<BTreeMap<PathBuf, Instant>>,
}

/// The folder of the ends that those hosts of a cluster share that are on one machine: the user's own, or beside the store if that is a file, or was one.
pub fn shared_folder(config: &HostConfig) -> Result<PathBuf> {
    if let Some(folder) = &config.shared_ends {
        return Ok(folder.clone());
    }
    match &config.store {
        StoreLocation::File(path) => Ok(path.parent().unwrap_or(Path::new("/")).join("ends")),
        StoreLocation::Etcd(address) => Ok(runtime_dir()?.join(format!("ends-{}", address.name))),
    }
}

/// The socket of each card's end, on the host whose VM folder this is; `shared` is that of the ends that hosts share.
pub fn sockets(spec: &VmSpec, shared: &Path, vm_folder: &Path) -> Vec<PathBuf> {
    let socket = |(number, network): (usize, &NetworkSpec)| match network {
        NetworkSpec::User(_) => shared.join(format!("{}-{number}.sock", spec.name)),
        NetworkSpec::Bridge(_) => vm_folder.join(format!("net-{number}.sock")),
    };
    spec.networks.iter().enumerate().map(socket).collect()
}

/// What has become of ports that were to be forwarded anew.
pub struct Forwarded {
    /// The cards as they are now.
    pub networks: Vec<NetworkSpec>,
    /// Why some of it was left for the next start.
    pub left: Option<String>,
}

impl Forwarded {
    /// Nothing.
    pub fn before(networks: &[NetworkSpec]) -> Self {
        Self { networks: networks.to_vec(), left: None }
    }
}

impl NetworkEnds {
    /// Has ends that run forward the ports of `after`, where the cards differ from those of `before` in nothing else: all of them, or none. What only an end
    /// that is started anew may do is left.
    pub fn forward(
        &self,
        before: &[NetworkSpec],
        after: &[NetworkSpec],
        sockets: &[PathBuf],
    ) -> Result<Forwarded, ControlError> {
        let mut told = Forwarded::before(before);
        if before.len() != after.len() {
            return Ok(told);
        }
        let mut done = Vec::new();
        for ((network, wanted), socket) in told.networks.iter_mut().zip(after).zip(sockets) {
            let (NetworkSpec::User(now), NetworkSpec::User(next)) = (&mut *network, wanted) else { continue };
            let is_forwarded_only = UserSpec { forward: next.forward.clone(), ..now.clone() } == *next;
            if !is_forwarded_only || now.forward == next.forward {
                continue;
            }
            match end::forward(socket, &next.forward) {
                Ok(_) => {
                    done.push((socket, std::mem::replace(&mut now.forward, next.forward.clone())));
                }
                Err(ControlError::NeedsStart(why)) => told.left = Some(why),
                Err(error) => {
                    for (socket, ports) in done {
                        if let Err(error) = end::forward(socket, &ports) {
                            tracing::warn!("network end: ports are not forwarded as before: {error}");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(told)
    }

    /// Starts those ends that do not answer, as the VM's user if it has one.
    pub fn ensure(&self, exe: &Path, spec: &VmSpec, sockets: &[PathBuf], user: Option<u32>) -> Result<()> {
        for (number, socket) in sockets.iter().enumerate().take(spec.networks.len()) {
            match end::status(socket) {
                Ok(status) => {
                    follow(spec.networks.get(number), socket, &status).with_context(|| format!("network {number}"))?;
                    continue;
                }
                Err(ControlError::Refused(_) | ControlError::NeedsStart(_)) => continue,
                Err(ControlError::NoAnswer { .. }) => end_silent(socket),
                Err(ControlError::Unreachable { .. }) => {}
            }
            if let Some(ended) = lock(&self.started).remove(socket) {
                // It does not answer: this reaps it.
                let _ = ended.stop();
            }
            let started = self.start(exe, spec, number, socket, user);
            // Another host of this machine may have been faster, where they share it.
            if started.is_err() && end::status(socket).is_ok() {
                continue;
            }
            started.with_context(|| format!("network {number}"))?;
        }
        Ok(())
    }

    /// Starts those ends anew that a running replica does not reach, unless that has just failed.
    pub fn mend(&self, exe: &Path, spec: &VmSpec, sockets: &[PathBuf], user: Option<u32>) -> Result<()> {
        let has_just_failed = |socket| lock(&self.failed).get(socket).is_some_and(|at| at.elapsed() < FAILED_PAUSE);
        if sockets.iter().any(has_just_failed) {
            return Ok(());
        }
        let mended = self.ensure(exe, spec, sockets, user);
        let mut failed = lock(&self.failed);
        for socket in sockets {
            match &mended {
                Ok(()) => failed.remove(socket),
                Err(_) => failed.insert(socket.clone(), Instant::now()),
            };
        }
        mended
    }

    fn start(&self, exe: &Path, spec: &VmSpec, number: usize, socket: &Path, user: Option<u32>) -> Result<()> {
        check_socket_path(socket)?;
        private_folder(socket.parent().unwrap_or(Path::new("/")))?;
        let network = spec.networks.get(number).with_context(|| format!("there is no card {number}"))?;
        let config =
            EndConfig { network: network.clone(), lifetime: Lifetime::WithoutClient { limit_s: WITHOUT_CLIENT_S } };
        let log = socket.with_extension("log");
        let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let end = EndProcess::spawn_as(user, exe, &config, socket, Stdio::from(log))?;
        lock(&self.started).insert(socket.to_owned(), end);
        Ok(())
    }

    /// Ends them, whoever has started them.
    pub fn stop(&self, sockets: &[PathBuf]) {
        for socket in sockets {
            let stopped = match lock(&self.started).remove(socket) {
                Some(end) => end.stop(),
                None => end::stop(socket),
            };
            if let Err(error) = stopped {
                tracing::debug!("network end: {error}");
            }
        }
    }
}

/// Has an end that was left from before forward what it is to by now. One of an earlier version does not say what it does.
fn follow(network: Option<&NetworkSpec>, socket: &Path, status: &EndStatus) -> Result<(), ControlError> {
    match (network, &status.forward) {
        (Some(NetworkSpec::User(user)), Some(ports)) if !is_same(ports, &user.forward) => {
            end::forward(socket, &user.forward).map(drop)
        }
        _ => Ok(()),
    }
}

/// Whether these are the same ports, in whatever order.
fn is_same(ports: &[PortForward], others: &[PortForward]) -> bool {
    ports.len() == others.len() && ports.iter().all(|port| others.contains(port))
}

/// Ends by force a network end that listens at a socket and does not answer, whoever has started it.
fn end_silent(socket: &Path) {
    let Ok(connection) = end::dial(socket) else { return };
    let Ok(peer) = socket_peercred(&connection) else { return };
    // Whoever else listens there is not ours.
    let command = fs::read(format!("/proc/{}/cmdline", peer.pid.as_raw_nonzero())).unwrap_or_default();
    let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
    if words.get(1) != Some(&&b"net-end"[..]) || !words.contains(&socket.as_os_str().as_bytes()) {
        return;
    }
    tracing::warn!(
        "the network end at {} (process {}) does not answer and is ended",
        socket.display(),
        peer.pid.as_raw_nonzero()
    );
    let killed = Instant::now();
    if kill_process(peer.pid, Signal::KILL).is_ok() {
        while end::dial(socket).is_ok() && killed.elapsed() < KILL_TIMEOUT {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
