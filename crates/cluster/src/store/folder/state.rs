//! What a folder's transactions come to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::files::BLOCK;
use crate::store::{Change, Changes, Entry, MARKER, Op};

/// How many blocks of transactions ago a deletion may be before watches cannot learn of it any more.
const DELETIONS_BLOCKS: u64 = 4;

/// What a transaction changes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Transaction {
    changes: Vec<(String, Option<Value>)>,
}

impl Transaction {
    /// That of these operations.
    pub fn new(ops: &[Op<'_>]) -> Self {
        let change = |op: &Op<'_>| match *op {
            Op::Put { key, value, .. } => (key.to_owned(), Some(Value::of(key, value.to_vec()))),
            Op::Delete { key } => (key.to_owned(), None),
        };
        Self { changes: ops.iter().map(change).collect() }
    }
}

/// A value, as text where it is text: so that people can read what is in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Value {
    Text(String),
    Bytes(Vec<u8>),
    /// The marker of a store that is moved. Versions that do not know of moves do not know of this either: to them the store is unusable from there on.
    Marker(String),
}

impl Value {
    fn of(key: &str, value: Vec<u8>) -> Self {
        match Self::from(value) {
            Self::Text(text) if key == MARKER => Self::Marker(text),
            value => value,
        }
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        String::from_utf8(value).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Self {
        match value {
            Value::Text(text) | Value::Marker(text) => text.into_bytes(),
            Value::Bytes(bytes) => bytes,
        }
    }
}

/// Everything as of one revision. A function of the transactions alone: whoever has read the same ones has the same.
#[derive(Clone, Debug, Default)]
pub struct State {
    revision: u64,
    entries: BTreeMap<String, Entry>,
    /// Keys that were deleted, and when.
    deleted: BTreeMap<String, u64>,
    /// Deletions up to this revision may be forgotten.
    compacted: u64,
}

/// The same in a file.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    revision: u64,
    compacted: u64,
    entries: Vec<(String, u64, Value)>,
    deleted: BTreeMap<String, u64>,
}

impl From<&State> for Saved {
    fn from(state: &State) -> Self {
        let entry = |(key, entry): (&String, &Entry)| (key.clone(), entry.version, Value::of(key, entry.value.clone()));
        Self {
            revision: state.revision,
            compacted: state.compacted,
            entries: state.entries.iter().map(entry).collect(),
            deleted: state.deleted.clone(),
        }
    }
}

impl From<Saved> for State {
    fn from(saved: Saved) -> Self {
        let entry = |(key, version, value): (String, u64, Value)| (key, Entry { value: value.into(), version });
        Self {
            revision: saved.revision,
            entries: saved.entries.into_iter().map(entry).collect(),
            deleted: saved.deleted,
            compacted: saved.compacted,
        }
    }
}

impl State {
    /// Its revision: 0 before the first transaction.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is at a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What is under a prefix.
    pub fn list(&self, prefix: &str) -> Vec<(String, Entry)> {
        let below = self.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        below.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// Does the next transaction.
    pub fn apply(&mut self, revision: u64, transaction: Transaction) {
        self.revision = revision;
        for (key, value) in transaction.changes {
            match value {
                Some(value) => {
                    self.deleted.remove(&key);
                    self.entries.insert(key, Entry { value: value.into(), version: revision });
                }
                None => {
                    if self.entries.remove(&key).is_some() {
                        self.deleted.insert(key, revision);
                    }
                }
            }
        }
    }

    /// Forgets what was deleted long ago, so that names that were used once do not stay for ever. At the end of a block only, for all to have the
    /// same.
    pub fn forget_deletions(&mut self) {
        let newest = self.revision.saturating_sub(DELETIONS_BLOCKS * BLOCK);
        let forgotten = self.deleted.values().copied().filter(|&revision| revision <= newest).max();
        self.compacted = self.compacted.max(forgotten.unwrap_or(0));
        self.deleted.retain(|_, revision| *revision > newest);
    }

    /// What has changed under a prefix after a revision.
    pub fn changes(&self, prefix: &str, since: u64) -> Changes {
        // A revision from the future is one of another store, or of this one before it was restored from a backup.
        if self.compacted > since || since > self.revision {
            return Changes::Compacted;
        }
        let mut changes: Vec<(u64, Change)> = Vec::new();
        for (key, entry) in &self.entries {
            if entry.version > since && key.starts_with(prefix) {
                changes.push((entry.version, Change { key: key.clone(), entry: Some(entry.clone()) }));
            }
        }
        for (key, &revision) in &self.deleted {
            if revision > since && key.starts_with(prefix) {
                changes.push((revision, Change { key: key.clone(), entry: None }));
            }
        }
        changes.sort_by(|(revision, change), (other, than)| (revision, &change.key).cmp(&(other, &than.key)));
        Changes::Seen { revision: self.revision, changes: changes.into_iter().map(|(_, change)| change).collect() }
    }
}
