//! Events: what has happened on a host, as it is kept there and shown.

use serde::{Deserialize, Serialize};

/// Something that has happened on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Tells it from others of the host, and grows from one to the next.
    pub id: u64,
    /// When, in ms since 1970, by the host's clock.
    pub at_unix_ms: u64,
    /// The host.
    pub host: String,
    /// The VM that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// What kind of event it is.
    pub kind: EventKind,
    /// What has happened, in words.
    pub text: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The host's daemon has started.
    HostStarted,
    /// It has ended, as it was asked to.
    HostStopped,
    /// The host's maintenance has begun.
    MaintenanceBegun,
    /// It is over.
    MaintenanceOver,
    /// The cluster store cannot be written to.
    StoreLost,
    /// It can again.
    StoreBack,
    /// A VM was created.
    Created,
    /// A VM was removed.
    Removed,
    /// A replica that ran already was found by a new daemon.
    Found,
    /// Something was asked for that happens once, as a start or a migration.
    Asked,
    /// It is done.
    Done,
    /// It was not done.
    Failed,
    /// A VM runs on the host.
    Started,
    /// The host has taken a VM over.
    TookOver,
    /// A VM was restarted on the host, by high availability.
    Restarted,
    /// The host does not reach a datastore any more.
    DatastoreLost,
    /// The host reaches a datastore.
    DatastoreBack,
    /// A secondary waits for its primary, or follows it.
    Secondary,
    /// A first copy to another host has begun.
    Copying,
    /// A VM is protected.
    Protected,
    /// A VM has lost the secondary that it had, or was to have.
    Unprotected,
    /// A replica has ended.
    Ended,
    /// One of a kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Which events of a host are asked for, in the query of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsWanted {
    /// Those after the one of this number; all that are kept without it.
    #[serde(default)]
    pub after: Option<u64>,
    /// Those about this VM.
    #[serde(default)]
    pub vm: Option<String>,
}
