//! A secondary's copies of the disks: what they hold.

use super::Voice;
use crate::disk::{DiskDescription, DiskSet, DiskSyncError, SummaryWriter};
use crate::driver::message::SUMMARY;

/// Tells the primary what the disks hold already.
pub(super) fn send_summary(disks: &DiskSet, primary: &[DiskDescription], voice: &Voice) -> Result<(), DiskSyncError> {
    let mut writer = SummaryWriter::new(disks, primary)?;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let more = writer.next_piece(&mut piece)?;
        // A primary that has gone is found out by the one who listens to it.
        if voice.send(SUMMARY, &piece).is_err() || !more {
            return Ok(());
        }
    }
}
