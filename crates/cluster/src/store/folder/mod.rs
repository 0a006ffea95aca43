//! The store of one machine for what replicas arbitrate by: a folder of files, without a lock.
//!
//! Whoever is stopped or hangs while it holds a lock keeps all others from going on, and a takeover must not wait for anybody. So nobody holds
//! anything here: a transaction is a file that holds its changes, written under a name of nobody's and then given its place by *one* system call,
//! which fails if that place is taken. Its place is its revision: who wants the place after the last one, and finds it taken, has lost nothing
//! but time: it reads what is there, compares again and tries the next place. Whoever fails does so because another one has succeeded.
//!
//! | file | holds |
//! | --- | --- |
//! | `0000000000000017` | the transaction of revision 17 |
//! | `snapshot-0000000000000512` | everything as of revision 512, so that older transactions can go |
//! | `gone-0000000000000000` | nothing; says that transactions of block 0 (revisions 1 to 256) may have been removed |
//! | `new-*` | what a process was about to write |
//!
//! A process that was stopped for long may believe that a place is free from which a file has been removed meanwhile. Therefore the mark `gone-*`
//! of a block is there before the first of its transactions is removed, and stays for ever; whoever has taken a place, or found it free, or has
//! read what is there, looks for the mark afterwards. If there is none, nothing had been removed.

mod files;
mod state;

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::moved::{MARKER, check_change, check_changes, check_read};
use super::place::{check_file_system, unreachable};
use super::{
    Changes, Compare, Entry, LeaseId, Listing, Op, Outcome, Store, StoreError, check_key, check_prefix,
    check_transaction,
};
use files::{BLOCK, Files};
use state::State;
use tempfile::NamedTempFile;

/// How often a watch looks for new transactions.
const WATCH_POLL: Duration = Duration::from_millis(50);
/// How often it is tried to find a snapshot that others do not remove meanwhile.
const LOADS_MAX: u32 = 64;

/// The store of one machine for what replicas arbitrate by: a folder.
///
/// Any number of threads and processes may use one folder, which has to be on a local file system. None can keep another one from going on, wherever
/// it is stopped or killed. What has been answered is on stable storage. A call is not bounded in time if the file system itself hangs.
pub struct FolderStore {
    files: Files,
    /// Device and inode: two stores under one name would be two arbiters.
    folder: (u64, u64),
    known: Mutex<Known>,
}

/// What has been read so far.
#[derive(Default)]
struct Known {
    state: State,
    /// Up to here the names of transactions are on stable storage.
    synced: u64,
}

impl Known {
    /// What says that the store is being moved, if anything does.
    fn marker(&self) -> Option<&[u8]> {
        self.state.get(MARKER).map(|entry| entry.value.as_slice())
    }
}

impl FolderStore {
    /// Opens a store that [`create`](Self::create) has made.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if the folder is missing or is on a network file system, [`StoreError::Corrupt`] if it holds what cannot be
    /// right.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(|error| unreachable(path, &error.to_string()))?;
        let metadata = fs::metadata(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                unreachable(&path, "there is no such folder; bring it back, or make the cluster anew")
            }
            _ => unreachable(&path, &error.to_string()),
        })?;
        if !metadata.is_dir() {
            return Err(StoreError::Corrupt(format!("{} is not a folder", path.display())));
        }
        check_file_system(&path, &path)?;
        let folder = (metadata.dev(), metadata.ino());
        let store = Self { files: Files::new(path), folder, known: Mutex::default() };
        store.keep_ready()?;
        Ok(store)
    }

    /// Makes an empty store, for its owner only, unless there is one already, and opens it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        check_file_system(path, parent)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => files::sync(parent)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unreachable(path, &format!("it cannot be created: {error}"))),
        }
        Self::open(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.files.folder()
    }

    /// Does something with everything as of now.
    fn with_known<T>(&self, work: impl FnOnce(&mut Known) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check_folder()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.advance(&mut known)?;
        work(&mut known)
    }

    /// Whether the path still leads to the folder that was opened.
    fn check_folder(&self) -> Result<(), StoreError> {
        let path = self.files.folder();
        match fs::metadata(path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.folder => Ok(()),
            Ok(_) => Err(unreachable(path, "another folder has taken its place; restart whatever uses it")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(unreachable(path, "the folder was deleted or moved; bring it back"))
            }
            Err(error) => Err(unreachable(path, &error.to_string())),
        }
    }

    /// Reads what others have written. What it answers is on stable storage, whoever wrote it.
    fn advance(&self, Known { state, synced }: &mut Known) -> Result<(), StoreError> {
        let mut loads = 0;
        loop {
            let next = state.revision() + 1;
            let found = self.files.transaction(next)?;
            if self.files.is_gone(next)? {
                loads += 1;
                if loads > LOADS_MAX {
                    let what =
                        format!("{}: transactions after {} are missing", self.path().display(), state.revision());
                    return Err(StoreError::Corrupt(what));
                }
                *state = self.files.newest_snapshot()?;
                *synced = 0;
                continue;
            }
            let Some(transaction) = found else { break };
            state.apply(next, transaction);
            self.tidy(state);
        }
        // Not only if this call has read something: one before may have failed half-way.
        if state.revision() != *synced {
            files::sync(self.path())?;
            *synced = state.revision();
        }
        Ok(())
    }

    /// Gives a transaction its revision.
    fn place(&self, file: NamedTempFile, revision: u64) -> Result<Placed, StoreError> {
        if let Some(file) = self.files.place(file, revision)? {
            return Ok(Placed::Taken(file));
        }
        if self.files.is_gone(revision)? {
            // Nobody reads it there.
            self.files.remove_transaction(revision);
            return Ok(Placed::Gone);
        }
        files::sync(self.path())?;
        Ok(Placed::There)
    }

    /// At the end of a block: keeps what there is in one file, and removes what that makes superfluous. Whoever passes by does it; that it cannot
    /// be done is of no consequence but that the folder grows.
    fn tidy(&self, state: &mut State) {
        if !state.revision().is_multiple_of(BLOCK) {
            return;
        }
        state.forget_deletions();
        if let Err(error) = self.files.write_snapshot(state).and_then(|()| self.files.remove_before(state.revision())) {
            tracing::warn!("{}: older transactions stay: {error}", self.path().display());
        }
    }
}

/// What came of giving a transaction its revision.
enum Placed {
    /// It has it, on stable storage.
    There,
    /// Another one has it.
    Taken(NamedTempFile),
    /// Another one had it, long ago.
    Gone,
}

impl Store for FolderStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        self.with_known(|known| {
            if key != MARKER {
                check_read(known.marker())?;
            }
            Ok(known.state.get(key).cloned())
        })
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        self.with_known(|known| {
            check_read(known.marker())?;
            Ok(Listing { revision: known.state.revision(), entries: known.state.list(prefix) })
        })
    }

    fn transact(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<Outcome, StoreError> {
        check_transaction(compares, ops)?;
        if ops.iter().any(|op| matches!(op, Op::Put { lease: Some(_), .. })) {
            return Err(no_leases());
        }
        self.with_known(|known| {
            let mut written = None;
            loop {
                // Whoever finds the place after the last one taken looks again: that transaction may have been the marker's.
                check_change(known.marker(), ops)?;
                let state = &mut known.state;
                let has_version =
                    |compare: &Compare<'_>| state.get(compare.key).map_or(0, |entry| entry.version) == compare.version;
                if !compares.iter().all(has_version) {
                    return Ok(Outcome::Conflict);
                }
                if ops.is_empty() {
                    return Ok(Outcome::Done { revision: state.revision() });
                }
                let next = state.revision() + 1;
                let transaction = state::Transaction::new(ops);
                let file = match written.take() {
                    Some(file) => file,
                    None => self.files.write(&transaction)?,
                };
                match self.place(file, next)? {
                    Placed::There => {
                        state.apply(next, transaction);
                        self.tidy(state);
                        known.synced = next;
                        return Ok(Outcome::Done { revision: next });
                    }
                    Placed::Taken(file) => written = Some(file),
                    Placed::Gone => {}
                }
                self.advance(known)?;
            }
        })
    }

    /// Writes a file that is nobody's.
    fn check_writable(&self) -> Result<(), StoreError> {
        self.with_known(|known| check_changes(known.marker()))?;
        self.files.check_writable()
    }

    fn watch(&self, prefix: &str, since: u64, timeout: Duration) -> Result<Changes, StoreError> {
        check_prefix(prefix)?;
        let started = Instant::now();
        // What has been looked through already need not be looked through again.
        let mut since = since;
        loop {
            let changes = self.with_known(|known| {
                check_read(known.marker())?;
                Ok(known.state.changes(prefix, since))
            })?;
            match changes {
                Changes::Seen { revision, changes } if changes.is_empty() && started.elapsed() < timeout => {
                    since = revision;
                }
                changes => return Ok(changes),
            }
            thread::sleep(WATCH_POLL.min(timeout.saturating_sub(started.elapsed())));
        }
    }

    /// What others have written is read.
    fn keep_ready(&self) -> Result<(), StoreError> {
        self.with_known(|_| Ok(()))
    }

    fn grant_lease(&self, _: Duration) -> Result<LeaseId, StoreError> {
        Err(no_leases())
    }

    fn keep_lease(&self, _: LeaseId) -> Result<bool, StoreError> {
        Err(no_leases())
    }

    fn end_lease(&self, _: LeaseId) -> Result<(), StoreError> {
        Err(no_leases())
    }
}

/// Whoever renews a lease writes all the time, which is for a store that is made for it.
fn no_leases() -> StoreError {
    StoreError::Refused("leases are kept with the hosts, and not with VMs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &FolderStore, value: &[u8]) -> u64 {
        match store.transact(&[], &[Op::Put { key: "a", value, lease: None }]).unwrap() {
            Outcome::Done { revision } => revision,
            Outcome::Conflict => panic!("a transaction without compares had a conflict"),
        }
    }

    /// Who was stopped before it took its place finds that place free when it goes on, though it had been taken.
    #[test]
    fn a_place_that_is_long_gone_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::create(folder.path()).unwrap();
        let late = FolderStore::open(folder.path()).unwrap();
        put(&store, b"1");
        assert_eq!(late.get("a").unwrap().unwrap().version, 1);
        for _ in 0..3 * BLOCK {
            put(&store, b"2");
        }
        assert!(!late.files.transaction_path(2).exists(), "nothing is removed");
        let forged = |store: &FolderStore| {
            store.files.write(&state::Transaction::new(&[Op::Put { key: "a", value: b"x", lease: None }])).unwrap()
        };
        assert!(matches!(late.place(forged(&late), 2).unwrap(), Placed::Gone));
        assert!(!late.files.transaction_path(2).exists());
        // It may be killed before it has looked.
        assert!(late.files.place(forged(&late), 2).unwrap().is_none());
        for store in [&late, &FolderStore::open(folder.path()).unwrap(), &store] {
            assert_eq!(store.get("a").unwrap().unwrap(), Entry { value: b"2".to_vec(), version: 3 * BLOCK + 1 });
        }
        for _ in 0..BLOCK {
            put(&late, b"3");
        }
        assert!(!late.files.transaction_path(2).exists(), "what nobody reads stays");
        assert_eq!(store.get("a").unwrap().unwrap().value, b"3");
    }

    /// Whoever asks again must not be answered from what may be gone after a power loss.
    #[test]
    fn what_was_read_before_an_error_is_synchronized_before_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, reader) = (FolderStore::create(folder.path()).unwrap(), FolderStore::open(folder.path()).unwrap());
        let read_and_synced = |store: &FolderStore| {
            let known = store.known.lock().unwrap();
            (known.state.revision(), known.synced)
        };
        put(&writer, b"1");
        assert_eq!(read_and_synced(&writer), (1, 1), "what it has written itself is synchronized again");
        put(&writer, b"2");
        fs::write(writer.files.transaction_path(3), "{").unwrap();
        assert!(reader.get("a").is_err());
        assert_eq!(read_and_synced(&reader), (2, 0));
        fs::remove_file(writer.files.transaction_path(3)).unwrap();
        assert_eq!(reader.get("a").unwrap().unwrap().version, 2);
        assert_eq!(read_and_synced(&reader), (2, 2));
    }

    #[test]
    fn who_keeps_ready_has_read_what_others_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, reader) = (FolderStore::create(folder.path()).unwrap(), FolderStore::open(folder.path()).unwrap());
        put(&writer, b"1");
        reader.keep_ready().unwrap();
        assert_eq!(reader.known.lock().unwrap().state.revision(), 1);
    }

    #[test]
    fn a_folder_that_can_only_be_read_is_not_writable() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::create(folder.path()).unwrap();
        store.check_writable().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves something behind");
        // Nobody can make a file there, not even who may do everything.
        let store = FolderStore::open(Path::new("/proc")).unwrap();
        assert_eq!(store.get("a").unwrap(), None);
        assert!(matches!(store.check_writable(), Err(StoreError::Unreachable(_))));
    }

    #[test]
    fn a_snapshot_of_another_revision_than_its_name_says_is_refused_and_overflows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::create(folder.path()).unwrap();
        fs::write(folder.path().join("gone-0000000000000000"), "null").unwrap();
        for (name, revision) in [(BLOCK, BLOCK + 1), (BLOCK, u64::MAX), (u64::MAX, u64::MAX)] {
            let path = folder.path().join(format!("snapshot-{name:016}"));
            fs::write(&path, format!(r#"{{"revision":{revision},"compacted":0,"entries":[],"deleted":{{}}}}"#))
                .unwrap();
            for result in [store.get("a").map(drop), FolderStore::open(folder.path()).map(drop)] {
                assert!(matches!(&result, Err(StoreError::Corrupt(why)) if why.contains("snapshot")), "{result:?}");
            }
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_right_is_said_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::create(folder.path()).unwrap();
        put(&store, b"1");
        fs::write(store.files.transaction_path(2), "{").unwrap();
        assert!(matches!(store.get("a"), Err(StoreError::Corrupt(message)) if message.contains("0000000000000002")));
        fs::remove_file(store.files.transaction_path(2)).unwrap();
        for _ in 0..2 * BLOCK {
            put(&store, b"2");
        }
        assert!(FolderStore::open(folder.path()).is_ok());
        for entry in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            if entry.file_name().to_str().unwrap().starts_with("snapshot-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        assert!(matches!(FolderStore::open(folder.path()).map(drop), Err(StoreError::Corrupt(_))));
        assert!(matches!(FolderStore::open(&folder.path().join("none")).map(drop), Err(StoreError::Unreachable(_))));
    }
}
