//! Commands' connection to the daemon of the host on this machine.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use api::client::{CallError, Client, Target};
use axum::http::Method;
use clap::Args;
use host::config::HostConfig;
use host::folder::HostFolder;
use host::operator;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

/// How long the daemon may take. Starting a VM can take a minute, stopping a host with its VMs two.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Which host a command talks to, and how it answers.
#[derive(Args, Clone)]
pub struct DaemonArguments {
    /// Folder of the host whose daemon is asked [default: $TWINVM_HOST_DIR, else `host` in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keys of the operator who asks [default: $TWINVM_OPERATOR, else operator.pem in the host's folder]
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl DaemonArguments {
    /// The host's folder.
    pub fn folder(&self) -> Result<HostFolder> {
        HostFolder::find(self.dir.as_deref())
    }

    /// Prepares to talk to the daemon.
    pub fn daemon(&self) -> Result<DaemonConnection> {
        DaemonConnection::new(&self.folder()?, self.operator.as_deref())
    }

    /// The same if there is a host at all: without one, only VMs in the foreground matter.
    pub fn daemon_if_any(&self) -> Result<Option<DaemonConnection>> {
        let folder = self.folder()?;
        if self.dir.is_none() && !folder.config().exists() {
            return Ok(None);
        }
        DaemonConnection::new(&folder, self.operator.as_deref()).map(Some)
    }
}

/// A way to call the daemon of the host on this machine.
pub struct DaemonConnection {
    folder: HostFolder,
    target: Target,
    client: Client,
    runtime: Runtime,
}

impl DaemonConnection {
    fn new(folder: &HostFolder, operator: Option<&Path>) -> Result<Self> {
        let config = HostConfig::load(folder)?;
        let identity = operator::identity(folder, operator)?;
        let address = folder.addresses().map_or(config.listen, |addresses| addresses.api);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self {
            folder: folder.clone(),
            target: Target { host: config.name, address },
            client: Client::new(identity.client_config()),
            runtime: runtime.context("cannot start the runtime")?,
        })
    }

    /// The name of the host.
    pub fn host(&self) -> &str {
        &self.target.host
    }

    /// Asks for something.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>)
    }

    /// Asks for something to be done.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&(impl Serialize + Sync)>) -> Result<T> {
        self.call(Method::POST, path, body)
    }

    /// The same, for what takes long.
    pub fn post_within<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        timeout: Duration,
    ) -> Result<T> {
        self.wait_for(|client, target| async move { client.call(target, Method::POST, path, body, timeout).await })
    }

    /// Asks for something to be removed.
    pub fn delete<T: DeserializeOwned>(&self, path: &str, body: Option<&(impl Serialize + Sync)>) -> Result<T> {
        self.call(Method::DELETE, path, body)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        self.wait_for(|client, target| async move { client.call(target, method, path, body, TIMEOUT).await })
    }

    /// Uses the client.
    pub fn wait_for<'a, T, F>(&'a self, work: impl FnOnce(&'a Client, &'a Target) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        self.runtime.block_on(work(&self.client, &self.target)).map_err(|error| match error {
            CallError::Unreachable { host, address, reason } if host != self.target.host => anyhow!(
                "host {host}, where the VM is at home, does not answer at {address} ({reason}); see whether it is alive with `twinvm host list`"
            ),
            CallError::Unreachable { host, address, reason } => anyhow!(
                "the daemon of host {host} does not answer at {address} ({reason}); start it with `twinvm host start --dir {}`",
                self.folder.path().display()
            ),
            other => anyhow!(other.to_string()),
        })
    }
}

/// A name as part of a path: it comes from the command line, and a VM with a name that must be changed does not exist.
pub fn path_segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
