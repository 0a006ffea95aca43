//! A disk as the guest's device sees it.

use std::io;
use std::sync::Arc;

use machine::devices::virtio::block::BlockBackend;
use storage::disk::{DiskError, DiskImage, FrozenDisk, SharedImage, Spill};

use super::log::{Log, WRITE_BYTES_MAX};
use super::set::{Disk, Shared};
use super::{DiskOp, DiskWrite};

/// Longest range whose content is logged after a change of it failed, in bytes.
const REREAD_BYTES_MAX: u64 = 1 << 20;

/// Changes the image at once, and logs what it did.
pub(super) struct LoggedDisk {
    shared: Arc<Shared>,
    number: u32,
}

impl LoggedDisk {
    pub fn new(shared: Arc<Shared>, number: u32) -> Self {
        Self { shared, number }
    }

    fn disk(&self) -> io::Result<&Disk> {
        self.shared.disk(self.number).map_err(io::Error::other)
    }

    /// Does something to the image, and logs it if it succeeds.
    ///
    /// What the guest finds in the range after a failure is undefined, but it must go on finding the same. So the log then gets
    /// what the range really holds.
    fn change(
        &self,
        (offset, length): (u64, u64),
        mut change: impl FnMut(&mut DiskImage) -> Result<(), DiskError>,
        log_change: impl FnOnce(&mut Log),
    ) -> io::Result<()> {
        let disk = self.disk()?;
        let mut log_change = Some(log_change);
        self.shared.wait_for_deferred_flushes();
        let done = self.shared.requests.carry_out(self.number, || {
            let mut image = disk.lock();
            disk.change(&mut image, (offset, length), &mut change)?;
            // While it is locked: the log's order is the image's.
            if let Some(log_change) = log_change.take() {
                self.shared.note(log_change);
            }
            Ok(())
        });
        if done.is_err() && self.shared.is_logging() {
            if self.shared.requests.are_abandoned() {
                // The disk may not answer.
                self.shared.note(|log| log.lose(self.number));
            } else {
                self.log_content(&mut disk.lock(), offset, length);
            }
        }
        Ok(done?)
    }

    fn log_content(&self, image: &mut DiskImage, offset: u64, length: u64) {
        let on_disk = offset.checked_add(length).is_some_and(|end| end <= image.size_bytes());
        if image.is_read_only() || !on_disk {
            // It was refused; nothing happened.
            return;
        }
        let mut content = vec![0; length.min(REREAD_BYTES_MAX) as usize];
        let known = length <= REREAD_BYTES_MAX && image.read_at(offset, &mut content).is_ok();
        self.shared
            .note(|log| if known { push_data(log, self.number, offset, &content) } else { log.lose(self.number) });
    }
}

/// Logs that `data` is at `offset`.
pub(super) fn push_data(log: &mut Log, disk: u32, offset: u64, data: &[u8]) {
    let mut at = offset;
    for data in data.chunks(WRITE_BYTES_MAX) {
        log.push(DiskWrite { disk, op: DiskOp::Write { offset: at, data: data.to_vec() } });
        at += data.len() as u64;
    }
}

impl BlockBackend for LoggedDisk {
    fn size_bytes(&self) -> u64 {
        self.disk().map_or(0, |disk| disk.size_bytes)
    }

    fn is_read_only(&self) -> bool {
        self.disk().is_ok_and(|disk| disk.read_only)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let disk = self.disk()?;
        Ok(self.shared.requests.carry_out(self.number, || match disk.raw() {
            Some(raw) => raw.read_at(offset, buf),
            None => disk.lock().read_at(offset, buf),
        })?)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.disk().is_ok_and(|disk| disk.raw().is_some_and(|raw| raw.read_cached(offset, buf)))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(
            (offset, data.len() as u64),
            |image| image.write_at(offset, data),
            |log| push_data(log, self.number, offset, data),
        )
    }

    fn flush(&self) -> io::Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        let write = DiskWrite { disk: self.number, op: DiskOp::Flush };
        if self.shared.is_flush_deferred(self.number) {
            self.shared.note(|log| log.push(write));
            return Ok(());
        }
        let disk = self.disk()?;
        Ok(self.shared.requests.carry_out(self.number, || {
            // Most of the time is spent here, without the lock: other requests go on.
            let write_back = disk.lock().write_back()?;
            disk.flushed(write_back.run())?;
            if !write_back.is_flush() {
                disk.flushed(disk.lock().flush())?;
            }
            // What it covers has been logged before, as it had been done before.
            self.shared.note(|log| log.push(write.clone()));
            Ok(())
        })?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let write = DiskWrite { disk: self.number, op: DiskOp::Discard { offset, length: len } };
        self.change((offset, len), |image| image.discard(offset, len), |log| push_range(log, write, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let write = DiskWrite { disk: self.number, op: DiskOp::WriteZeroes { offset, length: len, may_unmap } };
        self.change(
            (offset, len),
            |image| image.write_zeroes(offset, len, may_unmap),
            |log| push_range(log, write, len),
        )
    }

    fn freeze(&self, spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        let image = SharedDisk { shared: self.shared.clone(), number: self.number };
        Ok(self.disk()?.freezer.freeze(image, spill)?)
    }
}

/// A disk's image, for a snapshot that reads it while the guest goes on.
struct SharedDisk {
    shared: Arc<Shared>,
    number: u32,
}

impl SharedImage for SharedDisk {
    fn with(&self, act: &mut dyn FnMut(&mut DiskImage) -> Result<(), DiskError>) -> Result<(), DiskError> {
        // It was there when the disk was frozen, and disks stay.
        self.shared.disk(self.number).map_or(Ok(()), |disk| act(&mut disk.lock_patiently()))
    }
}

/// Logs a change of a range, if there is one.
fn push_range(log: &mut Log, write: DiskWrite, length: u64) {
    if length > 0 {
        log.push(write);
    }
}
