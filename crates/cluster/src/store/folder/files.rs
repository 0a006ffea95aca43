//! The files of the folder, by name.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use super::state::{Saved, State, Transaction};
use crate::store::place::unreachable;
use crate::store::{StoreError, TRANSACTION_ITEMS_MAX, VALUE_BYTES_MAX};

/// Transactions of one block: they are removed together.
pub const BLOCK: u64 = 256;
/// Largest file, in bytes: whatever is longer was not written by us. As text a byte takes up to six.
const FILE_BYTES_MAX: u64 = (TRANSACTION_ITEMS_MAX * VALUE_BYTES_MAX * 6) as u64;
const SNAPSHOT: &str = "snapshot-";
const GONE: &str = "gone-";
const NEW: &str = "new-";
/// How old a file is that nobody will give its place any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The files of a store.
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those of this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The transaction of a revision.
    pub fn transaction(&self, revision: u64) -> Result<Option<Transaction>, StoreError> {
        read(&self.transaction_path(revision))
    }

    /// Writes a transaction that has no revision yet.
    pub fn write(&self, content: &impl Serialize) -> Result<NamedTempFile, StoreError> {
        let write = || -> io::Result<NamedTempFile> {
            let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(&self.folder)?;
            file.write_all(&serde_json::to_vec(content)?)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        write().map_err(|error| explain(&self.folder, &error))
    }

    /// Writes a file, of a block's size as the file system gives room in blocks, and removes it.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        let write = || tempfile::Builder::new().prefix(NEW).tempfile_in(&self.folder)?.write_all(&[0; 4096]);
        write().map_err(|error| explain(&self.folder, &error))
    }

    /// Makes a transaction that of a revision; gives it back if that revision is another one's.
    pub fn place(&self, file: NamedTempFile, revision: u64) -> Result<Option<NamedTempFile>, StoreError> {
        match file.persist_noclobber(self.transaction_path(revision)) {
            Ok(_) => Ok(None),
            Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => Ok(Some(failed.file)),
            Err(failed) => Err(explain(&self.folder, &failed.error)),
        }
    }

    /// Removes the transaction of a revision whose block is gone.
    pub fn remove_transaction(&self, revision: u64) {
        // Whoever passes by at the end of a block tries again.
        let _ = fs::remove_file(self.transaction_path(revision));
    }

    /// Whether transactions of the block of this revision may have been removed.
    pub fn is_gone(&self, revision: u64) -> Result<bool, StoreError> {
        let path = self.gone_path(block_of(revision));
        path.try_exists().map_err(|error| explain(&path, &error))
    }

    /// The newest snapshot; the state before the first transaction if there is none.
    pub fn newest_snapshot(&self) -> Result<State, StoreError> {
        let snapshots = self.numbers()?.into_iter().filter_map(|found| match found {
            Found::Snapshot(revision) => Some(revision),
            Found::Transaction(_) => None,
        });
        let Some(newest) = snapshots.max() else { return Ok(State::default()) };
        // If it has been removed meanwhile, there is a newer one, which whoever asks finds next time.
        let path = self.numbered(SNAPSHOT, newest);
        let saved: Option<Saved> = read(&path)?;
        let Some(saved) = saved else { return Ok(State::default()) };
        let state = State::from(saved);
        // They are made at the ends of blocks, so that there is a next revision.
        if state.revision() != newest || !newest.is_multiple_of(BLOCK) {
            let what = format!("{}: it is of revision {}", path.display(), state.revision());
            return Err(StoreError::Corrupt(what));
        }
        Ok(state)
    }

    /// Writes a snapshot, unless somebody has.
    pub fn write_snapshot(&self, state: &State) -> Result<(), StoreError> {
        let path = self.numbered(SNAPSHOT, state.revision());
        if !path.try_exists().map_err(|error| explain(&path, &error))? {
            put_in_place(self.write(&Saved::from(state))?, &path)?;
        }
        sync(&self.folder)
    }

    /// Removes transactions and snapshots but those of the last block before `revision`, at which there is a snapshot.
    pub fn remove_before(&self, revision: u64) -> Result<(), StoreError> {
        let oldest_kept = revision.saturating_sub(BLOCK) + 1;
        let found = self.numbers()?;
        let mut blocks: Vec<u64> = found
            .iter()
            .filter_map(|found| match *found {
                Found::Transaction(revision) if revision < oldest_kept => Some(block_of(revision)),
                _ => None,
            })
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        for block in blocks {
            let path = self.gone_path(block);
            if !path.try_exists().map_err(|error| explain(&path, &error))? {
                put_in_place(self.write(&())?, &path)?;
            }
        }
        // Marks come back after a power loss as long as what they stand for is missing.
        sync(&self.folder)?;
        for found in found {
            let path = match found {
                Found::Transaction(revision) if revision < oldest_kept => self.transaction_path(revision),
                Found::Snapshot(revision) if revision < oldest_kept => self.numbered(SNAPSHOT, revision),
                _ => continue,
            };
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(explain(&path, &error)),
                _ => {}
            }
        }
        self.remove_abandoned();
        Ok(())
    }

    /// Removes what processes were about to write that were killed long ago. One that was merely stopped gets an error, and nothing has happened.
    fn remove_abandoned(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|found| found.modified()).map(|written| written.elapsed());
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(NEW))
                && matches!(age, Ok(Ok(age)) if age > ABANDONED)
            {
                // There is a next time.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Transactions and snapshots.
    fn numbers(&self) -> Result<Vec<Found>, StoreError> {
        let explain = |error: io::Error| explain(&self.folder, &error);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(explain)? {
            let name = entry.map_err(explain)?.file_name();
            let Some(name) = name.to_str() else { continue };
            match name.strip_prefix(SNAPSHOT) {
                Some(number) => numbers.extend(number.parse().map(Found::Snapshot)),
                None => numbers.extend(name.parse().map(Found::Transaction)),
            }
        }
        Ok(numbers)
    }

    /// Where the transaction of a revision is.
    pub fn transaction_path(&self, revision: u64) -> PathBuf {
        self.numbered("", revision)
    }

    fn gone_path(&self, block: u64) -> PathBuf {
        self.numbered(GONE, block)
    }

    fn numbered(&self, kind: &str, number: u64) -> PathBuf {
        self.folder.join(format!("{kind}{number:016}"))
    }
}

enum Found {
    Transaction(u64),
    Snapshot(u64),
}

fn block_of(revision: u64) -> u64 {
    revision.saturating_sub(1) / BLOCK
}

/// Gives a file its name, unless another one has it: then it holds the same.
fn put_in_place(file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
    match file.persist_noclobber(path) {
        Err(failed) if failed.error.kind() != ErrorKind::AlreadyExists => Err(explain(path, &failed.error)),
        _ => Ok(()),
    }
}

/// Brings a folder's names to stable storage.
pub fn sync(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| unreachable(folder, &format!("it cannot be synchronized: {error}")))
}

/// Reads a file, if it is there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let mut content = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut content)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(explain(path, &error)),
    }
    let read = serde_json::from_slice(&content);
    read.map(Some).map_err(|error| StoreError::Corrupt(format!("{}: {error}", path.display())))
}

/// What an error means to an administrator.
fn explain(path: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            unreachable(path, &format!("free some space on its file system ({error})"))
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            unreachable(path, &format!("make the folder and its files writable for this user ({error})"))
        }
        _ => unreachable(path, &format!("check the disk and the system's log ({error})")),
    }
}
