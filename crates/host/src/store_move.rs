//! Moving the cluster's store from one machine's files to etcd, with VMs running: `twinvm cluster migrate-store`, and how daemons follow.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cluster::records::{BootTime, Cluster, ClusterState, HostRecord, MoveStep, Power, StoreMove, VmState};
use cluster::store::{EtcdAddress, EtcdKeys, Marker, StoreLocation, Stores, open_vms};
use replication::channel::KeyRequest;
use spec::HostName;
use storage::durable::{self, Readers};

use super::config::HostConfig;
use super::etcd_access::{EtcdAdministrator, forget_credentials, keys_of, unpack_setup, write_credentials};
use super::etcd_setup::address_of;
use super::folder::HostFolder;
use super::network_ends::shared_folder;
use super::next_store::NextStore;
use super::token::random_text;

/// How long daemons that run may take to go on with the new store.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked whether they have, or whether the cluster is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where the store is to go.
#[derive(Clone, Debug)]
pub enum Target {
    /// The etcd that `twinvm cluster etcd` has set up, by its folder: each host gets rights of its own there.
    Setup(PathBuf),
    /// Another etcd, with the same keys for all hosts.
    Etcd(EtcdAddress, Option<EtcdKeys>),
}

impl Target {
    fn address(&self) -> Result<EtcdAddress> {
        match self {
            Self::Etcd(address, _) => Ok(address.clone()),
            Self::Setup(setup) => match address_of(setup)?.parse().map_err(|error: String| anyhow!(error))? {
                StoreLocation::Etcd(address) => Ok(address),
                StoreLocation::File(path) => bail!("{} is not etcd", path.display()),
            },
        }
    }
}

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Where the store is now.
    pub store: StoreLocation,
    /// Hosts whose daemons go on there.
    pub hosts: Vec<String>,
    /// Hosts whose daemons did not run: they go there when they are started.
    pub away: Vec<String>,
    /// Hosts whose daemons ran, and are not there yet.
    pub late: Vec<String>,
}

/// Moves the store of the cluster whose first host this is. What was interrupted is gone on with.
///
/// # Errors
/// If a host is not as it must be, or one of the stores does not answer. Nothing has changed unless it says that the store is being moved.
pub fn migrate(folder: &HostFolder, target: &Target, mut progress: impl FnMut(MoveStep)) -> Result<Migrated> {
    let config = HostConfig::load(folder)?;
    let address = target.address()?;
    let to = StoreLocation::Etcd(address.clone());
    if config.store == to {
        // It is over, and this host has followed.
        return wait_for_hosts(&config.store, config.store_keys.as_ref(), &[], &[]);
    }
    let StoreLocation::File(_) = &config.store else { bail!("the store of this cluster is {} already", config.store) };
    if !folder.authority().is_dir() {
        bail!(
            "host {} has not made the cluster: give this command on the host with the folder `authority`",
            config.name
        );
    }
    let from = Stores::open(&config.store, None)?;
    let marker = Marker::of(&*from.vms)?;
    if marker.is_none() {
        refuse_under_lease(&Cluster::new(from.clone()).state()?)?;
    }
    // Without the VMs, which may be there no more.
    let mut state = ClusterState::default();
    Cluster::new(from.clone()).refresh_hosts(&mut state)?;
    let (hosts, now) = (state.hosts, BootTime::now().context("there is no clock")?);
    let names = |is_running: bool| -> Vec<String> {
        let those = hosts.iter().filter(|host| host.is_alive(&now) == is_running);
        those.map(|host| host.name.to_string()).collect()
    };
    let (ran, away) = (names(true), names(false));
    let keys = match &marker {
        Some(marker) if marker.is_over() => NextStore::of(folder.path(), marker)?.store_keys,
        _ => prepare(folder, &config, target, &address, &hosts)?,
    };
    let into = Stores::open(&to, keys.as_ref()).context("the new store")?;
    let made_by: HostName = config.name.parse()?;
    StoreMove::new(from, into.vms, to.to_string(), made_by).run(&random_text()?, |step| {
        progress(step);
        true
    })?;
    wait_for_hosts(&to, keys.as_ref(), &ran, &away)
}

/// A run lease is one store's: in the other one VMs would look as if their hosts were lost.
fn refuse_under_lease(state: &ClusterState) -> Result<()> {
    let is_under_lease = |vm: &&VmState| vm.record.power == Power::On && vm.claim.under_lease;
    match state.vms.iter().find(is_under_lease) {
        Some(vm) => bail!(
            "VM {0} runs with high availability, under a lease in this store: stop it for the move, with `twinvm vm stop {0}`",
            vm.record.name
        ),
        None => Ok(()),
    }
}

/// Undoes a move that is not over; where it was to go.
///
/// # Errors
/// If nothing is being moved, or it is over.
pub fn abort(folder: &HostFolder) -> Result<String> {
    let config = HostConfig::load(folder)?;
    let StoreLocation::File(_) = &config.store else { bail!("the store of this cluster is {} already", config.store) };
    Ok(StoreMove::abort(&Stores::open(&config.store, None)?)?)
}

/// Gives each host what it is let in with by the new store; what this one is.
fn prepare(
    folder: &HostFolder,
    config: &HostConfig,
    target: &Target,
    address: &EtcdAddress,
    hosts: &[HostRecord],
) -> Result<Option<EtcdKeys>> {
    let own: HostName = config.name.parse()?;
    let mut folders = Vec::new();
    // All are looked at before anything is changed.
    for host in hosts {
        let other = HostFolder::find(Some(&host.folder))?;
        let found = HostConfig::load(&other).with_context(|| format!("host {}", host.name))?;
        if found.name != *host.name || found.store != config.store {
            bail!("{} is not the folder of host {} of this cluster", other.path().display(), host.name);
        }
        if host.version != env!("CARGO_PKG_VERSION") {
            bail!(
                "host {} runs version {}: upgrade it to {} first",
                host.name,
                host.version,
                env!("CARGO_PKG_VERSION")
            );
        }
        folders.push((host.name.clone(), other));
    }
    let save = |other: &HostFolder, keys: Option<EtcdKeys>| {
        NextStore { store: StoreLocation::Etcd(address.clone()), store_keys: keys }.save(other.path())
    };
    if let Target::Etcd(_, keys) = target {
        folders.iter().try_for_each(|(_, other)| save(other, keys.clone()))?;
        save(folder, keys.clone())?;
        return Ok(keys.clone());
    }
    let Target::Setup(setup) = target else { return Ok(None) };
    // What an earlier attempt has left.
    folders.iter().try_for_each(|(_, other)| forget_credentials(other))?;
    let password = unpack_setup(folder, setup)?;
    let administrator = EtcdAdministrator::of(folder, address)?.context("the folder of etcd's authority is missing")?;
    administrator.begin(&own, &password)?;
    for (name, other) in folders.iter().filter(|(name, _)| *name != own) {
        let request = KeyRequest::of_host(&other.keys())?;
        write_credentials(&other.keys(), &administrator.admit(address, name, request.request())?)?;
        save(other, keys_of(other, address, name))?;
    }
    let keys = keys_of(folder, address, &own);
    save(folder, keys.clone())?;
    Ok(keys)
}

/// Waits until the daemons that ran before go on with the new store, and says which of those that were away do.
fn wait_for_hosts(store: &StoreLocation, keys: Option<&EtcdKeys>, ran: &[String], away: &[String]) -> Result<Migrated> {
    let cluster = Cluster::new(Stores::open(store, keys)?);
    let deadline = Instant::now() + FOLLOW_TIMEOUT;
    loop {
        let now = BootTime::now().context("there is no clock")?;
        let found = cluster.hosts()?;
        let hosts: Vec<String> =
            found.iter().filter(|host| host.is_alive(&now)).map(|host| host.name.to_string()).collect();
        let missing = |names: &[String]| names.iter().filter(|name| !hosts.contains(name)).cloned().collect::<Vec<_>>();
        let (late, away) = (missing(ran), missing(away));
        if late.is_empty() || Instant::now() > deadline {
            return Ok(Migrated { store: store.clone(), hosts, away, late });
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// The configuration of a host whose cluster's store may have been moved since it was written: it is written anew then.
///
/// # Errors
/// If this host cannot go on with the new store, or the cluster is not there yet.
pub fn follow(folder: &HostFolder, config: HostConfig) -> Result<HostConfig> {
    // One that cannot be opened says so to whoever uses it.
    let StoreLocation::File(_) = &config.store else { return Ok(config) };
    let Ok(vms) = open_vms(&config.store, None) else { return Ok(config) };
    let deadline = Instant::now() + FOLLOW_TIMEOUT;
    let marker = loop {
        match Marker::of(&*vms)? {
            None => return Ok(config),
            Some(marker) if marker.is_over() => break marker,
            Some(marker) if Instant::now() > deadline => bail!(
                "the cluster store is being moved to {}, and that does not end: give `twinvm cluster migrate-store` again, or with --abort",
                marker.to
            ),
            Some(_) => thread::sleep(LOOK_INTERVAL),
        }
    };
    let next = NextStore::of(folder.path(), &marker)?;
    let into =
        Stores::open(&next.store, next.store_keys.as_ref()).context("the store that the cluster was moved to")?;
    if folder.authority().is_dir() {
        // Whoever moved it may not have come to that.
        let from = Stores::open(&config.store, None)?;
        StoreMove::new(from, into.vms, marker.to.clone(), config.name.parse()?).run(&marker.id, |_| true)?;
    } else {
        let (cluster, deadline) = (Cluster::new(into), Instant::now() + FOLLOW_TIMEOUT);
        while !cluster.is_made()? {
            if Instant::now() > deadline {
                bail!(
                    "the cluster store was moved to {}, which does not say so: start the daemon of the host with the folder `authority`",
                    marker.to
                );
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
    let followed = HostConfig {
        // What hosts of one machine share, and fail together with, stays what it was.
        domain: config.failure_domain()?,
        shared_ends: Some(shared_folder(&config)?),
        store: next.store,
        store_keys: next.store_keys,
        ..config
    };
    let path = folder.config();
    durable::write(&path, followed.to_toml()?.as_bytes(), Readers::Owner)
        .with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!("the cluster store was moved to {}, and so is it for this host", marker.to);
    Ok(followed)
}

/// Whether the store of a host is being moved, or has been.
pub fn is_moving(store: &StoreLocation) -> bool {
    let StoreLocation::File(_) = store else { return false };
    open_vms(store, None).and_then(|vms| Marker::of(&*vms)).is_ok_and(|marker| marker.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{InitOptions, Keys, init};

    #[test]
    fn a_host_does_not_go_where_it_has_no_keys_for() {
        let folder = tempfile::tempdir().unwrap();
        let host = HostFolder::find(Some(&folder.path().join("a"))).unwrap();
        let options = InitOptions {
            keys: Keys::NewCluster,
            name: Some("a".to_owned()),
            listen: ([127, 0, 0, 1], 0).into(),
            metrics: None,
            store: Some(StoreLocation::File(folder.path().join("old.db"))),
            store_keys: None,
            etcd_setup: None,
            vm_folders: Vec::new(),
            networks: Vec::new(),
            domain: None,
        };
        let config = init(&host, &options).unwrap();
        assert_eq!(follow(&host, config.clone()).unwrap(), config);
        assert!(!is_moving(&config.store));
        assert!(abort(&host).unwrap_err().to_string().contains("is not being moved"));
        // Another file takes etcd's place.
        let into = Stores::create(&StoreLocation::File(folder.path().join("new.db")), None).unwrap().vms;
        let from = Stores::open(&config.store, None).unwrap();
        StoreMove::new(from, into, "etcd://b:2379".to_owned(), "a".parse().unwrap()).run("1", |_| true).unwrap();
        assert!(is_moving(&config.store));
        let refused = || follow(&host, config.clone()).unwrap_err().to_string();
        assert!(refused().contains("no keys for it") && refused().contains("migrate-store"), "{}", refused());
        let elsewhere = "etcd://c:2379".parse().unwrap();
        NextStore { store: elsewhere, store_keys: None }.save(host.path()).unwrap();
        assert!(refused().contains("was moved to etcd://b:2379") && refused().contains("is for etcd://c:2379"));
        assert_eq!(HostConfig::load(&host).unwrap(), config, "nothing has changed");
        assert!(abort(&host).unwrap_err().to_string().contains("has been moved to etcd://b:2379"));
    }
}
