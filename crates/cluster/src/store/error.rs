use thiserror::Error;

/// Why the store could not do something.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// It did not answer in time, or cannot be read or written now. Asking again later may help; the message says what an
    /// administrator can do.
    #[error("cluster store unreachable: {0}")]
    Unreachable(String),
    /// What it holds cannot be right, or is not a cluster store.
    #[error("cluster store unusable: {0}")]
    Corrupt(String),
    /// A newer version of this program has changed its layout.
    #[error("cluster store {path} has layout {found}, this program knows up to {known}: use a newer twinvm")]
    TooNew {
        /// The store.
        path: String,
        /// Its layout's version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The lease under which something was to be stored has ended. Nothing was done.
    #[error("the lease in the cluster store has ended")]
    LeaseEnded,
    /// What was asked does not keep the store's bounds.
    #[error("refused by the cluster store: {0}")]
    Refused(String),
}
