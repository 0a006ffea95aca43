//! What the cluster looks like from here: the store's records put together with what hosts say of their replicas.

use std::time::Duration;

use api::client::{CallError, Target};
use api::messages::{DiskView, HostView, KeptDisk, LocalVms, OperationView, VmNote, VmView};
use api::status::{Protection, ProtectionState, Reason, ReplicaStatus, Role};
use api::suspicion::SuspicionMs;
use api::time::unix_ms_now;
use api::unreadable::UnreadableVmView;
use axum::http::Method;
use cluster::planner::Room;
use cluster::records::{ClusterState, HostRecord, Operation, OperationKind, OperationResult, Power, VmState};
use serde::de::DeserializeOwned;

use super::daemon::Daemon;
use super::error::HostError;
use super::hardware;
use super::registry::{KnownVm, alive_hosts, known_vms};

/// How long another host may take to say what runs there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

impl Daemon {
    /// All hosts.
    pub fn hosts(&self) -> Result<Vec<HostView>, HostError> {
        let state = self.registry.state()?;
        let (now, room) = (self.registry.now(), Room::of(&state));
        let view = |host: &HostRecord| {
            let reserved = room.reserved(&host.name);
            let vms = |has: &dyn Fn(&VmState) -> bool| -> Vec<String> {
                state.vms.iter().filter(|vm| has(vm)).map(|vm| vm.record.name.to_string()).collect()
            };
            HostView {
                name: host.name.to_string(),
                api: host.api_address.to_string(),
                alive: host.is_alive(&now),
                maintenance: host.maintenance,
                lease_age_ms: host
                    .silent_ms(&now)
                    .unwrap_or_else(|| unix_ms_now().saturating_sub(host.lease.renewed_unix_ms)),
                memory_bytes: host.memory_bytes,
                memory_reserved_bytes: reserved.memory_bytes,
                cpus: host.cpus,
                cpus_reserved: reserved.cpus,
                engines: host.engines.clone(),
                domain: host.domain.clone(),
                networks: host.networks.clone(),
                datastores: host.reached.keys().map(ToString::to_string).collect(),
                primaries: vms(&|vm| host.name.is(&vm.claim.claim.primary)),
                secondaries: vms(&|vm| vm.claim.claim.secondary.as_ref().is_some_and(|id| host.name.is(id))),
            }
        };
        Ok(state.hosts.iter().map(view).collect())
    }

    /// All VMs.
    pub fn vms(&self) -> Result<Vec<VmView>, HostError> {
        let state = self.registry.state()?;
        let said = self.what_hosts_say(&state);
        Ok(known_vms(state).iter().map(|vm| view(vm, &said)).collect())
    }

    /// VMs of which this version cannot make sense.
    pub fn unreadable_vms(&self) -> Result<Vec<UnreadableVmView>, HostError> {
        let unreadable = self.registry.state()?.unreadable_vms().into_iter();
        Ok(unreadable.map(|(name, reason)| UnreadableVmView { name, reason }).collect())
    }

    /// One VM.
    pub fn vm(&self, name: &str) -> Result<VmView, HostError> {
        let vm = self.known(name)?;
        Ok(view(&vm, &self.what_hosts_say(&self.registry.state()?)))
    }

    /// The VMs that are at home here, as far as this host knows by itself. The store has to be asked which those are.
    pub(super) fn vms_at_home(&self, local: &LocalVms) -> Result<Vec<VmView>, HostError> {
        let state = self.registry.state()?;
        let shared = shared_domains(&state);
        let mut known = known_vms(state);
        known.retain(|vm| vm.home() == self.host());
        let said = Said { answers: vec![(self.host().to_owned(), local.clone())], silent: Vec::new(), shared };
        Ok(known.iter().map(|vm| view(vm, &said)).collect())
    }

    /// What hosts have of a VM of which the store says nothing that can be read.
    pub(super) fn what_is_left(&self, state: &ClusterState, vm: &str) -> Left {
        let said = self.what_hosts_say(state);
        let of_vm = |status: &&ReplicaStatus| status.vm == vm;
        let running = said.answers.iter().flat_map(|(_, local)| &local.replicas).find(of_vm);
        let disks = said.answers.iter().flat_map(|(host, _)| {
            let disks = said.disks_at(host, vm).unwrap_or_default().iter();
            disks.filter_map(|disk| Some(KeptDisk { host: host.clone(), path: disk.path.clone()? }))
        });
        Left {
            runs: running.map(|status| (status.host.clone(), status.pid)),
            disks: disks.collect(),
            unanswered: said.silent.into_iter().map(|(host, _)| host).collect(),
        }
    }

    /// What each host that is alive says about VMs, this one included. All are asked at once; one that does not answer in
    /// time has said nothing.
    fn what_hosts_say(&self, state: &ClusterState) -> Said {
        let mut answers = vec![(self.host().to_owned(), self.local_vms())];
        answers.extend(self.ask_others(&alive_hosts(state, &self.registry.now()), "/v1/replicas"));
        let is_silent = |host: &&HostRecord| answers.iter().all(|(name, _)| *name != *host.name);
        let silent = state.hosts.iter().filter(is_silent);
        let silent = silent.map(|host| (host.name.to_string(), host.lease.renewed_unix_ms)).collect();
        Said { answers, silent, shared: shared_domains(state) }
    }
}

impl Daemon {
    /// What other hosts answer to the same question, by host. All are asked at once; one that does not answer in time has said nothing.
    pub(super) fn ask_others<T: DeserializeOwned + Send + 'static>(
        &self,
        hosts: &[Target],
        path: &str,
    ) -> Vec<(String, T)> {
        let mut calls = tokio::task::JoinSet::new();
        for target in hosts.iter().filter(|target| target.host != self.host()) {
            let (client, target, path) = (self.client().clone(), target.clone(), path.to_owned());
            calls.spawn_on(
                async move {
                    let call = client.call(&target, Method::GET, &path, None::<&()>, ANSWER_TIMEOUT);
                    let answer: Result<T, CallError> = call.await;
                    (target.host, answer)
                },
                self.runtime(),
            );
        }
        let mut answers = Vec::new();
        self.wait_for(async {
            while let Some(call) = calls.join_next().await {
                match call {
                    Ok((host, Ok(answer))) => answers.push((host, answer)),
                    Ok((_, Err(error))) => tracing::debug!("{error}"),
                    Err(error) => tracing::warn!("a call to another host ended early: {error}"),
                }
            }
        });
        answers
    }
}

/// What hosts have of one VM.
pub(super) struct Left {
    /// A host that runs a replica of it, and that process.
    pub runs: Option<(String, u32)>,
    /// Its disks.
    pub disks: Vec<KeptDisk>,
    /// Hosts that do not answer.
    pub unanswered: Vec<String>,
}

/// What hosts say about VMs.
struct Said {
    /// By host.
    answers: Vec<(String, LocalVms)>,
    /// Hosts that do not answer, and when they last renewed their leases, in ms since 1970.
    silent: Vec<(String, u64)>,
    /// Pairs of hosts that one fault may take.
    shared: Vec<[String; 2]>,
}

/// Pairs of hosts that one fault may take, each in both orders.
fn shared_domains(state: &ClusterState) -> Vec<[String; 2]> {
    let pairs = state.hosts.iter().flat_map(|one| state.hosts.iter().map(move |other| (one, other)));
    let shared = pairs.filter(|(one, other)| one.name != other.name && one.shares_domain(other));
    shared.map(|(one, other)| [one.name.to_string(), other.name.to_string()]).collect()
}

impl Said {
    fn disks_at(&self, host: &str, vm: &str) -> Option<&[DiskView]> {
        let (_, local) = self.answers.iter().find(|(name, _)| name == host)?;
        local.disks.iter().find(|disks| disks.vm == vm).map(|disks| disks.disks.as_slice())
    }
}

/// One VM, from its record and from what hosts say.
fn view(vm: &KnownVm, said: &Said) -> VmView {
    let mut replicas: Vec<ReplicaStatus> = said
        .answers
        .iter()
        .flat_map(|(_, local)| &local.replicas)
        .filter(|status| status.vm == vm.name)
        .cloned()
        .collect();
    // A primary that has been succeeded may still say that it is one: the highest generation counts.
    replicas.sort_by_key(|status| (status.role != Role::Primary, std::cmp::Reverse(status.generation)));
    let primary = replicas.first().filter(|status| status.role == Role::Primary);
    let host = primary.map_or_else(|| vm.claim.primary.to_string(), |status| status.host.clone());
    let note = said
        .answers
        .iter()
        .find(|(name, _)| *name == host)
        .and_then(|(_, local)| local.notes.iter().find(|note| note.vm == vm.name));
    // Replicas were asked after the store: a primary knows of a secondary, or of its loss, that the claim did not name yet.
    let secondary = match primary.filter(|primary| primary.generation > vm.claim.generation.number()) {
        Some(primary) => primary.peer.clone().filter(|_| primary.protection.state == ProtectionState::Protected),
        None => vm.claim.secondary.as_ref().map(ToString::to_string),
    };
    let protection = with_faults(protection(vm, primary, note, &said.silent), &replicas);
    VmView {
        name: vm.name.clone(),
        running: primary.is_some(),
        protection: with_domain(protection, &host, secondary.as_deref(), &said.shared),
        secondary,
        cpus: vm.spec.cpus,
        memory_bytes: vm.spec.memory.bytes(),
        engine: primary.map(|status| status.engine),
        generation: primary.map_or(0, |primary| primary.generation).max(vm.claim.generation.number()),
        ft: vm.ft(),
        lag_ms_max: vm.record.ft.lag_ms_max,
        suspicion_ms: SuspicionMs::between(vm.record.ft.suspicion_ms_min, vm.record.ft.suspicion_ms).ok(),
        ha: vm.ha(),
        note: note.map(|note| note.text.clone()),
        disks: hardware::disks(&vm.spec, said.disks_at(&host, &vm.name)),
        cards: hardware::cards(&vm.spec),
        spec: spec::to_toml(&vm.spec).unwrap_or_default(),
        next_spec: vm.record.next_spec.clone(),
        autostart: vm.record.autostart,
        priority: vm.spec.priority,
        operation: vm.record.operation.as_ref().map(operation),
        host,
        replicas,
    }
}

fn operation(operation: &Operation) -> OperationView {
    let failure = match &operation.result {
        Some(OperationResult::Failed { why }) => Some(why.clone()),
        Some(OperationResult::Done) | None => None,
    };
    let (id, what) = (operation.id, operation.kind.label().to_owned());
    let to = match &operation.kind {
        OperationKind::Migrate { to } => Some(to.to_string()),
        _ => None,
    };
    OperationView { id, what, to, is_over: operation.result.is_some(), failure }
}

/// A VM may run, or be protected, and yet miss something, on either host.
fn with_faults(protection: Protection, replicas: &[ReplicaStatus]) -> Protection {
    let faults = replicas.iter().flat_map(|replica| replica.faults.iter().map(|fault| (&replica.host, fault)));
    let faults: Vec<String> = faults.map(|(host, fault)| format!("host {host}: {fault}")).collect();
    if protection.state == ProtectionState::NotRunning || faults.is_empty() {
        return protection;
    }
    let detail = protection.detail.into_iter().chain(faults).collect::<Vec<_>>().join("; ");
    Protection { detail: Some(detail), ..protection }
}

/// A VM may be protected, and one fault may take both of its replicas all the same, as where hosts are was changed since.
fn with_domain(protection: Protection, primary: &str, secondary: Option<&str>, shared: &[[String; 2]]) -> Protection {
    let is_shared = |other: &str| shared.iter().any(|[one, two]| one == primary && two == other);
    match secondary.filter(|other| protection.state == ProtectionState::Protected && is_shared(other)) {
        Some(other) => {
            let warning = format!("host {other} is in the failure domain of host {primary}: one fault may take both");
            let detail = protection.detail.into_iter().chain([warning]).collect::<Vec<_>>().join("; ");
            Protection { detail: Some(detail), ..protection }
        }
        None => protection,
    }
}

fn protection(
    vm: &KnownVm,
    primary: Option<&ReplicaStatus>,
    note: Option<&VmNote>,
    silent: &[(String, u64)],
) -> Protection {
    let Some(primary) = primary else {
        let state = ProtectionState::NotRunning;
        if let Some(note) = note {
            return Protection {
                state,
                reason: None,
                detail: Some(note.text.clone()),
                since_unix_ms: note.since_unix_ms,
            };
        }
        if let Some((host, heard_unix_ms)) = silent.iter().find(|(host, _)| host == vm.home()) {
            let reason = (vm.record.power == Power::On).then_some(Reason::HardwareFailure);
            let detail = Some(format!("host {host} does not answer"));
            return Protection { state, reason, detail, since_unix_ms: *heard_unix_ms };
        }
        return Protection { state, reason: None, detail: None, since_unix_ms: vm.record.created_unix_ms };
    };
    let said = &primary.protection;
    if !vm.ft().enabled {
        return Protection { state: ProtectionState::Disabled, reason: None, detail: None, ..said.clone() };
    }
    if vm.ft().suspended {
        let detail = Some("suspended".to_owned());
        return Protection {
            state: ProtectionState::Disabled,
            reason: Some(Reason::UserAction),
            detail,
            ..said.clone()
        };
    }
    match (said.state, note) {
        (ProtectionState::NeedSecondary | ProtectionState::Disabled, Some(note)) => Protection {
            state: ProtectionState::NeedSecondary,
            reason: Some(said.reason.filter(|reason| *reason != Reason::Initializing).unwrap_or(Reason::NoHost)),
            detail: Some(note.text.clone()),
            since_unix_ms: said.since_unix_ms,
        },
        // It does not know yet what is wanted.
        (ProtectionState::Disabled, None) => {
            Protection { state: ProtectionState::Starting, reason: Some(Reason::Initializing), ..said.clone() }
        }
        _ => said.clone(),
    }
}

#[cfg(test)]
mod tests {
    use cluster::records::{FtSettings, VmRecord};
    use protocol::{Claim, Generation};
    use spec::EngineKind;
    use spec::VmSpec;
    use spec::{FtMode, ReplicaId};

    use super::*;
    use api::figures::Figures;
    use api::messages::FtWanted;
    use api::status::Fault;

    fn vm(ft: FtWanted) -> KnownVm {
        let spec = "name = \"v\"\nmemory = \"128M\"\nkernel = \"k\"\n";
        let FtWanted { enabled, suspended, mode } = ft;
        let wanted = FtSettings { enabled, suspended, mode, ..FtSettings::disabled(100, 100) };
        KnownVm {
            name: "v".to_owned(),
            spec: VmSpec::parse(spec).unwrap(),
            record: VmRecord::new("v".parse().unwrap(), spec.to_owned(), wanted, 1),
            claim: Claim { generation: Generation::new(4), primary: ReplicaId::new("a"), secondary: None },
            under_lease: false,
        }
    }

    fn status(host: &str, role: Role, generation: u64, state: ProtectionState) -> ReplicaStatus {
        ReplicaStatus {
            vm: "v".to_owned(),
            host: host.to_owned(),
            pid: 1,
            role,
            engine: EngineKind::Soft,
            mode: None,
            generation,
            running_s: 0,
            protection: Protection { state, reason: None, detail: None, since_unix_ms: 7 },
            peer: None,
            sync: None,
            listen: None,
            faults: Vec::new(),
            figures: Figures::default(),
        }
    }

    const ON: FtWanted = FtWanted { enabled: true, suspended: false, mode: FtMode::Mirror };

    fn said(host: &str, replicas: Vec<ReplicaStatus>, note: Option<&str>) -> (String, LocalVms) {
        let notes = note.map(|text| VmNote { vm: "v".to_owned(), text: text.to_owned(), since_unix_ms: 9 });
        (host.to_owned(), LocalVms { replicas, notes: notes.into_iter().collect(), disks: Vec::new() })
    }

    fn view(vm: &KnownVm, answers: &[(String, LocalVms)]) -> VmView {
        let shared = vec![["a".to_owned(), "b".to_owned()]];
        super::view(vm, &Said { answers: answers.to_vec(), silent: vec![("a".to_owned(), 5)], shared })
    }

    #[test]
    fn being_protected_does_not_hide_that_one_fault_may_take_both() {
        let protected = |peer: &str| {
            let mut primary = status("a", Role::Primary, 5, ProtectionState::Protected);
            primary.peer = Some(peer.to_owned());
            view(&vm(ON), &[said("a", vec![primary], None)]).protection.detail
        };
        assert!(protected("b").is_some_and(|detail| detail.contains("one fault may take both")));
        assert_eq!(protected("c"), None);
    }

    #[test]
    fn a_primary_that_was_succeeded_does_not_count() {
        let old = said("a", vec![status("a", Role::Primary, 3, ProtectionState::Protected)], None);
        let new = said("b", vec![status("b", Role::Primary, 4, ProtectionState::NeedSecondary)], None);
        let view = view(&vm(ON), &[old, new]);
        assert_eq!((view.host.as_str(), view.protection.state), ("b", ProtectionState::NeedSecondary));
        assert_eq!(view.replicas.len(), 2);
    }

    #[test]
    fn a_primary_knows_its_secondary_before_the_claim_that_was_read_does() {
        let mut primary = status("a", Role::Primary, 5, ProtectionState::Protected);
        primary.peer = Some("b".to_owned());
        let seen = view(&vm(ON), &[said("a", vec![primary], None)]);
        assert_eq!((seen.secondary.as_deref(), seen.generation), (Some("b"), 5));
    }

    #[test]
    fn what_is_wanted_and_what_stands_in_its_way_show() {
        let fresh = || vec![status("a", Role::Primary, 4, ProtectionState::Disabled)];
        let state = |ft, note| view(&vm(ft), &[said("a", fresh(), note)]).protection;
        assert_eq!(state(FtWanted { enabled: false, ..ON }, None).state, ProtectionState::Disabled);
        let suspended = state(FtWanted { suspended: true, ..ON }, None);
        assert_eq!((suspended.state, suspended.reason), (ProtectionState::Disabled, Some(Reason::UserAction)));
        assert_eq!(state(ON, None).state, ProtectionState::Starting);
        let stuck = state(ON, Some("no host has 128 MiB"));
        assert_eq!((stuck.state, stuck.reason), (ProtectionState::NeedSecondary, Some(Reason::NoHost)));
        assert_eq!(stuck.detail.as_deref(), Some("no host has 128 MiB"));
    }

    #[test]
    fn being_protected_does_not_hide_what_is_broken() {
        let mut secondary = status("b", Role::Secondary, 4, ProtectionState::Protected);
        let since_unix_ms = unix_ms_now() - 12_500;
        let detail = "there is no bridge".to_owned();
        secondary.faults = vec![Fault { part: "network card 0".to_owned(), detail, since_unix_ms }];
        let primary = status("a", Role::Primary, 4, ProtectionState::Protected);
        let seen = view(&vm(ON), &[said("a", vec![primary], None), said("b", vec![secondary], None)]).protection;
        let text = seen.to_string();
        let expected = "Protected (host b: network card 0: there is no bridge, since 12 s), since ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_guest_that_stands_still_for_a_disk_shows_in_any_state() {
        let mut primary = status("a", Role::Primary, 4, ProtectionState::NeedSecondary);
        let since_unix_ms = unix_ms_now() - 3_500;
        primary.faults = vec![Fault { part: "disk 0".to_owned(), detail: "it is full".to_owned(), since_unix_ms }];
        let seen = view(&vm(ON), &[said("a", vec![primary], None)]).protection;
        assert!(
            seen.detail.as_deref().is_some_and(|text| text.contains("host a: disk 0: it is full, since 3 s")),
            "{seen}"
        );
    }

    #[test]
    fn a_vm_that_does_not_run_says_why() {
        let ended = view(&vm(ON), &[said("a", vec![], Some("the guest powered off"))]).protection;
        assert_eq!((ended.state, ended.since_unix_ms), (ProtectionState::NotRunning, 9));
        let mut lost = vm(ON);
        lost.record.power = Power::On;
        let gone = view(&lost, &[said("b", vec![], None)]).protection;
        assert_eq!((gone.reason, gone.since_unix_ms), (Some(Reason::HardwareFailure), 5));
        assert!(gone.to_string().contains("host a does not answer"), "{gone}");
    }
}
