//! What is said of records that a host cannot make sense of.

use serde::{Deserialize, Serialize};

/// A VM of whose record, or claim, the host that is asked cannot make sense: of a newer version, or damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableVmView {
    /// Its name.
    pub name: String,
    /// Which record it is, and what is wrong with it.
    pub reason: String,
}
