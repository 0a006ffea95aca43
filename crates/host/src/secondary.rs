//! Secondaries on this host, prepared and ended when the primary's host asks.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use api::messages::{DropSecondary, PrepareSecondary, PreparedSecondary};
use api::status::Role;
use cluster::controller::consent::{Here, NotDropped, NotPrepared, may_drop, may_prepare};
use cluster::records::ClusterError;
use protocol::Generation;
use replication::channel::Peer;
use spec::{EngineKind, ReplicaId, VmName, VmSpec};

use super::daemon::Daemon;
use super::error::HostError;
use super::process::ReplicaProcess;
use super::vm_folder::BOOT_FILE_BYTES_MAX;
use crate::replica::config::ReplicaConfig;

/// How long a replica may take to end when it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// How long fetching a kernel or an initial RAM disk may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(50);

impl Daemon {
    /// Starts a secondary here, in place of whatever replica of the VM there is. For the VM's owner.
    pub fn prepare_secondary(
        self: &Arc<Self>,
        name: &str,
        client: &Peer,
        prepare: &PrepareSecondary,
    ) -> Result<PreparedSecondary, HostError> {
        if client.host() != Some(&prepare.primary) {
            return Err(HostError::not_entitled(format!("{client} does not speak for host {}", prepare.primary)));
        }
        let spec = VmSpec::parse(&prepare.spec).map_err(|error| HostError::invalid(error.to_string()))?;
        if spec.name != name {
            return Err(HostError::invalid(format!("the spec is of VM {}, not {name}", spec.name)));
        }
        self.refuse_if_stopping()?;
        let vm = self.known(name)?;
        let (primary, generation) = (ReplicaId::new(&prepare.primary), Generation::new(prepare.generation));
        let host = self.registry.host_name();
        may_prepare(&vm.claim, host, &primary, generation).map_err(|why| self.not_prepared(name, why))?;
        // By the record it was placed here. A primary's host that asks for another VM could reach files that are not the VM's.
        if prepare.spec != vm.record.spec.as_str() {
            return Err(HostError::refused(format!("the spec of VM {name} is another one than its record holds")));
        }
        if prepare.engine == EngineKind::Kvm && File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Err(HostError::refused("the VM runs on the kvm engine, and /dev/kvm cannot be used here"));
        }
        if let Some(replica) = self.replica(name) {
            // Also a primary that was succeeded and does not know it yet, being stopped or cut off.
            self.retire(&replica, END_TIMEOUT);
        }
        let primary = self.registry.alive_host(&prepare.primary)?;
        let primary = primary.ok_or_else(|| anyhow!("host {} is not alive", prepare.primary))?;
        let folder = self.vm_folder(name);
        let fetch = |file: &str| {
            let path = format!("/v1/vms/{name}/boot/{file}");
            let bytes_max = usize::try_from(BOOT_FILE_BYTES_MAX)?;
            Ok(self.wait_for(self.client().download(&primary, &path, bytes_max, FETCH_TIMEOUT))?.to_vec())
        };
        folder.prepare(&spec, &prepare.contents, &self.images, &self.vm_files, fetch)?;
        let local = folder.local_spec(&spec, &self.vm_files)?;
        let network_ends = self.end_sockets(&spec);
        let user = self.vm_users.assign(folder.path())?;
        self.ends.ensure(&self.exe, &spec, &network_ends, user).context("network end")?;
        let config = ReplicaConfig {
            user,
            store_keys: self.config.store_keys.clone(),
            identity: Some(folder.write_session(&prepare.session)?),
            network_ends,
            listen: Some(self.secondary_listen()),
            ..self.replica_config(&vm, &local, Role::Secondary, prepare.engine)?
        };
        // Primaries plan at the same time, on other hosts: what runs here is known here only.
        let admission = self.admission();
        self.refuse_if_stopping()?;
        let held: Vec<String> = self.all_replicas().iter().map(|replica| replica.vm.clone()).collect();
        self.registry.admit_secondary(name, &held)?;
        let started = ReplicaProcess::start(&self.exe, &config);
        // It has read them.
        folder.remove_session();
        let (process, status) = started?;
        let address = status.listen.context("the secondary does not listen")?;
        self.watch_replica(name.to_owned(), process, Some(status))?;
        drop(admission);
        tracing::info!("VM {name}: a secondary waits for host {} at {address}", prepare.primary);
        Ok(PreparedSecondary { address })
    }

    /// Ends the secondary here, if there is one, unless the VM's claim names it: then it may be about to take over, or has. Its disks can be removed
    /// too. For the VM's owner.
    pub fn drop_secondary(&self, name: &str, client: &Peer, how: DropSecondary) -> Result<(), HostError> {
        // The VM may be gone from the store already: the name has to be one that a VM can have, as it becomes a path.
        name.parse::<VmName>().map_err(ClusterError::from)?;
        if let Some(vm) = self.registry.vm(name)? {
            let host = self.registry.host_name();
            may_drop(&vm.claim, host, client.host()).map_err(|why| match why {
                NotDropped::IsPrimary => self.is_primary_here(name),
                NotDropped::IsSecondary => HostError::refused(format!("host {host} is the secondary of VM {name}")),
                NotDropped::NotForAsker => {
                    HostError::not_entitled(format!("VM {name} is at home on host {}, not on {client}", vm.home()))
                }
            })?;
        }
        if let Some(replica) = self.replica(name) {
            self.retire(&replica, END_TIMEOUT);
        }
        if !how.remove_disks {
            return Ok(());
        }
        let folder = self.vm_folder(name);
        if let Some(created_unix_ms) = how.created_unix_ms {
            folder.clear_of_others(created_unix_ms, &self.images)?;
        }
        Ok(if how.remove_snapshots { folder.remove() } else { folder.remove_copies() }?)
    }

    /// The replica of a VM that runs here, as far as it matters for what is asked for.
    pub(super) fn here(&self, vm: &str) -> Here {
        let Some(replica) = self.replica(vm).filter(|replica| !replica.is_gone()) else { return Here::Nothing };
        match replica.status() {
            Some(status) if status.role == Role::Secondary && status.peer.is_none() => Here::Waiting,
            Some(status) if status.role == Role::Secondary => Here::Following,
            _ => Here::Primary,
        }
    }

    fn not_prepared(&self, vm: &str, why: NotPrepared) -> HostError {
        match why {
            NotPrepared::IsPrimary => self.is_primary_here(vm),
            NotPrepared::Changed => HostError::refused(format!("the replicas of VM {vm} have changed meanwhile")),
            NotPrepared::Undecided => HostError::refused(format!(
                "it is not decided yet whether the secondary of VM {vm} on host {} takes over",
                self.host()
            )),
        }
    }

    fn is_primary_here(&self, vm: &str) -> HostError {
        HostError::refused(format!("host {} is the primary of VM {vm}", self.host()))
    }
}
