//! The cluster store: a small transactional key-value store with watches.
//!
//! [`Store`] is the least that both files shared by the processes of one machine and a consensus service such as etcd can do. On one machine there are two
//! of them: [`SqliteStore`] for what may wait for a lock, [`FolderStore`] for what replicas arbitrate by. A transaction raises the store's *revision* by one; an entry's *version* is the revision of
//! the transaction that wrote it last, so that a key which was deleted and written again never has a version twice.

mod boot_clock;
mod error;
mod etcd;
mod folder;
mod location;
mod moved;
mod place;
mod sqlite;

use std::time::Duration;

pub use boot_clock::{BootTime, boot_ms_now};
pub use error::StoreError;
pub use etcd::{
    EtcdAccess, EtcdAddress, EtcdKeys, EtcdStore, EtcdUser, ROOT as ETCD_ROOT, Sight, user_of as etcd_user_of,
};
pub use folder::FolderStore;
pub use location::{StoreLocation, Stores, open_vms, vms_folder};
pub use moved::{MARKER, Marker};
pub use sqlite::{BUSY_TIMEOUT_DEFAULT, SqliteStore};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most compares, and most operations, of one transaction: etcd takes 128 unless told otherwise, and some are the store's own.
pub const TRANSACTION_ITEMS_MAX: usize = 120;

/// A transactional key-value store with watches. Every call is bounded in time, as far as the file system is.
///
/// Keys are of 1 to [`KEY_BYTES_MAX`] printable ASCII characters without space; prefixes may also be empty.
///
/// All methods fail with [`StoreError::Moved`] if there is a [`Marker`] that forbids what they do, with [`StoreError::Unreachable`] if the store does not answer in time, with [`StoreError::Corrupt`] if
/// what it holds cannot be right, and with [`StoreError::Refused`] if a bound is not kept.
pub trait Store: Send + Sync {
    /// What is stored at a key.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All entries whose keys begin with `prefix`, in order of their keys, as of one revision.
    fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Does all of `ops` if all of `compares` hold, else nothing. Once this has answered [`Outcome::Done`], a power failure
    /// undoes nothing.
    ///
    /// After [`StoreError::Unreachable`] it may have been done or not, or may be until this store's next transaction: look before asking again.
    fn transact(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<Outcome, StoreError>;

    /// Makes sure that the store can be written to, as far as can be seen without changing anything in it.
    fn check_writable(&self) -> Result<(), StoreError>;

    /// What has changed under `prefix` after revision `since`. Waits for the first change, up to `timeout`.
    fn watch(&self, prefix: &str, since: u64, timeout: Duration) -> Result<Changes, StoreError>;

    /// Begins a lease that ends `ttl` after it was kept last. When it ends, what is under it is deleted, as by a transaction. The store may count in
    /// whole seconds, rounded up, by a clock of its own.
    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Lets a lease begin anew; whether it was there.
    fn keep_lease(&self, lease: LeaseId) -> Result<bool, StoreError>;

    /// Ends a lease now, if it is there.
    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Makes ready for a transaction that must not take long: whoever waits for a takeover asks for this now and then. Where there is nothing to be
    /// done for it, it does nothing.
    fn keep_ready(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// How far it has come, where it could be brought back to an older state unnoticed otherwise: for [`Stores::open_after`].
    fn sight(&self) -> Option<Sight> {
        None
    }
}

/// A lease: no other one of this store has or had this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseId(pub u64);

/// What is stored at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// The revision that wrote it: at least 1.
    pub version: u64,
}

/// The entries under a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision when this was read: to be watched from.
    pub revision: u64,
    /// Keys and entries, in order of the keys.
    pub entries: Vec<(String, Entry)>,
}

/// A condition of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// The key.
    pub key: &'a str,
    /// The version that its entry must have; 0: there must be none.
    pub version: u64,
}

/// A change that a transaction makes. It may make one of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Writes an entry.
    Put {
        /// The entry's key.
        key: &'a str,
        /// Its value.
        value: &'a [u8],
        /// The lease with which it goes. If that has ended already, nothing is done ([`StoreError::LeaseEnded`]).
        lease: Option<LeaseId>,
    },
    /// Deletes an entry, if there is one.
    Delete {
        /// The entry's key.
        key: &'a str,
    },
}

impl Op<'_> {
    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done {
        /// The store's revision after it: the version of all that it wrote.
        revision: u64,
    },
    /// A compare did not hold; nothing was done.
    Conflict,
}

/// What a watch has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// All changes up to a revision; none if the watch timed out.
    Seen {
        /// The revision: to be watched from next.
        revision: u64,
        /// The last change of each key, in order of revisions.
        changes: Vec<Change>,
    },
    /// Some deletions after `since` are forgotten: list again, then watch from the listing's revision.
    Compacted,
}

/// The last change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What is stored there; none if it was deleted.
    pub entry: Option<Entry>,
}

/// Refuses a key that is empty, too long, or not of printable ASCII characters.
fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Refused("a key cannot be empty".to_owned()));
    }
    check_prefix(key)
}

/// As [`check_key`], for a prefix, which may be empty.
fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.len() > KEY_BYTES_MAX {
        return Err(StoreError::Refused(format!("a key of {} bytes: at most {KEY_BYTES_MAX}", prefix.len())));
    }
    if !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(StoreError::Refused(format!("key {prefix:?}: use printable ASCII characters without space")));
    }
    Ok(())
}

/// The first key after all that begin with `prefix`: keys hold no character above `~`.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

/// Refuses a transaction that does not keep the bounds.
fn check_transaction(compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<(), StoreError> {
    if compares.len() > TRANSACTION_ITEMS_MAX || ops.len() > TRANSACTION_ITEMS_MAX {
        return Err(StoreError::Refused(format!(
            "a transaction of {} compares and {} operations: at most {TRANSACTION_ITEMS_MAX} each",
            compares.len(),
            ops.len()
        )));
    }
    compares.iter().try_for_each(|compare| check_key(compare.key))?;
    for (index, op) in ops.iter().enumerate() {
        check_key(op.key())?;
        if ops.iter().take(index).any(|earlier| earlier.key() == op.key()) {
            return Err(StoreError::Refused(format!("a transaction changes {} twice", op.key())));
        }
        if let Op::Put { key, value, .. } = op
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(StoreError::Refused(format!("{key}: {} bytes; at most {VALUE_BYTES_MAX}", value.len())));
        }
    }
    Ok(())
}
