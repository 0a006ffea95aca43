//! VMs that are started with their host's machine.

use std::collections::BTreeMap;

use spec::VmName;

use super::action::Outcome;
use super::report::HostReport;
use crate::records::{ClusterState, OperationResult, VmRecord};

/// How often a VM is tried to be started after the machine has booted: what it needs, such as a bridge, may come a little later.
pub(super) const TRIES_MAX: u32 = 12;
/// Time from one try to the next one, in ms.
const AGAIN_MS: u64 = 5_000;

/// The VMs that are still to be started, since the machine has booted.
#[derive(Clone, Debug, Default)]
pub(super) struct Autostart {
    /// None before it is known which they are.
    due: Option<BTreeMap<VmName, Due>>,
}

/// A VM that is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Due {
    /// How often it was tried.
    tries: u32,
    /// No try before this time, in ms.
    again_ms: u64,
    /// Its start is being asked for.
    is_busy: bool,
    /// What had been asked for and was over before the machine booted: whatever has succeeded since is newer than the wish that the VM be started.
    operation_before: u64,
}

/// What is done about a VM that is to be started with the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Its start is asked for.
    Ask,
    /// It was tried so often, and will be again.
    Later(u32),
}

impl Autostart {
    /// What is next, for each VM that is to be started. One that runs, or has run meanwhile, is done with: if it is off now, somebody has stopped it.
    pub(super) fn next(&mut self, wanted: &ClusterState, seen: &HostReport, now_ms: u64) -> Vec<(VmName, Next)> {
        if seen.is_stopping {
            return Vec::new();
        }
        let is_wanted = |vm: &VmName| {
            let vm = wanted.vm(vm).filter(|vm| vm.record.autostart && seen.host.is(&vm.claim.claim.primary));
            vm.filter(|vm| !seen.replicas.contains_key(&vm.record.name))
        };
        let due = self.due.get_or_insert_with(|| {
            let vms = wanted.vms.iter().filter(|vm| seen.has_booted && is_wanted(&vm.record.name).is_some());
            vms.map(|vm| (vm.record.name.clone(), Due::of(&vm.record))).collect()
        });
        due.retain(|vm, due| is_wanted(vm).is_some_and(|vm| due.is_open(&vm.record, now_ms)));
        let mut next = Vec::new();
        for (vm, due) in due {
            // What was asked for is seen to first.
            if due.is_busy || is_wanted(vm).is_none_or(|vm| vm.record.pending().is_some()) {
                continue;
            }
            next.push((vm.clone(), due.next(now_ms)));
        }
        next
    }

    /// Takes note of whether the start of a VM was asked for.
    pub(super) fn note(&mut self, vm: &VmName, outcome: &Outcome) {
        if let Some(due) = self.due.as_mut().and_then(|due| due.get_mut(vm)) {
            due.is_busy = false;
            // It was not even tried.
            due.tries = due.tries.saturating_sub(u32::from(*outcome == Outcome::NotWanted));
        }
    }

    /// Whether all VMs are started that are to be started with the machine, or are given up.
    pub(super) fn is_over(&self) -> bool {
        self.due.as_ref().is_some_and(BTreeMap::is_empty)
    }
}

impl Due {
    fn of(record: &VmRecord) -> Self {
        let operation = record.operation.as_ref().filter(|operation| operation.result.is_some());
        let before = record.pending().map(|pending| pending.id.saturating_sub(1));
        let operation_before = before.or(operation.map(|operation| operation.id)).unwrap_or(0);
        Self { tries: 0, again_ms: 0, is_busy: false, operation_before }
    }

    /// Whether it is still to be started.
    fn is_open(&self, record: &VmRecord, now_ms: u64) -> bool {
        let newer = record.operation.as_ref().filter(|operation| operation.id > self.operation_before);
        let has_succeeded = newer.is_some_and(|operation| operation.result == Some(OperationResult::Done));
        let is_given_up = self.tries >= TRIES_MAX && now_ms >= self.again_ms && record.pending().is_none();
        !has_succeeded && (!is_given_up || self.is_busy)
    }

    fn next(&mut self, now_ms: u64) -> Next {
        if now_ms < self.again_ms {
            return Next::Later(self.tries);
        }
        (self.tries, self.again_ms, self.is_busy) = (self.tries + 1, now_ms.saturating_add(AGAIN_MS), true);
        Next::Ask
    }
}

#[cfg(test)]
mod tests {
    use protocol::{Claim, Generation};
    use spec::ReplicaId;

    use super::*;
    use crate::records::{ClaimRecord, FtSettings, OperationKind, VmState};

    #[test]
    fn a_vm_that_cannot_be_started_is_given_up_after_a_minute() {
        let name: VmName = "v".parse().unwrap();
        let record = VmRecord::new(name.clone(), String::new(), FtSettings::disabled(100, 50), 0);
        let claim = Claim { generation: Generation::new(1), primary: ReplicaId::new("a"), secondary: None };
        let vm = VmState { record: VmRecord { autostart: true, ..record }, claim: ClaimRecord::first(claim) };
        let mut wanted = ClusterState { vms: vec![vm], ..ClusterState::default() };
        let seen = HostReport {
            host: "a".parse().unwrap(),
            has_booted: true,
            is_stopping: false,
            stops_vms: false,
            run_lease_ms: None,
            replicas: BTreeMap::new(),
            powered_off: Default::default(),
        };
        let (mut autostart, mut asked_at) = (Autostart::default(), Vec::new());
        assert!(!autostart.is_over(), "it is not known yet which are to be started");
        for now_ms in (0..120_000).step_by(500) {
            match &autostart.next(&wanted, &seen, now_ms)[..] {
                [] => assert!(autostart.is_over()),
                [(_, Next::Later(tries))] => assert_eq!(usize::try_from(*tries).unwrap(), asked_at.len()),
                [(vm, Next::Ask)] => {
                    assert!(autostart.next(&wanted, &seen, now_ms).is_empty(), "it is being asked for");
                    // It was not asked for after all: that is none of the tries.
                    if now_ms == 0 {
                        autostart.note(vm, &Outcome::NotWanted);
                        continue;
                    }
                    asked_at.push(now_ms);
                    autostart.note(vm, &Outcome::Done);
                    let record = &mut wanted.vms[0].record;
                    let kind = OperationKind::Start { from_stale_disks: false, snapshot: None };
                    let id = record.ask(kind, None, Generation::new(1));
                    record.end(id, OperationResult::Failed { why: "there is no bridge".to_owned() });
                }
                other => panic!("{other:?}"),
            }
        }
        let expected: Vec<u64> = (1..=u64::from(TRIES_MAX)).map(|number| number * AGAIN_MS).collect();
        assert_eq!(asked_at, expected);
        assert!(autostart.is_over());
    }
}
