//! Changes of VMs that exist.

use std::sync::Arc;

use api::messages::{SetVm, VmView};
use spec::{NetworkSpec, Protection, VmSpec, to_toml};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::registry::KnownVm;

/// The spec of a VM with changes to it; or why they cannot be.
pub(super) fn changed(before: &VmSpec, set: &SetVm) -> Result<VmSpec, HostError> {
    let bad = |reason: String| HostError::bad_request(reason);
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
    spec.validate().map_err(|error| bad(error.to_string()))?;
    refuse_other_files(before, &spec)?;
    Ok(spec)
}

/// What was copied when the VM was created is not copied again, and a name is more than a line of the spec.
fn refuse_other_files(before: &VmSpec, after: &VmSpec) -> Result<(), HostError> {
    let changed = [
        ("name", before.name != after.name),
        ("id", before.id != after.id),
        ("image", before.image != after.image),
        ("kernel", before.kernel != after.kernel),
        ("initrd", before.initrd != after.initrd),
        ("record", before.record != after.record),
        ("disk", before.disks != after.disks),
    ];
    match changed.into_iter().find(|(_, is_other)| *is_other) {
        Some((key, _)) => Err(HostError::bad_request(format!(
            "`{key}` of VM {} cannot be changed: it was settled when the VM was created",
            before.name
        ))
        .hint("memory, cpus, priority, cpu, engine, cmdline, huge_pages, numa_node and networks can be; `twinvm vm set --grow-disk` makes a disk bigger")),
        None => Ok(()),
    }
}

/// What becomes of the spec of a VM that is to have another one: what it is at once, and what it is from the next start on, each if that is something
/// else than before. No guest sees its priority, so that it changes at once.
fn now_and_next(before: &VmSpec, wanted: VmSpec, runs: bool) -> (Option<VmSpec>, Option<VmSpec>) {
    let now = if runs { VmSpec { priority: wanted.priority, ..before.clone() } } else { wanted.clone() };
    let next = Some(wanted).filter(|wanted| *wanted != now);
    (Some(now).filter(|now| now != before), next)
}

impl Daemon {
    /// Changes a VM: at once if it is off, else from its next start on. For its owner.
    pub fn set_vm(self: &Arc<Self>, name: &str, set: &SetVm) -> Result<VmView, HostError> {
        let mut vm = self.known(name)?;
        self.require_home(&vm)?;
        let is_here = self.replica(name).is_some_and(|replica| !replica.is_gone());
        if is_here && !set.disk_bytes.is_empty() {
            return Err(HostError::conflict(format!("VM {name} runs: its disks can be made bigger when it is off"))
                .hint(format!("stop it with `twinvm vm stop {name}`")));
        }
        self.check_protection(&vm, set.protection)?;
        let wanted = changed(&at_next_start(vm.clone())?.spec, set)?;
        if !set.disk_bytes.is_empty() {
            vm = self.decided(vm)?;
        }
        // A secondary that is about to take over, or has, goes on with the spec that it has.
        let runs = is_here || vm.claim.secondary.is_some();
        let (now, next) = now_and_next(&vm.spec, wanted, runs);
        if let Some(now) = now.as_ref().filter(|_| !runs) {
            self.registry.admit_spec(&KnownVm { spec: now.clone(), ..vm.clone() })?;
        }
        let text = |spec: Option<VmSpec>| spec.map(|spec| to_toml(&spec).map_err(anyhow::Error::from)).transpose();
        let (now, next) = (text(now)?, text(next)?);
        if !set.disk_bytes.is_empty() {
            let folder = self.vm_folder(name);
            let grown = folder.of_disks(&vm.spec, &self.vm_files).and_then(|of_disks| {
                of_disks.grow_disks(&set.disk_bytes)?;
                if of_disks.path() == folder.path() { Ok(()) } else { folder.adopt(&of_disks, &self.images) }
            });
            grown.map_err(|error| HostError::bad_request(error_text(&error)))?;
        }
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
        })?;
        tracing::info!("VM {name} was changed{}", if next.is_some() { " from its next start on" } else { "" });
        self.vm(name)
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
        let changes = |wanted: &VmSpec, runs| now_and_next(&before, wanted.clone(), runs);
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
    fn a_whole_spec_changes_what_was_not_copied() {
        let before = spec("[[disk]]\npath = \"/d\"\nformat = \"raw\"\n");
        let edit = |from: &str, to: &str| {
            let text = to_toml(&before).unwrap();
            assert!(text.contains(from), "{text}");
            changed(&before, &SetVm { spec: Some(text.replace(from, to)), ..SetVm::default() })
        };
        assert_eq!(edit("cpus = 1", "cpus = 2").unwrap().cpus, 2);
        for (key, from, to) in
            [("name", "\"shop\"", "\"other\""), ("kernel", "\"k\"", "\"other\""), ("disk", "\"/d\"", "\"/other\"")]
        {
            let refused = edit(from, to).unwrap_err().problem.to_string();
            assert!(refused.contains(&format!("`{key}` of VM shop cannot be changed")), "{refused}");
        }
        assert!(edit("cpus = 1", "cpsu = 1").unwrap_err().problem.to_string().contains("cpsu"));
    }
}
