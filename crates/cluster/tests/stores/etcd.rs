//! The store in a real etcd, and what it does when etcd fails.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cluster::store::{Changes, Compare, EtcdStore, Op, Outcome, Store, StoreError};

use crate::members::{Members, make_keys};
use crate::proxy::Proxy;
use crate::{HUNG, changes, conformance, keys, leases, put};

#[test]
fn the_etcd_store_does_what_a_store_does() {
    let members = Members::start(3);
    let place = || members.client();
    conformance::all(&place);
    leases::all(&place);
}

/// A transaction with a compare that it makes untrue itself would be taken for one that was not done.
#[test]
fn a_transaction_whose_answer_is_lost_is_done_once_and_known_to_be() {
    let members = Members::start(1);
    let proxy = Proxy::start(members.port(0));
    let through = EtcdStore::open(&members.address_of(&[proxy.port()]), None).unwrap();
    let direct = members.client();
    let mut version = put(&through, "claim", b"0");
    for round in 1..=20u64 {
        // Several copies of it may be done before an answer arrives.
        proxy.lose_answers(1 + usize::try_from(round).unwrap() % 3);
        let value = round.to_string();
        let op = Op::Put { key: "claim", value: value.as_bytes(), lease: None };
        let Outcome::Done { revision } = through.transact(&[Compare { key: "claim", version }], &[op]).unwrap() else {
            panic!("round {round}: it was done, and is said not to have been")
        };
        assert_eq!(proxy.left(), 0, "no answer was lost");
        let found = direct.get("claim").unwrap().unwrap();
        assert_eq!((found.version, found.value), (revision, value.into_bytes()));
        version = revision;
    }
    // One that overwrites without looking is not repeated either: the second copy would undo what another one wrote in between.
    proxy.lose_answers(2);
    let before = direct.list("").unwrap().revision;
    put(&through, "other", b"1");
    assert_eq!(direct.list("").unwrap().revision, before + 1, "it was done more than once");
}

#[test]
fn a_transaction_that_is_lost_to_another_is_said_to_be_so_though_answers_get_lost() {
    let members = Members::start(1);
    let proxy = Proxy::start(members.port(0));
    let through = EtcdStore::open(&members.address_of(&[proxy.port()]), None).unwrap();
    let outdated = put(&through, "claim", b"0");
    put(&*members.client(), "claim", b"another's");
    for _ in 0..5 {
        proxy.lose_answers(1);
        let op = Op::Put { key: "claim", value: b"mine", lease: None };
        assert_eq!(through.transact(&[Compare { key: "claim", version: outdated }], &[op]).unwrap(), Outcome::Conflict);
        assert_eq!(proxy.left(), 0);
    }
    assert_eq!(members.client().get("claim").unwrap().unwrap().value, b"another's");
    assert_eq!(keys(&*members.client(), ""), ["claim"], "receipts are not entries");
}

#[test]
fn a_store_that_never_answers_leaves_it_open_whether_it_was_done() {
    let members = Members::start(1);
    let proxy = Proxy::start(members.port(0));
    let through = EtcdStore::open(&members.address_of(&[proxy.port()]), None).unwrap();
    put(&through, "claim", b"0");
    proxy.lose_answers(usize::MAX);
    match through.transact(&[], &[Op::Put { key: "claim", value: b"1", lease: None }]) {
        Err(StoreError::Unreachable(why)) => assert!(why.contains("is not known"), "{why}"),
        other => panic!("{other:?}"),
    }
    proxy.lose_answers(0);
    assert_eq!(through.get("claim").unwrap().unwrap().value, b"1");
    put(&through, "claim", b"2");
    assert_eq!(members.client().get("claim").unwrap().unwrap().value, b"2");
}

/// The claim goes up by one with each swap, whoever leads.
#[test]
fn a_lost_leader_costs_time_and_no_swap() {
    let mut members = Members::start(3);
    let counter = members.client();
    let mut version = put(&*counter, "count", b"0");
    let watcher = members.client();
    let since = version;
    let mut count = 0u64;
    let mut next = || {
        count += 1;
        let value = count.to_string();
        let op = Op::Put { key: "count", value: value.as_bytes(), lease: None };
        match counter.transact(&[Compare { key: "count", version }], &[op]) {
            Ok(Outcome::Done { revision }) => version = revision,
            other => panic!("swap {count}: {other:?}"),
        }
        count
    };
    for round in 0..3 {
        for _ in 0..10 {
            next();
        }
        let leader = members.leader();
        if round == 1 {
            members.signal(leader, "STOP");
        } else {
            members.kill(leader);
        }
        for _ in 0..10 {
            next();
        }
        if round == 1 {
            members.signal(leader, "CONT");
        } else {
            members.restart(leader);
        }
    }
    let last = next();
    assert_eq!(members.client().get("count").unwrap().unwrap().value, last.to_string().into_bytes());
    // Nothing was missed by whoever watches, at whichever member.
    let (mut seen, mut since) = (0, since);
    let deadline = Instant::now() + HUNG;
    while seen < last {
        assert!(Instant::now() < deadline, "the watch has seen {seen} of {last}");
        let (revision, changes) = changes(&*watcher, "count", since, 1);
        since = revision;
        let entry = changes.last().unwrap().entry.clone().unwrap();
        seen = String::from_utf8(entry.value).unwrap().parse().unwrap();
    }
}

#[test]
fn a_watch_whose_past_is_compacted_says_so_and_goes_on_from_a_list() {
    let members = Members::start(1);
    let store = members.client();
    let since = put(&*store, "a", b"1");
    // A stream that is open is not concerned.
    assert_eq!(store.watch("", since, Duration::ZERO).unwrap(), Changes::Seen { revision: since, changes: Vec::new() });
    for _ in 0..20 {
        put(&*store, "a", b"2");
    }
    let last = put(&*store, "b", b"3");
    members.compact(last);
    assert_eq!(members.client().watch("", since, HUNG).unwrap(), Changes::Compacted);
    let listing = store.list("").unwrap();
    let after = put(&*store, "c", b"4");
    let (revision, seen) = changes(&*members.client(), "", listing.revision, 1);
    assert_eq!((revision, seen.len(), seen[0].key.as_str()), (after, 1, "c"));
}

#[test]
fn a_member_that_stops_is_passed_over() {
    let members = Members::start(3);
    let follower = (0..3).find(|number| *number != members.leader()).unwrap();
    // The stopped one is the first that is asked.
    let ports: Vec<u16> = (0..3).map(|number| members.port((follower + number) % 3)).collect();
    let store: Arc<dyn Store> = Arc::new(EtcdStore::open(&members.address_of(&ports), None).unwrap());
    let since = put(&*store, "a", b"1");
    assert!(matches!(store.watch("", since, Duration::ZERO).unwrap(), Changes::Seen { .. }));
    let lease = store.grant_lease(Duration::from_secs(10)).unwrap();
    members.signal(follower, "STOP");
    let started = Instant::now();
    put(&*store, "a", b"2");
    assert!(store.keep_lease(lease).unwrap());
    assert_eq!(store.get("a").unwrap().unwrap().value, b"2");
    assert!(started.elapsed() < HUNG / 2);
    // The stream was one of the stopped member.
    let (_, seen) = changes(&*store, "", since, 1);
    assert_eq!(seen[0].entry.as_ref().unwrap().value, b"2");
    members.signal(follower, "CONT");
}

#[test]
fn without_a_majority_nothing_is_said() {
    let mut members = Members::start(3);
    let store = members.client();
    let version = put(&*store, "claim", b"1");
    members.kill(0);
    members.kill(1);
    let op = [Op::Put { key: "claim", value: b"2", lease: None }];
    for result in [
        store.transact(&[Compare { key: "claim", version }], &op).map(drop),
        store.transact(&[Compare { key: "claim", version }], &[]).map(drop),
        // What the last member knows may be outdated.
        store.get("claim").map(drop),
        store.list("").map(drop),
    ] {
        assert!(matches!(result, Err(StoreError::Unreachable(_))), "{result:?}");
    }
    members.restart(0);
    let deadline = Instant::now() + HUNG;
    while store.get("claim").is_err() {
        assert!(Instant::now() < deadline, "it does not answer again");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_full_etcd_can_be_read_and_is_not_writable() {
    let members = Members::start(1);
    let store = members.client();
    put(&*store, "a", b"1");
    store.check_writable().unwrap();
    members.fill_up();
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    assert!(matches!(store.check_writable(), Err(StoreError::Unreachable(why)) if why.contains("defragment")));
}

#[test]
fn etcd_is_spoken_to_with_certificates_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = make_keys(folder.path());
    let members = Members::start_with(1, Some(keys.clone()));
    put(&*members.client(), "a", b"1");
    let is_refused = |keys: Option<&cluster::store::EtcdKeys>| {
        matches!(EtcdStore::open(&members.address(), keys).map(drop), Err(StoreError::Unreachable(_)))
    };
    assert!(is_refused(None));
    let others = tempfile::tempdir().unwrap();
    let strange = make_keys(others.path());
    assert!(is_refused(Some(&strange)), "a certificate of another authority");
    assert!(is_refused(Some(&cluster::store::EtcdKeys { ca: strange.ca, ..keys.clone() })), "a member of another one");
    keys.key = folder.path().join("names");
    let error = EtcdStore::open(&members.address(), Some(&keys)).map(drop).unwrap_err().to_string();
    assert!(error.contains("keys for etcd cannot be used") && error.contains("names"), "{error}");
}

/// Who waits for a takeover does not want to wait for it longer than for one answer.
#[test]
fn a_client_that_keeps_ready_goes_on_when_its_receipt_is_gone() {
    let members = Members::start(1);
    let store = members.client();
    store.keep_ready().unwrap();
    let version = put(&*store, "claim", b"1");
    store.keep_ready().unwrap();
    // As after a long time without an answer from etcd.
    members.forget_receipts();
    store.keep_ready().unwrap();
    let op = [Op::Put { key: "claim", value: b"2", lease: None }];
    assert!(matches!(store.transact(&[Compare { key: "claim", version }], &op).unwrap(), Outcome::Done { .. }));
    // Without having kept ready it takes longer.
    members.forget_receipts();
    put(&*store, "claim", b"3");
    assert_eq!(members.client().get("claim").unwrap().unwrap().value, b"3");
}

/// What was decided since is not known there: whoever knows better does not believe it, and changes nothing in it.
#[test]
fn an_etcd_that_was_restored_from_an_older_copy_is_not_believed() {
    let mut members = Members::start(1);
    let address = members.address();
    let early = EtcdStore::open(&address, None).unwrap();
    let client = EtcdStore::open(&address, None).unwrap();
    put(&client, "claim", b"1");
    put(&early, "other", b"1");
    members.kill(0);
    members.set_aside(0);
    members.restart(0);
    members.wait_until_served();
    let version = put(&client, "claim", b"2");
    let sight = client.sight().unwrap();
    assert_eq!(sight.revision, version);
    members.kill(0);
    members.bring_back(0);
    members.restart(0);
    let refused = |result: Result<(), StoreError>| match result {
        Err(StoreError::Unreachable(why)) if why.contains("has gone back from revision") => {
            assert!(why.contains("twinvm cluster accept-store"), "{why}");
        }
        other => panic!("{other:?}"),
    };
    members.wait_until_served();
    let fresh = EtcdStore::open(&address, None).unwrap();
    let before = fresh.list("").unwrap().revision;
    assert!(before < version);
    let swap = Compare { key: "claim", version };
    refused(client.transact(&[swap], &[Op::Put { key: "claim", value: b"3", lease: None }]).map(drop));
    refused(client.get("claim").map(drop));
    refused(client.check_writable());
    refused(client.keep_ready());
    refused(EtcdStore::open_after(&address, None, Some(sight)).map(drop));
    assert_eq!(fresh.list("").unwrap().revision, before, "something was changed in what is not believed");
    assert_eq!(fresh.get("claim").unwrap().unwrap().value, b"1");
    // It may go on beyond what was seen: that does not make it the right one.
    for _ in before..=version {
        put(&fresh, "other", b"2");
    }
    refused(client.get("claim").map(drop));
    // One from a snapshot is another etcd cluster, however far it is.
    let other = Members::start(1);
    match EtcdStore::open_after(&other.address(), None, Some(sight)) {
        Err(StoreError::Unreachable(why)) => assert!(why.contains("of another etcd cluster"), "{why}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was believed"),
    }
    // An administrator may take it as it is.
    EtcdStore::open(&address, None).unwrap();
}
