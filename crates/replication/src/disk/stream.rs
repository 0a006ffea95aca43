//! What guests write to disks, as it goes to a secondary that applies it at once.

use std::collections::VecDeque;

use super::codec::PieceEncoder;
use super::{DiskSet, DiskSyncError, DiskWrite};

/// The log of disk writes during a first copy, as a stream of pieces. While it exists, nobody else may take the log; what it took and did not
/// send goes back when it is dropped.
pub struct LogStream {
    disks: DiskSet,
    /// Which run of the log it belongs to.
    run: u64,
    /// Taken from the log and not sent.
    taken: VecDeque<DiskWrite>,
    taken_bytes: u64,
    /// Of all that was sent.
    sent_bytes: u64,
    encoder: PieceEncoder,
}

impl LogStream {
    /// The log of `disks` from now on; starts it unless it is on.
    pub fn new(disks: &DiskSet) -> Self {
        Self {
            disks: disks.clone(),
            run: disks.shared().ensure_logging(),
            taken: VecDeque::new(),
            taken_bytes: 0,
            sent_bytes: 0,
            encoder: PieceEncoder::default(),
        }
    }

    /// Appends the next piece, at most [`super::PIECE_BYTES_MAX`] bytes, to `out`; returns whether there was anything.
    ///
    /// # Errors
    /// [`DiskSyncError::Abandoned`] if the log was stopped.
    pub fn next_piece(&mut self, out: &mut Vec<u8>) -> Result<bool, DiskSyncError> {
        if self.taken.is_empty() {
            self.take()?;
        }
        Ok(self.next_taken(out))
    }

    /// The same of what was taken from the log before.
    pub(super) fn next_taken(&mut self, out: &mut Vec<u8>) -> bool {
        let count = self.encoder.fill(&mut self.taken.iter().peekable(), out);
        let bytes = self.taken.drain(..count).map(|write| write.memory_bytes()).sum::<u64>();
        self.taken_bytes = self.taken_bytes.saturating_sub(bytes);
        self.sent_bytes += bytes;
        count > 0
    }

    /// Takes what is in the log.
    pub(super) fn take(&mut self) -> Result<(), DiskSyncError> {
        let taken = self.disks.shared().take_log_of(self.run).ok_or(DiskSyncError::Abandoned)?;
        self.taken_bytes += taken.iter().map(DiskWrite::memory_bytes).sum::<u64>();
        self.taken.extend(taken);
        Ok(())
    }

    /// Whether all that was taken from the log is sent.
    pub(super) fn is_sent(&self) -> bool {
        self.taken.is_empty()
    }

    /// # Errors
    /// [`DiskSyncError::Abandoned`] if the log was stopped.
    pub(super) fn check(&self) -> Result<(), DiskSyncError> {
        if self.disks.shared().is_on(self.run) { Ok(()) } else { Err(DiskSyncError::Abandoned) }
    }

    /// Bytes of writes that wait to be sent, as they are in memory.
    pub fn waiting_bytes(&self) -> u64 {
        self.disks.log_bytes() + self.taken_bytes
    }

    /// Bytes of writes that were sent, as they are in memory.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let (shared, run, taken) = (self.disks.shared(), self.run, std::mem::take(&mut self.taken));
        shared.note(|log| {
            if shared.is_on(run) {
                log.put_back(taken);
            }
        });
    }
}
