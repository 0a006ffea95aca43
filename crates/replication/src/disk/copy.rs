//! Bringing a secondary's disks to where the log of writes can go on.

use std::collections::VecDeque;
use std::ops::Range;

use storage::disk::BaseIdentity;

use super::backend::push_data;
use super::blocks::{BlockDigest, Span, block_range, is_zeros, spans};
use super::progress::span_bytes;
use super::stream::LogStream;
use super::summary::{KnownBlocks, KnownContent, SummaryOfDisk};
use super::{DiskOp, DiskProgress, DiskSet, DiskSummary, DiskSyncError, DiskWrite};

/// Blocks compared for one piece: some milliseconds of work, so that the caller can do other things in between.
const BLOCKS_PER_PIECE: u32 = 64;
/// Blocks after the first one of a piece are read as long as less than this waits in the log. The first one is read whatever the guest
/// writes, which must not be able to hold up the copy for ever.
const WAITING_BYTES: u64 = 256 << 10;

/// The live copy of what a secondary's disks lack, on the primary.
///
/// It makes one stream of the blocks that differ and of what the guest writes meanwhile; see the [module](super) for why the
/// secondary is a copy when it has applied that stream and the log from then on. While it exists, nobody else may take the log; what follows it is
/// in the same stream ([`DiskCopy::into_stream`]).
pub struct DiskCopy {
    disks: DiskSet,
    stream: LogStream,
    left: VecDeque<Task>,
    stage: Stage,
    buffer: Vec<u8>,
    progress: DiskProgress,
    compared_bytes: u64,
    differing_bytes: u64,
}

/// How far the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There are blocks to look at.
    Looking,
    /// The log holds the last blocks and, after them, the flushes.
    Logged,
    /// Those are taken from the log: what is taken is the end of the stream.
    Taken,
}

/// Blocks that may differ.
#[derive(Debug)]
struct Task {
    disk: u32,
    blocks: Range<u64>,
    theirs: Theirs,
}

/// What the secondary has there.
#[derive(Debug)]
enum Theirs {
    Unknown,
    Zeros,
    /// One for each block.
    Digests(VecDeque<BlockDigest>),
}

impl DiskCopy {
    /// Begins a copy to the secondary that sent `summary`. Starts the log of `disks` unless it is on.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`].
    pub fn new(disks: &DiskSet, summary: DiskSummary) -> Result<Self, DiskSyncError> {
        // Before the first look at a disk: what is written from now on is in the log.
        let stream = LogStream::new(disks);
        let mut left = VecDeque::new();
        let mut progress = DiskProgress::default();
        for ((number, disk), theirs) in (0..).zip(disks.shared().disks()).zip(summary.disks) {
            if disk.read_only {
                continue;
            }
            let base = theirs.common_base.unwrap_or(BaseIdentity::Zeros);
            let own = if theirs.common_base.is_some() {
                spans(disk, number, base, false)?
            } else {
                let own_base = disks.describe()?.get(number as usize).map_or(BaseIdentity::Zeros, |own| own.base);
                spans(disk, number, own_base, true)?
            };
            for task in tasks(number, own, theirs) {
                let span = Span { blocks: task.blocks.clone(), is_zeros: false };
                progress.total_bytes += span_bytes(&span, disk.size_bytes);
                left.push_back(task);
            }
        }
        Ok(Self {
            disks: disks.clone(),
            stream,
            left,
            stage: Stage::Looking,
            buffer: Vec::new(),
            progress,
            compared_bytes: 0,
            differing_bytes: 0,
        })
    }

    /// Appends the next piece of the stream, at most [`super::PIECE_BYTES_MAX`] bytes, to `out`; nothing if all blocks that were looked
    /// at are the same. Returns whether more will follow. When nothing will, all blocks that differ have been sent, and the log goes on
    /// where the stream ended. A guest that writes all the time makes the stream longer, but not endless.
    ///
    /// # Errors
    /// [`DiskSyncError::Image`]; [`DiskSyncError::Abandoned`] if the log was stopped.
    pub fn next_piece(&mut self, out: &mut Vec<u8>) -> Result<bool, DiskSyncError> {
        if !self.is_over() {
            self.stream.check()?;
            self.look()?;
            if self.stream.is_sent() {
                self.stream.take()?;
                if self.stage == Stage::Logged {
                    self.stage = Stage::Taken;
                }
            }
            self.stream.next_taken(out);
        }
        Ok(!self.is_over())
    }

    /// The log is the caller's again.
    fn is_over(&self) -> bool {
        self.stage == Stage::Taken && self.stream.is_sent()
    }

    /// The stream that it makes.
    pub fn stream(&self) -> &LogStream {
        &self.stream
    }

    /// The stream, which goes on with what the guest writes when the copy is over.
    pub fn into_stream(self) -> LogStream {
        self.stream
    }

    /// How far it is.
    pub fn progress(&self) -> DiskProgress {
        self.progress
    }

    /// Bytes of blocks that differed so far; what is sent is less, by compression, or more, by what the guest writes.
    pub fn differing_bytes(&self) -> u64 {
        self.differing_bytes
    }

    /// Bytes that were read so far to be compared: what is known of the rest was kept from before.
    pub fn compared_bytes(&self) -> u64 {
        self.compared_bytes
    }

    /// Looks at some blocks and adds those that differ to the log.
    fn look(&mut self) -> Result<(), DiskSyncError> {
        for looked in 0..BLOCKS_PER_PIECE {
            if looked > 0 && self.disks.log_bytes() >= WAITING_BYTES {
                return Ok(());
            }
            let Some(task) = self.left.front_mut() else { break };
            let (number, block) = (task.disk, task.blocks.start);
            let theirs = match &mut task.theirs {
                Theirs::Unknown => BlockOfTheirs::Unknown,
                Theirs::Zeros => BlockOfTheirs::Zeros,
                Theirs::Digests(digests) => digests.pop_front().map_or(BlockOfTheirs::Unknown, BlockOfTheirs::Digest),
            };
            task.blocks.start += 1;
            if task.blocks.is_empty() {
                self.left.pop_front();
            }
            self.look_at(number, block, &theirs)?;
        }
        if self.left.is_empty() && self.stage == Stage::Looking {
            self.stage = Stage::Logged;
            let writable = (0..).zip(self.disks.shared().disks()).filter(|(_, disk)| !disk.read_only);
            let flushes = writable.map(|(disk, _)| DiskWrite { disk, op: DiskOp::Flush });
            self.disks.shared().note(|log| flushes.for_each(|flush| log.push(flush)));
        }
        Ok(())
    }

    fn look_at(&mut self, number: u32, block: u64, theirs: &BlockOfTheirs) -> Result<(), DiskSyncError> {
        let shared = self.disks.shared();
        let disk = shared.disk(number)?;
        let (offset, length) = block_range(block, disk.size_bytes);
        self.progress.done_bytes += length;
        // Compared without the lock: a guest need not wait for it. Should it write meanwhile, the log has that.
        let is_same = match theirs {
            BlockOfTheirs::Unknown => false,
            BlockOfTheirs::Zeros => {
                self.buffer.resize(length as usize, 0);
                let read = disk.lock_patiently().read_at(offset, &mut self.buffer);
                read.map_err(DiskSyncError::image(number))?;
                self.compared_bytes += length;
                is_zeros(&self.buffer)
            }
            BlockOfTheirs::Digest(theirs) => {
                let ours = disk.digest(block, &mut self.buffer).map_err(DiskSyncError::image(number))?;
                self.compared_bytes += ours.1;
                ours.0 == *theirs
            }
        };
        if is_same {
            return Ok(());
        }
        self.buffer.resize(length as usize, 0);
        // Read and logged under one lock, so that the block has its place in the order of the guest's changes.
        let mut image = disk.lock_patiently();
        image.read_at(offset, &mut self.buffer).map_err(DiskSyncError::image(number))?;
        let buffer = &self.buffer;
        shared.note(|log| {
            if is_zeros(buffer) {
                log.push(DiskWrite { disk: number, op: DiskOp::WriteZeroes { offset, length, may_unmap: true } });
            } else {
                push_data(log, number, offset, buffer);
            }
        });
        self.differing_bytes += length;
        Ok(())
    }
}

/// What the secondary has in one block.
enum BlockOfTheirs {
    Unknown,
    Zeros,
    Digest(BlockDigest),
}

/// The blocks that the primary holds something of (`own`) and those that the secondary does, without those that are zeros on both
/// sides. What neither holds is the same by its common base; without one, `own` is everything.
fn tasks(disk: u32, own: Vec<Span>, theirs: SummaryOfDisk) -> Vec<Task> {
    let unheld_is_zeros = theirs.common_base == Some(BaseIdentity::Zeros);
    let mut tasks = Vec::new();
    let mut own = own.into_iter().peekable();
    let mut known = theirs.known.into_iter().peekable();
    let mut digests = VecDeque::new();
    let mut at = 0;
    loop {
        while own.next_if(|span| span.blocks.end <= at).is_some() {}
        while known.next_if(|blocks| blocks.end() <= at).is_some() {}
        let starts =
            own.peek().map(|span| span.blocks.start).into_iter().chain(known.peek().map(|blocks| blocks.first));
        let Some(start) = starts.min() else { return tasks };
        let start = start.max(at);
        // Up to where either of them changes.
        let mut end = u64::MAX;
        let mut until = |from: u64, to: u64| end = end.min(if from > start { from } else { to });
        let mine = own.peek().map(|span| {
            until(span.blocks.start, span.blocks.end);
            (span.blocks.start <= start).then_some(span.is_zeros)
        });
        let held = known.peek_mut().and_then(|blocks: &mut KnownBlocks| {
            until(blocks.first, blocks.end());
            (blocks.first <= start).then_some(blocks)
        });
        let theirs = match held {
            Some(KnownBlocks { content: KnownContent::Zeros(_), .. }) => Theirs::Zeros,
            Some(KnownBlocks { first, content: KnownContent::Digests(all) }) => {
                if *first == start {
                    digests = all.iter().copied().collect::<VecDeque<_>>();
                }
                let count = usize::try_from(end - start).unwrap_or(usize::MAX).min(digests.len());
                Theirs::Digests(digests.drain(..count).collect())
            }
            None if unheld_is_zeros => Theirs::Zeros,
            None => Theirs::Unknown,
        };
        let is_zeros_on_both = mine.flatten() == Some(true) && matches!(theirs, Theirs::Zeros);
        if !is_zeros_on_both {
            tasks.push(Task { disk, blocks: start..end, theirs });
        }
        at = end;
    }
}
