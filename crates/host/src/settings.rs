//! Changes of VMs that exist.

use std::path::PathBuf;
use std::sync::Arc;

use api::messages::{SetVm, VmView};
use spec::{DiskSpec, NetworkSpec, Protection, VmSpec, to_toml};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::network_ends::Forwarded;
use super::protection::Removed;
use super::registry::KnownVm;

/// The spec of a VM with changes to it; or why they cannot be.
pub(super) fn changed(before: &VmSpec, set: &SetVm) -> Result<VmSpec, HostError> {
    let bad = |reason: String| HostError::invalid(reason);
    let mut spec = match &set.spec {
        Some(text) => VmSpec::parse(text).map_err(|error| bad(error.to_string()))?,
        None => before.clone(),
    };
    if spec.protection != Protection::None {
        return Err(bad("`protection` of a spec says how a VM is created".to_owned())
            .hint("change it with `twinvm vm set --protection` or `twinvm ft`"));
    }
    if let Some(memory) = set.memory {
        spec.memory = memory;
    }
    if let Some(cpus) = set.cpus {
        spec.cpus = cpus;
    }
    if let Some(priority) = set.priority {
        spec.priority = priority;
    }
    if let Some(forward) = &set.forward {
        let user = spec.networks.iter_mut().find_map(|network| match network {
            NetworkSpec::User(user) => Some(user),
            NetworkSpec::Bridge(_) => None,
        });
        let user = user.ok_or_else(|| {
            bad(format!("VM {} has no user-mode network, and only such a one forwards ports", before.name))
                .hint("a card on a bridge has an address of its own there")
        })?;
        user.forward.clone_from(forward);
    }
    change_files(&mut spec, set)?;
    spec.validate().map_err(|error| bad(error.to_string()))?;
    refuse_what_is_settled(before, &spec)?;
    Ok(spec)
}

/// What it boots, and its list of disks.
fn change_files(spec: &mut VmSpec, set: &SetVm) -> Result<(), HostError> {
    for (to, wanted) in [(&mut spec.kernel, &set.kernel), (&mut spec.initrd, &set.initrd)] {
        if wanted.is_some() {
            to.clone_from(wanted);
        }
    }
    if set.cmdline.is_some() {
        spec.cmdline.clone_from(&set.cmdline);
    }
    let disks = spec.disks.len();
    if let Some(number) = set.remove_disk.iter().find(|number| **number >= disks) {
        return Err(HostError::invalid(format!("disk {number}: VM {} has {disks} disks; the first is 0", spec.name)));
    }
    let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut spec.disks)
        .into_iter()
        .enumerate()
        .partition(|(number, _)| set.remove_disk.contains(number));
    if let Some(disk) = set.add_disk.iter().find(|disk| gone.iter().any(|(_, gone)| gone.path == disk.path)) {
        return Err(HostError::invalid(format!("disk {} is removed and added at once", disk.path.display()))
            .hint("do one after the other"));
    }
    spec.disks = kept.into_iter().map(|(_, disk)| disk).chain(set.add_disk.iter().cloned()).collect();
    Ok(())
}

/// A name is more than a line of the spec, and what was made of a file when the VM got it stays what it is.
fn refuse_what_is_settled(before: &VmSpec, after: &VmSpec) -> Result<(), HostError> {
    let changed =
        [("name", before.name != after.name), ("id", before.id != after.id), ("record", before.record != after.record)];
    if let Some((key, _)) = changed.into_iter().find(|(_, is_other)| *is_other) {
        let what = format!("`{key}` of VM {} cannot be changed: it was settled when the VM was created", before.name);
        return Err(HostError::invalid(what).hint("`twinvm vm rename` gives it another name"));
    }
    let other = |disk: &DiskSpec| after.disks.iter().any(|now| now.path == disk.path && now != disk);
    if let Some(disk) = before.disks.iter().find(|disk| other(disk)) {
        let what = format!("disk {} of VM {} cannot become another kind of disk", disk.path.display(), before.name);
        return Err(HostError::invalid(what).hint("remove it, and add it as what it is to be"));
    }
    Ok(())
}

/// On a datastore, hosts that are away would go on with what they have copied.
fn refuse_on_datastore(before: &VmSpec, after: &VmSpec) -> Result<(), HostError> {
    let Some(datastore) = before.datastore().or_else(|| after.datastore()) else { return Ok(()) };
    let what = format!("VM {} has disks on datastore {datastore}", before.name);
    Err(HostError::invalid(format!("{what}: its list of disks, kernel and initial RAM disk stay"))
        .hint("make a VM with copies of its disks with `twinvm vm create`"))
}

/// Whether files have to be copied or removed for the one to become the other.
fn has_other_files(before: &VmSpec, after: &VmSpec) -> bool {
    let files = |spec: &VmSpec| (spec.image.clone(), spec.kernel.clone(), spec.initrd.clone(), spec.disks.clone());
    files(before) != files(after)
}

/// What becomes of the spec of a VM that is to have another one: what it is at once, and what it is from the next start on, each if that is something
/// else than before. No guest sees its priority, so that it changes at once, as do those of its `networks` of which that was possible.
fn now_and_next(
    before: &VmSpec,
    networks: Vec<NetworkSpec>,
    wanted: VmSpec,
    runs: bool,
) -> (Option<VmSpec>, Option<VmSpec>) {
    let now = if runs { VmSpec { priority: wanted.priority, networks, ..before.clone() } } else { wanted.clone() };
    let next = Some(wanted).filter(|wanted| *wanted != now);
    (Some(now).filter(|now| now != before), next)
}

impl Daemon {
    /// Changes a VM: at once if it is off, else what can be at once, and the rest from its next start on. For its owner.
    pub fn set_vm(self: &Arc<Self>, name: &str, set: &SetVm) -> Result<VmView, HostError> {
        let mut vm = self.known(name)?;
        self.require_home(&vm)?;
        let is_here = self.replica(name).is_some_and(|replica| !replica.is_gone());
        self.check_protection(&vm, set.protection)?;
        let is_off = !is_here && vm.claim.secondary.is_none();
        if is_off {
            self.settle_files(&vm)?;
        }
        let before = at_next_start(vm.clone())?.spec;
        let wanted = changed(&before, set)?;
        // What they name may have changed.
        let has_other_files = has_other_files(&before, &wanted) || set.kernel.is_some() || set.initrd.is_some();
        if is_here && (has_other_files || !set.disk_bytes.is_empty()) {
            let what = "its disks, kernel and initial RAM disk can be changed when it is off";
            return Err(HostError::refused(format!("VM {name} runs: {what}"))
                .hint(format!("stop it with `twinvm vm stop {name}`")));
        }
        if has_other_files {
            refuse_on_datastore(&before, &wanted)?;
            return self.set_files(name, set, wanted);
        }
        if !set.disk_bytes.is_empty() {
            vm = self.decided(vm)?;
        }
        // A secondary that is about to take over, or has, goes on with the spec that it has.
        let runs = is_here || vm.claim.secondary.is_some();
        let told = if is_here { self.forward_at_once(&vm, &wanted)? } else { Forwarded::before(&vm.spec.networks) };
        let (now, next) = now_and_next(&vm.spec, told.networks.clone(), wanted, runs);
        if let Some(now) = now.as_ref().filter(|_| !runs) {
            self.registry.admit_spec(&KnownVm { spec: now.clone(), ..vm.clone() })?;
        }
        self.grow_disks(&vm, set)?;
        let noted = self.note_settings(name, set, (now.as_ref(), next.as_ref()));
        if let Err(error) = noted {
            // What the store has counts at the next start, and for whoever takes over.
            let back = self.ends.forward(&told.networks, &vm.spec.networks, &self.end_sockets(&vm.spec));
            if let Err(why) = back {
                tracing::warn!("VM {name}: its ports are forwarded as was asked for, though that was not noted: {why}");
            }
            return Err(error);
        }
        tracing::info!("VM {name} was changed{}", if next.is_some() { " from its next start on" } else { "" });
        let mut view = self.vm(name)?;
        view.note = told.left.map(|why| format!("its ports are forwarded anew at its next start: {why}"));
        Ok(view)
    }

    /// Has ports of a VM that runs here forwarded as they are to be, where nothing else of its networks changes.
    fn forward_at_once(&self, vm: &KnownVm, wanted: &VmSpec) -> Result<Forwarded, HostError> {
        let sockets = self.end_sockets(&vm.spec);
        let told = self.ends.forward(&vm.spec.networks, &wanted.networks, &sockets);
        told.map_err(|error| HostError::refused(format!("VM {}: {error}", vm.name)))
    }

    /// Gives a VM that is off other disks, or something else to boot.
    fn set_files(self: &Arc<Self>, name: &str, set: &SetVm, wanted: VmSpec) -> Result<VmView, HostError> {
        if !set.disk_bytes.is_empty() {
            return Err(HostError::invalid(
                "a disk is made bigger, and the list of disks or the kernel changed, at once",
            )
            .hint("do one after the other"));
        }
        let vm = self.off_here(name)?;
        self.registry.admit_spec(&KnownVm { spec: wanted.clone(), ..vm.clone() })?;
        let text = to_toml(&wanted).map_err(anyhow::Error::from)?;
        let refused = |error: anyhow::Error| HostError::invalid(error_text(&error));
        let folder = self.vm_folder(name);
        let has_other_image = vm.spec.image != wanted.image;
        let kernel = has_other_image || vm.spec.kernel != wanted.kernel || set.kernel.is_some();
        let initrd = has_other_image || vm.spec.initrd != wanted.initrd || set.initrd.is_some();
        let proposed = folder.propose((&vm.spec, &wanted), &text, [kernel, initrd], &self.images, &self.vm_files);
        proposed.map_err(refused)?;
        let noted = self.note_settings(name, set, (Some(&wanted), None));
        // Whether the store has it, it says itself.
        let after = self.known(name)?;
        let removed = self.settle_files(&after)?;
        noted?;
        if vm.spec.disks != wanted.disks {
            // Their disks have other numbers.
            self.drop_secondaries(&after, Removed::Copies)?;
        }
        tracing::info!("VM {name} was changed");
        let mut view = self.vm(name)?;
        let places: Vec<String> = removed.iter().map(|path| path.display().to_string()).collect();
        let kept = || format!("what it has no more is kept as {}: remove it when nobody needs it", places.join(", "));
        view.note = (!places.is_empty()).then(kept);
        Ok(view)
    }

    /// Carries through, or drops, a change of files of a VM that is off, which a daemon may have begun that is no more. Where disks are then that the VM has no more.
    pub(super) fn settle_files(&self, vm: &KnownVm) -> Result<Vec<PathBuf>, HostError> {
        Ok(self.vm_folder(&vm.name).settle_change(&vm.record.spec, &self.folder.files(), &self.images)?)
    }

    fn grow_disks(&self, vm: &KnownVm, set: &SetVm) -> Result<(), HostError> {
        if set.disk_bytes.is_empty() {
            return Ok(());
        }
        let folder = self.vm_folder(&vm.name);
        let grown = folder.of_disks(&vm.spec, &self.vm_files).and_then(|of_disks| {
            of_disks.grow_disks(&set.disk_bytes)?;
            if of_disks.path() == folder.path() { Ok(()) } else { folder.adopt(&of_disks, &self.images) }
        });
        grown.map_err(|error| HostError::invalid(error_text(&error)))
    }

    /// Writes into a VM's record what was set: what its spec is now, if that is another one, and from its next start on.
    fn note_settings(
        &self,
        name: &str,
        set: &SetVm,
        (now, next): (Option<&VmSpec>, Option<&VmSpec>),
    ) -> Result<(), HostError> {
        let text = |spec: Option<&VmSpec>| spec.map(|spec| to_toml(spec).map_err(anyhow::Error::from)).transpose();
        let (now, next) = (text(now)?, text(next)?);
        self.registry.update(name, |record| {
            record.ha.enabled = set.protection.map_or(record.ha.enabled, |wanted| wanted == Protection::Ha);
            record.autostart = set.autostart.unwrap_or(record.autostart);
            if let Some(bounds) = set.suspicion_ms {
                (record.ft.suspicion_ms, record.ft.suspicion_ms_min) = (bounds.max(), Some(bounds.min()));
            }
            record.next_spec.clone_from(&next);
            if let Some(now) = &now {
                record.spec = now.clone().into();
            }
        })
    }

    /// Keeps the spec that a VM starts with, if it is another one than it had.
    pub(super) fn note_spec(&self, vm: &KnownVm) -> Result<(), HostError> {
        if self.known(&vm.name)?.record.next_spec.is_none() {
            return Ok(());
        }
        self.registry.update(&vm.name, |record| {
            record.spec.clone_from(&vm.record.spec);
            record.next_spec = None;
        })
    }

    /// Lets a VM that is off have the spec that was set while it ran.
    pub(super) fn take_next_spec(&self, vm: KnownVm) -> Result<KnownVm, HostError> {
        if vm.record.next_spec.is_none() {
            return Ok(vm);
        }
        self.registry.update(&vm.name, |record| {
            if let Some(next) = record.next_spec.take() {
                record.spec = next.into();
            }
        })?;
        self.known(&vm.name)
    }
}

/// The VM as it is at its next start.
pub(super) fn at_next_start(mut vm: KnownVm) -> Result<KnownVm, HostError> {
    if let Some(text) = vm.record.next_spec.take() {
        vm.spec = VmSpec::parse(&text).map_err(|error| anyhow::anyhow!("VM {}: {error}", vm.name))?;
        vm.record.spec = text.into();
    }
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use cluster::records::{FtSettings, VmRecord};
    use protocol::{Claim, Generation};
    use spec::{Priority, ReplicaId};

    use super::*;

    fn spec(more: &str) -> VmSpec {
        VmSpec::parse(&format!("name = \"shop\"\nmemory = \"128M\"\nkernel = \"k\"\n{more}")).unwrap()
    }

    const USER: &str = "[[network]]\nmode = \"bridge\"\nbridge = \"br0\"\n[[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:80-:80\"]\n";

    #[test]
    fn what_is_named_changes_and_nothing_else() {
        let before = spec(USER);
        assert_eq!(changed(&before, &SetVm::default()).unwrap(), before);
        let set = SetVm { memory: Some("1G".parse().unwrap()), cpus: Some(3), ..SetVm::default() };
        let after = changed(&before, &set).unwrap();
        assert_eq!((after.memory.bytes(), after.cpus, &after.networks), (1 << 30, 3, &before.networks));
        let forward = vec!["tcp:127.0.0.1:81-:80".parse().unwrap(), "tcp:127.0.0.1:82-:22".parse().unwrap()];
        let after = changed(&before, &SetVm { forward: Some(forward.clone()), ..SetVm::default() }).unwrap();
        let NetworkSpec::User(user) = &after.networks[1] else { panic!("{after:?}") };
        assert_eq!((&user.forward, after.memory), (&forward, before.memory));
    }

    #[test]
    fn a_vm_starts_with_the_spec_that_was_set_while_it_ran() {
        let (now, next) = (spec(""), VmSpec { cpus: 3, ..spec("") });
        let text = |spec: &VmSpec| to_toml(spec).unwrap();
        let mut record = VmRecord::new("shop".parse().unwrap(), text(&now), FtSettings::disabled(0, 0), 0);
        record.next_spec = Some(text(&next));
        let claim = Claim { generation: Generation::NONE, primary: ReplicaId::new("a"), secondary: None };
        let vm = KnownVm { name: "shop".to_owned(), spec: now, record, claim, under_lease: false };
        let starts = at_next_start(vm).unwrap();
        assert_eq!(
            (&starts.spec, starts.record.spec.as_str(), &starts.record.next_spec),
            (&next, &*text(&next), &None)
        );
        assert_eq!(at_next_start(starts.clone()).unwrap().spec, next);
        let mut broken = starts;
        broken.record.next_spec = Some("?".to_owned());
        assert!(at_next_start(broken).unwrap_err().to_string().contains("VM shop"));
    }

    #[test]
    fn priority_changes_at_once_and_the_rest_when_the_vm_is_started() {
        let before = spec("");
        let wanted = VmSpec { priority: Priority::Highest, cpus: 3, ..before.clone() };
        let urgent = VmSpec { priority: Priority::Highest, ..before.clone() };
        let changes = |wanted: &VmSpec, runs| now_and_next(&before, Vec::new(), wanted.clone(), runs);
        assert_eq!(changes(&wanted, true), (Some(urgent.clone()), Some(wanted.clone())));
        assert_eq!(changes(&wanted, false), (Some(wanted), None));
        assert_eq!(changes(&urgent, true), (Some(urgent.clone()), None));
        assert_eq!(changes(&before, true), (None, None));
        let set = SetVm { priority: Some(Priority::Low), ..SetVm::default() };
        assert_eq!(changed(&before, &set).unwrap(), VmSpec { priority: Priority::Low, ..before });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |before: &VmSpec, set: SetVm| changed(before, &set).unwrap_err().problem.to_string();
        let memory = SetVm { memory: Some("1M".parse().unwrap()), ..SetVm::default() };
        assert!(refused(&spec(USER), memory).contains("64M to 1024G"));
        assert!(refused(&spec(USER), SetVm { cpus: Some(0), ..SetVm::default() }).contains("cpus = 0"));
        let forward = "tcp:127.0.0.1:80-:80".parse().unwrap();
        let twice = SetVm { forward: Some(vec![forward, forward]), ..SetVm::default() };
        assert!(refused(&spec(USER), twice).contains("twice"));
        let none = SetVm { forward: Some(vec![forward]), ..SetVm::default() };
        assert!(refused(&spec(""), none).contains("has no user-mode network"));
    }

    #[test]
    fn ports_that_could_be_forwarded_anew_are_no_matter_of_the_next_start() {
        let before = spec(USER);
        let forward = vec!["tcp:127.0.0.1:81-:80".parse().unwrap()];
        let wanted = changed(&before, &SetVm { forward: Some(forward), ..SetVm::default() }).unwrap();
        let done = now_and_next(&before, wanted.networks.clone(), wanted.clone(), true);
        assert_eq!(done, (Some(wanted.clone()), None));
        let left = now_and_next(&before, before.networks.clone(), wanted.clone(), true);
        assert_eq!(left, (None, Some(wanted)));
    }

    #[test]
    fn a_whole_spec_changes_all_but_who_the_vm_is() {
        let before = spec("[[disk]]\npath = \"/d\"\nformat = \"raw\"\n");
        let edit = |from: &str, to: &str| {
            let text = to_toml(&before).unwrap();
            assert!(text.contains(from), "{text}");
            changed(&before, &SetVm { spec: Some(text.replace(from, to)), ..SetVm::default() })
        };
        let cpus = edit("cpus = 1", "cpus = 2").unwrap();
        assert!(cpus.cpus == 2 && !has_other_files(&before, &cpus));
        for (from, to) in [("\"k\"", "\"other\""), ("\"/d\"", "\"/other\""), ("kernel", "initrd = \"i\"\nkernel")] {
            assert!(has_other_files(&before, &edit(from, to).unwrap()), "{to}");
        }
        for (from, to, expected) in [
            ("\"shop\"", "\"other\"", "`name` of VM shop cannot be changed"),
            ("readonly = false", "readonly = true", "disk /d of VM shop cannot become another kind of disk"),
            ("readonly = false", "readonly = false\ndatastore = \"nfs\"", "cannot become another kind"),
            ("cpus = 1", "cpsu = 1", "cpsu"),
        ] {
            let refused = edit(from, to).unwrap_err().problem.to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn disks_are_removed_by_number_and_added_behind_the_others() {
        let disks = |text: &str| {
            spec(&text.split_whitespace().map(|path| format!("[[disk]]\npath = \"{path}\"\n")).collect::<String>())
        };
        let before = disks("/a /b /c");
        let add = |path: &str| disks(path).disks;
        let set =
            SetVm { remove_disk: vec![1, 0], add_disk: add("/d"), kernel: Some("new".into()), ..SetVm::default() };
        let after = changed(&before, &set).unwrap();
        assert_eq!(after, VmSpec { kernel: Some("new".into()), ..disks("/c /d") });
        let refused = |set: SetVm| changed(&before, &set).unwrap_err().problem.to_string();
        assert!(refused(SetVm { remove_disk: vec![3], ..SetVm::default() }).contains("has 3 disks"));
        assert!(refused(SetVm { add_disk: add("/b"), ..SetVm::default() }).contains("twice"));
        let at_once = SetVm { remove_disk: vec![1], add_disk: add("/b"), ..SetVm::default() };
        assert!(refused(at_once).contains("removed and added at once"));
        let on_datastore = "readonly = false\ndatastore = \"nfs\"";
        let shared = VmSpec::parse(&to_toml(&before).unwrap().replace("readonly = false", on_datastore)).unwrap();
        let refused = refuse_on_datastore(&shared, &before).unwrap_err();
        assert!(refused.problem.to_string().contains("on datastore nfs"));
        assert!(refuse_on_datastore(&before, &before).is_ok());
    }
}
