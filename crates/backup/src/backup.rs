//! Writing a recovery point.
//!
//! The thread that calls splits volumes into chunks and names them; others compress and encrypt those that are new, and one writes them to packs. All queues
//! are short, so that memory does not depend on how much there is.

use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::chunk::{CHUNK_BYTES, ChunkId, Opener, Sealer};
use super::error::BackupError;
use super::index::{Index, PackNames};
use super::pack::{PackName, PackWriter};
use super::point::{PointId, RecoveryPoint, SEGMENT_CHUNKS, VOLUME_BYTES_MAX, VOLUMES_MAX, Volume};
use super::prune::{GRACE, doomed_since};
use super::repository::Repository;
use super::seal::Keys;

/// Chunks that wait for each thread that compresses.
const WAITING_EACH: usize = 4;
/// Most threads that compress: more than these do not come through the one that names chunks.
const THREADS_MAX: usize = 8;

/// What a recovery point is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointOf {
    /// The name of the VM.
    pub vm: String,
    /// The host that writes it.
    pub host: String,
    /// When its disks were as they are in it, in ms since 1970.
    pub taken_unix_ms: u64,
    /// Its spec, as TOML.
    pub spec: String,
}

/// Packs that were written, and the bytes of all of them.
type Written = (Vec<PackName>, u64);

/// A chunk that is new.
type New = (ChunkId, Vec<u8>);

/// A backup under way. What was written of one that is given up is used by the next one, or removed by prune.
pub struct Backup<'a> {
    repository: &'a Repository,
    of: PointOf,
    index: Index,
    /// Chunks that this backup has given to be written.
    written: HashSet<ChunkId>,
    /// Packs that were there, of which it uses chunks.
    used: PackNames,
    volumes: Vec<Volume>,
    volume: Option<VolumeWriter>,
    data_bytes: u64,
    threads: Threads,
}

impl<'a> Backup<'a> {
    /// Begins one.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn begin(repository: &'a Repository, of: PointOf) -> Result<Self, BackupError> {
        let failed = BackupError::io("lock", repository.folder());
        repository.head().lock_shared().map_err(failed)?;
        // What is to be removed, or is damaged, is not built upon, but written anew.
        let mut without = repository.doomed()?;
        without.extend(repository.suspects()?);
        let (index, _) = Index::load(repository, &without)?;
        Ok(Self {
            repository,
            of,
            index,
            written: HashSet::new(),
            used: PackNames::new(),
            volumes: Vec::new(),
            volume: None,
            data_bytes: 0,
            threads: Threads::start(repository)?,
        })
    }

    /// Begins a volume of so many bytes, all of them zero unless [`Self::data`] says otherwise. The one before it is ended.
    ///
    /// # Errors
    /// [`BackupError::Source`] for a name that there is already, and for what is too big or too many.
    pub fn begin_volume(&mut self, name: &str, bytes: u64) -> Result<(), BackupError> {
        self.end_volume()?;
        if self.volumes.iter().any(|volume| volume.name == name) {
            return Err(BackupError::Source(format!("there are two volumes {name}")));
        }
        if bytes > VOLUME_BYTES_MAX || self.volumes.len() >= VOLUMES_MAX {
            return Err(BackupError::Source(format!("volume {name} is too big, or one too many")));
        }
        self.volume = Some(VolumeWriter::new(name, bytes));
        Ok(())
    }

    /// What the volume holds from `offset` on, after all that was said before.
    ///
    /// # Errors
    /// [`BackupError::Source`] for what does not come in order or is not within the volume; those of writing.
    pub fn data(&mut self, mut offset: u64, mut data: &[u8]) -> Result<(), BackupError> {
        let wrong = |why: &str| BackupError::Source(why.to_owned());
        let Some(volume) = &self.volume else { return Err(wrong("there is data of no volume")) };
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= volume.of.bytes);
        if end.is_none() || offset < volume.at {
            return Err(wrong("there is data where it cannot be"));
        }
        while !data.is_empty() {
            let chunk = offset / CHUNK_BYTES as u64;
            self.advance_to(chunk)?;
            let Some(volume) = &mut self.volume else { return Err(BackupError::Worker) };
            let within = (offset % CHUNK_BYTES as u64) as usize;
            let (now, rest) = data.split_at(data.len().min(CHUNK_BYTES - within));
            if let Some(place) = volume.chunk.get_mut(within..within + now.len()) {
                place.copy_from_slice(now);
            }
            volume.is_written = true;
            offset += now.len() as u64;
            volume.at = offset;
            data = rest;
        }
        Ok(())
    }

    /// Goes on to a chunk of the volume, by its number.
    fn advance_to(&mut self, chunk: u64) -> Result<(), BackupError> {
        while let Some(volume) = &mut self.volume
            && volume.number < chunk
        {
            if !volume.is_written && volume.segment.is_empty() && chunk - volume.number >= SEGMENT_CHUNKS as u64 {
                // Nothing in a whole GiB.
                volume.of.segments.push(ChunkId::ZEROS);
                volume.number += SEGMENT_CHUNKS as u64;
                continue;
            }
            self.end_chunk()?;
        }
        Ok(())
    }

    /// Ends the chunk that the volume is at.
    fn end_chunk(&mut self) -> Result<(), BackupError> {
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let bytes = volume.of.bytes_of(volume.number);
        let content = volume.chunk.get(..bytes).unwrap_or_default();
        let id = if volume.is_written && content.iter().any(|&byte| byte != 0) {
            self.data_bytes += bytes as u64;
            let content = content.to_vec();
            self.keep(content)?
        } else {
            ChunkId::ZEROS
        };
        let Some(volume) = &mut self.volume else { return Ok(()) };
        if volume.is_written {
            volume.chunk.fill(0);
            volume.is_written = false;
        }
        volume.segment.push(id);
        volume.number += 1;
        if volume.segment.len() == volume.of.chunks_of(volume.of.segments.len()) {
            let ids = std::mem::take(&mut volume.segment);
            let id = if ids.iter().all(|id| *id == ChunkId::ZEROS) {
                ChunkId::ZEROS
            } else {
                self.keep(ids.iter().flat_map(|id| id.0).collect())?
            };
            self.volume.iter_mut().for_each(|volume| volume.of.segments.push(id));
        }
        Ok(())
    }

    /// Sees to it that a chunk is kept.
    fn keep(&mut self, content: Vec<u8>) -> Result<ChunkId, BackupError> {
        let id = self.repository.keys().id(&content);
        if let Some(pack) = self.index.pack_of(&id) {
            self.used.insert(pack);
        } else if self.written.insert(id) {
            self.threads.give((id, content))?;
        }
        Ok(id)
    }

    fn end_volume(&mut self) -> Result<(), BackupError> {
        let Some(volume) = &self.volume else { return Ok(()) };
        self.advance_to(volume.of.bytes.div_ceil(CHUNK_BYTES as u64))?;
        self.volumes.extend(self.volume.take().map(|volume| volume.of));
        Ok(())
    }

    /// Ends the backup. The point is on stable storage when this returns, with all that it needs.
    ///
    /// # Errors
    /// Those of writing; [`BackupError::TookTooLong`].
    pub fn commit(mut self) -> Result<RecoveryPoint, BackupError> {
        self.end_volume()?;
        let Self { repository, of, used, volumes, data_bytes, threads, .. } = self;
        let (new, added_bytes) = threads.finish()?;
        let now = SystemTime::now();
        check_still_there(repository, &used, now)?;
        let PointOf { vm, host, taken_unix_ms, spec } = of;
        let finished = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let point = RecoveryPoint {
            id: PointId::random()?,
            vm,
            host,
            taken_unix_ms,
            finished_unix_ms: u64::try_from(finished).unwrap_or(u64::MAX),
            spec,
            volumes,
            data_bytes,
            added_bytes,
            packs: used.into_iter().chain(new).collect::<PackNames>().into_iter().collect(),
        };
        repository.add_point(&point)?;
        // Shared by all that this process does with the repository: what is left locked ends with it.
        let _ = repository.head().unlock();
        Ok(point)
    }
}

/// Refuses to end a backup that relies on packs which prune may be about to remove: it began before they were to be, and took too long.
fn check_still_there(repository: &Repository, used: &PackNames, now: SystemTime) -> Result<(), BackupError> {
    let there: HashSet<PackName> = repository.packs()?.into_iter().collect();
    let doomed = repository.doomed()?;
    for name in used {
        let is_late = || doomed_since(repository, name, now).is_none_or(|since| since > GRACE / 2);
        if !there.contains(name) || (doomed.contains(name) && is_late()) {
            return Err(BackupError::TookTooLong);
        }
    }
    Ok(())
}

/// A volume that is being written.
struct VolumeWriter {
    of: Volume,
    /// Data comes from here on, in bytes.
    at: u64,
    /// The chunk that is being filled, by its number.
    number: u64,
    chunk: Vec<u8>,
    is_written: bool,
    /// Names of the chunks of this segment so far.
    segment: Vec<ChunkId>,
}

impl VolumeWriter {
    fn new(name: &str, bytes: u64) -> Self {
        Self {
            of: Volume { name: name.to_owned(), bytes, segments: Vec::new() },
            at: 0,
            number: 0,
            chunk: vec![0; CHUNK_BYTES],
            is_written: false,
            segment: Vec::new(),
        }
    }
}

/// The threads that compress, encrypt and write.
struct Threads {
    /// None once there is no more.
    new: Option<SyncSender<New>>,
    sealers: Vec<JoinHandle<Result<(), BackupError>>>,
    writer: Option<JoinHandle<Result<Written, BackupError>>>,
}

impl Threads {
    fn start(repository: &Repository) -> Result<Self, BackupError> {
        let count = thread::available_parallelism().map_or(1, |count| count.get()).min(THREADS_MAX);
        let (new, to_seal) = sync_channel::<New>(count * WAITING_EACH);
        let (sealed, to_write) = sync_channel::<New>(count * WAITING_EACH);
        let (to_seal, keys) = (Arc::new(Mutex::new(to_seal)), repository.shared_keys());
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let failed = || BackupError::io("start a thread for", repository.folder());
        let mut sealers = Vec::new();
        for _ in 0..count {
            let (to_seal, sealed, keys) = (to_seal.clone(), sealed.clone(), keys.clone());
            let work = move || seal_all(&to_seal, &sealed, &keys);
            sealers.push(spawn("seal").spawn(work).map_err(failed())?);
        }
        let folder = repository.packs_folder();
        let work = move || write_all(&to_write, &folder, &keys);
        let writer = spawn("pack").spawn(work).map_err(failed())?;
        Ok(Self { new: Some(new), sealers, writer: Some(writer) })
    }

    fn give(&mut self, chunk: New) -> Result<(), BackupError> {
        match self.new.as_ref().map(|new| new.send(chunk)) {
            Some(Ok(())) => Ok(()),
            // Whoever takes chunks has ended before its time, and says why.
            _ => Err(self.end().err().unwrap_or(BackupError::Worker)),
        }
    }

    /// Waits until everything is written; the packs, and their bytes.
    fn finish(mut self) -> Result<Written, BackupError> {
        self.end()
    }

    fn end(&mut self) -> Result<Written, BackupError> {
        self.new = None;
        let sealed: Vec<_> = self.sealers.drain(..).map(joined).collect();
        let written = self.writer.take().map_or(Err(BackupError::Worker), joined);
        // What is wrong with the medium is the reason why the others have ended.
        let written = written?;
        sealed.into_iter().collect::<Result<(), _>>()?;
        Ok(written)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Whoever gives a backup up does not ask how it has ended.
        let _ = self.end();
    }
}

fn joined<T>(thread: JoinHandle<Result<T, BackupError>>) -> Result<T, BackupError> {
    thread.join().unwrap_or(Err(BackupError::Worker))
}

/// Compresses and encrypts what comes, and checks that it can be read again.
fn seal_all(from: &Mutex<Receiver<New>>, to: &SyncSender<New>, keys: &Keys) -> Result<(), BackupError> {
    let (mut sealer, mut opener) = (Sealer::new()?, Opener::new()?);
    loop {
        let next = from.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((id, plain)) = next else { return Ok(()) };
        let sealed = sealer.seal(keys, &id, &plain)?;
        // Memory and processors fail, too: what cannot be read again is not written.
        if opener.open(keys, &id, &sealed).is_none_or(|opened| opened != plain) {
            return Err(BackupError::Source("a chunk was damaged in this host's memory or processor".to_owned()));
        }
        if to.send((id, sealed)).is_err() {
            return Ok(());
        }
    }
}

/// Writes packs of what comes. All are on stable storage when this returns; their names, and their bytes.
fn write_all(from: &Receiver<New>, folder: &Path, keys: &Keys) -> Result<Written, BackupError> {
    let (mut names, mut bytes) = (Vec::new(), 0);
    let mut finish = |pack: PackWriter| -> Result<(), BackupError> {
        let (name, length) = pack.finish(keys)?;
        names.push(name);
        bytes += length;
        Ok(())
    };
    let mut pack: Option<PackWriter> = None;
    while let Ok((id, sealed)) = from.recv() {
        let mut current = match pack.take() {
            Some(current) => current,
            None => PackWriter::begin(folder)?,
        };
        current.add(id, &sealed)?;
        if current.is_full() {
            finish(current)?;
        } else {
            pack = Some(current);
        }
    }
    pack.map_or(Ok(()), &mut finish)?;
    Ok((names, bytes))
}
