//! The replica's side.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use machine::bus::lock;
use protocol::{Arbiter, Claim, Generation, Unreachable, Verdict};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use terminal::error_text::error_text;

use super::message::{Answer, Question, Wanted};
use crate::passing::{Connected, receive, send};

/// A replica's connection to its broker.
pub struct Broker {
    claim: Mutex<OwnedFd>,
    connections: Mutex<OwnedFd>,
}

impl Broker {
    /// Starts the broker of the replica with this configuration, and returns its process as well.
    pub fn start(config: &Path) -> Result<(Self, Child)> {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let ((claim, its_claim), (connections, its_connections)) = (pair()?, pair()?);
        // The very program that runs: an upgrade may have replaced its file.
        let child = Command::new("/proc/self/exe")
            .arg0("twinvm")
            .arg("broker")
            .arg("--config")
            .arg(config)
            .stdin(its_claim)
            .stdout(its_connections)
            .spawn()
            .context("cannot start the broker")?;
        Ok((Self { claim: Mutex::new(claim), connections: Mutex::new(connections) }, child))
    }

    /// Calls `lost` when the broker ends before the replica does: it cannot be started again.
    pub fn watch(mut child: Child, lost: impl FnOnce(String) + Send + 'static) -> Result<()> {
        let watch = move || match child.wait() {
            Ok(status) => lost(format!("its broker has ended ({status})")),
            Err(error) => lost(format!("its broker cannot be waited for: {error}")),
        };
        thread::Builder::new().name("broker".to_owned()).spawn(watch).context("cannot start a thread")?;
        Ok(())
    }

    /// Connects to the network end of a card.
    pub fn end(&self, number: usize) -> Result<OwnedFd> {
        self.connect(&Wanted::End { number })
    }

    /// Connects to the secondary that listens at an address.
    pub fn secondary(&self, address: SocketAddr) -> Result<TcpStream> {
        self.connect(&Wanted::Secondary { address }).map(TcpStream::from)
    }

    fn connect(&self, wanted: &Wanted) -> Result<OwnedFd> {
        let socket = lock(&self.connections);
        send(&*socket, wanted, None).context("the broker is gone")?;
        match receive(&*socket)?.context("the broker is gone")? {
            (Connected::Yes, Some(fd)) => Ok(fd),
            (Connected::Yes, None) => bail!("the broker's answer makes no sense"),
            (Connected::No { message }, _) => bail!(message),
        }
    }

    fn ask(&self, question: &Question) -> Result<Answer> {
        let socket = lock(&self.claim);
        send(&*socket, question, None)?;
        Ok(receive(&*socket)?.ok_or_else(|| anyhow!("the broker is gone"))?.0)
    }
}

impl Arbiter for Broker {
    fn read(&self) -> Result<Claim, Unreachable> {
        match self.ask(&Question::Read) {
            Ok(Answer::Claim { claim }) => Ok(claim),
            other => Err(unreachable(other)),
        }
    }

    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        match self.ask(&Question::Swap { expected, new: new.clone() }) {
            Ok(Answer::Won) => Ok(Verdict::Won),
            Ok(Answer::Claim { claim }) => Ok(Verdict::Lost(claim)),
            other => Err(unreachable(other)),
        }
    }
}

fn unreachable(answer: Result<Answer>) -> Unreachable {
    Unreachable(match answer {
        Ok(Answer::Unreachable { message }) => message,
        Ok(other) => format!("the broker's answer makes no sense: {other:?}"),
        Err(error) => error_text(&error),
    })
}
