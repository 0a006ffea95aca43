//! Reading what a recovery point holds.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{panic, thread};

use super::chunk::{CHUNK_BYTES, ChunkId};
use super::error::BackupError;
use super::index::{ChunkReader, Index};
use super::point::{RecoveryPoint, SEGMENT_BYTES, Volume, segment_ids};
use super::repository::Repository;

/// Most threads that read and decompress.
const THREADS_MAX: usize = 8;
/// Chunks that wait for each of them, and as many again that they have read.
const WAITING_EACH: usize = 4;

/// Where a chunk belongs.
#[derive(Clone, Copy)]
struct Wanted {
    id: ChunkId,
    /// In the volume, in bytes.
    offset: u64,
    bytes: usize,
}

type Read = Result<(u64, Vec<u8>), BackupError>;

impl Repository {
    /// Reads a volume: calls `sink` with an offset and what is there, for all that is not zero, in an order that is not said. Memory does not depend on the
    /// volume's size.
    ///
    /// # Errors
    /// [`BackupError::Damaged`], [`BackupError::MissingChunk`] or [`BackupError::Io`] for what cannot be read; what `sink` answers.
    pub fn read_volume(
        &self,
        volume: &Volume,
        sink: impl FnMut(u64, &[u8]) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let (index, _) = Index::load(self, &Default::default())?;
        self.read_with(&index, volume, sink)
    }

    fn read_with(
        &self,
        index: &Index,
        volume: &Volume,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let count = thread::available_parallelism().map_or(1, |count| count.get()).min(THREADS_MAX);
        let (wanted, to_read) = sync_channel::<Wanted>(count * WAITING_EACH);
        let (done, read) = sync_channel::<Read>(count * WAITING_EACH);
        let to_read = Arc::new(Mutex::new(to_read));
        thread::scope(|scope| {
            let feeder = scope.spawn(|| self.feed(index, volume, wanted));
            for _ in 0..count {
                let (to_read, done) = (to_read.clone(), done.clone());
                scope.spawn(move || self.read_all(index, &to_read, &done));
            }
            // Once the readers are gone, whoever waits for one of them is to know.
            drop((done, to_read));
            let mut failed = None;
            for piece in &read {
                let taken = piece.and_then(|(offset, content)| sink(offset, &content));
                if let Err(error) = taken {
                    failed = Some(error);
                    break;
                }
            }
            drop(read);
            let fed = feeder.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
            failed.map_or(fed, Err)
        })
    }

    /// Says which chunks are to be read.
    fn feed(&self, index: &Index, volume: &Volume, to: SyncSender<Wanted>) -> Result<(), BackupError> {
        let mut reader = ChunkReader::new(self, index)?;
        for (number, segment) in volume.segments.iter().enumerate() {
            for (within, id) in read_segment(&mut reader, volume, number, segment)?.into_iter().enumerate() {
                if id == ChunkId::ZEROS {
                    continue;
                }
                let offset = number as u64 * SEGMENT_BYTES + (within * CHUNK_BYTES) as u64;
                let bytes = volume.bytes_of(offset / CHUNK_BYTES as u64);
                if to.send(Wanted { id, offset, bytes }).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read_all(&self, index: &Index, from: &Mutex<Receiver<Wanted>>, to: &SyncSender<Read>) {
        let reader = ChunkReader::new(self, index);
        let mut reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                // Nobody listens any more if another one has failed.
                let _ = to.send(Err(error));
                return;
            }
        };
        loop {
            let next = from.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Wanted { id, offset, bytes }) = next else { return };
            let read = reader.read(&id).and_then(|content| {
                let fits = content.len() == bytes;
                if fits { Ok((offset, content)) } else { Err(BackupError::MissingChunk(id.to_string())) }
            });
            if to.send(read).is_err() {
                return;
            }
        }
    }

    /// All chunks that a point needs, those with the names of others among them; those that cannot be read for the names that they hold are in the second.
    pub(crate) fn needs(
        &self,
        index: &Index,
        point: &RecoveryPoint,
        mut each: impl FnMut(ChunkId),
    ) -> Result<Vec<BackupError>, BackupError> {
        let mut reader = ChunkReader::new(self, index)?;
        let mut failed = Vec::new();
        for volume in &point.volumes {
            for (number, segment) in volume.segments.iter().enumerate().filter(|(_, id)| **id != ChunkId::ZEROS) {
                each(*segment);
                match read_segment(&mut reader, volume, number, segment) {
                    Ok(ids) => ids.into_iter().filter(|id| *id != ChunkId::ZEROS).for_each(&mut each),
                    Err(error) => failed.push(error),
                }
            }
        }
        Ok(failed)
    }
}

/// The names of the chunks of a segment.
fn read_segment(
    reader: &mut ChunkReader<'_>,
    volume: &Volume,
    number: usize,
    id: &ChunkId,
) -> Result<Vec<ChunkId>, BackupError> {
    if *id == ChunkId::ZEROS {
        return Ok(Vec::new());
    }
    let ids = segment_ids(&reader.read(id)?, volume.chunks_of(number));
    ids.ok_or_else(|| BackupError::MissingChunk(id.to_string()))
}
