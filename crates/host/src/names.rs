//! VMs under other names: clones, and VMs that are renamed.

use std::path::Path;
use std::sync::Arc;

use api::messages::{CloneVm, RenameVm, SetVm, VmView};
use spec::{MacAddr, NetworkSpec, VmSpec};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::folder::check_socket_path;
use super::registry::{KnownVm, random_vm_id};
use super::settings::changed;
use crate::replica::config::socket;
use crate::replica::disk_copy;

/// The spec of a clone. Its network cards have addresses of their own.
pub(super) fn spec_of_clone(spec: &VmSpec, clone: &CloneVm) -> Result<VmSpec, HostError> {
    let set = SetVm { forward: clone.forward.clone(), ..SetVm::default() };
    let mut spec = changed(spec, &set)?;
    spec.name.clone_from(&clone.name);
    spec.id = Some(random_vm_id()?);
    spec.networks.iter_mut().for_each(|network| *mac_of(network) = None);
    spec.validate().map_err(|error| HostError::invalid(error.to_string()))?;
    Ok(spec)
}

/// The spec of a VM that has another name now. Its guest sees no difference: addresses that came from the old name are named.
fn renamed(spec: &VmSpec, name: &str) -> Result<VmSpec, HostError> {
    let mut after = spec.clone();
    for (number, network) in (0..).zip(&mut after.networks) {
        mac_of(network).get_or_insert_with(|| MacAddr::for_vm(&spec.name, number));
    }
    name.clone_into(&mut after.name);
    after.validate().map_err(|error| HostError::invalid(error.to_string()))?;
    Ok(after)
}

fn mac_of(network: &mut NetworkSpec) -> &mut Option<MacAddr> {
    match network {
        NetworkSpec::User(user) => &mut user.mac,
        NetworkSpec::Bridge(bridge) => &mut bridge.mac,
    }
}

impl Daemon {
    /// Makes a VM with copies of the disks of another one, which is off. For the owner of the latter.
    pub fn clone_vm(self: &Arc<Self>, name: &str, clone: &CloneVm) -> Result<VmView, HostError> {
        let vm = self.off_here(name)?;
        Self::refuse_if_under_way(&vm)?;
        if let Some(datastore) = vm.spec.datastore() {
            return Err(HostError::refused(format!(
                "VM {name} cannot be cloned: its disks are on datastore {datastore}"
            ))
            .hint("make a VM of copies of them with `twinvm vm create`"));
        }
        let spec = spec_of_clone(&vm.spec, clone)?;
        self.require_free_name(&spec)?;
        self.registry.admit(&spec)?;
        let folder = self.vm_folder(&spec.name);
        self.vm_folder(name)
            .copy_to(&folder, &self.images)
            .map_err(|error| HostError::refused(format!("VM {name} was not cloned: {}", error_text(&error))))?;
        let made = self.keep_made(&folder, &spec)?;
        tracing::info!("VM {} created as a clone of VM {name}", spec.name);
        Ok(made)
    }

    /// Gives a VM that is off another name. For its owner. A copy of its disks on another host, for a secondary, is removed. A snapshot names the VM and
    /// the files of its disks: there may be none.
    pub fn rename_vm(self: &Arc<Self>, name: &str, rename: &RenameVm) -> Result<VmView, HostError> {
        if let Some(snapshot) = self.snapshots(name)?.first() {
            let snapshot = &snapshot.name;
            return Err(HostError::refused(format!(
                "VM {name} has snapshots, such as {snapshot}, which could not be restored under another name"
            ))
            .hint(format!("remove them first, with `twinvm vm snapshot rm {name} {snapshot}`")));
        }
        let vm = self.off_here(name)?;
        Self::refuse_if_under_way(&vm)?;
        let spec = renamed(&vm.spec, &rename.name)?;
        self.require_free_name(&spec)?;
        let (before, after) = (self.vm_folder(name), self.vm_folder(&spec.name));
        self.begin_rename(&vm, &spec)?;
        if let Err(error) = before.move_to(&after, &self.images) {
            // Not if they are under the new name all the same.
            if before.path().exists() {
                let new = self.known(&spec.name)?;
                self.registry.remove_vm(&new)?;
                before.finished()?;
            }
            return Err(HostError::refused(format!("VM {name} was not renamed: {}", error_text(&error))));
        }
        self.end_rename(&vm, &spec)?;
        tracing::info!("VM {name} renamed to {}", spec.name);
        self.vm(&spec.name)
    }

    /// A VM that is at home here and does not run, when it is sure that no secondary takes it over any more: one that has lost its primary may be about
    /// to, and the claim decides. Fails if it was faster.
    pub(super) fn decided(&self, vm: KnownVm) -> Result<KnownVm, HostError> {
        self.require_home(&vm)?;
        if vm.claim.secondary.is_none() { Ok(vm) } else { self.claimed(&vm) }
    }

    /// The VM when this host alone may run it. Fails if the claim has changed since it was read.
    pub(super) fn claimed(&self, vm: &KnownVm) -> Result<KnownVm, HostError> {
        self.registry.claim_alone(vm)?;
        let vm = self.known(&vm.name)?;
        self.require_home(&vm)?;
        Ok(vm)
    }

    /// A VM whose home is this host, and which is off, with whole disks.
    pub(super) fn off_here(&self, name: &str) -> Result<KnownVm, HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        if let Some(replica) = self.replica(name) {
            if !replica.is_gone() {
                return Err(HostError::refused(format!("VM {name} runs"))
                    .hint(format!("stop it first with `twinvm vm stop {name}`")));
            }
            self.settle(&replica);
        }
        let vm = self.decided(self.known(name)?)?;
        self.settle_files(&vm)?;
        let folder = self.vm_folder(name);
        folder.settle_disks()?;
        disk_copy::startable(folder.path(), false).map_err(|error| HostError::refused(error_text(&error)))?;
        self.take_next_spec(vm)
    }

    /// Refuses a name that another VM has, or whose sockets would have paths that are too long.
    fn require_free_name(&self, spec: &VmSpec) -> Result<(), HostError> {
        let name = &spec.name;
        if self.registry.vm(name)?.is_some() {
            return Err(HostError::refused(format!("there is a VM named {name} already")).hint("choose another name"));
        }
        let folder = self.vm_folder(name);
        let sockets = self.end_sockets(spec).into_iter().chain([socket(folder.path())]);
        sockets.into_iter().try_for_each(|path| Ok(check_socket_path(Path::new(&path))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec::parse(
            "name = \"shop\"\nid = \"00f3a0b15c2d4e6f8a9b0c1d2e3f4a5b\"\nmemory = \"128M\"\nkernel = \"k\"\n[[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:80-:80\"]\n\
             [[network]]\nmode = \"bridge\"\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\n",
        )
        .unwrap()
    }

    fn macs(spec: &VmSpec) -> Vec<MacAddr> {
        let mac = |(number, network): (u32, &NetworkSpec)| {
            network.mac().unwrap_or_else(|| MacAddr::for_vm(&spec.name, number))
        };
        (0..).zip(&spec.networks).map(mac).collect()
    }

    #[test]
    fn a_clone_shares_no_address_with_its_original() {
        let clone = CloneVm { name: "copy".to_owned(), forward: Some(vec!["tcp:127.0.0.1:81-:80".parse().unwrap()]) };
        let made = spec_of_clone(&spec(), &clone).unwrap();
        assert_eq!((made.name.as_str(), made.memory), ("copy", spec().memory));
        assert!(macs(&made).iter().all(|mac| !macs(&spec()).contains(mac)), "{made:?}");
        let NetworkSpec::User(user) = &made.networks[0] else { panic!("{made:?}") };
        assert_eq!(user.forward[0].to_string(), "tcp:127.0.0.1:81-:80");
        assert!(made.id.is_some_and(|id| Some(id) != spec().id), "its guest is to know that it is another VM");
        assert_ne!(spec_of_clone(&spec(), &clone).unwrap().id, made.id);
        let bad = CloneVm { name: "../x".to_owned(), forward: None };
        assert!(spec_of_clone(&spec(), &bad).unwrap_err().problem.to_string().contains("name ="));
    }

    #[test]
    fn a_renamed_vm_keeps_its_addresses() {
        let after = renamed(&spec(), "store").unwrap();
        assert_eq!((after.name.as_str(), macs(&after)), ("store", macs(&spec())));
        assert_eq!(after.id, spec().id, "it is the same VM");
        assert!(renamed(&spec(), "").is_err());
    }
}
