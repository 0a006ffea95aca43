//! [`StoreMove`]: a cluster moves from one store to another, with its VMs running.
//!
//! At each moment at most one of the two stores is believed, and whoever believes one knows it from the old one alone:
//!
//! 1. *Begin.* The new store is empty, and gets a record that says for which attempt it is being filled.
//! 2. *Freeze.* A [`Marker`] is written in the old store by a swap. From then on nothing else can be changed there: who wants to change something has read
//!    everything before, the marker as well. What is read is true: nothing changes. Nobody takes over meanwhile.
//! 3. *Copy.* All VMs, claims and hosts are written to the new store as they are, each only as long as its record says that it is being filled in this attempt.
//!    Generations stay what they are.
//! 4. *Commit.* The marker is swapped for one that says that the move is over. This one swap is the move: before it only the old store is believed, after it only
//!    the new one. The old store is not read any more.
//! 5. *Finish.* The new store's record says that the cluster is there, and which generations were given out before.
//!
//! Whoever is interrupted begins again and does what is left. Two that do it at the same time are in one attempt if they find one, and a write of either that
//! comes late finds that the record has moved on. Until the commit the move can be [undone](StoreMove::abort), by a swap of the very marker that the commit swaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use spec::HostName;
use thiserror::Error;

use super::admission::ADMISSION;
use super::cluster::{HOSTS, MADE, Made, VMS};
use super::datastore::DATASTORES;
use super::{Cluster, ClusterError, encode};
use crate::store::{Compare, Entry, MARKER, Marker, Op, Outcome, Store, StoreError, Stores};

/// Why a cluster could not be moved.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MoveError {
    /// One of the stores could not do it.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// It is on its way to another place.
    #[error("the cluster store is being moved to {0}: give that place, or undo it first with --abort")]
    Elsewhere(String),
    /// It has been moved.
    #[error("the cluster store has been moved to {0} already")]
    Over(String),
    /// Nothing is being moved.
    #[error("the cluster store is not being moved")]
    NotMoving,
    /// Somebody else moves it, or has undone it.
    #[error("the move was undone, or another one has begun meanwhile: give the command again")]
    Superseded,
    /// There is another cluster.
    #[error(
        "there is a cluster in the new store already: empty it, or choose another name as in etcd://HOST:PORT/NAME"
    )]
    Taken,
}

impl From<StoreError> for MoveError {
    fn from(error: StoreError) -> Self {
        Self::Cluster(error.into())
    }
}

/// What has been done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveStep {
    /// The new store is being filled.
    Begun,
    /// Nothing can be changed in the old one.
    Frozen,
    /// Everything is in the new one.
    Copied,
    /// The new one is believed.
    Committed,
    /// It says so itself.
    Finished,
}

/// The move of a cluster from one store to another.
pub struct StoreMove {
    from: Stores,
    into: Arc<dyn Store>,
    /// Where the new one is.
    to: String,
    made_by: HostName,
}

impl StoreMove {
    /// The move of what is in `from` into `into`, which is at `to`, by the host that has made the cluster.
    pub fn new(from: Stores, into: Arc<dyn Store>, to: String, made_by: HostName) -> Self {
        Self { from, into, to, made_by }
    }

    /// Does what is left of it. `id` names the attempt, unless one is under way. `done` is told after each step, and ends it by an answer of false.
    ///
    /// # Errors
    /// [`MoveError`]. What was done stays, and can be gone on with or undone, unless it is over.
    pub fn run(&self, id: &str, mut done: impl FnMut(MoveStep) -> bool) -> Result<(), MoveError> {
        let marker = Marker::of(&*self.from.vms)?;
        if let Some(marker) = marker.as_ref().filter(|marker| marker.to != self.to) {
            let to = marker.to.clone();
            return Err(if marker.is_over() { MoveError::Over(to) } else { MoveError::Elsewhere(to) });
        }
        let id = marker.as_ref().map_or(id, |marker| &marker.id);
        if let Some(over) = marker.as_ref().filter(|marker| marker.is_over()) {
            self.finish(over)?;
            done(MoveStep::Finished);
            return Ok(());
        }
        let version = self.begin(id)?;
        if !done(MoveStep::Begun) {
            return Ok(());
        }
        self.freeze(id)?;
        if !done(MoveStep::Frozen) {
            return Ok(());
        }
        self.copy(version)?;
        if !done(MoveStep::Copied) {
            return Ok(());
        }
        let over = self.commit(id)?;
        if !done(MoveStep::Committed) {
            return Ok(());
        }
        self.finish(&over)?;
        done(MoveStep::Finished);
        Ok(())
    }

    /// Undoes a move that is not over: the old store goes on. Answers where it was to go.
    ///
    /// # Errors
    /// [`MoveError::NotMoving`], and [`MoveError::Over`] if it is too late.
    pub fn abort(from: &Stores) -> Result<String, MoveError> {
        let thaw = |store: &dyn Store| -> Result<Option<String>, MoveError> {
            let Some(entry) = store.get(MARKER)? else { return Ok(None) };
            let marker = Marker::read(&entry.value)?;
            if marker.is_over() {
                return Err(MoveError::Over(marker.to));
            }
            let as_read = Compare { key: MARKER, version: entry.version };
            match store.transact(&[as_read], &[Op::Delete { key: MARKER }])? {
                Outcome::Done { .. } => Ok(Some(marker.to)),
                Outcome::Conflict => Err(MoveError::Superseded),
            }
        };
        // Whoever undid it before may not have come to the hosts.
        let (vms, hosts) = (thaw(&*from.vms)?, thaw(&*from.hosts)?);
        vms.or(hosts).ok_or(MoveError::NotMoving)
    }

    fn record(&self) -> Result<Option<(Made, u64)>, MoveError> {
        Ok(Cluster::new(Stores::one(self.into.clone())).made()?)
    }

    /// Notes in the new store for which attempt it is being filled; the version of that note, which each write there depends on.
    fn begin(&self, id: &str) -> Result<u64, MoveError> {
        let found = self.record()?;
        if found.as_ref().is_some_and(|(made, _)| made.moving.is_none()) {
            return Err(MoveError::Taken);
        }
        let made = Made { made_by: self.made_by.clone(), generations_after: None, moving: Some(id.to_owned()) };
        let value = encode(MADE, &made)?;
        let as_read = Compare { key: MADE, version: found.map_or(0, |(_, version)| version) };
        match self.into.transact(&[as_read], &[Op::Put { key: MADE, value: &value, lease: None }])? {
            Outcome::Done { revision } => Ok(revision),
            Outcome::Conflict => Err(MoveError::Superseded),
        }
    }

    /// Lets nothing be changed in the old store any more.
    fn freeze(&self, id: &str) -> Result<(), MoveError> {
        let value = Marker { id: id.to_owned(), to: self.to.clone(), generations_to: None }.value();
        let write = |store: &dyn Store, version: u64| {
            let as_read = Compare { key: MARKER, version };
            match store.transact(&[as_read], &[Op::Put { key: MARKER, value: &value, lease: None }])? {
                Outcome::Done { .. } => Ok(()),
                Outcome::Conflict => Err(MoveError::Superseded),
            }
        };
        match self.from.vms.get(MARKER)? {
            Some(found) if found.value == value => {}
            Some(_) => return Err(MoveError::Superseded),
            None => write(&*self.from.vms, 0)?,
        }
        match self.from.hosts.get(MARKER)? {
            Some(found) if found.value == value => Ok(()),
            // What is left of a move that was undone: that of the VMs is what counts.
            found => write(&*self.from.hosts, found.map_or(0, |entry| entry.version)),
        }
    }

    /// Brings the new store to what the old one holds, as long as its record has this version.
    fn copy(&self, version: u64) -> Result<(), MoveError> {
        self.copy_kind(&*self.from.vms, VMS, version)?;
        self.copy_kind(&*self.from.hosts, ADMISSION, version)?;
        self.copy_kind(&*self.from.hosts, DATASTORES, version)?;
        self.copy_kind(&*self.from.hosts, HOSTS, version)
    }

    /// Whoever is late must not undo what has happened in the new store since the commit. So what is there is read before it is seen that the move is not over,
    /// and each write depends on what was read.
    fn copy_kind(&self, from: &dyn Store, kind: &str, version: u64) -> Result<(), MoveError> {
        let there: BTreeMap<String, Entry> = self.into.list(kind)?.entries.into_iter().collect();
        let wanted: BTreeMap<String, Entry> = from.list(kind)?.entries.into_iter().collect();
        if Marker::of(&*self.from.vms)?.is_none_or(|marker| marker.is_over()) {
            return Err(MoveError::Superseded);
        }
        let change = |op: Op<'_>| {
            let as_read = there.get(op.key()).map_or(0, |entry| entry.version);
            let compares = [Compare { key: MADE, version }, Compare { key: op.key(), version: as_read }];
            match self.into.transact(&compares, &[op])? {
                Outcome::Done { .. } => Ok(()),
                Outcome::Conflict => Err(MoveError::Superseded),
            }
        };
        // What an earlier attempt has left.
        for key in there.keys().filter(|key| !wanted.contains_key(*key)) {
            change(Op::Delete { key })?;
        }
        for (key, entry) in &wanted {
            if there.get(key).is_none_or(|found| found.value != entry.value) {
                change(Op::Put { key, value: &entry.value, lease: None })?;
            }
        }
        Ok(())
    }

    /// The move: from here on the new store is believed.
    fn commit(&self, id: &str) -> Result<Marker, MoveError> {
        let entry = self.from.vms.get(MARKER)?.ok_or(MoveError::Superseded)?;
        let marker = Marker::read(&entry.value)?;
        if marker.id != id {
            return Err(MoveError::Superseded);
        }
        if marker.is_over() {
            return Ok(marker);
        }
        // No generation is above the revision of the transaction that gave it out, counted from those of a store before this one.
        let before = Cluster::new(self.from.clone()).made()?.and_then(|(made, _)| made.generations_after).unwrap_or(0);
        let last = before.saturating_add(self.from.vms.list("")?.revision);
        let over = Marker { generations_to: Some(last), ..marker };
        let as_read = Compare { key: MARKER, version: entry.version };
        let value = over.value();
        match self.from.vms.transact(&[as_read], &[Op::Put { key: MARKER, value: &value, lease: None }])? {
            Outcome::Done { .. } => Ok(over),
            Outcome::Conflict => Err(MoveError::Superseded),
        }
    }

    /// Has the new store say that the cluster is there.
    fn finish(&self, over: &Marker) -> Result<(), MoveError> {
        let (made, version) = self.record()?.ok_or(MoveError::Superseded)?;
        match made.moving {
            None => return Ok(()),
            Some(id) if id != over.id => return Err(MoveError::Superseded),
            Some(_) => {}
        }
        let made = Made { made_by: made.made_by, generations_after: over.generations_to, moving: None };
        let value = encode(MADE, &made)?;
        let as_read = Compare { key: MADE, version };
        match self.into.transact(&[as_read], &[Op::Put { key: MADE, value: &value, lease: None }])? {
            Outcome::Done { .. } => Ok(()),
            // Somebody else has, or the next look shows what is the matter.
            Outcome::Conflict if self.record()?.is_some_and(|(made, _)| made.moving.is_none()) => Ok(()),
            Outcome::Conflict => Err(MoveError::Superseded),
        }
    }
}
