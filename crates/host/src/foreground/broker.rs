//! The process beside a VM in the foreground that does for it what the VM's own may not once it is confined: it has the network ends, connects to them, and
//! removes their sockets, and the one for requests, when the VM is gone, by whatever. All that it is told is the number of a card. It is confined before it
//! hears the first: to the folder with these sockets, and to what ends processes that it has started.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use terminal::error_text::error_text;

use anyhow::{Context, Result, anyhow, bail};
use machine::devices::virtio::net::NetConfig;
use network::{Attach, FrameBackend, Link};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use spec::{NetworkSpec, VmSpec};

use super::open::{self, Cards, Ends};
use crate::passing::{Connected, receive, send};
use crate::paths;
use crate::sandbox::{Confinement, Kind};

/// What the process is told at its start.
#[derive(Debug, Serialize, Deserialize)]
pub struct BrokerConfig {
    /// The VM's name.
    name: String,
    /// Its networks.
    networks: Vec<NetworkSpec>,
    /// The socket for requests to it.
    requests: PathBuf,
}

/// The VM's side.
pub struct Broker {
    /// None when the process is to end.
    socket: Option<OwnedFd>,
    child: Child,
    cards: Vec<NetConfig>,
}

impl Broker {
    /// Starts the process, which starts a network end for each network of the spec.
    pub fn start(spec: &VmSpec, requests: &Path) -> Result<Self> {
        let config =
            BrokerConfig { name: spec.name.clone(), networks: spec.networks.clone(), requests: requests.to_owned() };
        let (socket, its_socket) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // The very program that runs. It takes a session of its own, so that Ctrl-C in the terminal does not reach it.
        let child = Command::new("/proc/self/exe")
            .arg0("twinvm")
            .args(["run-broker", "--config"])
            .arg(serde_json::to_string(&config)?)
            .stdin(its_socket)
            .spawn()
            .context("cannot start the process for the network")?;
        let broker = Self { socket: Some(socket), child, cards: open::cards(&spec.name, &spec.networks) };
        broker.connected()?;
        Ok(broker)
    }

    /// Connects a VM to its network ends, in place of the one before, if any.
    pub fn connect(&self) -> Result<Cards> {
        let connect = |(number, card): (usize, &NetConfig)| {
            let socket = self.socket.as_ref().context("the process for the network is gone")?;
            send(socket, &number, None)?;
            let connection = self.connected()?.context("a network end without a connection to it")?;
            let link = Link::over(connection, Path::new("the network end"), &Attach::default())?;
            Ok((NetConfig { mtu: link.mtu(), ..*card }, Box::new(link) as Box<dyn FrameBackend>))
        };
        self.cards.iter().enumerate().map(connect).collect()
    }

    fn connected(&self) -> Result<Option<OwnedFd>> {
        let socket = self.socket.as_ref().context("the process for the network is gone")?;
        match receive(socket)?.context("the process for the network has ended")? {
            (Connected::Yes, fd) => Ok(fd),
            (Connected::No { message }, _) => bail!(message),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.socket = None;
        // The next VM of this name finds its sockets gone.
        let _ = self.child.wait();
    }
}

/// Leaves this process, which must not have more threads than one, what [`serve`] does once the network ends are there. The VM says what the machine's kernel
/// does not have, as it confines itself too.
fn confine(config: &BrokerConfig) -> Result<()> {
    let folders = [Some(paths::runtime_dir()?), config.requests.parent().map(PathBuf::from)];
    let writable = folders.into_iter().flatten().collect();
    let confinement = Confinement { kind: Kind::RunBroker, user: None, readable: Vec::new(), writable };
    confinement.enter().map(drop).context("the process for the network cannot be confined")
}

/// Serves the VM that `socket` leads to, until that is gone.
pub fn serve(config: &BrokerConfig, socket: impl AsFd) -> Result<()> {
    let no = |error: anyhow::Error| Connected::No { message: error_text(&error) };
    let ends = match Ends::start(&config.name, &config.networks).and_then(|ends| confine(config).map(|()| ends)) {
        Ok(ends) => ends,
        Err(error) => return send(&socket, &no(error), None),
    };
    send(&socket, &Connected::Yes, None)?;
    while let Ok(Some((number, _))) = receive::<usize>(&socket) {
        let end = ends.socket(number).ok_or_else(|| anyhow!("there is no card {number}"));
        let (answer, connection) = match end.and_then(|end| Ok(network::end::dial(end)?)) {
            Ok(connection) => (Connected::Yes, Some(connection)),
            Err(error) => (no(error), None),
        };
        if send(&socket, &answer, connection.as_ref().map(AsFd::as_fd)).is_err() {
            break;
        }
    }
    drop(ends);
    // Unless another VM of that name is faster, after this one was killed.
    if UnixStream::connect(&config.requests).is_err() {
        let _ = fs::remove_file(&config.requests);
    }
    Ok(())
}
