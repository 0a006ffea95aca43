//! What every store with leases does.

use std::thread;
use std::time::{Duration, Instant};

use cluster::store::{Change, Compare, Op, Outcome, StoreError};

use crate::{HUNG, Place, changes, keys, put};

/// All of it.
pub fn all(place: &dyn Place) {
    what_is_under_a_lease_goes_with_it(place);
    a_lease_that_is_kept_stays(place);
    a_lease_that_has_ended_holds_nothing(place);
}

fn what_is_under_a_lease_goes_with_it(place: &dyn Place) {
    let (store, other) = (place.client(), place.client());
    let lease = store.grant_lease(Duration::from_secs(2)).unwrap();
    put(&*store, "lease/other", b"");
    let ops = ["lease/a", "lease/b"].map(|key| Op::Put { key, value: b"1", lease: Some(lease) });
    let Outcome::Done { revision } = store.transact(&[], &ops).unwrap() else { panic!() };
    // What is written again without it is under it no more.
    let since = put(&*store, "lease/b", b"2");
    assert_eq!(keys(&*other, "lease/"), ["lease/a", "lease/b", "lease/other"]);
    let deadline = Instant::now() + HUNG;
    while other.get("lease/a").unwrap().is_some() {
        assert!(Instant::now() < deadline, "it never ends");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(keys(&*other, "lease/"), ["lease/b", "lease/other"]);
    let (_, seen) = changes(&*other, "lease/", since, 1);
    assert_eq!(seen, [Change { key: "lease/a".to_owned(), entry: None }], "a watch does not see it");
    let as_before = Compare { key: "lease/a", version: revision };
    assert_eq!(store.transact(&[as_before], &[]).unwrap(), Outcome::Conflict);
    assert!(!store.keep_lease(lease).unwrap());
}

fn a_lease_that_is_kept_stays(place: &dyn Place) {
    let (store, other) = (place.client(), place.client());
    let lease = store.grant_lease(Duration::from_secs(2)).unwrap();
    store.transact(&[], &[Op::Put { key: "kept/a", value: b"", lease: Some(lease) }]).unwrap();
    for _ in 0..16 {
        thread::sleep(Duration::from_millis(250));
        // By whatever client.
        assert!(other.keep_lease(lease).unwrap());
        assert!(store.get("kept/a").unwrap().is_some());
    }
    other.end_lease(lease).unwrap();
    assert_eq!(store.get("kept/a").unwrap(), None);
    assert!(!store.keep_lease(lease).unwrap());
    store.end_lease(lease).unwrap();
}

fn a_lease_that_has_ended_holds_nothing(place: &dyn Place) {
    let store = place.client();
    let lease = store.grant_lease(Duration::from_secs(60)).unwrap();
    store.end_lease(lease).unwrap();
    let ops = [
        Op::Put { key: "ended/a", value: b"", lease: None },
        Op::Put { key: "ended/b", value: b"", lease: Some(lease) },
    ];
    assert_eq!(store.transact(&[], &ops), Err(StoreError::LeaseEnded));
    assert_eq!(keys(&*store, "ended/"), [""; 0]);
    let next = store.grant_lease(Duration::from_secs(60)).unwrap();
    assert_ne!(next, lease);
    put(&*store, "ended/a", b"");
    store.end_lease(next).unwrap();
}
