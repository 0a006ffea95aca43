//! [`EventLog`]: what has happened on this host, kept in its folder.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use api::events::{Event, EventKind, EventsWanted};
use api::time::unix_ms_now;
use cluster::controller::{ReplicaReport, ReplicaState};
use machine::bus::lock;
use spec::VmName;

use crate::log_file::{BoundedFile, older};

/// The file, in the host's folder: an event a line, as JSON.
const FILE: &str = "events.jsonl";
/// How many are shown at most. The file holds about as many.
const EVENTS_MAX: usize = 5_000;

/// The events of a host. They are kept as long as there is room for them, over restarts of the daemon, and what cannot be written is shown all the same until
/// the daemon ends.
pub struct EventLog {
    host: String,
    kept: Mutex<Kept>,
    /// The replicas here when they were looked at last; none before the first look.
    seen: Mutex<Option<BTreeMap<VmName, ReplicaReport>>>,
}

struct Kept {
    events: VecDeque<Event>,
    last_id: u64,
    file: BoundedFile,
    /// The last one could be written.
    is_written: bool,
}

impl EventLog {
    /// Those that are kept in the folder of a host, and those to come.
    pub fn open(folder: &Path, host: &str) -> Self {
        let path = folder.join(FILE);
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let texts = [read(&older(&path)), read(&path)];
        // What was cut off as the host lost power is none.
        let parsed = texts.iter().flat_map(|text| text.lines()).filter_map(|line| serde_json::from_str(line).ok());
        let mut events: VecDeque<Event> = parsed.collect();
        events.drain(..events.len().saturating_sub(EVENTS_MAX));
        let last_id = events.back().map_or(0, |event| event.id);
        let mut file = BoundedFile::new(&path);
        if texts.last().is_some_and(|text| !text.is_empty() && !text.ends_with('\n')) {
            // If it fails, so does what is written next, which is told then.
            let _ = file.write_all(b"\n");
        }
        let kept = Mutex::new(Kept { events, last_id, file, is_written: true });
        Self { host: host.to_owned(), kept, seen: Mutex::default() }
    }

    /// Keeps an event.
    pub fn note(&self, kind: EventKind, vm: Option<&str>, text: impl Into<String>) {
        let text = text.into();
        match vm {
            Some(vm) => tracing::info!("VM {vm}: {text}"),
            None => tracing::info!("{text}"),
        }
        let mut kept = self.kept();
        let at_unix_ms = unix_ms_now();
        // Also beyond those of a file that is gone: whoever follows events asks for later ones only.
        let id = kept.last_id.saturating_add(1).max(at_unix_ms);
        kept.last_id = id;
        let event = Event { id, at_unix_ms, host: self.host.clone(), vm: vm.map(str::to_owned), kind, text };
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        let written = kept.file.write_all(&line);
        let was_written = std::mem::replace(&mut kept.is_written, written.is_ok());
        if let Err(error) = written
            && was_written
        {
            tracing::warn!("events cannot be kept: {error}");
        }
        kept.events.push_back(event);
        if kept.events.len() > EVENTS_MAX {
            kept.events.pop_front();
        }
    }

    /// Events of the host, the oldest first.
    pub fn wanted(&self, wanted: &EventsWanted) -> Vec<Event> {
        let is_wanted = |event: &&Event| {
            wanted.after.is_none_or(|after| event.id > after)
                && wanted.vm.as_ref().is_none_or(|vm| event.vm.as_ref() == Some(vm))
        };
        self.kept().events.iter().filter(is_wanted).cloned().collect()
    }

    /// Looks at the replicas here, and keeps what has changed.
    pub fn observe(&self, replicas: &BTreeMap<VmName, ReplicaReport>) {
        let mut seen = lock(&self.seen);
        let mut next = replicas.clone();
        for (vm, replica) in &mut next {
            let before = seen.as_ref().and_then(|seen| seen.get(vm));
            // One that is just being started, or does not answer, is what it was.
            if replica.state == ReplicaState::Booting {
                if let Some(before) = before {
                    replica.clone_from(before);
                }
                continue;
            }
            let event = match &*seen {
                None => Some((EventKind::Found, found(&replica.state))),
                Some(_) => change(before.map(|before| &before.state), &replica.state),
            };
            if let Some((kind, text)) = event {
                self.note(kind, Some(vm), text);
            }
        }
        *seen = Some(next);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

/// What a new daemon says of a replica that runs already.
fn found(state: &ReplicaState) -> String {
    let is = match state {
        ReplicaState::Booting => "it does not say yet what it is".to_owned(),
        ReplicaState::Alone { .. } => "it has no secondary".to_owned(),
        ReplicaState::Syncing { to } => format!("it is being copied to host {to}"),
        ReplicaState::Protected { by } => format!("it is protected by host {by}"),
        ReplicaState::Secondary { .. } => return "its secondary runs here already".to_owned(),
    };
    format!("runs here already: {is}")
}

/// What has happened to a replica that was `before`, if anything that is worth a line.
fn change(before: Option<&ReplicaState>, now: &ReplicaState) -> Option<(EventKind, String)> {
    let before = before.filter(|before| **before != ReplicaState::Booting);
    Some(match (before, now) {
        (Some(ReplicaState::Secondary { .. }), ReplicaState::Secondary { .. }) | (_, ReplicaState::Booting) => {
            return None;
        }
        (_, ReplicaState::Secondary { .. }) => (EventKind::Secondary, "a secondary of it runs here".to_owned()),
        (Some(ReplicaState::Secondary { .. }), _) => (EventKind::TookOver, "was taken over, and runs here".to_owned()),
        (None, _) => (EventKind::Started, "runs here".to_owned()),
        (Some(ReplicaState::Syncing { to: before }), ReplicaState::Syncing { to }) if before == to => return None,
        (Some(ReplicaState::Protected { by: before }), ReplicaState::Protected { by }) if before == by => return None,
        (_, ReplicaState::Syncing { to }) => (EventKind::Copying, format!("is being copied to host {to}")),
        (_, ReplicaState::Protected { by }) => (EventKind::Protected, format!("is protected by host {by}")),
        (
            Some(ReplicaState::Protected { by: host } | ReplicaState::Syncing { to: host }),
            ReplicaState::Alone { loss },
        ) => {
            let why = loss.as_ref().map_or_else(|| "it does not say why".to_owned(), |loss| loss.text.clone());
            (EventKind::Unprotected, format!("has no secondary on host {host} any more: {why}"))
        }
        (Some(ReplicaState::Alone { .. } | ReplicaState::Booting), ReplicaState::Alone { .. }) => return None,
    })
}

#[cfg(test)]
mod tests {
    use cluster::controller::{Loss, LossCause};
    use protocol::Generation;

    use super::*;

    fn texts(log: &EventLog, wanted: &EventsWanted) -> Vec<String> {
        log.wanted(wanted).into_iter().map(|event| event.text).collect()
    }

    #[test]
    fn events_are_kept_for_the_next_daemon_and_asked_for_from_any_on() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::open(folder.path(), "a");
        log.note(EventKind::HostStarted, None, "one");
        log.note(EventKind::Created, Some("v"), "two");
        drop(log);
        // Power was lost in the midst of a line.
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"id\":")).unwrap();
        let log = EventLog::open(folder.path(), "a");
        log.note(EventKind::Removed, Some("w"), "three");
        assert_eq!(texts(&log, &EventsWanted::default()), ["one", "two", "three"]);
        let of_vm = EventsWanted { vm: Some("v".to_owned()), after: None };
        assert_eq!(texts(&log, &of_vm), ["two"]);
        let second = log.wanted(&of_vm)[0].id;
        assert_eq!(texts(&log, &EventsWanted { after: Some(second), vm: None }), ["three"]);
        drop(log);
        assert_eq!(texts(&EventLog::open(folder.path(), "a"), &EventsWanted::default()), ["one", "two", "three"]);
        // A host whose file is lost has later numbers all the same: events are fewer than milliseconds, but for those above.
        fs::remove_file(&path).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(10));
        let log = EventLog::open(folder.path(), "a");
        log.note(EventKind::HostStarted, None, "four");
        assert_eq!(texts(&log, &EventsWanted { after: Some(second), vm: None }), ["four"]);
    }

    #[test]
    fn there_are_not_more_events_than_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::open(folder.path(), "a");
        let long = "x".repeat(1000);
        for _ in 0..EVENTS_MAX + 10 {
            log.note(EventKind::Failed, None, long.clone());
        }
        assert_eq!(log.wanted(&EventsWanted::default()).len(), EVENTS_MAX);
        let bytes: u64 = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 2 << 20, "{bytes}");
    }

    #[test]
    fn what_becomes_of_a_replica_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::open(folder.path(), "a");
        let host = || "b".parse().unwrap();
        let vm: VmName = "v".parse().unwrap();
        let see = |state: Option<ReplicaState>| {
            let before = log.wanted(&EventsWanted::default()).last().map(|event| event.id);
            let report = |state| ReplicaReport { generation: Generation::new(1), state, processor: None };
            log.observe(&state.map(|state| (vm.clone(), report(state))).into_iter().collect());
            texts(&log, &EventsWanted { after: before, vm: None })
        };
        let loss = Some(Loss { cause: LossCause::Silence, text: "silence".to_owned() });
        assert!(see(None).is_empty());
        assert!(see(Some(ReplicaState::Booting)).is_empty());
        assert_eq!(see(Some(ReplicaState::Alone { loss: None })), ["runs here"]);
        assert!(see(Some(ReplicaState::Alone { loss: None })).is_empty());
        assert_eq!(see(Some(ReplicaState::Syncing { to: host() })), ["is being copied to host b"]);
        assert_eq!(see(Some(ReplicaState::Protected { by: host() })), ["is protected by host b"]);
        // It does not answer for a moment.
        assert!(see(Some(ReplicaState::Booting)).is_empty());
        assert!(see(Some(ReplicaState::Protected { by: host() })).is_empty());
        assert_eq!(see(Some(ReplicaState::Alone { loss })), ["has no secondary on host b any more: silence"]);
        assert!(see(None).is_empty());
        assert_eq!(see(Some(ReplicaState::Secondary { unclaimed_ms: 0 })), ["a secondary of it runs here"]);
        assert!(see(Some(ReplicaState::Secondary { unclaimed_ms: 100 })).is_empty());
        assert_eq!(see(Some(ReplicaState::Alone { loss: None })), ["was taken over, and runs here"]);
        let next = EventLog::open(folder.path(), "a");
        let report = ReplicaReport {
            generation: Generation::new(1),
            state: ReplicaState::Protected { by: host() },
            processor: None,
        };
        next.observe(&BTreeMap::from([(vm.clone(), report)]));
        let last = texts(&next, &EventsWanted::default()).pop();
        assert_eq!(last.as_deref(), Some("runs here already: it is protected by host b"));
    }
}
