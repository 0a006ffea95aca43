//! What a host may do in an etcd that gives rights to users.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cluster::store::{
    ETCD_ROOT, EtcdAccess, EtcdKeys, EtcdStore, EtcdUser, LeaseId, Op, Outcome, Store, StoreError, etcd_user_of,
};
use spec::HostName;

use crate::members::{Members, make_keys};
use crate::{HUNG, changes, conformance, keys, put};

fn user(folder: &Path, keys: &EtcdKeys, name: &str, password: &str) -> EtcdKeys {
    let file = folder.join(name.replace('/', "-"));
    fs::write(&file, format!("{password}\n")).unwrap();
    EtcdKeys { user: Some(EtcdUser { name: name.to_owned(), password: file }), ..keys.clone() }
}

fn write(store: &EtcdStore, key: &str, lease: Option<LeaseId>) -> Result<Outcome, StoreError> {
    store.transact(&[], &[Op::Put { key, value: b"x", lease }])
}

#[track_caller]
fn refused(result: Result<Outcome, StoreError>) {
    match result {
        Err(StoreError::Unreachable(why)) => assert!(why.contains("permission denied"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// As members that were started just now do, one after the other: a cluster is made right after that.
#[test]
fn rights_are_turned_on_in_an_etcd_that_answers_late() {
    let folder = tempfile::tempdir().unwrap();
    let plain = make_keys(folder.path());
    let members = Members::start_with(1, Some(plain.clone()));
    let access = EtcdAccess::new(&members.address(), &user(folder.path(), &plain, ETCD_ROOT, "root's")).unwrap();
    members.signal(0, "STOP");
    thread::scope(|scope| {
        let turning_on = scope.spawn(|| access.turn_on("root's"));
        // Longer than any call waits.
        thread::sleep(Duration::from_secs(7));
        assert!(!turning_on.is_finished());
        members.signal(0, "CONT");
        turning_on.join().unwrap().unwrap();
    });
}

#[test]
fn a_host_writes_in_etcd_what_a_host_may_say_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let plain = make_keys(folder.path());
    let mut members = Members::start_with(1, Some(plain.clone()));
    let address = members.address();
    let root = user(folder.path(), &plain, ETCD_ROOT, "root's");
    let access = EtcdAccess::new(&address, &root).unwrap();
    let [a, b]: [HostName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
    // All of it may be done again, as after a lost answer.
    for _ in 0..2 {
        access.turn_on("root's").unwrap();
        access.admit(&a, "a's", true).unwrap();
        access.admit(&b, "b's", false).unwrap();
    }
    let open = |host: &HostName, password: &str| {
        EtcdStore::open(&address, Some(&user(folder.path(), &plain, &etcd_user_of(&address, host), password)))
    };
    let authority = open(&a, "a's").unwrap();
    let host = open(&b, "b's").unwrap();
    for key in ["cluster", "tokens/1", "hosts/a", "alive/b", "hosts/c", "vms/x", "vms/x/claim"] {
        write(&authority, key, None).unwrap();
    }
    for key in ["hosts/b", "vms/x", "vms/x/claim", "vms/y"] {
        write(&host, key, None).unwrap();
    }
    let lease = host.grant_lease(Duration::from_secs(60)).unwrap();
    write(&host, "alive/b", Some(lease)).unwrap();
    assert!(host.keep_lease(lease).unwrap());
    for key in ["hosts/a", "hosts/bb", "hosts/c", "alive/a", "alive/bb", "tokens/1", "tokens/2", "cluster", "x"] {
        refused(write(&host, key, None));
        assert!(host.get(key).is_ok());
    }
    refused(host.transact(&[], &[Op::Put { key: "vms/x", value: b"y", lease: None }, Op::Delete { key: "hosts/a" }]));
    assert_eq!(host.get("vms/x").unwrap().unwrap().value, b"x", "half of a transaction was done");
    assert_eq!(keys(&host, "hosts/"), ["hosts/a", "hosts/b", "hosts/c"]);
    host.check_writable().unwrap();
    host.keep_ready().unwrap();
    let since = host.list("").unwrap().revision;
    put(&authority, "hosts/a", b"2");
    assert_eq!(changes(&host, "hosts/", since, 1).1[0].key, "hosts/a");
    // What another host is alive by, or has been told to have done, is not this one's to end.
    let others = authority.grant_lease(Duration::from_secs(60)).unwrap();
    write(&authority, "alive/a", Some(others)).unwrap();
    assert!(host.end_lease(others).is_err());
    assert!(authority.get("alive/a").unwrap().is_some());

    // A member that was started again has forgotten all tokens.
    members.kill(0);
    members.restart(0);
    let deadline = Instant::now() + HUNG;
    while let Err(error) = write(&host, "hosts/b", None) {
        assert!(Instant::now() < deadline, "{error}");
    }
    put(&authority, "tokens/1", b"2");
    // Another password makes the earlier one worthless, also for whoever has a token by it.
    access.admit(&b, "another", false).unwrap();
    assert!(write(&host, "hosts/b", None).is_err());
    assert!(open(&b, "b's").is_err());
    write(&open(&b, "another").unwrap(), "hosts/b", None).unwrap();
    access.dismiss(&b).unwrap();
    access.dismiss(&b).unwrap();
    assert!(open(&b, "another").is_err());
    // A certificate alone is not enough any more.
    let Err(StoreError::Refused(why) | StoreError::Unreachable(why)) = EtcdStore::open(&address, Some(&plain)) else {
        panic!("it answers whoever has a certificate")
    };
    assert!(why.contains("user name is empty"), "{why}");
}

/// The rest of what a store does needs no other rights than these.
#[test]
fn the_etcd_store_of_a_user_does_what_a_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let plain = make_keys(folder.path());
    let members = Members::start_with(1, Some(plain.clone()));
    let root = user(folder.path(), &plain, ETCD_ROOT, "root's");
    EtcdAccess::new(&members.address(), &root).unwrap().turn_on("root's").unwrap();
    conformance::all(&|| -> std::sync::Arc<dyn Store> {
        std::sync::Arc::new(EtcdStore::open(&members.address(), Some(&root)).unwrap())
    });
}
