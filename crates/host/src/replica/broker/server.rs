//! The broker's side.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cluster::arbiter::StoreArbiter;
use cluster::records::Cluster;
use cluster::store::{Stores, open_vms};
use protocol::{Arbiter, Verdict};
use replication::channel;

use super::message::{Answer, Question, Wanted};
use crate::passing::{Connected, receive, send};
use crate::replica::config::ReplicaConfig;

/// How often it is seen to that a takeover does not wait for the store to get ready.
const READY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a secondary may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much a replica is told of what is wrong, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// Serves the replica with this configuration: `claim` and `connections` lead to it. Returns when it is gone.
pub fn serve(config: &ReplicaConfig, claim: impl AsFd, connections: OwnedFd) -> Result<()> {
    let store = open_vms(&config.store, config.store_keys.as_ref())?;
    let arbiter = StoreArbiter::new(store.clone(), &config.vm);
    let keep_ready = move || loop {
        // A takeover says what is the matter with the store.
        let _ = store.keep_ready();
        thread::sleep(READY_INTERVAL);
    };
    thread::Builder::new().name("store".to_owned()).spawn(keep_ready).context("cannot start a thread")?;
    let connector = Connector { config: config.clone() };
    let connect = move || {
        while let Ok(Some((wanted, _))) = receive::<Wanted>(&connections) {
            let (answer, socket) = match connector.connect(&wanted) {
                Ok(socket) => (Connected::Yes, Some(socket)),
                Err(error) => (Connected::No { message: shortened(&format!("{error:#}")) }, None),
            };
            if send(&connections, &answer, socket.as_ref().map(AsFd::as_fd)).is_err() {
                break;
            }
        }
    };
    thread::Builder::new().name("connections".to_owned()).spawn(connect).context("cannot start a thread")?;
    while let Some((question, _)) = receive::<Question>(&claim)? {
        send(&claim, &answer(&arbiter, &question), None)?;
    }
    Ok(())
}

fn answer(arbiter: &StoreArbiter, question: &Question) -> Answer {
    let answer = match question {
        Question::Read => arbiter.read().map(|claim| Answer::Claim { claim }),
        Question::Swap { expected, new } => arbiter.compare_and_swap(*expected, new).map(|verdict| match verdict {
            Verdict::Won => Answer::Won,
            Verdict::Lost(claim) => Answer::Claim { claim },
        }),
    };
    answer.unwrap_or_else(|error| Answer::Unreachable { message: shortened(&error.0) })
}

/// What fits into a message, whoever has written it: a replica that gets none ends.
fn shortened(text: &str) -> String {
    let length = (0..=TEXT_BYTES_MAX).rev().find(|&length| text.is_char_boundary(length)).unwrap_or(0);
    text.get(..length).filter(|_| text.len() > TEXT_BYTES_MAX).unwrap_or(text).to_owned()
}

/// Makes the connections that this replica may have.
struct Connector {
    config: ReplicaConfig,
}

impl Connector {
    fn connect(&self, wanted: &Wanted) -> Result<OwnedFd> {
        match wanted {
            Wanted::End { number } => {
                let path = self.config.network_ends.get(*number).ok_or_else(|| anyhow!("there is no card {number}"))?;
                Ok(network::end::dial(path)?)
            }
            Wanted::Secondary { address } => self.secondary(*address),
        }
    }

    /// Secondaries are on hosts of the cluster: nobody else is connected to.
    fn secondary(&self, address: SocketAddr) -> Result<OwnedFd> {
        let hosts = Cluster::new(Stores::open(&self.config.store, self.config.store_keys.as_ref())?).hosts()?;
        if !hosts.iter().any(|host| host.replication_ip == address.ip()) {
            bail!("no host of the cluster has the address {}", address.ip());
        }
        Ok(channel::dial(address, CONNECT_TIMEOUT)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use cluster::store::StoreLocation;

    use super::*;

    /// A name that no VM can have is in the store's answer as it was asked for.
    #[test]
    fn an_error_of_any_length_reaches_the_replica() {
        let folder = tempfile::tempdir().unwrap();
        let stores = Stores::create(&StoreLocation::File(folder.path().join("cluster.db")), None).unwrap();
        let (broker, replica) = UnixDatagram::pair().unwrap();
        for letter in ["x", "\u{1}", "\u{20ac}"] {
            let arbiter = StoreArbiter::new(stores.vms.clone(), &letter.repeat(50_000));
            send(&broker, &answer(&arbiter, &Question::Read), None).unwrap();
            match receive::<Answer>(&replica).unwrap() {
                Some((Answer::Unreachable { message }, _)) => {
                    assert!((1_000..=TEXT_BYTES_MAX).contains(&message.len()))
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(shortened("short"), "short");
    }
}
