//! Making a host, and the keys of further ones.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use cluster::records::{Cluster, ClusterError};
use cluster::store::{EtcdKeys, StoreLocation, Stores};
use replication::channel::{self, KeyRequest};
use spec::{FailureDomain, HostName};

use super::bundle::Bundle;
use super::config::{HostConfig, check_host_name, first_copies_max_default, vm_uids_default};
use super::etcd_access::{EtcdAdministrator, keys_of, unpack_setup, write_credentials};
use super::etcd_setup::address_of;
use super::folder::{HostFolder, check_free, new_private_folder, private_folder};
use super::join::join;
use super::operator;
use super::registry::open_cluster;
use super::token::Token;
use crate::paths;
use crate::replica::config::{EPOCH_MS_MAX_DEFAULT, LAG_MS_MAX_DEFAULT, SUSPICION_MS_DEFAULT};

/// Where a new host's keys come from.
pub enum Keys {
    /// It makes a cluster, and signs the keys of every further host.
    NewCluster,
    /// From a host that has made a cluster.
    Bundle(PathBuf),
    /// From a host that signs them, by a token of its.
    Token(Token),
}

/// How to make a host.
pub struct InitOptions {
    /// Where its keys come from.
    pub keys: Keys,
    /// Its name; from the bundle or from the machine if none.
    pub name: Option<String>,
    /// Where its API listens.
    pub listen: SocketAddr,
    /// Where its metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The cluster store; from the bundle, or a new one in the host's folder, if none.
    pub store: Option<StoreLocation>,
    /// The keys for it, if it is in etcd.
    pub store_keys: Option<EtcdKeys>,
    /// For a new cluster: the folder with the setup of its etcd, which names the store and has the keys for it.
    pub etcd_setup: Option<PathBuf>,
    /// Folders below which VM specs may name files.
    pub vm_folders: Vec<PathBuf>,
    /// Bridges that VMs can be connected to.
    pub networks: Vec<String>,
    /// What the host fails together with; see [`HostConfig::failure_domain`].
    pub domain: Option<FailureDomain>,
}

/// Makes a host in a folder that is not there or empty. Leaves nothing behind when it fails.
pub fn init(folder: &HostFolder, options: &InitOptions) -> Result<HostConfig> {
    let bundle = match &options.keys {
        Keys::NewCluster => None,
        Keys::Bundle(path) => Some(Bundle::load(path)?),
        Keys::Token(token) => {
            // The token is used up by asking: what can go wrong here goes wrong before.
            check_free(folder.path())?;
            let name = options.name.clone().map_or_else(machine_name, Ok)?;
            let anywhere = StoreLocation::File(folder.path().to_owned());
            HostConfig { store_keys: None, ..config(name.clone(), anywhere, options)? }.validate()?;
            Some(join(token, &name)?)
        }
    };
    let name = match (&options.name, &bundle) {
        (Some(name), Some(bundle)) if *name != bundle.host => {
            bail!(
                "the bundle is for host {}, not for {name}: issue another with `twinvm host issue {name}`",
                bundle.host
            )
        }
        (_, Some(bundle)) => bundle.host.clone(),
        (Some(name), None) => name.clone(),
        (None, None) => machine_name()?,
    };
    let store = match (&options.store, &bundle) {
        _ if options.etcd_setup.is_some() && bundle.is_none() => setup_location(options)?,
        (Some(StoreLocation::File(path)), _) => StoreLocation::File(std::path::absolute(path)?),
        (Some(store), _) => store.clone(),
        (None, Some(bundle)) => bundle.store.clone(),
        (None, None) => StoreLocation::File(folder.path().join("cluster.db")),
    };
    let mut config = config(name, store, options)?;
    config.validate()?;
    // A store of another cluster would have two authorities.
    if bundle.is_none()
        && let Some(found) = config.store.files().iter().find(|file| file.exists())
    {
        bail!(
            "{} is of the store of a cluster already: join that cluster with `twinvm host join` or --bundle, or choose another file with --store",
            found.display()
        );
    }
    if folder.config().exists() {
        bail!("{} holds a host already: choose another folder with --dir", folder.path().display());
    }
    new_private_folder(folder.path())?;
    let made = write(folder, &mut config, bundle.as_ref(), options.etcd_setup.as_deref()).and_then(|()| match bundle {
        // It comes last: what fails before leaves nothing in the store.
        None => make_store(&config),
        Some(_) => see_store(&config),
    });
    if made.is_err() {
        // Whatever is there was made just now: the folder was empty.
        let _ = fs::remove_dir_all(folder.path());
    }
    made.map(|()| config)
}

/// What `host.toml` is to say.
fn config(name: String, store: StoreLocation, options: &InitOptions) -> Result<HostConfig> {
    Ok(HostConfig {
        name,
        listen: options.listen,
        metrics: options.metrics,
        store,
        images: std::path::absolute(paths::images_dir()?)?,
        vm_folders: options.vm_folders.iter().map(std::path::absolute).collect::<Result<_, _>>()?,
        domain: options.domain.clone(),
        shared_ends: None,
        networks: options.networks.clone(),
        datastores: Vec::new(),
        memory: None,
        cpus: None,
        suspicion_ms: SUSPICION_MS_DEFAULT,
        suspicion_ms_min: None,
        epoch_ms_max: EPOCH_MS_MAX_DEFAULT,
        lag_ms_max: LAG_MS_MAX_DEFAULT,
        first_copies_max: first_copies_max_default(),
        vm_uids: vm_uids_default(),
        require_sandbox: false,
        store_keys: options.store_keys.clone(),
    })
}

fn write(folder: &HostFolder, config: &mut HostConfig, bundle: Option<&Bundle>, setup: Option<&Path>) -> Result<()> {
    match bundle {
        Some(bundle) => bundle.unpack(&folder.keys())?,
        None => {
            channel::create_authority(&folder.authority())?;
            channel::issue(&folder.authority(), &config.name, &folder.keys())?;
        }
    }
    find_etcd_keys(folder, config, setup.filter(|_| bundle.is_none()))?;
    // What cannot be used later is refused now.
    let identity = channel::Identity::load(&folder.keys()).context("the keys cannot be used")?;
    if identity.peer().host() != Some(&config.name) {
        bail!("the certificate is for {}, not for host {}", identity.peer(), config.name);
    }
    private_folder(&folder.vms())?;
    private_folder(&folder.files())?;
    let path = folder.config();
    fs::write(&path, config.to_toml()?).with_context(|| format!("cannot write {}", path.display()))?;
    if bundle.is_none() {
        operator::issue(folder, operator::FIRST, &folder.operator())?;
    }
    Ok(())
}

/// The store that a setup of etcd is of.
fn setup_location(options: &InitOptions) -> Result<StoreLocation> {
    let address = options.etcd_setup.as_deref().map(address_of).transpose()?.unwrap_or_default();
    match &options.store {
        Some(StoreLocation::Etcd(store)) => Ok(StoreLocation::Etcd(store.clone())),
        Some(StoreLocation::File(_)) => bail!("--store names a file, and --etcd an etcd: leave one of them out"),
        None => address.parse().map_err(|error: String| anyhow!(error)),
    }
}

/// Finds the keys for etcd among the host's, unless others are named. On the first host they are made, from the setup of etcd, where rights are turned on.
fn find_etcd_keys(folder: &HostFolder, config: &mut HostConfig, setup: Option<&Path>) -> Result<()> {
    let StoreLocation::Etcd(address) = &config.store else { return Ok(()) };
    let host: HostName = config.name.parse()?;
    let password = setup.map(|setup| unpack_setup(folder, setup)).transpose()?;
    if config.store_keys.is_none() {
        config.store_keys = keys_of(folder, address, &host);
    }
    if let (Some(password), Some(administrator)) = (password, EtcdAdministrator::of(folder, address)?) {
        administrator.begin(&host, &password)?;
    }
    Ok(())
}

/// Makes the store of a new cluster. Leaves nothing of it behind when it fails, but what another one has made.
fn make_store(config: &HostConfig) -> Result<()> {
    let host: HostName = config.name.parse()?;
    let new: Vec<PathBuf> = config.store.files().into_iter().filter(|file| !file.exists()).collect();
    let made =
        Stores::create(&config.store, config.store_keys.as_ref()).map_err(ClusterError::from).and_then(|stores| {
            let cluster = Cluster::new(stores);
            cluster.found(&host).inspect_err(|error| {
                // It may have been done, or done later, though no answer came.
                if !matches!(error, ClusterError::ClusterExists) {
                    let _ = cluster.unfound(&host);
                }
            })
        });
    match made {
        // Whoever was faster has a host with that store by now.
        Err(ClusterError::ClusterExists) => bail!(
            "{} holds a cluster already: join that cluster with `twinvm host join` or --bundle, or give this one another name, as in etcd://HOST:PORT/NAME",
            config.store
        ),
        Err(error) => {
            // What was there before may be all that is left of a cluster.
            for file in new {
                let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir_all(&file));
            }
            Err(error.into())
        }
        Ok(()) => Ok(()),
    }
}

/// Sees whether the store of a cluster that is joined answers and holds one, where only that can be seen from here.
fn see_store(config: &HostConfig) -> Result<()> {
    match &config.store {
        StoreLocation::File(file) if !file.exists() => bail!(
            "the store of the cluster is {} on the machine that it was made on, where all of its hosts have to be: use etcd for several machines",
            file.display()
        ),
        StoreLocation::File(_) => Ok(()),
        StoreLocation::Etcd(_) => open_cluster(config, None).map(drop),
    }
}

/// Makes the keys of a further host and writes them, packed, to `out`.
pub fn issue(folder: &HostFolder, name: &str, out: &Path) -> Result<()> {
    let config = HostConfig::load(folder)?;
    check_host_name(name)?;
    if name == config.name {
        bail!("{name} is the name of this host: choose another");
    }
    if !folder.authority().is_dir() {
        bail!("host {} has not made the cluster: issue keys on the host that has", config.name);
    }
    if out.exists() {
        bail!("{} exists already: remove it, or choose another file with --out", out.display());
    }
    let keys = tempfile::tempdir_in(folder.path()).context("cannot make a temporary folder")?;
    channel::issue(&folder.authority(), name, keys.path())?;
    if let StoreLocation::Etcd(address) = &config.store
        && let Some(administrator) = EtcdAdministrator::of(folder, address)?
    {
        administrator.check_free(&name.parse()?)?;
        let request = KeyRequest::of_host(keys.path())?;
        write_credentials(keys.path(), &administrator.admit(address, &name.parse()?, request.request())?)?;
    }
    Bundle::pack(name, &config.store, keys.path())?.save(out)
}

/// The machine's name, as far as it can be a host's.
fn machine_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the machine's name")?;
    let name = name.trim().split('.').next().unwrap_or_default().to_lowercase();
    check_host_name(&name).context("name the host with --name")?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both have seen no store before they made one.
    #[test]
    fn of_two_that_make_one_store_the_slower_one_leaves_it_to_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("cluster.db");
        let config = |host: &str| -> HostConfig {
            let text = format!(
                "name = {host:?}\nlisten = \"127.0.0.1:7441\"\nmetrics = \"\"\nstore = {store:?}\nimages = \"/i\"\n"
            );
            toml::from_str(&text).unwrap()
        };
        make_store(&config("a")).unwrap();
        let refused = make_store(&config("b")).unwrap_err().to_string();
        assert!(refused.contains("holds a cluster already"), "{refused}");
        let cluster = Cluster::new(Stores::open(&config("a").store, None).unwrap());
        assert!(cluster.is_made().unwrap());
    }

    #[test]
    fn a_store_that_cannot_be_made_takes_nothing_with_it_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let config = |store: PathBuf| -> HostConfig {
            let text = format!(
                "name = \"c\"\nlisten = \"127.0.0.1:7441\"\nmetrics = \"\"\nstore = {store:?}\nimages = \"/i\"\n"
            );
            toml::from_str(&text).unwrap()
        };
        let left = folder.path().join("half.db.vms");
        fs::write(&left, "of a cluster whose other file is gone").unwrap();
        assert!(make_store(&config(folder.path().join("half.db"))).is_err());
        assert_eq!(fs::read_to_string(&left).unwrap(), "of a cluster whose other file is gone");
        assert!(!folder.path().join("half.db").exists(), "what cannot become one is not left half made");
        let nowhere = config(folder.path().join("nowhere/cluster.db"));
        assert!(make_store(&nowhere).is_err());
        assert!(nowhere.store.files().iter().all(|file| !file.exists()));
    }
}
