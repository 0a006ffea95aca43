//! [`Maintenance`]: whether a host is being emptied.

use serde::{Deserialize, Serialize};

/// Whether a host is being emptied, for work on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maintenance {
    /// It is not.
    #[default]
    Off,
    /// It takes no replica, and its VMs leave it that stay as protected as they are to be.
    On,
    /// Also those leave that no host can protect then.
    Forced,
}
