//! [`Marker`]: what says in a store that it is being moved elsewhere, or has been.

use serde::{Deserialize, Serialize};

use super::{Op, Store, StoreError};

/// The key of the marker. As long as it is there, nothing but the marker itself can be changed in its store, by whoever has that open.
pub const MARKER: &str = "moved";

/// What says in a store that it is being moved elsewhere, or has been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Which attempt at moving it this is.
    pub id: String,
    /// Where to.
    pub to: String,
    /// No generation that was given out in the store is higher than this, once it has been moved; none as long as it is being moved.
    pub generations_to: Option<u64>,
}

impl Marker {
    /// The one in a store; none if the store is where it is to be.
    ///
    /// # Errors
    /// If the store cannot be read, or the marker.
    pub fn of(store: &dyn Store) -> Result<Option<Self>, StoreError> {
        store.get(MARKER)?.map(|entry| Self::read(&entry.value)).transpose()
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(value: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(value)
            .map_err(|error| StoreError::Corrupt(format!("the note of where it was moved cannot be read: {error}")))
    }

    /// As it is written.
    pub fn value(&self) -> Vec<u8> {
        // A structure of texts and numbers always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether the move is over: the store is not read any more either.
    pub fn is_over(&self) -> bool {
        self.generations_to.is_some()
    }

    fn error(&self) -> StoreError {
        StoreError::Moved { to: self.to.clone(), is_over: self.is_over() }
    }
}

/// Refuses a change where there is a marker, unless it is one of the marker itself.
pub(super) fn check_change(marker: Option<&[u8]>, ops: &[Op<'_>]) -> Result<(), StoreError> {
    if ops.iter().all(|op| op.key() == MARKER) { Ok(()) } else { check_changes(marker) }
}

/// Refuses whatever there is to change, where there is a marker.
pub(super) fn check_changes(marker: Option<&[u8]>) -> Result<(), StoreError> {
    match marker.map(Marker::read).transpose()? {
        Some(marker) => Err(marker.error()),
        None => Ok(()),
    }
}

/// Refuses to read where the store has been moved: what is there is believed no more.
pub(super) fn check_read(marker: Option<&[u8]>) -> Result<(), StoreError> {
    match marker.map(Marker::read).transpose()? {
        Some(marker) if marker.is_over() => Err(marker.error()),
        _ => Ok(()),
    }
}
