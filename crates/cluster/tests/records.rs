//! Records in the store: created once, changed without losing anything, read though others cannot be.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cluster::arbiter::StoreArbiter;
use cluster::records::{
    BootTime, Cluster, ClusterError, ClusterState, FtSettings, HostRecord, Lease, OperationKind, OperationResult,
    Power, TokenUse, UnknownFields, VmRecord,
};
use cluster::store::{LeaseId, Op, SqliteStore, Store, Stores};
use protocol::{Arbiter, Claim, Generation};
use spec::{EngineKind, HostName, Maintenance, VmName};
use tempfile::TempDir;

fn cluster() -> (TempDir, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::create(&folder.path().join("cluster.db")).unwrap();
    (folder, Cluster::new(Stores::one(Arc::new(store))))
}

fn host_name(name: &str) -> HostName {
    name.parse().unwrap()
}

fn vm_name(name: &str) -> VmName {
    name.parse().unwrap()
}

fn lease(renewed_boot_ms: u64) -> Lease {
    Lease { renewed_boot_ms, renewed_unix_ms: renewed_boot_ms, ttl_ms: 3_000 }
}

fn host(name: &str) -> HostRecord {
    HostRecord {
        name: host_name(name),
        api_address: "127.0.0.1:7441".parse().unwrap(),
        replication_ip: "127.0.0.1".parse().unwrap(),
        boot_id: "one".to_owned(),
        domain: None,
        cpus: 8,
        memory_bytes: 4 << 30,
        engines: vec![EngineKind::Soft],
        kvm_processor: None,
        networks: vec!["br0".to_owned()],
        reached: Default::default(),
        maintenance: Default::default(),
        lease: lease(1_000),
        instance: String::new(),
        folder: Default::default(),
        version: "0.1.0".to_owned(),
        unknown: UnknownFields::default(),
    }
}

/// Longer than any test takes.
const TTL: Duration = Duration::from_secs(600);

/// The record without what its reader has seen.
fn written(host: HostRecord) -> HostRecord {
    HostRecord { lease: lease(1_000), ..host }
}

fn now() -> BootTime {
    BootTime::now().unwrap()
}

fn vm(name: &str) -> VmRecord {
    let spec = "name = \"v\"\nmemory = \"64M\"\nimage = \"tiny\"\n";
    VmRecord::new(vm_name(name), spec.to_owned(), FtSettings::disabled(100, 50), 7)
}

fn write(cluster: &Cluster, key: &str, text: &str) {
    cluster.store().transact(&[], &[Op::Put { key, value: text.as_bytes(), lease: None }]).unwrap();
}

fn text(cluster: &Cluster, key: &str) -> String {
    String::from_utf8(cluster.store().get(key).unwrap().unwrap().value).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let (_folder, cluster) = cluster();
    cluster.register_host(&host("b"), None, TTL).unwrap();
    cluster.register_host(&host("a"), None, TTL).unwrap();
    let claim = cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    assert_eq!(cluster.hosts().unwrap().into_iter().map(written).collect::<Vec<_>>(), [host("a"), host("b")]);
    assert_eq!(written(cluster.host(&host_name("b")).unwrap()), host("b"));
    assert_eq!(cluster.vms().unwrap(), [vm("v")]);
    assert_eq!(cluster.vm(&vm_name("v")).unwrap(), vm("v"));
    assert_eq!(cluster.claim(&vm_name("v")).unwrap().claim, claim);
    let state = cluster.state().unwrap();
    assert_eq!((state.hosts.len(), state.vms.len(), state.unreadable), (2, 1, vec![]));
    assert_eq!((claim.primary.as_str(), claim.secondary), ("a", None));
}

#[test]
fn what_is_not_there_is_named() {
    let (_folder, cluster) = cluster();
    let (host, vm) = (host_name("a"), vm_name("v"));
    assert_eq!(cluster.host(&host), Err(ClusterError::NoHost(host.clone())));
    assert_eq!(cluster.renew_lease(&host, "", LeaseId(77)), Err(ClusterError::NoHost(host.clone())));
    assert_eq!(cluster.remove_host(&host), Err(ClusterError::NoHost(host)));
    assert_eq!(cluster.vm(&vm), Err(ClusterError::NoVm(vm.clone())));
    assert_eq!(cluster.claim(&vm), Err(ClusterError::NoVm(vm.clone())));
    assert_eq!(cluster.update_vm(&vm, |_| ()), Err(ClusterError::NoVm(vm.clone())));
    assert_eq!(cluster.delete_vm(&vm, None), Err(ClusterError::NoVm(vm)));
}

#[test]
fn of_those_who_create_a_vm_one_does() {
    let (_folder, cluster) = cluster();
    let creators: Vec<_> = (0..6)
        .map(|number| {
            let cluster = cluster.clone();
            thread::spawn(move || cluster.create_vm(&vm("v"), &host_name(&format!("h{number}"))))
        })
        .collect();
    let results: Vec<_> = creators.into_iter().map(|creator| creator.join().unwrap()).collect();
    let created: Vec<&Claim> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(created, [&cluster.claim(&vm_name("v")).unwrap().claim]);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(*error, ClusterError::VmExists(vm_name("v")));
    }
}

#[test]
fn a_vm_that_gets_the_name_of_a_deleted_one_gets_none_of_its_generations() {
    let (_folder, cluster) = cluster();
    let mut highest = Generation::NONE;
    for _ in 0..5 {
        let claim = cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
        assert!(claim.generation > highest, "{} after {highest}", claim.generation);
        let arbiter = StoreArbiter::new(cluster.store().clone(), "v");
        for _ in 0..10 {
            let current = arbiter.read().unwrap();
            let next = Claim { generation: current.generation.next(), ..current.clone() };
            arbiter.compare_and_swap(current.generation, &next).unwrap();
        }
        highest = cluster.claim(&vm_name("v")).unwrap().claim.generation;
        assert_eq!(highest.number(), claim.generation.number() + 10);
        cluster.delete_vm(&vm_name("v"), None).unwrap();
        assert_eq!(cluster.state().unwrap().vms, []);
    }
}

/// The record and the claim were deleted whatever they said: those of a VM that a secondary had taken over meanwhile, and ran.
#[test]
fn a_vm_that_was_taken_over_meanwhile_is_not_deleted() {
    let (_folder, cluster) = cluster();
    let first = cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    let next = Claim { generation: first.generation.next(), primary: host_name("b").replica(), secondary: None };
    StoreArbiter::new(cluster.store().clone(), "v").compare_and_swap(first.generation, &next).unwrap();
    let deleted = cluster.delete_vm(&vm_name("v"), Some(first.generation));
    assert!(matches!(deleted, Err(ClusterError::Contended(_))), "{deleted:?}");
    assert_eq!(cluster.claim(&vm_name("v")).unwrap().claim, next);
    cluster.vm(&vm_name("v")).unwrap();
    cluster.delete_vm(&vm_name("v"), Some(next.generation)).unwrap();
    assert_eq!(cluster.store().list("vms/").unwrap().entries, []);
    // One that nobody can read goes too, where that is asked for.
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    write(&cluster, "vms/v", "{");
    write(&cluster, "vms/v/claim", "{");
    assert!(matches!(cluster.delete_vm(&vm_name("v"), Some(first.generation)), Err(ClusterError::Unreadable { .. })));
    cluster.delete_vm(&vm_name("v"), None).unwrap();
    assert_eq!(cluster.store().list("vms/").unwrap().entries, []);
}

#[test]
fn changes_at_the_same_time_are_all_kept() {
    let (_folder, cluster) = cluster();
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    let lease = cluster.register_host(&host("a"), None, TTL).unwrap();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let cluster = cluster.clone();
            thread::spawn(move || {
                for _ in 0..8 {
                    cluster.update_vm(&vm_name("v"), |vm| vm.ft.suspicion_ms += 1).unwrap();
                    cluster.renew_lease(&host_name("a"), "", lease).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(cluster.vm(&vm_name("v")).unwrap().ft.suspicion_ms, 132);
    assert!(cluster.host(&host_name("a")).unwrap().is_alive(&now()));
}

#[test]
fn a_vm_cannot_be_renamed_by_a_change_of_its_record() {
    let (_folder, cluster) = cluster();
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    let changed = cluster.update_vm(&vm_name("v"), |vm| {
        vm.name = vm_name("w");
        vm.power = Power::On;
    });
    assert_eq!(changed.unwrap(), VmRecord { power: Power::On, ..vm("v") });
    assert_eq!(cluster.vms().unwrap().len(), 1);
}

#[test]
fn an_operation_stays_in_its_record_until_the_next_one_takes_its_place() {
    let (_folder, cluster) = cluster();
    let generation = cluster.create_vm(&vm("v"), &host_name("a")).unwrap().generation;
    let change = |change: &dyn Fn(&mut VmRecord)| cluster.update_vm(&vm_name("v"), change).unwrap();
    let read = || cluster.vm(&vm_name("v")).unwrap();
    let start = |snapshot| OperationKind::Start { from_stale_disks: true, snapshot };
    let from = host_name("a");
    let kinds = [
        start(None),
        start(Some("s".parse().unwrap())),
        OperationKind::Stop { force: true },
        OperationKind::Switchover { from: from.clone() },
        OperationKind::Failover { from: from.clone() },
        OperationKind::RestartSecondary,
        OperationKind::Reboot { force: false, patience_ms: 7 },
    ];
    for (id, kind) in (1..).zip(kinds) {
        change(&|record| {
            record.ask(kind.clone(), Some(from.clone()), generation);
        });
        // Somebody else writes to the record, with all that was read.
        change(&|record| record.power = Power::On);
        let found = read().pending().cloned().unwrap();
        assert_eq!((found.id, &found.kind, &found.host), (id, &kind, &Some(from.clone())));
        assert!(found.unknown.is_empty(), "{found:?}");
    }
    // A reboot becomes a start when that begins; what has ended stays so, and an earlier one has no say.
    change(&|record| record.begin_start(generation.next()));
    change(&|record| record.end(6, OperationResult::Done));
    let begun = read().pending().cloned().unwrap();
    assert_eq!((begun.id, begun.generation), (7, generation.next()));
    assert_eq!(begun.kind, OperationKind::Start { from_stale_disks: false, snapshot: None });
    let failed = OperationResult::Failed { why: "it is full".to_owned() };
    change(&|record| record.end(7, failed.clone()));
    change(&|record| record.end(7, OperationResult::Done));
    assert_eq!((read().pending(), read().operation.unwrap().result), (None, Some(failed)));
}

#[test]
fn a_host_that_has_a_replica_is_not_removed() {
    let (_folder, cluster) = cluster();
    let (a, b) = (host_name("a"), host_name("b"));
    cluster.register_host(&host("a"), None, TTL).unwrap();
    cluster.register_host(&host("b"), None, TTL).unwrap();
    let first = cluster.create_vm(&vm("v"), &a).unwrap();
    let arbiter = StoreArbiter::new(cluster.store().clone(), "v");
    let protected = Claim { generation: first.generation.next(), secondary: Some(b.replica()), ..first.clone() };
    arbiter.compare_and_swap(first.generation, &protected).unwrap();
    for host in [&a, &b] {
        let refused = cluster.remove_host(host).unwrap_err();
        assert_eq!(refused, ClusterError::HostInUse { host: host.clone(), vm: vm_name("v") });
    }
    let alone = Claim { generation: protected.generation.next(), ..first };
    arbiter.compare_and_swap(protected.generation, &alone).unwrap();
    cluster.remove_host(&b).unwrap();
    assert_eq!(cluster.hosts().unwrap().into_iter().map(written).collect::<Vec<_>>(), [host("a")]);
}

#[test]
fn fields_of_a_newer_version_are_kept() {
    let (_folder, cluster) = cluster();
    cluster.register_host(&host("a"), None, TTL).unwrap();
    let claim = cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    for (key, from, to) in [
        ("vms/v", "\"suspended\"", "\"slow_ms\":5,\"suspended\""),
        ("vms/v", "{\"name\"", "{\"priority\":[1,2],\"name\""),
        ("vms/v/claim", "\"copies\"", "\"witness\":\"w\",\"copies\""),
    ] {
        let old = text(&cluster, key);
        let new = old.replace(from, to);
        assert_ne!(old, new);
        write(&cluster, key, &new);
    }
    cluster.update_vm(&vm_name("v"), |vm| vm.ft.enabled = true).unwrap();
    let next = Claim { generation: claim.generation.next(), ..claim.clone() };
    StoreArbiter::new(cluster.store().clone(), "v").compare_and_swap(claim.generation, &next).unwrap();
    let vm = text(&cluster, "vms/v");
    assert!(vm.contains("\"slow_ms\":5") && vm.contains("\"priority\":[1,2]"), "{vm}");
    assert!(text(&cluster, "vms/v/claim").contains("\"witness\":\"w\""));
    assert_eq!(cluster.claim(&vm_name("v")).unwrap().claim, next);
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other() {
    let (_folder, cluster) = cluster();
    for name in ["good", "newer", "garbage", "other", "claimless", "recordless", "spec"] {
        cluster.create_vm(&vm(name), &host_name("a")).unwrap();
    }
    cluster.register_host(&host("a"), None, TTL).unwrap();
    let newer = text(&cluster, "vms/newer").replace("\"mirror\"", "\"a mode of later versions\"");
    write(&cluster, "vms/newer", &newer);
    write(&cluster, "vms/garbage/claim", "\u{0}");
    write(&cluster, "vms/other", &text(&cluster, "vms/good"));
    write(&cluster, "hosts/b", &text(&cluster, "hosts/a"));
    write(&cluster, "hosts/../a", "{}");
    write(&cluster, "tenants/a", "{}");
    for key in ["vms/claimless/claim", "vms/recordless"] {
        cluster.store().transact(&[], &[Op::Delete { key }]).unwrap();
    }
    write(&cluster, "vms/spec", &text(&cluster, "vms/spec").replace("memory = ", "memroy = "));

    let state = cluster.state().unwrap();
    assert_eq!(state.vms.iter().map(|vm| vm.record.name.as_str()).collect::<Vec<_>>(), ["good", "spec"]);
    // Whoever lists VMs shows them.
    let listed = state.unreadable_vms();
    let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["claimless", "garbage", "newer", "other", "recordless", "spec"]);
    for ((name, why), expected) in
        listed.iter().zip(["is missing", "garbage/claim", "newer twinvm", "that of good", "is missing", "memroy"])
    {
        assert!(why.contains(expected) && why.contains(&format!("vms/{name}")), "{name}: {why}");
    }
    assert_eq!(state.hosts.into_iter().map(written).collect::<Vec<_>>(), [host("a")]);
    let mut unreadable: Vec<&str> = state.unreadable.iter().map(|record| record.key.as_str()).collect();
    unreadable.sort_unstable();
    let expected = [
        "hosts/../a",
        "hosts/b",
        "tenants/a",
        "vms/claimless/claim",
        "vms/garbage/claim",
        "vms/newer",
        "vms/other",
        "vms/recordless",
    ];
    assert_eq!(unreadable, expected);

    let error = cluster.vm(&vm_name("newer")).unwrap_err().to_string();
    assert!(error.contains("vms/newer") && error.contains("newer twinvm"), "{error}");
    let before = text(&cluster, "vms/newer");
    assert!(cluster.update_vm(&vm_name("newer"), |vm| vm.power = Power::On).is_err());
    assert_eq!(text(&cluster, "vms/newer"), before, "what is not understood is not overwritten");
}

#[test]
fn whoever_waits_for_changes_of_vms_is_not_woken_by_leases() {
    let (_folder, cluster) = cluster();
    let lease = cluster.register_host(&host("a"), None, TTL).unwrap();
    let since = cluster.state().unwrap().revision;
    cluster.renew_lease(&host_name("a"), "", lease).unwrap();
    assert!(!cluster.wait_for_vm_change(since, Duration::from_millis(60)).unwrap());
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    assert!(cluster.wait_for_vm_change(since, Duration::from_secs(60)).unwrap());
}

#[test]
fn a_record_that_is_too_large_is_refused() {
    let (_folder, cluster) = cluster();
    let large = VmRecord { spec: "x".repeat(2 << 20).into(), ..vm("v") };
    let refused = cluster.create_vm(&large, &host_name("a")).unwrap_err();
    assert!(refused.to_string().contains("at most 1048576"), "{refused}");
    assert_eq!(cluster.vms().unwrap(), []);
}

#[test]
fn a_host_is_registered_by_one_instance_at_a_time() {
    let (_folder, cluster) = cluster();
    let instance = |instance: &str| HostRecord { instance: instance.to_owned(), ..host("a") };
    let refused = ClusterError::OtherInstance(host_name("a"));
    cluster.register_host(&instance("1"), None, TTL).unwrap();
    let first = cluster.register_host(&instance("1"), None, TTL).unwrap();
    assert_eq!(cluster.register_host(&instance("2"), None, TTL), Err(refused.clone()));
    assert_eq!(cluster.register_host(&instance("2"), Some("0"), TTL), Err(refused.clone()));
    let second = cluster.register_host(&instance("2"), Some("1"), TTL).unwrap();
    let goes_on = cluster.renew_lease(&host_name("a"), "1", first);
    assert_eq!(goes_on, Err(refused), "the one that was succeeded goes on");
    cluster.renew_lease(&host_name("a"), "2", second).unwrap();
    // What the first one leaves behind says nothing of the second.
    cluster.end_lease(first).unwrap();
    assert!(cluster.host(&host_name("a")).unwrap().is_alive(&now()));
}

#[test]
fn only_the_instance_that_serves_a_host_says_how_far_its_maintenance_goes() {
    let (_folder, cluster) = cluster();
    let a = host_name("a");
    let set = |instance: &str, maintenance| cluster.set_maintenance(&a, instance, maintenance);
    assert_eq!(set("1", Maintenance::On), Err(ClusterError::NoHost(a.clone())));
    cluster.register_host(&HostRecord { instance: "1".to_owned(), ..host("a") }, None, TTL).unwrap();
    set("1", Maintenance::Forced).unwrap();
    assert_eq!(set("2", Maintenance::Off), Err(ClusterError::OtherInstance(a.clone())));
    let read = written(cluster.host(&a).unwrap());
    let maintenance = Maintenance::Forced;
    assert_eq!(read, HostRecord { instance: "1".to_owned(), maintenance, ..host("a") });
}

#[test]
fn a_vm_that_is_to_move_wants_a_secondary_until_it_is_there() {
    let mut record = vm("v");
    let claim = |primary: &str| Claim {
        generation: Generation::new(1),
        primary: host_name(primary).replica(),
        secondary: None,
    };
    assert!(!record.wants_secondary(&claim("a")));
    let id = record.ask(OperationKind::Migrate { to: host_name("b") }, None, Generation::new(1));
    assert_eq!(record.migrates_to(&claim("a")), Some(&host_name("b")));
    assert!(record.wants_secondary(&claim("a")) && !record.wants_secondary(&claim("b")));
    record.end(id, OperationResult::Failed { why: "it is full".to_owned() });
    assert!(!record.wants_secondary(&claim("a")));
}

#[test]
fn hosts_in_a_store_of_their_own_are_part_of_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let store = |name: &str| Arc::new(SqliteStore::create(&folder.path().join(name)).unwrap());
    let (vms, hosts) = (store("cluster.db"), store("hosts.db"));
    let cluster = Cluster::new(Stores { vms: vms.clone(), hosts: hosts.clone() });
    let lease = cluster.register_host(&host("a"), None, TTL).unwrap();
    let revision = vms.list("").unwrap().revision;
    cluster.renew_lease(&host_name("a"), "", lease).unwrap();
    assert_eq!(vms.list("").unwrap().revision, revision, "a lease was renewed in the store of the claims");
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    let state = cluster.state().unwrap();
    assert_eq!((state.hosts.len(), state.vms.len(), state.unreadable.len()), (1, 1, 0));
    assert!(cluster.remove_host(&host_name("a")).is_err(), "it has a VM");
    cluster.delete_vm(&vm_name("v"), None).unwrap();
    cluster.remove_host(&host_name("a")).unwrap();
    assert_eq!(hosts.list("").unwrap().entries, [], "something of the host stays, as that it is alive");
}

/// Whoever plans restarts waits for that, rather than to look now and then.
#[test]
fn whoever_waits_for_run_leases_is_woken_when_one_begins_or_ends() {
    let (_folder, cluster) = cluster();
    let (since, may_have_changed) = cluster.wait_for_run_leases(None, Duration::ZERO).unwrap();
    assert!(may_have_changed, "what was before is not known");
    let wait = |since, timeout| cluster.wait_for_run_leases(Some(since), timeout).unwrap();
    let lease = cluster.take_run_lease(&host_name("a"), Duration::from_millis(400)).unwrap();
    let (since, has_changed) = wait(since, Duration::from_secs(60));
    assert!(has_changed);
    assert!(cluster.renew_run_lease(lease).unwrap());
    let (since, has_changed) = wait(since, Duration::from_millis(50));
    assert!(!has_changed, "a renewal changes nothing");
    assert!(wait(since, Duration::from_secs(60)).1, "it has ended");
    assert!(cluster.state().unwrap().run_leases.is_empty());
}

#[test]
fn a_host_is_alive_as_long_as_its_lease_whatever_clock_it_has() {
    let (_folder, cluster) = cluster();
    let a = host_name("a");
    // On another machine, whose clock tells something else.
    let remote = HostRecord { boot_id: "another".to_owned(), lease: lease(u64::MAX), ..host("a") };
    let first = cluster.register_host(&remote, None, TTL).unwrap();
    assert!(cluster.state().unwrap().hosts[0].is_alive(&now()));
    // A state that was read is not good for ever.
    let seen = cluster.host(&a).unwrap();
    let later = BootTime { ms: now().ms + 60_000, ..now() };
    assert!(!seen.is_alive(&later) && seen.silent_ms(&later) >= Some(59_000));
    cluster.end_lease(first).unwrap();
    let ended = cluster.state().unwrap().hosts.remove(0);
    assert!(!ended.is_alive(&now()) && ended.silent_ms(&now()) < Some(60_000), "{ended:?}");
    assert_eq!(cluster.renew_lease(&a, "", first), Err(ClusterError::LeaseEnded(a.clone())));
    cluster.register_host(&remote, None, TTL).unwrap();
    assert!(cluster.host(&a).unwrap().is_alive(&now()));
    // Who has never seen it alive does not say since when it is not.
    let (_folder, fresh) = self::cluster();
    let short = fresh.register_host(&remote, None, TTL).unwrap();
    fresh.end_lease(short).unwrap();
    assert_eq!(fresh.host(&a).unwrap().silent_ms(&now()), None);
}

#[test]
fn hosts_are_read_again_without_the_vms() {
    let (_folder, cluster) = cluster();
    let lease = cluster.register_host(&host("a"), None, TTL).unwrap();
    cluster.create_vm(&vm("v"), &host_name("a")).unwrap();
    write(&cluster, "vms/broken", "{");
    let mut state = cluster.state().unwrap();
    cluster.delete_vm(&vm_name("v"), None).unwrap();
    cluster.end_lease(lease).unwrap();
    write(&cluster, "hosts/b", "{");
    cluster.refresh_hosts(&mut state).unwrap();
    assert_eq!((state.vms.len(), state.hosts.len(), state.hosts[0].is_alive(&now())), (1, 1, false));
    let unreadable =
        |state: &ClusterState| -> Vec<String> { state.unreadable.iter().map(|record| record.key.clone()).collect() };
    assert_eq!(unreadable(&state), ["vms/broken", "hosts/b"]);
    write(&cluster, "hosts/b", &text(&cluster, "hosts/a").replace("\"a\"", "\"b\""));
    cluster.refresh_hosts(&mut state).unwrap();
    assert_eq!((state.hosts.len(), unreadable(&state)), (2, vec!["vms/broken".to_owned()]));
}

#[test]
fn a_cluster_is_made_once_in_one_store() {
    let (_folder, cluster) = cluster();
    cluster.found(&host_name("a")).unwrap();
    assert_eq!(cluster.found(&host_name("b")), Err(ClusterError::ClusterExists));
    assert_eq!(cluster.state().unwrap().unreadable, []);
    cluster.unfound(&host_name("b")).unwrap();
    assert!(cluster.is_made().unwrap(), "it was another one's");
    cluster.unfound(&host_name("a")).unwrap();
    assert!(!cluster.is_made().unwrap());
    cluster.unfound(&host_name("a")).unwrap();
    cluster.found(&host_name("b")).unwrap();
}

#[test]
fn a_token_is_used_by_one_host_which_may_ask_again() {
    let (_folder, cluster) = cluster();
    let by = |host: &str, key: &str| TokenUse { host: host_name(host), key_digest: key.to_owned() };
    assert_eq!(cluster.use_token("1", &by("b", "key")), Err(ClusterError::NoToken));
    cluster.add_token("1", Some(host_name("b")), TTL).unwrap();
    assert_eq!(cluster.add_token("1", None, TTL), Err(ClusterError::TokenUsed));
    assert_eq!(cluster.token("1").unwrap().host, Some(host_name("b")));
    // The answer may get lost.
    for _ in 0..2 {
        cluster.use_token("1", &by("b", "key")).unwrap();
    }
    assert_eq!(cluster.use_token("1", &by("b", "another key")), Err(ClusterError::TokenUsed));
    assert_eq!(cluster.use_token("1", &by("c", "key")), Err(ClusterError::TokenUsed));
    // What is used goes with its lease, too.
    cluster.end_lease(LeaseId(cluster.token("1").unwrap().lease)).unwrap();
    assert_eq!(cluster.use_token("1", &by("b", "key")), Err(ClusterError::NoToken));
    assert!(cluster.state().unwrap().unreadable.is_empty());
}
