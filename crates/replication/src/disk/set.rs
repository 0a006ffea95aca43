//! The disks of a replica.

use std::hint;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use machine::bus::lock;
use machine::devices::virtio::block::BlockBackend;
use protocol::DiskHealth;
use storage::disk::{Backing, BaseIdentity, DiskError, DiskFreezer, DiskImage, RawFile};

use super::backend::LoggedDisk;
use super::blocks::{BLOCK_BYTES, BlockDigest, block_range};
use super::codec::decode_writes;
use super::deferred::AskedFlushes;
use super::digests::Digests;
use super::log::Log;
use super::requests::Requests;
use super::{DiskDescription, DiskFault, DiskOp, DiskSyncError, DiskWrite};

/// How often someone who is in no hurry lets others go first.
const YIELDS_MAX: u32 = 1000;

/// The disks of one replica, in the order of the VM's spec. Clones are handles of the same disks.
///
/// Each image is behind a lock, which the VM's thread (through [`DiskSet::backends`]), the first copy and, on a
/// secondary, the applier share.
#[derive(Clone)]
pub struct DiskSet(Arc<Shared>);

pub(super) struct Shared {
    disks: Vec<Disk>,
    /// Which run of the log is on, from 1; 0: none. Changed only under the lock of `log`.
    run: AtomicU64,
    log: Mutex<Log>,
    runs: AtomicU64,
    /// Who is told of flushes in place of the images.
    deferred: Mutex<Option<Arc<AskedFlushes>>>,
    /// The images these depend on are locked while they are open, so it is found out once.
    descriptions: Mutex<Option<Vec<DiskDescription>>>,
    pub requests: Requests,
}

pub(super) struct Disk {
    number: u32,
    pub size_bytes: u64,
    pub read_only: bool,
    image: Mutex<DiskImage>,
    /// What blocks hold, as far as it is known.
    pub digests: Digests,
    /// Content that can be read without the lock.
    raw: Option<Arc<RawFile>>,
    /// Freezes the content for a snapshot.
    pub freezer: DiskFreezer,
    /// Threads that wait for the image on behalf of a guest.
    hurried: AtomicU32,
}

impl DiskSet {
    /// Takes the disks.
    pub fn new(disks: Vec<DiskImage>) -> Self {
        let disks = (0..).zip(disks).map(|(number, image)| Disk {
            number,
            size_bytes: image.size_bytes(),
            read_only: image.is_read_only(),
            raw: image.raw_file().cloned(),
            freezer: image.freezer(),
            image: Mutex::new(image),
            digests: Digests::default(),
            hurried: AtomicU32::new(0),
        });
        Self(Arc::new(Shared {
            disks: disks.collect(),
            run: AtomicU64::new(0),
            log: Mutex::default(),
            runs: AtomicU64::new(0),
            deferred: Mutex::default(),
            descriptions: Mutex::default(),
            requests: Requests::default(),
        }))
    }

    /// From now on, a guest's request that fails is not answered: it is held and tried again every second, until it succeeds or
    /// [`Self::abandon_held`] is called. After a flush has failed nothing is tried again.
    pub fn hold_failures(&self) {
        self.0.requests.hold();
    }

    /// The guest is over: what is held fails, and nothing is held any more.
    pub fn abandon_held(&self) {
        self.0.requests.abandon();
    }

    /// From now on, a guest's request that fails is answered with that.
    pub fn answer_failures(&self) {
        self.0.requests.fail();
    }

    /// How the disks are.
    pub fn health(&self) -> DiskHealth {
        self.0.requests.health()
    }

    /// Disks with a request that is held, or has been under way for `patience`.
    pub fn faults(&self, patience: Duration) -> Vec<DiskFault> {
        self.0.requests.faults(patience)
    }

    /// What the guest's disks work on. Whatever is changed through them is logged while the log is on.
    pub fn backends(&self) -> Vec<Box<dyn BlockBackend>> {
        let backend = |disk: &Disk| -> Box<dyn BlockBackend> { Box::new(LoggedDisk::new(self.0.clone(), disk.number)) };
        self.0.disks.iter().map(backend).collect()
    }

    /// What the other replica has to know of the disks. The first call reads the whole content of backing images and of read-only
    /// disks, unless it has been read before (see [`BaseIdentity::of`]): about a second for each GiB in use.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`].
    pub fn describe(&self) -> Result<Vec<DiskDescription>, DiskSyncError> {
        let mut known = lock(&self.0.descriptions);
        if let Some(descriptions) = &*known {
            return Ok(descriptions.clone());
        }
        let mut descriptions = Vec::new();
        for disk in &self.0.disks {
            descriptions.push(DiskDescription {
                size_bytes: disk.size_bytes,
                read_only: disk.read_only,
                base: disk.base().map_err(DiskSyncError::image(disk.number))?,
            });
        }
        *known = Some(descriptions.clone());
        Ok(descriptions)
    }

    /// From now on changes are logged; the log is empty.
    pub fn start_log(&self) {
        self.0.start_log(&mut lock(&self.0.log));
    }

    /// Changes are no longer logged; what was not taken is dropped.
    pub fn stop_log(&self) {
        let mut log = lock(&self.0.log);
        self.0.run.store(0, Ordering::Release);
        *log = Log::default();
    }

    /// What was done since the log was started or last taken, in the order in which it was done to the images. A change
    /// whose request has been completed to the guest is in it. What is sent must be sent in the order in which it is taken, so only
    /// one thread at a time may take it.
    pub fn take_log(&self) -> Vec<DiskWrite> {
        lock(&self.0.log).take()
    }

    /// Memory that the log takes, in bytes.
    pub fn log_bytes(&self) -> u64 {
        lock(&self.0.log).bytes()
    }

    /// Changes in the log.
    pub fn log_ops(&self) -> usize {
        lock(&self.0.log).len()
    }

    /// Takes over what the replica before this one has found out about what the disks hold, as far as they are as it has left them, from its records in
    /// `folder`. They will be kept there.
    pub fn recall_digests(&self, folder: &Path) {
        for disk in self.0.disks.iter().filter(|disk| !disk.read_only) {
            let place = folder.join(format!("digests-{}", disk.number));
            disk.digests.recall(&place, disk.size_bytes, disk.lock_patiently().found());
        }
    }

    /// Brings the disks to stable storage and records what is known of what they hold, for the next replica that opens them.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`], [`DiskSyncError::Record`]: only time is lost then.
    pub fn record_digests(&self) -> Result<(), DiskSyncError> {
        for disk in self.0.disks.iter().filter(|disk| disk.digests.is_to_be_recorded()) {
            let _under_way = self.0.requests.begin(disk.number);
            // Held throughout: whatever is written after it removes the record first.
            let mut image = disk.lock_patiently();
            // Another thread may have done it meanwhile.
            if !disk.digests.is_to_be_recorded() {
                continue;
            }
            let sealed = disk.flushed(image.seal()).map_err(DiskSyncError::image(disk.number))?;
            if let Some(files) = sealed {
                disk.digests.record(disk.size_bytes, files).map_err(DiskSyncError::Record)?;
            }
        }
        Ok(())
    }

    /// Does to the images what `writes` say, in order. A [`DiskOp::Flush`] returns when everything before is on stable storage.
    ///
    /// # Errors
    /// The first one that occurs; what comes after is not done.
    pub fn apply(&self, writes: &[DiskWrite]) -> Result<(), DiskSyncError> {
        writes.iter().try_for_each(|write| self.apply_one(write))
    }

    /// The same with what a first copy consists of: blocks that come whole need not be read to know what they hold.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_copy(&self, writes: &[DiskWrite]) -> Result<(), DiskSyncError> {
        for write in writes {
            let digests = &self.0.disk(write.disk)?.digests;
            match self.whole_block(write)? {
                Some((block, data)) => {
                    self.apply_with(write, || digests.begin(block))?;
                    digests.keep(block, *blake3::hash(data).as_bytes());
                }
                None => self.apply_one(write)?,
            }
        }
        Ok(())
    }

    /// The block that is written as a whole, if it is one.
    fn whole_block<'a>(&self, write: &'a DiskWrite) -> Result<Option<(u64, &'a [u8])>, DiskSyncError> {
        let DiskOp::Write { offset, data } = &write.op else { return Ok(None) };
        let block = offset / BLOCK_BYTES;
        let range = block_range(block, self.0.disk(write.disk)?.size_bytes);
        Ok((range == (*offset, data.len() as u64)).then_some((block, data)))
    }

    pub(super) fn apply_one(&self, write: &DiskWrite) -> Result<(), DiskSyncError> {
        self.apply_with(write, || ())
    }

    /// Does to an image what `write` says, and then something else, before anybody else does anything to that image.
    fn apply_with(&self, write: &DiskWrite, then: impl FnOnce()) -> Result<(), DiskSyncError> {
        let disk = self.0.disk(write.disk)?;
        let _under_way = self.0.requests.begin(write.disk);
        let mut image = lock(&disk.image);
        let range = match &write.op {
            DiskOp::Write { offset, data } => (*offset, data.len() as u64),
            DiskOp::Discard { offset, length } | DiskOp::WriteZeroes { offset, length, .. } => (*offset, *length),
            DiskOp::Flush | DiskOp::Lost => (0, 0),
        };
        let done = match &write.op {
            DiskOp::Flush => disk.flushed(image.flush()),
            DiskOp::Lost => return Err(DiskSyncError::Lost { disk: write.disk }),
            change => disk.change(&mut image, range, |image| match change {
                DiskOp::Write { offset, data } => image.write_at(*offset, data),
                DiskOp::Discard { offset, length } => image.discard(*offset, *length),
                DiskOp::WriteZeroes { offset, length, may_unmap } => image.write_zeroes(*offset, *length, *may_unmap),
                DiskOp::Flush | DiskOp::Lost => Ok(()),
            }),
        };
        done.map_err(DiskSyncError::image(write.disk))?;
        then();
        Ok(())
    }

    /// Decodes a piece of [`super::DiskCopy`] or [`super::encode_writes`] and applies it.
    ///
    /// # Errors
    /// Those of [`decode_writes`], nothing having been applied then, and of [`Self::apply`].
    pub fn apply_block_piece(&self, piece: &[u8]) -> Result<(), DiskSyncError> {
        self.apply_copy(&decode_writes(piece, self)?)
    }

    /// Returns when everything written to any disk is on stable storage.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`].
    pub fn flush(&self) -> Result<(), DiskSyncError> {
        self.0.disks.iter().try_for_each(|disk| {
            let _under_way = self.0.requests.begin(disk.number);
            disk.flushed(lock(&disk.image).flush()).map_err(DiskSyncError::image(disk.number))
        })
    }

    /// Flushes one disk, and lets the guest go on meanwhile as far as possible.
    pub(super) fn flush_aside(&self, number: u32) -> Result<(), DiskSyncError> {
        let disk = self.0.disk(number)?;
        let _under_way = self.0.requests.begin(number);
        let write_back = disk.lock_patiently().write_back();
        // Most of the time is spent here, without the lock; the image is what a flush is complete by.
        let written = disk.flushed(write_back.and_then(|write_back| write_back.run()));
        written.map_err(DiskSyncError::image(number))?;
        disk.flushed(disk.lock_patiently().flush()).map_err(DiskSyncError::image(number))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Shared {
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    pub fn disk(&self, number: u32) -> Result<&Disk, DiskSyncError> {
        let disk = usize::try_from(number).ok().and_then(|index| self.disks.get(index));
        disk.ok_or(DiskSyncError::Refused { disk: number, reason: "there is no such disk" })
    }

    pub fn is_logging(&self) -> bool {
        self.run.load(Ordering::Acquire) != 0
    }

    fn start_log(&self, log: &mut Log) -> u64 {
        *log = Log::default();
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        self.run.store(run, Ordering::Release);
        run
    }

    /// Starts the log unless it is on; returns which run of it is on.
    pub fn ensure_logging(&self) -> u64 {
        let mut log = lock(&self.log);
        match self.run.load(Ordering::Acquire) {
            0 => self.start_log(&mut log),
            run => run,
        }
    }

    /// Whether this run of the log is still on.
    pub fn is_on(&self, run: u64) -> bool {
        self.run.load(Ordering::Acquire) == run
    }

    /// Takes the log, if this run of it is still on.
    pub fn take_log_of(&self, run: u64) -> Option<Vec<DiskWrite>> {
        let mut log = lock(&self.log);
        self.is_on(run).then(|| log.take())
    }

    /// From now on guests' flushes are only told to `asked`.
    pub fn defer_flushes(&self, asked: &Arc<AskedFlushes>) {
        *lock(&self.deferred) = Some(asked.clone());
    }

    /// Guests' flushes are flushes again, unless they are told to somebody else than `asked`.
    pub fn stop_deferring_flushes(&self, asked: &Arc<AskedFlushes>) {
        lock(&self.deferred).take_if(|current| Arc::ptr_eq(current, asked));
    }

    /// Whether a guest's flush of this disk need not be carried out now.
    pub fn is_flush_deferred(&self, number: u32) -> bool {
        lock(&self.deferred).as_ref().map(|asked| asked.ask(number)).is_some()
    }

    /// Returns when no flush is put off that was asked for before.
    pub fn wait_for_deferred_flushes(&self) {
        let asked = lock(&self.deferred).clone();
        if let Some(asked) = asked {
            asked.wait_until_done();
        }
    }

    /// Adds to the log, if it is on. To be called while the image is locked, so that the log's order is the image's.
    pub fn note(&self, changes: impl FnOnce(&mut Log)) {
        if self.is_logging() {
            let mut log = lock(&self.log);
            // It may have been stopped in between.
            if self.is_logging() {
                changes(&mut log);
            }
        }
    }
}

impl Disk {
    /// The image, for a guest.
    pub fn lock(&self) -> MutexGuard<'_, DiskImage> {
        self.hurried.fetch_add(1, Ordering::Relaxed);
        let image = lock(&self.image);
        self.hurried.fetch_sub(1, Ordering::Relaxed);
        image
    }

    /// What reads the content beside whoever has the image, if the format allows that. It must not be written by: the log has to have
    /// changes in their order.
    pub fn raw(&self) -> Option<&RawFile> {
        self.raw.as_deref()
    }

    /// The image, for something that a guest must not wait for: who locks it again and again would leave others few chances.
    pub fn lock_patiently(&self) -> MutexGuard<'_, DiskImage> {
        for _ in 0..YIELDS_MAX {
            if self.hurried.load(Ordering::Relaxed) == 0 {
                break;
            }
            hint::spin_loop();
            thread::yield_now();
        }
        lock(&self.image)
    }

    /// Changes a range of the image, of which nothing is known from then on.
    pub fn change(
        &self,
        image: &mut DiskImage,
        (offset, length): (u64, u64),
        change: impl FnOnce(&mut DiskImage) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let forgotten = self.digests.changing(offset, length);
        let path = || image.path().to_path_buf();
        forgotten.map_err(|source| DiskError::Io { path: path(), action: "forget the digests of", source })?;
        change(image)
    }

    /// What came of a flush. After one that has failed, what is read may be another thing than what the disk holds.
    pub fn flushed<T>(&self, result: Result<T, DiskError>) -> Result<T, DiskError> {
        result.inspect_err(|_| self.digests.distrust())
    }

    /// Reads a block, and finds out its digest, unless that is known. The image is not locked while it is computed.
    pub fn digest(&self, block: u64, buffer: &mut Vec<u8>) -> Result<(BlockDigest, u64), DiskError> {
        if let Some(known) = self.digests.get(block) {
            return Ok((known, 0));
        }
        let (offset, length) = block_range(block, self.size_bytes);
        buffer.resize(length as usize, 0);
        {
            let mut image = self.lock_patiently();
            self.digests.begin(block);
            image.read_at(offset, buffer)?;
        }
        let digest = *blake3::hash(buffer).as_bytes();
        self.digests.keep(block, digest);
        Ok((digest, length))
    }

    /// What [`DiskDescription::base`] says. Found out without the lock, as it may take long.
    fn base(&self) -> Result<BaseIdentity, DiskError> {
        let shown = {
            let image = self.lock_patiently();
            if self.read_only {
                Some(Backing { path: image.path().to_path_buf(), format: image.format() })
            } else {
                image.backing().cloned()
            }
        };
        BaseIdentity::of(shown.as_ref())
    }
}
