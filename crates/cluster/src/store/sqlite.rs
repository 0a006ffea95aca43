//! A store of one machine: an SQLite file that several processes have open.

mod leases;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior};

use super::boot_clock::BootTime;
use super::moved::{MARKER, check_change, check_changes};
use super::place::{check_file_system, unreachable};
use super::{
    Change, Changes, Compare, Entry, KEY_BYTES_MAX, LeaseId, Listing, Op, Outcome, Store, StoreError, VALUE_BYTES_MAX,
    check_key, check_prefix, check_transaction, end_of,
};
use leases::{IS_THERE, expire};

/// How long a call waits for other processes, unless another time is chosen.
pub const BUSY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

/// How often a watch looks at the revision.
const WATCH_POLL: Duration = Duration::from_millis(50);
/// Deletions that watches can still learn of.
const TOMBSTONES_MAX: i64 = 1024;
/// Connections kept open between calls.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// Longest row, in bytes: whatever is longer was not written by us.
const ROW_BYTES_MAX: i32 = (VALUE_BYTES_MAX + KEY_BYTES_MAX + 1024) as i32;

/// `TWVM`, in the header of the file.
const APPLICATION_ID: i64 = 0x5457_564d;
/// Version of the layout below.
const LAYOUT_VERSION: i64 = 2;
/// A deleted entry stays as one without a value for a while, so that watches learn of it.
const LAYOUT: &str = "
    CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB, version INTEGER NOT NULL, lease INTEGER) STRICT, WITHOUT ROWID;
    CREATE INDEX entries_by_version ON entries (version);
    CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, compacted INTEGER NOT NULL) STRICT;
    INSERT INTO state VALUES (1, 0, 0);
    CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL, boot_id TEXT NOT NULL,
        ends_boot_ms INTEGER NOT NULL) STRICT;
";

/// A store of one machine: an SQLite file.
///
/// Any number of threads and processes may use one file. It must be on a local file system: locks are not reliable on most
/// network file systems. Write-ahead log, each commit synchronized to stable storage (`synchronous=FULL`): what was won stays
/// won. A process that is killed in the middle of a transaction leaves nothing of it behind.
///
/// A call waits for other writers up to the busy timeout. It is not bounded if the file system itself hangs. Whoever is stopped in the middle of a
/// transaction keeps all others from writing: so nothing is here that a takeover needs ([`super::FolderStore`] has that).
pub struct SqliteStore {
    path: PathBuf,
    /// Device and inode: two stores under one name would be two arbiters.
    file: (u64, u64),
    busy_timeout: Duration,
    /// Each call takes one, or opens another: so none waits for another call of this process longer than for another process.
    idle: Mutex<Vec<Connection>>,
}

impl SqliteStore {
    /// Opens a store that [`create`](Self::create) has made.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if the file is missing, cannot be written or is on a network file system, [`StoreError::Corrupt`] if it is not a cluster store,
    /// [`StoreError::TooNew`] if it is one of a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_timeout(path, BUSY_TIMEOUT_DEFAULT)
    }

    /// As [`open`](Self::open), with a busy timeout of one's own choice.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_timeout(path: &Path, busy_timeout: Duration) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(|error| unreachable(path, &error.to_string()))?;
        let metadata = fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                unreachable(&path, "there is no such file; name the store of an existing cluster")
            }
            _ => unreachable(&path, &error.to_string()),
        })?;
        check_file_system(&path, &path)?;
        let file = (metadata.dev(), metadata.ino());
        let store = Self { path, file, busy_timeout, idle: Mutex::new(Vec::new()) };
        let mut connection = store.connect()?;
        store.prepare(&mut connection)?;
        store.put_back(connection);
        Ok(store)
    }

    /// Makes an empty store, readable by its owner only, unless there is one already, and opens it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        check_file_system(path, folder)?;
        // Never opened here if it is there: closing it would give up the locks that SQLite in this process holds on it.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| unreachable(path, &format!("its folder cannot be synchronized: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unreachable(path, &format!("it cannot be created: {error}"))),
        }
        Self::open(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(self.busy_timeout)?;
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, ROW_BYTES_MAX)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        open().map_err(|error| self.explain(&error))
    }

    /// Makes sure that the file is a cluster store of a version that is known. An empty file becomes one.
    fn prepare(&self, connection: &mut Connection) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.busy_timeout;
        // Changing the mode needs the file alone, and SQLite does not wait for that.
        loop {
            match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
                Ok(mode) if mode == "wal" => break,
                Ok(mode) => return Err(StoreError::Corrupt(format!("{}: journal mode {mode}", self.path.display()))),
                Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(self.explain(&error)),
            }
        }
        let read = header(connection).map_err(|error| self.explain(&error))?;
        let (application, version) = if read == (0, 0) {
            let lay_out = |connection: &mut Connection| -> rusqlite::Result<(i64, i64)> {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
                // Another process may have been faster, or it is another program's file.
                if header(&transaction)? == (0, 0) && tables == 0 {
                    transaction.execute_batch(LAYOUT)?;
                    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                    transaction.pragma_update(None, "user_version", LAYOUT_VERSION)?;
                }
                transaction.commit()?;
                header(connection)
            };
            lay_out(connection).map_err(|error| self.explain(&error))?
        } else {
            read
        };
        if application != APPLICATION_ID {
            return Err(StoreError::Corrupt(format!("{} is not a cluster store", self.path.display())));
        }
        if version > LAYOUT_VERSION {
            let path = self.path.display().to_string();
            return Err(StoreError::TooNew { path, found: version, known: LAYOUT_VERSION });
        }
        if version < LAYOUT_VERSION {
            let path = self.path.display();
            return Err(StoreError::Corrupt(format!("{path} was made by an older twinvm: make the cluster anew")));
        }
        Ok(())
    }

    /// The time by which leases are counted.
    fn now(&self) -> Result<BootTime, StoreError> {
        BootTime::now().map_err(|error| unreachable(&self.path, &format!("there is no clock: {error}")))
    }

    /// Runs a call on a connection of its own. After an error the connection is given up, and whatever was the matter with it.
    fn call<T>(&self, run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.check_file()?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = idle.map_or_else(|| self.connect(), Ok)?;
        let result = run(&mut connection).map_err(|error| self.explain(&error))?;
        self.put_back(connection);
        Ok(result)
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(connection);
        }
    }

    /// Whether the path still leads to the file that was opened. SQLite would go on with a deleted one, while other processes
    /// arbitrate in another.
    fn check_file(&self) -> Result<(), StoreError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.file => Ok(()),
            Ok(_) => Err(unreachable(&self.path, "another file has taken its place; restart whatever uses it")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(unreachable(&self.path, "the file was deleted or moved; bring it back"))
            }
            Err(error) => Err(unreachable(&self.path, &error.to_string())),
        }
    }

    /// What an error of SQLite means to an administrator.
    fn explain(&self, error: &rusqlite::Error) -> StoreError {
        let path = &self.path;
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
                let timeout_ms = self.busy_timeout.as_millis();
                unreachable(path, &format!("another process has kept it locked for {timeout_ms} ms ({error})"))
            }
            Some(ErrorCode::DiskFull) => unreachable(path, &format!("free some space on its file system ({error})")),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                unreachable(path, &format!("make the file and its folder writable for this user ({error})"))
            }
            Some(ErrorCode::CannotOpen) => {
                unreachable(path, &format!("check that the file is there and writable, and its folder too ({error})"))
            }
            Some(ErrorCode::SystemIoFailure) => {
                unreachable(path, &format!("check the disk and the system's log ({error})"))
            }
            Some(ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted) => unreachable(path, &error.to_string()),
            Some(ErrorCode::NotADatabase) => {
                StoreError::Corrupt(format!("{} is not a cluster store ({error})", path.display()))
            }
            _ => StoreError::Corrupt(format!("{}: {error}", path.display())),
        }
    }

    /// Refuses leases where the store is being moved. One that is granted or kept at the same time holds nothing there that could be changed.
    fn check_leases(&self) -> Result<(), StoreError> {
        let marker = self.call(|connection| marker(connection))?;
        check_changes(marker.as_deref())
    }

    fn changes(&self, prefix: &str, since: u64) -> Result<Changes, StoreError> {
        let (revision, compacted, changes) = self.call(|connection| {
            let transaction = connection.transaction()?;
            let (revision, compacted) = transaction
                .prepare_cached("SELECT revision, compacted FROM state")?
                .query_row([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
            let mut changes = Vec::new();
            if revision > since && compacted <= since {
                let mut statement = transaction.prepare_cached(
                    "SELECT key, value, version FROM entries WHERE version > ?1 AND key >= ?2 AND key < ?3 ORDER BY version, key",
                )?;
                let rows = statement.query_map((signed(since), prefix, end_of(prefix)), |row| {
                    let (key, value, version) = (row.get(0)?, row.get::<_, Option<Vec<u8>>>(1)?, unsigned(row, 2)?);
                    Ok(Change { key, entry: value.map(|value| Entry { value, version }) })
                })?;
                changes = rows.collect::<rusqlite::Result<_>>()?;
            }
            Ok((revision, compacted, changes))
        })?;
        // A revision from the future is one of another store, or of this one before it was restored from a backup.
        if compacted > since || since > revision {
            return Ok(Changes::Compacted);
        }
        Ok(Changes::Seen { revision, changes })
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let now = self.now()?;
        self.call(|connection| {
            connection
                .prepare_cached(&format!("SELECT value, version FROM entries WHERE key = ?3 AND {IS_THERE}"))?
                .query_row((&now.boot_id, signed(now.ms), key), |row| {
                    Ok(Entry { value: row.get(0)?, version: unsigned(row, 1)? })
                })
                .optional()
        })
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        let now = self.now()?;
        self.call(|connection| {
            let transaction = connection.transaction()?;
            let revision = revision(&transaction)?;
            let mut statement = transaction.prepare_cached(&format!(
                "SELECT key, value, version FROM entries WHERE key >= ?3 AND key < ?4 AND {IS_THERE} ORDER BY key"
            ))?;
            let entries = statement
                .query_map((&now.boot_id, signed(now.ms), prefix, end_of(prefix)), |row| {
                    Ok((row.get(0)?, Entry { value: row.get(1)?, version: unsigned(row, 2)? }))
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Listing { revision, entries })
        })
    }

    fn transact(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<Outcome, StoreError> {
        check_transaction(compares, ops)?;
        let now = self.now()?;
        let mut allowed = Ok(());
        let done = self.call(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            expire(&transaction, &now)?;
            allowed = check_change(marker(&transaction)?.as_deref(), ops);
            if allowed.is_err() {
                return Ok(None);
            }
            for compare in compares {
                let version = transaction
                    .prepare_cached("SELECT version FROM entries WHERE key = ?1 AND value IS NOT NULL")?
                    .query_row([compare.key], |row| unsigned(row, 0))
                    .optional()?;
                if version.unwrap_or(0) != compare.version {
                    return Ok(Some(Outcome::Conflict));
                }
            }
            for op in ops {
                if let Op::Put { lease: Some(lease), .. } = op
                    && !leases::is_there(&transaction, *lease)?
                {
                    return Ok(None);
                }
            }
            let mut revision = revision(&transaction)?;
            if !ops.is_empty() {
                revision = transaction
                    .prepare_cached("UPDATE state SET revision = revision + 1 RETURNING revision")?
                    .query_row([], |row| unsigned(row, 0))?;
            }
            for op in ops {
                apply(&transaction, op, revision)?;
            }
            transaction.commit()?;
            Ok(Some(Outcome::Done { revision }))
        });
        let done = done?;
        allowed?;
        done.ok_or(StoreError::LeaseEnded)
    }

    /// Takes the lock of writers.
    fn check_writable(&self) -> Result<(), StoreError> {
        self.transact(&[], &[]).map(drop)
    }

    fn watch(&self, prefix: &str, since: u64, timeout: Duration) -> Result<Changes, StoreError> {
        check_prefix(prefix)?;
        let started = Instant::now();
        // What has been looked through already need not be looked through again.
        let mut since = since;
        loop {
            self.expire_leases()?;
            match self.changes(prefix, since)? {
                Changes::Seen { revision, changes } if changes.is_empty() && started.elapsed() < timeout => {
                    since = revision;
                }
                changes => return Ok(changes),
            }
            thread::sleep(WATCH_POLL.min(timeout.saturating_sub(started.elapsed())));
        }
    }

    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.check_leases()?;
        self.grant(ttl)
    }

    fn keep_lease(&self, lease: LeaseId) -> Result<bool, StoreError> {
        self.check_leases()?;
        self.keep(lease)
    }

    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.end(lease)
    }
}

fn apply(transaction: &Transaction<'_>, op: &Op<'_>, revision: u64) -> rusqlite::Result<()> {
    match *op {
        Op::Put { key, value, lease } => {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO entries (key, value, version, lease) VALUES (?1, ?2, ?3, ?4)")?
                .execute((key, value, signed(revision), lease.map(|lease| signed(lease.0))))?;
        }
        Op::Delete { key } => {
            let deleted = transaction
                .prepare_cached(
                    "UPDATE entries SET value = NULL, lease = NULL, version = ?2 WHERE key = ?1 AND value IS NOT NULL",
                )?
                .execute((key, signed(revision)))?;
            if deleted > 0 {
                forget_deletions(transaction)?;
            }
        }
    }
    Ok(())
}

/// Keeps the table from growing with every name that was ever used.
fn forget_deletions(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let newest_to_forget: Option<i64> = transaction
        .prepare_cached("SELECT version FROM entries WHERE value IS NULL ORDER BY version DESC LIMIT 1 OFFSET ?1")?
        .query_row([TOMBSTONES_MAX], |row| row.get(0))
        .optional()?;
    if let Some(version) = newest_to_forget {
        transaction.execute("DELETE FROM entries WHERE value IS NULL AND version <= ?1", [version])?;
        transaction.execute("UPDATE state SET compacted = max(compacted, ?1)", [version])?;
    }
    Ok(())
}

/// What says that the store is being moved, if anything does.
fn marker(connection: &Connection) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut find = connection.prepare_cached("SELECT value FROM entries WHERE key = ?1 AND value IS NOT NULL")?;
    find.query_row([MARKER], |row| row.get(0)).optional()
}

/// Application and version of the layout, from the file's header.
fn header(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

fn revision(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT revision FROM state")?.query_row([], |row| unsigned(row, 0))
}

/// SQLite's integers are signed. A number that does not fit is larger than any that is stored.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
