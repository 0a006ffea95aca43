//! Leases in the file, counted by the time since the machine was booted.

use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{SqliteStore, forget_deletions, signed};
use crate::store::{BootTime, LeaseId, StoreError};

/// Of an entry, where the first two parameters are the time: that it is there. What is under a lease that has ended is not, though nobody has
/// deleted it yet, as one who only reads cannot.
pub const IS_THERE: &str = "value IS NOT NULL AND (lease IS NULL OR lease IN
    (SELECT id FROM leases WHERE boot_id = ?1 AND ends_boot_ms > ?2))";
/// Of a lease, where the first two parameters are the time: that it has ended.
const HAS_ENDED: &str = "NOT (boot_id = ?1 AND ends_boot_ms > ?2)";

impl SqliteStore {
    /// Begins a lease.
    pub(super) fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let (now, ttl_ms) = (self.now()?, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.call(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction
                .prepare_cached("INSERT INTO leases (ttl_ms, boot_id, ends_boot_ms) VALUES (?1, ?2, ?3)")?
                .execute((signed(ttl_ms), &now.boot_id, signed(now.ms.saturating_add(ttl_ms))))?;
            let id = transaction.last_insert_rowid();
            transaction.commit()?;
            Ok(LeaseId(u64::try_from(id).unwrap_or(0)))
        })
    }

    /// Lets a lease begin anew; whether it was there.
    pub(super) fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let now = self.now()?;
        self.call(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            expire(&transaction, &now)?;
            let kept = transaction
                .prepare_cached("UPDATE leases SET ends_boot_ms = ?2 + ttl_ms WHERE id = ?1")?
                .execute((signed(lease.0), signed(now.ms)))?;
            transaction.commit()?;
            Ok(kept > 0)
        })
    }

    /// Ends a lease now.
    pub(super) fn end(&self, lease: LeaseId) -> Result<(), StoreError> {
        let now = self.now()?;
        self.call(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction
                .prepare_cached("UPDATE leases SET ends_boot_ms = 0 WHERE id = ?1")?
                .execute([signed(lease.0)])?;
            expire(&transaction, &now)?;
            transaction.commit()
        })
    }

    /// Deletes what was under leases that have ended, for watches to learn of it. Whoever has the lock does the same when it writes: nobody waits for it.
    pub(super) fn expire_leases(&self) -> Result<(), StoreError> {
        let now = self.now()?;
        let time = || (&now.boot_id, signed(now.ms));
        let has_some_ended = self.call(|connection| {
            connection
                .prepare_cached(&format!("SELECT EXISTS (SELECT 1 FROM leases WHERE {HAS_ENDED})"))?
                .query_row(time(), |row| row.get::<_, bool>(0))
        })?;
        if has_some_ended {
            // It is done with the next look if it cannot be done now.
            let _ = self.call(|connection| {
                connection.busy_timeout(Duration::ZERO)?;
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                expire(&transaction, &now)?;
                transaction.commit()?;
                connection.busy_timeout(self.busy_timeout)
            });
        }
        Ok(())
    }
}

/// Whether a lease is there, once those that have ended were removed.
pub fn is_there(connection: &Connection, lease: LeaseId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM leases WHERE id = ?1)")?
        .query_row([signed(lease.0)], |row| row.get(0))
}

/// Removes leases that have ended, and what was under them.
pub fn expire(transaction: &Transaction<'_>, now: &BootTime) -> rusqlite::Result<()> {
    let time = (&now.boot_id, signed(now.ms));
    let under_ended = format!("value IS NOT NULL AND lease IN (SELECT id FROM leases WHERE {HAS_ENDED})");
    let is_any = transaction
        .prepare_cached(&format!("SELECT EXISTS (SELECT 1 FROM entries WHERE {under_ended})"))?
        .query_row(time, |row| row.get::<_, bool>(0))?;
    if is_any {
        transaction.prepare_cached("UPDATE state SET revision = revision + 1")?.execute([])?;
        transaction
            .prepare_cached(&format!(
                "UPDATE entries SET value = NULL, lease = NULL, version = (SELECT revision FROM state) WHERE {under_ended}"
            ))?
            .execute(time)?;
        forget_deletions(transaction)?;
    }
    transaction.prepare_cached(&format!("DELETE FROM leases WHERE {HAS_ENDED}"))?.execute(time)?;
    Ok(())
}
