//! The keys with which commands act as an operator.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use replication::channel::{self, Identity};

use super::config::HostConfig;
use super::folder::HostFolder;

/// The operator of the host that has made the cluster.
pub const FIRST: &str = "admin";

/// Makes the keys of an operator, in a file that is not there yet and that only its owner can read.
pub fn issue(folder: &HostFolder, name: &str, out: &Path) -> Result<()> {
    let config = HostConfig::load(folder)?;
    if !folder.authority().is_dir() {
        bail!("host {} has not made the cluster: issue keys on the host that has", config.name);
    }
    let keys = channel::issue_operator(&folder.authority(), name)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .and_then(|mut file| file.write_all(keys.to_text().as_bytes()))
        .with_context(|| format!("cannot create {}", out.display()))
}

/// Who acts: the operator of the file that `--operator` names, or the environment variable `TWINVM_OPERATOR`, or `operator.pem` in the host's
/// folder. On the host that has made the cluster that file is made if need be: whoever can read the authority's key can be any operator.
pub fn identity(folder: &HostFolder, file: Option<&Path>) -> Result<Identity> {
    let named = file
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("TWINVM_OPERATOR").filter(|file| !file.is_empty()).map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| folder.operator());
    if named.is_none() && !path.exists() {
        if !folder.authority().is_dir() {
            bail!(
                "there are no keys of an operator in {}: issue some with `twinvm operator issue NAME --out FILE` on the host that has made the \
                 cluster, and name the file with --operator or TWINVM_OPERATOR, or put it there",
                folder.path().display()
            );
        }
        match issue(folder, FIRST, &path) {
            // Another command was faster.
            Err(error) if is_there_already(&error) => {}
            made => made?,
        }
    }
    Identity::load_operator(&path).context("the operator's keys cannot be used")
}

fn is_there_already(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AlreadyExists)
}
