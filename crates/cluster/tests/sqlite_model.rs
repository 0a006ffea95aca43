//! The store against a model: a map with versions.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::store::{Changes, Compare, Entry, Op, Outcome, SqliteStore, Store};
use proptest::prelude::*;

/// A key of few, so that they meet.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/claim", "a/claim/x", "ab", "b", "~"]).prop_map(str::to_owned)
}

#[derive(Clone, Debug)]
enum Condition {
    Absent,
    Current,
    Version(u64),
}

#[derive(Clone, Debug)]
struct Step {
    compares: Vec<(String, Condition)>,
    /// With a value to put it, without one to delete.
    ops: BTreeMap<String, Option<Vec<u8>>>,
}

fn step() -> impl Strategy<Value = Step> {
    let condition =
        prop_oneof![Just(Condition::Absent), Just(Condition::Current), (0..20u64).prop_map(Condition::Version)];
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..4));
    (prop::collection::vec((key(), condition), 0..3), prop::collection::btree_map(key(), value, 0..4))
        .prop_map(|(compares, ops)| Step { compares, ops })
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    /// The last revision that changed a key.
    changed: BTreeMap<String, u64>,
    revision: u64,
}

impl Model {
    fn version(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, |entry| entry.version)
    }

    fn transact(&mut self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Outcome {
        if compares.iter().any(|compare| self.version(compare.key) != compare.version) {
            return Outcome::Conflict;
        }
        if !ops.is_empty() {
            self.revision += 1;
        }
        for op in ops {
            let was_there = match *op {
                Op::Put { key, value, .. } => {
                    self.entries.insert(key.to_owned(), Entry { value: value.to_owned(), version: self.revision });
                    true
                }
                Op::Delete { key } => self.entries.remove(key).is_some(),
            };
            if was_there {
                self.changed.insert(op.key().to_owned(), self.revision);
            }
        }
        Outcome::Done { revision: self.revision }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_a_map_does(steps in prop::collection::vec(step(), 1..24), since in 0..12u64) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::create(&folder.path().join("cluster.db")).unwrap();
        let mut model = Model::default();
        for Step { compares, ops } in &steps {
            let compares: Vec<Compare<'_>> = compares
                .iter()
                .map(|(key, condition)| Compare {
                    key,
                    version: match condition {
                        Condition::Absent => 0,
                        Condition::Current => model.version(key),
                        Condition::Version(version) => *version,
                    },
                })
                .collect();
            let ops: Vec<Op<'_>> = ops
                .iter()
                .map(|(key, value)| match value {
                    Some(value) => Op::Put { key, value, lease: None },
                    None => Op::Delete { key },
                })
                .collect();
            prop_assert_eq!(store.transact(&compares, &ops).unwrap(), model.transact(&compares, &ops));
        }
        for prefix in ["", "a", "a/", "a/claim", "b", "~", "c"] {
            let listing = store.list(prefix).unwrap();
            let expected: Vec<(String, Entry)> = model
                .entries
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, entry)| (key.clone(), entry.clone()))
                .collect();
            prop_assert_eq!((listing.revision, listing.entries), (model.revision, expected));

            let mut expected: Vec<(u64, String)> = model
                .changed
                .iter()
                .filter(|&(key, &revision)| revision > since && key.starts_with(prefix))
                .map(|(key, &revision)| (revision, key.clone()))
                .collect();
            expected.sort();
            match store.watch(prefix, since, Duration::ZERO).unwrap() {
                Changes::Compacted => prop_assert!(since > model.revision),
                Changes::Seen { revision, changes } => {
                    prop_assert_eq!(revision, model.revision);
                    for change in &changes {
                        prop_assert_eq!(change.entry.as_ref(), model.entries.get(&change.key));
                    }
                    let expected: Vec<String> = expected.into_iter().map(|(_, key)| key).collect();
                    prop_assert_eq!(changes.into_iter().map(|change| change.key).collect::<Vec<_>>(), expected);
                }
            }
        }
    }
}
