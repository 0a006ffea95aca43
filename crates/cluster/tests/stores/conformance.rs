//! What every store does: transactions and watches.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use cluster::store::{
    Change, Changes, Compare, Entry, KEY_BYTES_MAX, Op, Outcome, StoreError, TRANSACTION_ITEMS_MAX, VALUE_BYTES_MAX,
};

use crate::{HUNG, Place, changes, keys, put};

/// All of it, one after the other. Each has keys of its own.
pub fn all(place: &dyn Place) {
    a_transaction_does_all_or_nothing(place);
    a_key_that_is_written_again_never_has_a_version_twice(place);
    a_prefix_is_one_of_characters_and_not_a_pattern(place);
    bounds_are_kept(place);
    looking_whether_it_can_be_written_to_changes_nothing(place);
    a_watch_sees_what_others_write_and_delete(place);
    a_watch_misses_nothing_and_repeats_nothing(place);
    of_swaps_at_the_same_time_one_is_done(place);
}

fn a_transaction_does_all_or_nothing(place: &dyn Place) {
    let store = place.client();
    let first = put(&*store, "all/a", b"1");
    let both = [
        Op::Put { key: "all/a", value: b"2", lease: None },
        Op::Put { key: "all/b", value: b"\xff\0", lease: None },
        Op::Delete { key: "all/c" },
    ];
    let compare = |key, version| Compare { key, version };
    for wrong in [
        vec![compare("all/a", 0)],
        vec![compare("all/a", first + 1)],
        vec![compare("all/a", first), compare("all/b", first)],
        vec![compare("all/a", i64::MAX as u64)],
    ] {
        assert_eq!(store.transact(&wrong, &both).unwrap(), Outcome::Conflict, "{wrong:?}");
        assert_eq!(store.transact(&wrong, &[]).unwrap(), Outcome::Conflict, "{wrong:?}");
    }
    assert_eq!(keys(&*store, "all/"), ["all/a"]);
    let right = [compare("all/a", first), compare("all/b", 0)];
    assert!(matches!(store.transact(&right, &[]).unwrap(), Outcome::Done { revision } if revision >= first));
    let Outcome::Done { revision } = store.transact(&right, &both).unwrap() else { panic!() };
    assert!(revision > first);
    assert_eq!(store.get("all/b").unwrap(), Some(Entry { value: b"\xff\0".to_vec(), version: revision }));
    let other = place.client().list("all/").unwrap();
    assert!(other.revision >= revision);
    let versions: Vec<u64> = other.entries.iter().map(|(_, entry)| entry.version).collect();
    assert_eq!(versions, [revision; 2]);
}

fn looking_whether_it_can_be_written_to_changes_nothing(place: &dyn Place) {
    let store = place.client();
    put(&*store, "writable/a", b"1");
    let before = store.list("").unwrap();
    store.check_writable().unwrap();
    assert_eq!(store.list("").unwrap(), before);
}

fn a_key_that_is_written_again_never_has_a_version_twice(place: &dyn Place) {
    let store = place.client();
    let first = put(&*store, "again/a", b"1");
    store.transact(&[], &[Op::Delete { key: "again/a" }]).unwrap();
    assert_eq!(store.get("again/a").unwrap(), None);
    let absent = Compare { key: "again/a", version: 0 };
    assert!(matches!(store.transact(&[absent], &[]).unwrap(), Outcome::Done { .. }));
    let again = put(&*store, "again/a", b"1");
    assert!(again > first + 1);
    let outdated = Compare { key: "again/a", version: first };
    assert_eq!(store.transact(&[outdated], &[]).unwrap(), Outcome::Conflict);
}

fn a_prefix_is_one_of_characters_and_not_a_pattern(place: &dyn Place) {
    let store = place.client();
    for key in ["p/vms/a", "p/vms/a/claim", "p/vms/ab", "p/vms0", "p/VMS/a", "p/vms/~", "p/vms/%", "p/hosts/a"] {
        put(&*store, key, b"");
    }
    assert_eq!(keys(&*store, "p/vms/"), ["p/vms/%", "p/vms/a", "p/vms/a/claim", "p/vms/ab", "p/vms/~"]);
    assert_eq!(keys(&*store, "p/vms/%"), ["p/vms/%"]);
    assert_eq!(keys(&*store, "p/vms/a/"), ["p/vms/a/claim"]);
    let all = keys(&*store, "");
    assert_eq!(all.iter().filter(|key| key.starts_with("p/")).count(), 8);
    assert!(all.is_sorted());
}

fn bounds_are_kept(place: &dyn Place) {
    let store = place.client();
    let (longest_key, largest) = ("k".repeat(KEY_BYTES_MAX), vec![7; VALUE_BYTES_MAX]);
    put(&*store, &longest_key, &largest);
    assert_eq!(store.get(&longest_key).unwrap().unwrap().value, largest);
    let too_long = "k".repeat(KEY_BYTES_MAX + 1);
    for key in ["", "with space", "new\nline", "ä", "nul\0", too_long.as_str()] {
        let is_refused = |result: Result<Outcome, StoreError>| matches!(result, Err(StoreError::Refused(_)));
        assert!(matches!(store.get(key), Err(StoreError::Refused(_))), "{key:?}");
        assert!(is_refused(store.transact(&[], &[Op::Put { key, value: b"", lease: None }])), "{key:?}");
        assert!(is_refused(store.transact(&[Compare { key, version: 0 }], &[])), "{key:?}");
    }
    let too_large = vec![7; VALUE_BYTES_MAX + 1];
    let refused = |ops: &[Op<'_>]| assert!(matches!(store.transact(&[], ops), Err(StoreError::Refused(_))));
    refused(&[Op::Put { key: "bounds/a", value: &too_large, lease: None }]);
    refused(&[Op::Put { key: "bounds/a", value: b"", lease: None }, Op::Delete { key: "bounds/a" }]);
    let names: Vec<String> = (0..=TRANSACTION_ITEMS_MAX).map(|number| format!("bounds/{number}")).collect();
    let puts: Vec<Op<'_>> = names.iter().map(|key| Op::Put { key, value: b"", lease: None }).collect();
    refused(&puts);
    assert_eq!(keys(&*store, "bounds/"), [""; 0]);
    let compares: Vec<Compare<'_>> = names.iter().skip(1).map(|key| Compare { key, version: 0 }).collect();
    assert!(matches!(store.transact(&compares, &puts[1..]).unwrap(), Outcome::Done { .. }));
    assert_eq!(keys(&*store, "bounds/").len(), TRANSACTION_ITEMS_MAX);
}

fn a_watch_sees_what_others_write_and_delete(place: &dyn Place) {
    let store = place.client();
    let since = put(&*store, "watch/vms/a", b"1");
    let nothing = Changes::Seen { revision: since, changes: Vec::new() };
    assert_eq!(store.watch("watch/vms/", since, Duration::from_millis(120)).unwrap(), nothing);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let other = place.client();
            thread::sleep(Duration::from_millis(100));
            put(&*other, "watch/hosts/a", b"not watched");
            put(&*other, "watch/vms/b", b"2")
        });
        let (revision, seen) = changes(&*store, "watch/vms/", since, 1);
        let written = writer.join().unwrap();
        let entry = Entry { value: b"2".to_vec(), version: written };
        assert_eq!((revision, seen), (written, vec![Change { key: "watch/vms/b".to_owned(), entry: Some(entry) }]));
        written
    });
    let Outcome::Done { revision } = place.client().transact(&[], &[Op::Delete { key: "watch/vms/a" }]).unwrap() else {
        panic!()
    };
    let (after, seen) = changes(&*store, "watch/vms/", written, 1);
    assert_eq!(seen, [Change { key: "watch/vms/a".to_owned(), entry: None }]);
    assert!(after >= revision);
    let from_the_future = put(&*store, "watch/vms/a", b"3") + 1_000_000;
    assert_eq!(store.watch("watch/", from_the_future, HUNG).unwrap(), Changes::Compacted, "of another store");
}

fn a_watch_misses_nothing_and_repeats_nothing(place: &dyn Place) {
    const WRITES: usize = 200;
    let store = place.client();
    let since = put(&*store, "each/begin", b"");
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = place.client();
            for number in 0..WRITES {
                put(&*other, &format!("each/{number:03}"), b"");
            }
        });
        let (_, seen) = changes(&*store, "each/", since, WRITES);
        let keys: Vec<&str> = seen.iter().map(|change| change.key.as_str()).collect();
        let expected: Vec<String> = (0..WRITES).map(|number| format!("each/{number:03}")).collect();
        assert_eq!(keys, expected);
    });
}

/// Each of several clients replaces what is there by its own, again and again: each version is replaced once.
fn of_swaps_at_the_same_time_one_is_done(place: &dyn Place) {
    const CLIENTS: usize = 4;
    const SWAPS: usize = 500;
    let first = put(&*place.client(), "swap/claim", b"");
    let start = Barrier::new(CLIENTS);
    let swap = |client: usize| {
        let store = place.client();
        start.wait();
        let (mut replaced, mut lost) = (Vec::new(), 0);
        while replaced.len() + lost < SWAPS {
            let found = store.get("swap/claim").unwrap().unwrap();
            let value = format!("{client}/{}", replaced.len());
            let op = Op::Put { key: "swap/claim", value: value.as_bytes(), lease: None };
            match store.transact(&[Compare { key: "swap/claim", version: found.version }], &[op]).unwrap() {
                Outcome::Done { revision } => {
                    assert!(revision > found.version);
                    replaced.push((found.version, revision));
                }
                Outcome::Conflict => lost += 1,
            }
        }
        replaced
    };
    let swaps: Vec<(u64, u64)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || swap(client))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    // They are one chain, from the first version to the last one.
    let replaced: BTreeSet<u64> = swaps.iter().map(|(from, _)| *from).collect();
    let written: BTreeSet<u64> = swaps.iter().map(|(_, to)| *to).collect();
    let last = place.client().get("swap/claim").unwrap().unwrap().version;
    assert_eq!((replaced.len(), written.len()), (swaps.len(), swaps.len()));
    assert!(replaced.contains(&first) && written.contains(&last));
    assert_eq!(
        replaced.iter().filter(|version| **version != first).count(),
        written.iter().filter(|version| **version != last).count()
    );
    assert!(replaced.iter().all(|version| *version == first || written.contains(version)));
}
