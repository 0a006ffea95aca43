//! Whatever hosts there are: the two replicas of a VM are never placed where one fault takes both.

use std::path::PathBuf;

use cluster::planner::{Basis, Failures, NoPlace, WhyNot, may_hold_secondary, place_secondary};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, FtSettings, HostRecord, Lease, Power, UnknownFields, VmRecord, VmState,
};
use proptest::prelude::*;
use protocol::{Claim, Generation};
use spec::{EngineKind, FailureDomain, HostName};

/// A path of few names, so that domains lie in each other.
fn domain() -> impl Strategy<Value = Option<FailureDomain>> {
    let path = prop::collection::vec(prop::sample::select(vec!["r", "s", "rr"]), 1..4);
    prop::option::weighted(0.8, path.prop_map(|parts| parts.join("/").parse().unwrap()))
}

fn host(number: usize, domain: Option<FailureDomain>, machine: u8) -> HostRecord {
    HostRecord {
        name: format!("h{number}").parse().unwrap(),
        api_address: ([127, 0, 0, 1], 1).into(),
        replication_ip: [127, 0, 0, 1].into(),
        boot_id: machine.to_string(),
        domain,
        cpus: 8,
        memory_bytes: 8 << 30,
        engines: vec![EngineKind::Soft],
        kvm_processor: None,
        networks: Vec::new(),
        reached: Default::default(),
        maintenance: Default::default(),
        lease: Lease { renewed_boot_ms: 1, renewed_unix_ms: 1, ttl_ms: 3_000 },
        version: String::new(),
        instance: String::new(),
        folder: PathBuf::new(),
        unknown: UnknownFields::default(),
    }
}

fn vm(primary: &HostName, is_protected: bool) -> VmState {
    let ft = FtSettings { enabled: is_protected, ..FtSettings::disabled(100, 50) };
    let mut record =
        VmRecord::new("v".parse().unwrap(), "name = \"v\"\nmemory = \"1G\"\nkernel = \"k\"\n".to_owned(), ft, 0);
    record.power = Power::On;
    let claim = Claim { generation: Generation::new(1), primary: primary.replica(), secondary: None };
    VmState { record, claim: ClaimRecord::first(claim) }
}

/// What the words of the documentation say, in other words than the code does.
fn may_fail_together(one: &HostRecord, other: &HostRecord) -> bool {
    match (&one.domain, &other.domain) {
        (Some(one), Some(other)) => {
            let (one, other) = (format!("{one}/"), format!("{other}/"));
            one.starts_with(&other) || other.starts_with(&one)
        }
        _ => one.boot_id == other.boot_id,
    }
}

proptest! {
    #[test]
    fn no_fault_takes_both_replicas(places in prop::collection::vec((domain(), 0u8..3), 2..7), primary in 0usize..7) {
        let hosts: Vec<HostRecord> =
            places.into_iter().enumerate().map(|(number, (domain, machine))| host(number, domain, machine)).collect();
        let primary = &hosts[primary % hosts.len()].clone();
        let state = ClusterState { hosts: hosts.clone(), ..ClusterState::default() };
        let now = BootTime { boot_id: String::new(), ms: 1 };
        let basis = Basis { state: &state, failures: &Failures::default(), now: &now };
        let fits = |vm: &VmState, host: &HostRecord| may_hold_secondary(vm, &host.name, None, &basis);
        let others = || hosts.iter().filter(|host| host.name != primary.name);
        let (protected, moved) = (vm(&primary.name, true), vm(&primary.name, false));
        for host in others() {
            prop_assert_eq!(fits(&protected, host).is_ok(), !may_fail_together(host, primary));
            prop_assert!(fits(&moved, host).is_ok(), "a move ends with one replica, wherever that is");
        }
        match place_secondary(&protected, None, &basis) {
            Ok(place) => prop_assert!(!may_fail_together(state.host(&place).unwrap(), primary)),
            Err(error) => {
                prop_assert!(others().all(|host| may_fail_together(host, primary)));
                let NoPlace::Hosts(refusals) = error else { panic!("{error}") };
                prop_assert_eq!(refusals.len(), hosts.len(), "each host is named");
            }
        }
    }
}

#[test]
fn a_refusal_says_what_both_are_in_and_of_an_unknown_primary_that_it_is_unknown() {
    let why = |hosts: Vec<HostRecord>| {
        let state = ClusterState { hosts, ..ClusterState::default() };
        let now = BootTime { boot_id: String::new(), ms: 1 };
        let vm = vm(&"h0".parse().unwrap(), true);
        let basis = Basis { state: &state, failures: &Failures::default(), now: &now };
        let refused = may_hold_secondary(&vm, &"h1".parse().unwrap(), None, &basis);
        let NoPlace::Hosts(mut refusals) = refused.unwrap_err() else { panic!("of no host") };
        refusals.remove(0).1
    };
    let named = |text: &str| Some(text.parse::<FailureDomain>().unwrap());
    let same = why(vec![host(0, named("r/1"), 0), host(1, named("r"), 1)]);
    assert!(same.to_string().contains("failure domain r and host h0, which runs the VM, in r/1"), "{same}");
    let machine = why(vec![host(0, named("r"), 0), host(1, None, 0)]);
    assert!(machine.to_string().contains("on one machine with host h0") && machine.to_string().contains("host.toml"));
    assert_eq!(why(vec![host(1, named("r"), 1)]), WhyNot::UnknownDomain("h0".parse::<HostName>().unwrap().replica()));
}
