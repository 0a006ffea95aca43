//! Where a host keeps things.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use cluster::store::Sight;
use serde::{Deserialize, Serialize};

use crate::paths;

/// Longest path of a Unix socket, in bytes: `sun_path` less the terminator.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// The file that says how far the store has come.
const STORE_SEEN: &str = "store.seen";

/// The file that is there while VMs are still to be started, since the machine has booted.
const AUTOSTART_DUE: &str = "autostart.due";

/// A host's folder:
///
/// | entry | content |
/// | --- | --- |
/// | `host.toml` | the host's configuration |
/// | `keys/` | its certificate and key, and the certificate of the cluster's authority |
/// | `authority/` | on the host that made the cluster: the key that signs certificates |
/// | `operator.pem` | on the host that made the cluster: the keys with which commands act as an operator |
/// | `backup/` | the backup repositories that the host knows, with their keys |
/// | `files/` | files that VM specs may name, beside those in other folders that `host.toml` allows |
/// | `vms/NAME/` | a replica of a VM: its disks, kernel, control socket, log |
/// | `store.seen` | how far the cluster store had come: one that has gone back is not believed |
/// | `autostart.due` | the machine has booted, and not all VMs are started yet that are to be started with it |
/// | `daemon.lock` | locked while the daemon runs |
/// | `daemon.json` | where the running daemon listens |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFolder(PathBuf);

/// Where a running daemon listens; kept in the folder for the commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonAddresses {
    /// Its process.
    pub pid: u32,
    /// The REST API.
    pub api: SocketAddr,
    /// The metrics, if they are served.
    pub metrics: Option<SocketAddr>,
}

impl HostFolder {
    /// The folder that `--dir` names, or the environment variable `TWINVM_HOST_DIR`, or `host` in the data folder.
    pub fn find(dir: Option<&Path>) -> Result<Self> {
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => match std::env::var_os("TWINVM_HOST_DIR").filter(|dir| !dir.is_empty()) {
                Some(dir) => dir.into(),
                None => paths::data_dir()?.join("host"),
            },
        };
        Ok(Self(std::path::absolute(&dir).with_context(|| format!("cannot resolve {}", dir.display()))?))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.0.join("host.toml")
    }

    /// The folder of the host's own keys.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// The folder of the cluster's authority, if the cluster was made here.
    pub fn authority(&self) -> PathBuf {
        self.0.join("authority")
    }

    /// The keys of an operator, if commands on this host have some.
    pub fn operator(&self) -> PathBuf {
        self.0.join("operator.pem")
    }

    /// What is left of a host that has left its cluster: without its keys and its configuration no daemon can be it again.
    pub fn retire(&self) -> Result<()> {
        let keys = self.keys();
        fs::remove_dir_all(&keys).with_context(|| format!("cannot remove {}", keys.display()))?;
        let config = self.config();
        fs::rename(&config, config.with_extension("toml.left"))
            .with_context(|| format!("cannot rename {}", config.display()))
    }

    /// The folder of files that VM specs may name.
    pub fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    /// The folder of what is noted of backup repositories, their keys among it.
    pub fn backup(&self) -> PathBuf {
        self.0.join("backup")
    }

    /// The folder of all VMs.
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }

    /// The folder of one VM, whose name has been checked.
    pub fn vm(&self, vm: &str) -> PathBuf {
        self.vms().join(vm)
    }

    /// Takes the daemon's lock, which is held until the file is closed. `None` if a daemon has it.
    pub fn lock(&self) -> Result<Option<File>> {
        let path = self.lock_file();
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Notes in the file of the lock that the daemon runs now.
    pub fn note_alive(&self) {
        let noted =
            File::options().write(true).open(self.lock_file()).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = noted {
            tracing::debug!("it cannot be noted that the daemon runs: {error}");
        }
    }

    /// When a daemon noted last that it runs.
    pub fn alive_before(&self) -> Option<SystemTime> {
        fs::metadata(self.lock_file()).and_then(|file| file.modified()).ok()
    }

    /// All VMs are started that are to be started with the machine, or are given up.
    pub fn note_autostart_over(&self) -> Result<()> {
        let path = self.0.join(AUTOSTART_DUE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Keeps in mind how far the store has come, for the next daemon.
    pub fn note_store(&self, sight: Sight) -> Result<()> {
        let path = self.0.join(STORE_SEEN);
        let temporary = path.with_extension("seen.part");
        fs::write(&temporary, serde_json::to_vec(&sight)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets how far the store had come: the next daemon takes it as it is. What it was.
    ///
    /// # Errors
    /// If a daemon runs.
    pub fn accept_store(&self) -> Result<Option<Sight>> {
        let Some(_lock) = self.lock()? else {
            bail!("the daemon of the host in {} runs: stop it first with `twinvm host stop`", self.0.display());
        };
        let seen = store_seen(&self.0);
        match fs::remove_file(self.0.join(STORE_SEEN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.0.join(STORE_SEEN).display()))
            }
            _ => Ok(seen),
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }

    fn addresses_file(&self) -> PathBuf {
        self.0.join("daemon.json")
    }

    /// Where the daemon listens, if one runs or was killed.
    pub fn addresses(&self) -> Option<DaemonAddresses> {
        serde_json::from_str(&fs::read_to_string(self.addresses_file()).ok()?).ok()
    }

    /// Says where the daemon listens, at once and in one piece.
    pub fn publish(&self, addresses: &DaemonAddresses) -> Result<()> {
        let path = self.addresses_file();
        let temporary = path.with_extension("json.part");
        fs::write(&temporary, serde_json::to_vec(addresses)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The daemon listens no more.
    pub fn unpublish(&self) {
        // A file that stays leads to a refused connection, which is reported as no daemon too.
        let _ = fs::remove_file(self.addresses_file());
    }
}

/// How far the store had come when the host in a folder has last seen it, if it is one that could be brought back.
pub fn store_seen(folder: &Path) -> Option<Sight> {
    serde_json::from_slice(&fs::read(folder.join(STORE_SEEN)).ok()?).ok()
}

/// Whether VMs of the host in a folder are to be started with the machine: it `has_booted`, or a daemon before this one has not come to the end of that.
/// It stays so until [`HostFolder::note_autostart_over`], whatever becomes of this daemon.
pub fn is_autostart_due(folder: &Path, has_booted: bool) -> bool {
    let path = folder.join(AUTOSTART_DUE);
    if has_booted && let Err(error) = fs::write(&path, "") {
        // As on a disk that is full, where VMs are to be started all the same.
        tracing::warn!(
            "if this daemon is killed now, the next one starts no VMs: cannot write {}: {error}",
            path.display()
        );
    }
    has_booted || path.exists()
}

/// Makes a folder that only its owner may enter, and those above it; it may exist.
pub fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file that is not there yet, for its owner alone.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder that only its owner may enter, and that must not have anything in it yet.
pub fn new_private_folder(path: &Path) -> Result<()> {
    check_free(path)?;
    private_folder(path)
}

/// Makes sure that a folder is not there, or has nothing in it.
pub fn check_free(path: &Path) -> Result<()> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                bail!("{} is not empty: remove it first, or choose another folder with --dir", path.display());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look into {}", path.display())),
    }
    Ok(())
}

/// Refuses a path that no Unix socket can have, before anything else goes wrong because of it.
pub fn check_socket_path(path: &Path) -> Result<()> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX {
        bail!(
            "{}: the path of a socket may have {SOCKET_PATH_LEN_MAX} bytes, this one has {len}; choose shorter folders",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time_has_the_folder() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = HostFolder::find(Some(temporary.path())).unwrap();
        let lock = folder.lock().unwrap();
        assert!(lock.is_some());
        assert!(folder.lock().unwrap().is_none());
        drop(lock);
        assert!(folder.lock().unwrap().is_some());
    }

    #[test]
    fn vms_are_started_with_the_machine_until_that_is_over_whatever_becomes_of_the_daemon() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = HostFolder::find(Some(temporary.path())).unwrap();
        let is_due = |has_booted| is_autostart_due(folder.path(), has_booted);
        assert!(!is_due(false));
        assert!(is_due(true));
        assert!(is_due(false), "of a daemon that was killed before all of them were started");
        folder.note_autostart_over().unwrap();
        assert!(!is_due(false));
        folder.note_autostart_over().unwrap();
        // The file cannot be written.
        let nowhere = folder.path().join("nowhere");
        assert!(is_autostart_due(&nowhere, true) && !is_autostart_due(&nowhere, false));
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        new_private_folder(&temporary.path().join("a/b")).unwrap();
        assert!(new_private_folder(temporary.path()).unwrap_err().to_string().contains("not empty"));
    }
}
