//! What a host needs to be let in by an etcd that `twinvm cluster etcd` has set up: a certificate, a user and a password. The host with the cluster's
//! authority holds etcd's as well, and the password of etcd's user `root`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::joining::EtcdCredentials;
use cluster::records::{Cluster, ClusterError};
use cluster::store::{ETCD_ROOT, EtcdAccess, EtcdAddress, EtcdKeys, EtcdUser, StoreLocation, Stores, etcd_user_of};
use replication::channel::{KeyRequest, sign_etcd_client};
use spec::HostName;

use super::folder::{HostFolder, write_private};
use super::token::random_text;

/// The certificate of etcd's authority, in a host's folder of keys.
const CA: &str = "etcd-ca.pem";
/// The host's certificate for etcd.
const CERTIFICATE: &str = "etcd.pem";
/// The password of the host's user in etcd.
const PASSWORD: &str = "etcd.password";
/// The password of etcd's user `root`, beside etcd's authority.
pub const ROOT_PASSWORD: &str = "root.password";

/// The folder of etcd's authority, in the folder of the cluster's.
pub fn authority_of(folder: &HostFolder) -> PathBuf {
    folder.authority().join("etcd")
}

/// The keys for etcd in a host's folder, if it has some.
pub fn keys_of(folder: &HostFolder, address: &EtcdAddress, host: &HostName) -> Option<EtcdKeys> {
    let user = EtcdUser { name: etcd_user_of(address, host), password: folder.keys().join(PASSWORD) };
    let keys = keys_as(folder, user);
    keys.cert.exists().then_some(keys)
}

/// The keys for etcd in a host's folder, to be this user with.
fn keys_as(folder: &HostFolder, user: EtcdUser) -> EtcdKeys {
    let file = |name: &str| folder.keys().join(name);
    EtcdKeys { ca: file(CA), cert: file(CERTIFICATE), key: file("host.key"), user: Some(user) }
}

/// What etcd's administrator has, on the host with the cluster's authority.
pub struct EtcdAdministrator {
    authority: PathBuf,
    location: StoreLocation,
    keys: EtcdKeys,
    access: EtcdAccess,
    root_password: String,
}

impl EtcdAdministrator {
    /// That of a host; none if etcd was not set up by `twinvm cluster etcd`, or its authority is elsewhere.
    ///
    /// # Errors
    /// If what is there cannot be used.
    pub fn of(folder: &HostFolder, address: &EtcdAddress) -> Result<Option<Self>> {
        let authority = authority_of(folder);
        if !authority.is_dir() {
            return Ok(None);
        }
        let password = authority.join(ROOT_PASSWORD);
        let root_password =
            fs::read_to_string(&password).with_context(|| format!("cannot read {}", password.display()))?;
        let keys = keys_as(folder, EtcdUser { name: ETCD_ROOT.to_owned(), password });
        let access = EtcdAccess::new(address, &keys)?;
        let (location, root_password) = (StoreLocation::Etcd(address.clone()), root_password.trim().to_owned());
        Ok(Some(Self { authority, location, keys, access, root_password }))
    }

    /// Turns the rights of users on, and gives the host with the authority its own.
    pub fn begin(&self, host: &HostName, password: &str) -> Result<()> {
        self.access.turn_on(&self.root_password).context("cannot turn the rights of users on in etcd")?;
        if self.cluster()?.is_made()? {
            // The password of its first host is not to be changed.
            return Err(ClusterError::ClusterExists.into());
        }
        Ok(self.access.admit(host, password, true)?)
    }

    fn cluster(&self) -> Result<Cluster> {
        Ok(Cluster::new(Stores::open(&self.location, Some(&self.keys))?))
    }

    /// Makes sure that a name is not that of a host which would lose its password.
    pub fn check_free(&self, host: &HostName) -> Result<()> {
        match self.cluster()?.host(host) {
            Err(ClusterError::NoHost(_)) => Ok(()),
            Ok(_) => bail!(
                "there is a host {host} already: remove it first, with `twinvm host leave` there or `twinvm host rm {host}`"
            ),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a host in: certifies the key of its request, and gives it a user with a new password.
    pub fn admit(&self, address: &EtcdAddress, host: &HostName, request: &str) -> Result<EtcdCredentials> {
        let (authority, certificate) = sign_etcd_client(&self.authority, request)?;
        let password = random_text()?;
        self.access.admit(host, &password, false)?;
        Ok(EtcdCredentials { authority, certificate, user: etcd_user_of(address, host), password })
    }

    /// Takes a host's user and rights away.
    pub fn dismiss(&self, host: &HostName) -> Result<()> {
        Ok(self.access.dismiss(host)?)
    }
}

/// What a host is let in with, as the files of its folder of keys: names and texts.
pub fn credential_files(etcd: &EtcdCredentials) -> [(&'static str, &str); 3] {
    [(CA, &etcd.authority), (CERTIFICATE, &etcd.certificate), (PASSWORD, &etcd.password)]
}

/// Writes what a host is let in with to its folder of keys.
pub fn write_credentials(keys: &Path, etcd: &EtcdCredentials) -> Result<()> {
    credential_files(etcd).into_iter().try_for_each(|(name, text)| write_private(&keys.join(name), text))
}

/// Removes what a host is let in with, and what etcd's administrator has, if they are there.
pub fn forget_credentials(folder: &HostFolder) -> Result<()> {
    let gone = |path: &Path, removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    };
    for name in [CA, CERTIFICATE, PASSWORD] {
        let path = folder.keys().join(name);
        gone(&path, fs::remove_file(&path))?;
    }
    let authority = authority_of(folder);
    gone(&authority, fs::remove_dir_all(&authority))
}

/// Writes what the first host needs for etcd to its folder: `setup` is what `twinvm cluster etcd` has written. Answers the password of its user.
pub fn unpack_setup(folder: &HostFolder, setup: &Path) -> Result<String> {
    let authority = authority_of(folder);
    super::folder::private_folder(&authority)?;
    for name in ["ca.pem", "ca.key", ROOT_PASSWORD] {
        let from = setup.join(name);
        let text = fs::read_to_string(&from)
            .with_context(|| format!("cannot read {} (`twinvm cluster etcd` writes that folder)", from.display()))?;
        write_private(&authority.join(name), &text)?;
    }
    let (ca, certificate) = sign_etcd_client(&authority, KeyRequest::of_host(&folder.keys())?.request())?;
    let credentials = EtcdCredentials { authority: ca, certificate, user: String::new(), password: random_text()? };
    write_credentials(&folder.keys(), &credentials)?;
    Ok(credentials.password)
}
