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
    /// It is being moved elsewhere, or has been: it can be changed no more, and once that is over it is not read any more either.
    #[error("{}", moved(to, *is_over))]
    Moved {
        /// Where to.
        to: String,
        /// The move is over.
        is_over: bool,
    },
    /// The lease under which something was to be stored has ended. Nothing was done.
    #[error("the lease in the cluster store has ended")]
    LeaseEnded,
    /// What was asked does not keep the store's bounds.
    #[error("refused by the cluster store: {0}")]
    Refused(String),
}

fn moved(to: &str, is_over: bool) -> String {
    if is_over {
        format!("the cluster store was moved to {to}")
    } else {
        format!(
            "the cluster store is being moved to {to}: if that does not end, give `twinvm cluster migrate-store` again, or with --abort"
        )
    }
}
