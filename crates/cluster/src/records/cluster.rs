use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::{Claim, Generation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spec::{HostName, Maintenance, VmName};

use super::admission::ADMISSION;
use super::datastore::DATASTORES;
use super::run_lease::RUN_LEASES;
use super::seen::Seen;
use super::tokens::TOKENS;
use super::{ClaimRecord, ClusterError, ClusterState, HostRecord, Unreadable, VmRecord, VmState, decode, encode};
use crate::store::{Changes, Compare, Entry, LeaseId, MARKER, Op, Outcome, Store, Stores};

/// How often a record is read and written again when others change it in between.
pub(super) const ATTEMPTS_MAX: u32 = 64;

/// By whom the cluster was made: of two that are made in one place, the second is refused.
pub(super) const MADE: &str = "cluster";
pub(super) const HOSTS: &str = "hosts/";
const ALIVE: &str = "alive/";
pub(super) const VMS: &str = "vms/";
pub(super) const CLAIM: &str = "/claim";
/// What is wrong with a record whose claim is there, or the other way round.
const MISSING: &str = "it is missing";

pub(super) fn host_key(host: &HostName) -> String {
    format!("{HOSTS}{host}")
}

/// What is there as long as the host's lease.
fn alive_key(host: &HostName) -> String {
    format!("{ALIVE}{host}")
}

fn vm_key(vm: &VmName) -> String {
    format!("{VMS}{vm}")
}

/// Where a VM's claim is.
pub(crate) fn claim_key(vm: &VmName) -> String {
    format!("{VMS}{vm}{CLAIM}")
}

/// The records of a cluster: typed access to its store.
///
/// All methods fail with [`ClusterError::Store`] if the store does, and with [`ClusterError::Unreadable`] if they need a record
/// that this version does not understand.
#[derive(Clone)]
pub struct Cluster {
    /// Where VMs and their claims are.
    store: Arc<dyn Store>,
    /// Where hosts are.
    hosts: Arc<dyn Store>,
    seen: Seen,
}

impl Cluster {
    /// The cluster that these stores describe.
    pub fn new(stores: Stores) -> Self {
        Self { store: stores.vms, hosts: stores.hosts, seen: Seen::default() }
    }

    /// The store with the VMs and their claims.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The store with the hosts.
    pub(super) fn hosts_store(&self) -> &Arc<dyn Store> {
        &self.hosts
    }

    /// Everything, as of one revision.
    pub fn state(&self) -> Result<ClusterState, ClusterError> {
        let listing = self.store.list("")?;
        let mut state = ClusterState { revision: listing.revision, ..ClusterState::default() };
        let mut records: BTreeMap<String, VmRecord> = BTreeMap::new();
        let mut claims: BTreeMap<String, ClaimRecord> = BTreeMap::new();
        self.refresh_hosts(&mut state)?;
        let is_elsewhere = |key: &str| {
            [HOSTS, ALIVE, TOKENS, DATASTORES, RUN_LEASES].iter().any(|kind| key.starts_with(kind))
                || [MADE, MARKER, ADMISSION].contains(&key)
        };
        for (key, entry) in listing.entries.into_iter().filter(|(key, _)| !is_elsewhere(key)) {
            let read = if let Some(name) = key.strip_prefix(VMS).and_then(|rest| rest.strip_suffix(CLAIM)) {
                decode(&key, &entry.value).map(|claim| drop(claims.insert(name.to_owned(), claim)))
            } else if let Some(name) = key.strip_prefix(VMS) {
                decode_named(&key, name, &entry, |vm: &VmRecord| &vm.name)
                    .map(|vm| drop(records.insert(name.to_owned(), vm)))
            } else {
                Err(ClusterError::Unreadable { key: key.clone(), message: "of an unknown kind".to_owned() })
            };
            match read {
                Ok(()) => {}
                Err(ClusterError::Unreadable { key, message }) => state.unreadable.push(Unreadable { key, message }),
                Err(error) => return Err(error),
            }
        }
        let mut half = Vec::new();
        for (name, record) in records {
            match claims.remove(&name) {
                Some(claim) => state.vms.push(VmState { record, claim }),
                None => half.push(claim_key(&record.name)),
            }
        }
        half.extend(claims.into_keys().map(|name| format!("{VMS}{name}")));
        for key in half {
            if !state.unreadable.iter().any(|unreadable| unreadable.key == key) {
                state.unreadable.push(Unreadable { key, message: MISSING.to_owned() });
            }
        }
        Ok(state)
    }

    /// Reads the hosts again, and whether they are alive. VMs stay as they are.
    pub fn refresh_hosts(&self, state: &mut ClusterState) -> Result<(), ClusterError> {
        let hosts = self.hosts.list(HOSTS)?.entries;
        state.run_leases = self.run_leases()?;
        state.datastores = self.datastores()?;
        let alive: BTreeSet<String> = self.hosts.list(ALIVE)?.entries.into_iter().map(|(key, _)| key).collect();
        state.hosts.clear();
        state.unreadable.retain(|unreadable| !unreadable.key.starts_with(HOSTS));
        for (key, entry) in hosts {
            let name = key.strip_prefix(HOSTS).unwrap_or_default();
            match decode_named(&key, name, &entry, |host: &HostRecord| &host.name) {
                Ok(mut host) => {
                    let is_alive = alive.contains(&alive_key(&host.name));
                    self.seen.note(&mut host, is_alive);
                    state.hosts.push(host);
                }
                Err(ClusterError::Unreadable { key, message }) => state.unreadable.push(Unreadable { key, message }),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until records or claims of VMs have changed after `since`, a [`ClusterState::revision`], up to `timeout`. Tells
    /// whether something may have changed: then read [`state`](Self::state) again.
    pub fn wait_for_vm_change(&self, since: u64, timeout: Duration) -> Result<bool, ClusterError> {
        Ok(match self.store.watch(VMS, since, timeout)? {
            Changes::Seen { changes, .. } => !changes.is_empty(),
            Changes::Compacted => true,
        })
    }

    /// All hosts whose records can be read, in order of their names.
    pub fn hosts(&self) -> Result<Vec<HostRecord>, ClusterError> {
        Ok(self.state()?.hosts)
    }

    /// A host.
    ///
    /// # Errors
    /// [`ClusterError::NoHost`] if there is none of that name.
    pub fn host(&self, name: &HostName) -> Result<HostRecord, ClusterError> {
        let read = read_from(&*self.hosts, &host_key(name))?;
        let (mut host, _): (HostRecord, u64) = read.ok_or_else(|| ClusterError::NoHost(name.clone()))?;
        self.seen.note(&mut host, self.hosts.get(&alive_key(name))?.is_some());
        Ok(host)
    }

    /// Registers a host in place of an instance of it that has ended, if there was one, under a lease that ends after `ttl`. A record that cannot be
    /// read is overwritten. Only the host itself does that.
    ///
    /// # Errors
    /// [`ClusterError::OtherInstance`] if neither that instance nor this one is registered, but another one.
    pub fn register_host(
        &self,
        host: &HostRecord,
        ended: Option<&str>,
        ttl: Duration,
    ) -> Result<LeaseId, ClusterError> {
        let (key, alive) = (host_key(&host.name), alive_key(&host.name));
        let value = encode(&key, host)?;
        let lease = self.hosts.grant_lease(ttl)?;
        let ops = [
            Op::Put { key: &key, value: &value, lease: None },
            Op::Put { key: &alive, value: host.instance.as_bytes(), lease: Some(lease) },
        ];
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.hosts.get(&key)?;
            let found = entry.as_ref().and_then(|entry| decode::<HostRecord>(&key, &entry.value).ok());
            if found.is_some_and(|found| found.instance != host.instance && Some(&*found.instance) != ended) {
                return Err(ClusterError::OtherInstance(host.name.clone()));
            }
            let compare = Compare { key: &key, version: entry.map_or(0, |entry| entry.version) };
            if let Outcome::Done { .. } = self.hosts.transact(&[compare], &ops)? {
                return Ok(lease);
            }
        }
        Err(ClusterError::Contended(key))
    }

    /// Renews the lease of a host that is served by `instance`.
    ///
    /// # Errors
    /// [`ClusterError::LeaseEnded`] or [`ClusterError::NoHost`] if it was not renewed for too long, or the host was removed: it may register again.
    /// [`ClusterError::OtherInstance`] if another daemon has registered with its identity.
    pub fn renew_lease(&self, host: &HostName, instance: &str, lease: LeaseId) -> Result<(), ClusterError> {
        let is_there = self.hosts.keep_lease(lease)?;
        let (record, _): (HostRecord, u64) =
            read_from(&*self.hosts, &host_key(host))?.ok_or_else(|| ClusterError::NoHost(host.clone()))?;
        if record.instance != instance {
            return Err(ClusterError::OtherInstance(host.clone()));
        }
        if is_there { Ok(()) } else { Err(ClusterError::LeaseEnded(host.clone())) }
    }

    /// Notes how far the maintenance of a host goes that is served by `instance`. Only the host itself does that.
    ///
    /// # Errors
    /// [`ClusterError::NoHost`] if it is not registered, [`ClusterError::OtherInstance`] if another daemon is with its identity.
    pub fn set_maintenance(
        &self,
        host: &HostName,
        instance: &str,
        maintenance: Maintenance,
    ) -> Result<(), ClusterError> {
        self.update_host(host, instance, |record| record.maintenance = maintenance)
    }

    /// Ends the lease of a host.
    pub fn end_lease(&self, lease: LeaseId) -> Result<(), ClusterError> {
        Ok(self.hosts.end_lease(lease)?)
    }

    /// Notes that a cluster is made here, by its first host.
    ///
    /// # Errors
    /// [`ClusterError::ClusterExists`] if one was made here before.
    pub fn found(&self, host: &HostName) -> Result<(), ClusterError> {
        let value = made_by(host)?;
        let there_is_none = Compare { key: MADE, version: 0 };
        match self.hosts.transact(&[there_is_none], &[Op::Put { key: MADE, value: &value, lease: None }])? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::ClusterExists),
        }
    }

    /// Undoes [`Self::found`] by this host, also if it is not known whether that was done. What another one has made stays.
    pub fn unfound(&self, host: &HostName) -> Result<(), ClusterError> {
        let Some(entry) = self.hosts.get(MADE)? else { return Ok(()) };
        if entry.value == made_by(host)? {
            let as_read = Compare { key: MADE, version: entry.version };
            self.hosts.transact(&[as_read], &[Op::Delete { key: MADE }])?;
        }
        Ok(())
    }

    /// Whether a cluster was made here.
    pub fn is_made(&self) -> Result<bool, ClusterError> {
        Ok(self.made()?.is_some_and(|(made, _)| made.moving.is_none()))
    }

    /// The host that has made the cluster; none if there is none.
    pub fn made_by(&self) -> Result<Option<HostName>, ClusterError> {
        Ok(self.made()?.map(|(made, _)| made.made_by))
    }

    /// What says that a cluster was made here, or is being moved here, with its version.
    pub(super) fn made(&self) -> Result<Option<(Made, u64)>, ClusterError> {
        read_from(&*self.hosts, MADE)
    }

    /// Removes a host.
    ///
    /// # Errors
    /// [`ClusterError::NoHost`] if there is none of that name, [`ClusterError::HostInUse`] if a claim names it.
    pub fn remove_host(&self, host: &HostName) -> Result<(), ClusterError> {
        for vm in self.state()?.vms {
            let claim = &vm.claim.claim;
            if host.is(&claim.primary) || claim.secondary.as_ref().is_some_and(|secondary| host.is(secondary)) {
                return Err(ClusterError::HostInUse { host: host.clone(), vm: vm.record.name });
            }
        }
        let (key, alive) = (host_key(host), alive_key(host));
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.hosts.get(&key)?.ok_or_else(|| ClusterError::NoHost(host.clone()))?;
            let compare = Compare { key: &key, version: entry.version };
            let ops = [Op::Delete { key: &key }, Op::Delete { key: &alive }];
            if let Outcome::Done { .. } = self.hosts.transact(&[compare], &ops)? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended(key))
    }

    /// All VMs whose records can be read, in order of their names.
    pub fn vms(&self) -> Result<Vec<VmRecord>, ClusterError> {
        Ok(self.state()?.vms.into_iter().map(|vm| vm.record).collect())
    }

    /// A VM.
    ///
    /// # Errors
    /// [`ClusterError::NoVm`] if there is none of that name.
    pub fn vm(&self, name: &VmName) -> Result<VmRecord, ClusterError> {
        let read = self.read(&vm_key(name))?;
        read.map(|(vm, _)| vm).ok_or_else(|| ClusterError::NoVm(name.clone()))
    }

    /// The claim of a VM.
    ///
    /// # Errors
    /// [`ClusterError::NoVm`] if there is none of that name.
    pub fn claim(&self, vm: &VmName) -> Result<ClaimRecord, ClusterError> {
        let read = self.read(&claim_key(vm))?;
        read.map(|(claim, _)| claim).ok_or_else(|| ClusterError::NoVm(vm.clone()))
    }

    /// Why this version cannot make sense of what is there of a VM, as [`ClusterError::Unreadable`]; nothing if it can, or nothing is there.
    pub fn unreadable_vm(&self, vm: &VmName) -> Result<Option<ClusterError>, ClusterError> {
        let (record_key, claim_key) = (vm_key(vm), claim_key(vm));
        let unreadable = |key: String, message: String| Ok(Some(ClusterError::Unreadable { key, message }));
        let missing = || MISSING.to_owned();
        match (self.vm(vm), self.claim(vm)) {
            (Err(error @ ClusterError::Unreadable { .. }), _) | (_, Err(error @ ClusterError::Unreadable { .. })) => {
                Ok(Some(error))
            }
            (Err(ClusterError::NoVm(_)), Err(ClusterError::NoVm(_))) => Ok(None),
            (Err(ClusterError::NoVm(_)), Ok(_)) => unreadable(record_key, missing()),
            (Ok(_), Err(ClusterError::NoVm(_))) => unreadable(claim_key, missing()),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(record), Ok(_)) if record.name != *vm => {
                unreadable(record_key, format!("it is that of {}", record.name))
            }
            (Ok(record), Ok(_)) => match record.spec.read() {
                Ok(_) => Ok(None),
                Err(error) => unreadable(record_key, error.to_string()),
            },
        }
    }

    /// Creates a VM, with its disks on `primary`, and answers its first claim.
    ///
    /// No generation is ever used twice, not even by a VM that gets the name of one that was deleted: the first is beyond the
    /// store's revision, and each later one costs a revision too. Where the cluster was moved here from another store, revisions count from the
    /// highest generation of that.
    ///
    /// # Errors
    /// [`ClusterError::VmExists`] if there is one of that name.
    pub fn create_vm(&self, vm: &VmRecord, primary: &HostName) -> Result<Claim, ClusterError> {
        let (record_key, claim_key) = (vm_key(&vm.name), claim_key(&vm.name));
        let record = encode(&record_key, vm)?;
        let before = self.made()?.and_then(|(made, _)| made.generations_after).unwrap_or(0);
        let generation = Generation::new(before.saturating_add(self.store.list(&claim_key)?.revision)).next();
        let claim = Claim { generation, primary: primary.replica(), secondary: None };
        let claim_record = encode(&claim_key, &ClaimRecord::first(claim.clone()))?;
        let compares = [Compare { key: &record_key, version: 0 }, Compare { key: &claim_key, version: 0 }];
        let ops = [
            Op::Put { key: &record_key, value: &record, lease: None },
            Op::Put { key: &claim_key, value: &claim_record, lease: None },
        ];
        match self.store.transact(&compares, &ops)? {
            Outcome::Done { .. } => Ok(claim),
            Outcome::Conflict => Err(ClusterError::VmExists(vm.name.clone())),
        }
    }

    /// Changes a VM's record and answers the new one. `change` is called again if others changed the record meanwhile. Its name
    /// cannot be changed.
    ///
    /// # Errors
    /// [`ClusterError::NoVm`] if there is none of that name.
    pub fn update_vm(&self, vm: &VmName, mut change: impl FnMut(&mut VmRecord)) -> Result<VmRecord, ClusterError> {
        self.update(
            &vm_key(vm),
            || ClusterError::NoVm(vm.clone()),
            |record: &mut VmRecord| {
                change(record);
                record.name = vm.clone();
            },
        )
    }

    /// Changes a VM's record as long as its claim is of the generation `expected`: whoever has won a later one says what becomes of the VM.
    ///
    /// # Errors
    /// [`ClusterError::NoVm`] if there is none of that name. [`ClusterError::Contended`] if the claim is of another generation: nothing is changed.
    pub fn update_vm_claimed(
        &self,
        vm: &VmName,
        expected: Generation,
        mut change: impl FnMut(&mut VmRecord),
    ) -> Result<(), ClusterError> {
        let (record_key, claim_key) = (vm_key(vm), claim_key(vm));
        let missing = || ClusterError::NoVm(vm.clone());
        for _ in 0..ATTEMPTS_MAX {
            let (claim, claim_version): (ClaimRecord, u64) = self.read(&claim_key)?.ok_or_else(missing)?;
            if claim.claim.generation != expected {
                return Err(ClusterError::Contended(claim_key));
            }
            let (mut record, version): (VmRecord, u64) = self.read(&record_key)?.ok_or_else(missing)?;
            change(&mut record);
            let value = encode(&record_key, &record)?;
            let compares = [Compare { key: &record_key, version }, Compare { key: &claim_key, version: claim_version }];
            let put = Op::Put { key: &record_key, value: &value, lease: None };
            if let Outcome::Done { .. } = self.store.transact(&compares, &[put])? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended(record_key))
    }

    /// Deletes a VM and its claim, which must still be of the generation `expected`: a replica that has won a later one runs. Nobody can take the VM over
    /// from then on. Without `expected`, whatever the claim says, also where it or the record cannot be read.
    ///
    /// # Errors
    /// [`ClusterError::NoVm`] if nothing of a VM of that name is there. [`ClusterError::Contended`] if the claim is of another generation: nothing is deleted.
    pub fn delete_vm(&self, vm: &VmName, expected: Option<Generation>) -> Result<(), ClusterError> {
        let (record_key, claim_key) = (vm_key(vm), claim_key(vm));
        for _ in 0..ATTEMPTS_MAX {
            let (record, claim) = (self.store.get(&record_key)?, self.store.get(&claim_key)?);
            if record.is_none() && claim.is_none() {
                return Err(ClusterError::NoVm(vm.clone()));
            }
            if let Some(expected) = expected {
                let claim = claim.as_ref().map(|claim| decode::<ClaimRecord>(&claim_key, &claim.value)).transpose()?;
                if claim.is_none_or(|claim| claim.claim.generation != expected) {
                    return Err(ClusterError::Contended(claim_key));
                }
            }
            let compares = [
                Compare { key: &record_key, version: record.map_or(0, |record| record.version) },
                Compare { key: &claim_key, version: claim.map_or(0, |claim| claim.version) },
            ];
            let ops = [Op::Delete { key: &record_key }, Op::Delete { key: &claim_key }];
            if let Outcome::Done { .. } = self.store.transact(&compares, &ops)? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended(record_key))
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, ClusterError> {
        read_from(&*self.store, key)
    }

    /// Reads, changes and writes a record until nobody else has changed it in between.
    fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        missing: impl Fn() -> ClusterError,
        mut change: impl FnMut(&mut T),
    ) -> Result<T, ClusterError> {
        for _ in 0..ATTEMPTS_MAX {
            let (mut record, version) = self.read(key)?.ok_or_else(&missing)?;
            change(&mut record);
            let value = encode(key, &record)?;
            let outcome =
                self.store.transact(&[Compare { key, version }], &[Op::Put { key, value: &value, lease: None }])?;
            if let Outcome::Done { .. } = outcome {
                return Ok(record);
            }
        }
        Err(ClusterError::Contended(key.to_owned()))
    }
}

/// What says that a cluster was made here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub made_by: HostName,
    /// The cluster was moved here from another store, in which no higher generation was given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generations_after: Option<u64>,
    /// It is being moved here, in this attempt, and is not here yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<String>,
}

/// What says that a cluster was made by this host.
fn made_by(host: &HostName) -> Result<Vec<u8>, ClusterError> {
    encode(MADE, &Made { made_by: host.clone(), generations_after: None, moving: None })
}

/// A record and its version.
pub(super) fn read_from<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<(T, u64)>, ClusterError> {
    let entry = store.get(key)?;
    entry.map(|entry| Ok((decode(key, &entry.value)?, entry.version))).transpose()
}

/// Reads a record that says its own name, which must be that of its key.
fn decode_named<T: DeserializeOwned, N>(
    key: &str,
    name: &str,
    entry: &Entry,
    own: impl Fn(&T) -> &N,
) -> Result<T, ClusterError>
where
    N: std::ops::Deref<Target = str>,
{
    let record: T = decode(key, &entry.value)?;
    if **own(&record) == *name {
        Ok(record)
    } else {
        let message = format!("it is that of {}", &**own(&record));
        Err(ClusterError::Unreadable { key: key.to_owned(), message })
    }
}
