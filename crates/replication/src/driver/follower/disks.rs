//! A secondary's copies of the disks: what they hold, the first copy, and what they are marked as.

use protocol::DiskCopy;

use super::{Follower, Parting, Voice};
use crate::disk::{DiskDescription, DiskSet, DiskSyncError, DiskWrite, SummaryWriter};
use crate::driver::message::Kind;
use crate::driver::secondary::SecondaryParts;

impl Follower {
    /// A piece of the first copy, before which the disks are noted to be incomplete.
    pub(super) fn copy_disks(&mut self, writes: &[DiskWrite]) -> Result<(), Parting> {
        let SecondaryParts { options, disks, .. } = &self.secondary.parts;
        let noted = match (self.notes.before_part(), &options.copy_mark) {
            (Some(copy), Some(mark)) => mark.write(copy.into()),
            _ => Ok(()),
        };
        let applied = noted.map_err(DiskSyncError::Mark).and_then(|()| disks.apply_copy(writes));
        applied.map_err(|error| self.fail(format!("the disks cannot be written: {error}")))
    }

    /// Has it noted what the copy of the disks is, once all that was handed over to be applied is on stable storage.
    pub(super) fn note_copy(&self, copy: DiskCopy) {
        if let Some(mark) = &self.secondary.parts.options.copy_mark {
            self.secondary.applier.mark(mark.clone(), copy.into());
        }
    }
}

/// Tells the primary what the disks hold already.
pub(super) fn send_summary(disks: &DiskSet, primary: &[DiskDescription], voice: &Voice) -> Result<(), DiskSyncError> {
    let mut writer = SummaryWriter::new(disks, primary)?;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let more = writer.next_piece(&mut piece)?;
        // A primary that has gone is found out by the one who listens to it.
        if voice.send(Kind::Summary, &piece).is_err() || !more {
            let (total_bytes, read_bytes) = (writer.progress().total_bytes, writer.read_bytes());
            tracing::debug!(total_bytes, read_bytes, "what the disks hold is summed up");
            return Ok(());
        }
    }
}
