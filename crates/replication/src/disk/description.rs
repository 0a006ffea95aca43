//! What both replicas' disks must have in common.

use serde::{Deserialize, Serialize};
use storage::disk::{BaseIdentity, DISK_BYTES_MAX};

use super::DiskSyncError;

/// Most disks of a VM.
pub const DISKS_MAX: usize = 256;

/// One disk, as its replica describes it to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Whether the guest may not write to it.
    pub read_only: bool,
    /// Writable: what shows where the image holds nothing of its own; if it is the same on both sides, such places need not
    /// be compared. Read-only: the content, which must be the same, as it is not copied.
    pub base: BaseIdentity,
}

/// Whether the secondary's disks can become copies of the primary's.
///
/// # Errors
/// [`DiskSyncError::Different`], saying how they differ.
pub fn check_compatible(primary: &[DiskDescription], secondary: &[DiskDescription]) -> Result<(), DiskSyncError> {
    let different = |reason: String| Err(DiskSyncError::Different(reason));
    if primary.len() > DISKS_MAX {
        return different(format!("{} are more than the {DISKS_MAX} that are supported", primary.len()));
    }
    if primary.len() != secondary.len() {
        return different(format!("the primary has {}, the secondary {}", primary.len(), secondary.len()));
    }
    for (number, (here, there)) in primary.iter().zip(secondary).enumerate() {
        if here.size_bytes > DISK_BYTES_MAX || here.size_bytes != there.size_bytes {
            return different(format!(
                "disk {number} has {} bytes on the primary, {} on the secondary",
                here.size_bytes, there.size_bytes
            ));
        }
        if here.read_only != there.read_only {
            let mode = |read_only| if read_only { "read-only" } else { "writable" };
            return different(format!(
                "disk {number} is {} on the primary, {} on the secondary",
                mode(here.read_only),
                mode(there.read_only)
            ));
        }
        if here.read_only && here.base != there.base {
            return different(format!(
                "disk {number} is read-only, so it is not copied, but its content on the secondary is not that on the primary"
            ));
        }
    }
    Ok(())
}
