//! Changes as etcd tells them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::client::{CallError, Client, Messages};
use super::wire::{Bytes, Number, Streamed, WatchCreate, WatchRequest, WatchResponse};
use crate::store::{Change, Entry, end_of};

const WATCH: &str = "/v3/watch";
/// How long a stream lives: a member that hangs tells nothing, and nothing else tells that it hangs.
const LIFETIME: Duration = Duration::from_secs(10);

/// The changes under a prefix after a revision, in their order.
pub struct Stream {
    /// Up to here they have been taken.
    revision: u64,
    batches: Receiver<Batch>,
    has_ended: bool,
}

/// What came of opening a stream.
pub enum Opened {
    /// It is open.
    Stream(Stream),
    /// etcd has forgotten what happened after that revision.
    Compacted,
    /// The member that was asked does not know of that revision.
    FromTheFuture,
}

/// What a stream has brought.
pub enum Waited {
    /// Changes: the last one of each key.
    Changes(Vec<Change>),
    /// Nothing, in this time.
    Nothing,
    /// etcd has forgotten what would have come.
    Compacted,
    /// It is over: another one tells what comes after [`Stream::revision`].
    Ended,
}

enum Batch {
    /// All changes up to a revision.
    Changes(u64, Vec<(u64, Change)>),
    Compacted,
}

impl Stream {
    /// Opens one. Below `entries` are the keys.
    pub fn open(client: &Arc<Client>, entries: &str, prefix: &str, since: u64) -> Result<Opened, CallError> {
        let (key, end) = (format!("{entries}{prefix}"), format!("{entries}{}", end_of(prefix)));
        let create = WatchCreate {
            key: Bytes::key(&key),
            range_end: Bytes::key(&end),
            start_revision: Number(since.saturating_add(1)),
        };
        let mut messages = client.stream(WATCH, &WatchRequest { create_request: create }, LIFETIME)?;
        let first = first(client, &mut messages).inspect_err(|_| client.turn_from(messages.member))?;
        if first.compact_revision.0 > since {
            return Ok(Opened::Compacted);
        }
        if first.canceled && first.cancel_reason.contains("auth token") {
            client.forget_token();
        }
        if first.canceled {
            return Err(CallError::Ambiguous(format!("a watch was refused: {}", first.cancel_reason)));
        }
        if first.header.revision.0 < since {
            return Ok(Opened::FromTheFuture);
        }
        let (sender, batches) = channel();
        let entries = entries.to_owned();
        let follow = move || follow(messages, &entries, &sender);
        thread::Builder::new()
            .name("etcd-watch".to_owned())
            .spawn(follow)
            .map_err(|error| CallError::Ambiguous(format!("cannot start a thread: {error}")))?;
        Ok(Opened::Stream(Self { revision: since, batches, has_ended: false }))
    }

    /// Up to which revision changes have been taken.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether nothing more comes.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Waits for changes after `since`, which is not before [`Self::revision`].
    pub fn wait(&mut self, since: u64, timeout: Duration) -> Waited {
        self.revision = self.revision.max(since);
        let mut last: BTreeMap<String, (u64, Change)> = BTreeMap::new();
        let mut received = self.batches.recv_timeout(timeout);
        loop {
            match received {
                Ok(Batch::Changes(revision, changes)) => {
                    self.revision = self.revision.max(revision);
                    let new = changes.into_iter().filter(|(revision, _)| *revision > since);
                    last.extend(new.map(|(revision, change)| (change.key.clone(), (revision, change))));
                }
                Ok(Batch::Compacted) => return Waited::Compacted,
                Err(ended) => {
                    self.has_ended = ended == RecvTimeoutError::Disconnected;
                    break;
                }
            }
            received = self.batches.recv_timeout(Duration::ZERO);
        }
        if last.is_empty() {
            return if self.has_ended { Waited::Ended } else { Waited::Nothing };
        }
        let mut changes: Vec<(u64, Change)> = last.into_values().collect();
        changes.sort_by(|(revision, change), (other, than)| (revision, &change.key).cmp(&(other, &than.key)));
        Waited::Changes(changes.into_iter().map(|(_, change)| change).collect())
    }
}

/// What a member says first.
fn first(client: &Client, messages: &mut Messages) -> Result<WatchResponse, CallError> {
    loop {
        match messages.next::<WatchResponse>() {
            Some(Streamed { result: Some(first), .. }) => {
                client.check_cluster(messages.member, first.header)?;
                return Ok(first);
            }
            Some(Streamed { error: Some(problem), .. }) => {
                return Err(CallError::Ambiguous(problem.text().to_owned()));
            }
            Some(Streamed { .. }) => {}
            None => return Err(CallError::Ambiguous("a watch ended before it began".to_owned())),
        }
    }
}

/// Passes on what etcd tells, until it ends or nobody listens.
fn follow(mut messages: Messages, entries: &str, listener: &Sender<Batch>) {
    while let Some(Streamed { result: Some(told), .. }) = messages.next::<WatchResponse>() {
        if told.canceled {
            if told.compact_revision.0 > 0 {
                let _ = listener.send(Batch::Compacted);
            }
            return;
        }
        let change = |event: super::wire::Event| {
            let (revision, kv) = (event.kv.mod_revision.0, event.kv);
            let key = std::str::from_utf8(&kv.key.0).ok()?.strip_prefix(entries)?.to_owned();
            let entry = (event.kind != "DELETE").then_some(Entry { value: kv.value.0, version: revision });
            Some((revision, Change { key, entry }))
        };
        let changes: Vec<(u64, Change)> = told.events.into_iter().filter_map(change).collect();
        // Those of one revision come together; the header's revision may be ahead of what was told.
        let Some(revision) = changes.iter().map(|(revision, _)| *revision).max() else { continue };
        if listener.send(Batch::Changes(revision, changes)).is_err() {
            return;
        }
    }
}
