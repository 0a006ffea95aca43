//! The broker's side.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cluster::arbiter::StoreArbiter;
use cluster::records::{Cluster, ClusterState};
use cluster::store::{EtcdKeys, Marker, Store, StoreLocation, Stores, open_vms};
use machine::bus::lock;
use protocol::{Arbiter, Unreachable, Verdict};
use replication::channel;
use terminal::error_text::error_text;

use super::fence;
use super::message::{Answer, Question, Wanted};
use crate::next_store::NextStore;
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
    fence::guard(config)?;
    let place = Arc::new(Place::open(config)?);
    let kept = place.clone();
    let keep_ready = move || loop {
        // A takeover says what is the matter with the store.
        let _ = kept.follow();
        let _ = kept.current().store.keep_ready();
        thread::sleep(READY_INTERVAL);
    };
    thread::Builder::new().name("store".to_owned()).spawn(keep_ready).context("cannot start a thread")?;
    let connector = Connector { place: place.clone() };
    let connect = move || {
        while let Ok(Some((wanted, _))) = receive::<Wanted>(&connections) {
            let (answer, socket) = match connector.connect(&wanted) {
                Ok(socket) => (Connected::Yes, Some(socket)),
                Err(error) => (Connected::No { message: shortened(&error_text(&error)) }, None),
            };
            if send(&connections, &answer, socket.as_ref().map(AsFd::as_fd)).is_err() {
                break;
            }
        }
    };
    thread::Builder::new().name("connections".to_owned()).spawn(connect).context("cannot start a thread")?;
    while let Some((question, _)) = receive::<Question>(&claim)? {
        send(&claim, &answer(place.ask(&question)), None)?;
    }
    Ok(())
}

/// The store that a replica arbitrates by, which may be moved while it runs.
struct Place {
    config: ReplicaConfig,
    current: Mutex<Current>,
}

/// Where it is.
#[derive(Clone)]
struct Current {
    location: StoreLocation,
    keys: Option<EtcdKeys>,
    store: Arc<dyn Store>,
}

impl Current {
    fn open(location: &StoreLocation, keys: Option<&EtcdKeys>) -> Result<Self> {
        Ok(Self { location: location.clone(), keys: keys.cloned(), store: open_vms(location, keys)? })
    }
}

impl Place {
    fn open(config: &ReplicaConfig) -> Result<Self> {
        let current = Mutex::new(Current::open(&config.store, config.store_keys.as_ref())?);
        Ok(Self { config: config.clone(), current })
    }

    fn current(&self) -> Current {
        lock(&self.current).clone()
    }

    /// Goes where the store was moved to, as the old one says; whether it was.
    fn follow(&self) -> Result<bool> {
        let current = self.current();
        let StoreLocation::File(_) = current.location else { return Ok(false) };
        let Some(marker) = Marker::of(&*current.store)?.filter(Marker::is_over) else { return Ok(false) };
        let host_folder =
            self.config.folder.parent().and_then(Path::parent).context("the VM's folder is in no host's")?;
        let next = NextStore::of(host_folder, &marker)?;
        *lock(&self.current) = Current::open(&next.store, next.store_keys.as_ref())?;
        Ok(true)
    }

    fn ask(&self, question: &Question) -> Result<Answer, Unreachable> {
        let ask = || ask(&StoreArbiter::new(self.current().store, &self.config.vm), question);
        ask().or_else(|error| match self.follow() {
            Ok(true) => ask(),
            Ok(false) => Err(error),
            Err(why) => Err(Unreachable(error_text(&why))),
        })
    }
}

fn ask(arbiter: &StoreArbiter, question: &Question) -> Result<Answer, Unreachable> {
    match question {
        Question::Read => arbiter.read().map(|claim| Answer::Claim { claim }),
        Question::Swap { expected, new } => arbiter.compare_and_swap(*expected, new).map(|verdict| match verdict {
            Verdict::Won => Answer::Won,
            Verdict::Lost(claim) => Answer::Claim { claim },
        }),
    }
}

fn answer(answer: Result<Answer, Unreachable>) -> Answer {
    answer.unwrap_or_else(|error| Answer::Unreachable { message: shortened(&error.0) })
}

/// What fits into a message, whoever has written it: a replica that gets none ends.
fn shortened(text: &str) -> String {
    let length = (0..=TEXT_BYTES_MAX).rev().find(|&length| text.is_char_boundary(length)).unwrap_or(0);
    text.get(..length).filter(|_| text.len() > TEXT_BYTES_MAX).unwrap_or(text).to_owned()
}

/// Makes the connections that this replica may have.
struct Connector {
    place: Arc<Place>,
}

impl Connector {
    fn connect(&self, wanted: &Wanted) -> Result<OwnedFd> {
        match wanted {
            Wanted::End { number } => {
                let path =
                    self.place.config.network_ends.get(*number).ok_or_else(|| anyhow!("there is no card {number}"))?;
                Ok(network::end::dial(path)?)
            }
            Wanted::Secondary { address } => self.secondary(*address),
        }
    }

    /// Secondaries are on hosts of the cluster: nobody else is connected to.
    fn secondary(&self, address: SocketAddr) -> Result<OwnedFd> {
        let Current { location, keys, .. } = self.place.current();
        let mut state = ClusterState::default();
        Cluster::new(Stores::open(&location, keys.as_ref())?).refresh_hosts(&mut state)?;
        let hosts = state.hosts;
        if !hosts.iter().any(|host| host.replication_ip == address.ip()) {
            bail!("no host of the cluster has the address {}", address.ip());
        }
        Ok(channel::dial(address, CONNECT_TIMEOUT)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use cluster::records::{FtSettings, StoreMove, VmRecord};
    use protocol::Claim;
    use spec::{HostName, ReplicaId};

    use super::*;

    /// A name that no VM can have is in the store's answer as it was asked for.
    #[test]
    fn an_error_of_any_length_reaches_the_replica() {
        let folder = tempfile::tempdir().unwrap();
        let stores = Stores::create(&StoreLocation::File(folder.path().join("cluster.db")), None).unwrap();
        let (broker, replica) = UnixDatagram::pair().unwrap();
        for letter in ["x", "\u{1}", "\u{20ac}"] {
            let arbiter = StoreArbiter::new(stores.vms.clone(), &letter.repeat(50_000));
            send(&broker, &answer(ask(&arbiter, &Question::Read)), None).unwrap();
            match receive::<Answer>(&replica).unwrap() {
                Some((Answer::Unreachable { message }, _)) => {
                    assert!((1_000..=TEXT_BYTES_MAX).contains(&message.len()))
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(shortened("short"), "short");
    }

    /// While it is being moved nobody wins; when that is over, its own host's folder says how to go on.
    #[test]
    fn a_replica_goes_where_its_store_was_moved_to() {
        let folder = tempfile::tempdir().unwrap();
        let location = |name: &str| StoreLocation::File(folder.path().join(name));
        let (old, new) = (location("old.db"), location("new.db"));
        let open = |location: &StoreLocation| Stores::create(location, None).unwrap();
        let host: HostName = "a".parse().unwrap();
        let spec = "name = \"v\"\nmemory = \"128M\"\nkernel = \"k\"\n";
        let vm = VmRecord::new("v".parse().unwrap(), spec.to_owned(), FtSettings::disabled(100, 50), 0);
        Cluster::new(open(&old)).found(&host).unwrap();
        let first = Cluster::new(open(&old)).create_vm(&vm, &host).unwrap();
        let config = serde_json::json!({
            "vm": "v", "host": "a", "spec": spec, "role": "primary", "engine": "soft", "store": old,
            "folder": folder.path().join("vms/v"), "network_ends": []
        });
        let place = Place::open(&serde_json::from_value(config).unwrap()).unwrap();
        let swap = |expected: &Claim| {
            let generation = expected.generation.next();
            let new = Claim { generation, primary: ReplicaId::new("b"), secondary: None };
            (new.clone(), answer(place.ask(&Question::Swap { expected: expected.generation, new })))
        };
        let mover = StoreMove::new(open(&old), open(&new).vms, new.to_string(), host);
        mover.run("1", |step| step < cluster::records::MoveStep::Copied).unwrap();
        let (_, refused) = swap(&first);
        assert!(matches!(refused, Answer::Unreachable { message } if message.contains("is being moved")));
        mover.run("2", |_| true).unwrap();
        let (_, refused) = swap(&first);
        assert!(
            matches!(refused, Answer::Unreachable { message } if message.contains("migrate-store")),
            "without keys"
        );
        NextStore { store: new.clone(), store_keys: None }.save(folder.path()).unwrap();
        let (second, won) = swap(&first);
        assert!(matches!(won, Answer::Won));
        assert_eq!(Cluster::new(open(&new)).claim(&"v".parse().unwrap()).unwrap().claim, second);
        assert!(matches!(answer(place.ask(&Question::Read)), Answer::Claim { claim } if claim == second));
    }
}
