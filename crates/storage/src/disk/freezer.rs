//! Content of an image that stays as it is for one reader while the image goes on being written to.
//!
//! Whoever freezes an image neither reads nor copies anything, and waits for nobody: that is done while a VM stands still. From then on, each change
//! first keeps what it writes over ([`Freezer::begin_change`]), unless the reader has had it or it is kept already. A change that had begun before is the
//! reader's to see: nothing is read or kept before all of those have ended.
//!
//! What goes wrong here is the reader's error, and no change fails for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::kept::{Found, Kept};
use super::{Allocation, DiskError, Extent, Spill};

/// Unit that is kept as a whole, in bytes.
pub(super) const PIECE_BYTES: u64 = 64 << 10;
/// Most data that is read from the image at once, in bytes: a change may have to wait for it.
const READ_BYTES_MAX: u64 = 256 << 10;
/// Most pieces that a change keeps without letting others go on.
const PIECES_AT_ONCE_MAX: u64 = 64;
/// How often somebody looks who waits for changes that have begun.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);

/// What can be read of an image.
pub(super) trait Content {
    fn size_bytes(&self) -> u64;
    fn extent_at(&mut self, offset: u64) -> Result<Extent, DiskError>;
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;
}

/// A part of a frozen disk whose content comes from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where it begins.
    pub offset: u64,
    /// Its length in bytes, at least 1.
    pub length: u64,
    /// The source.
    pub allocation: Allocation,
}

impl Stretch {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What comes next of a frozen disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub stretches: VecDeque<Stretch>,
    /// Bytes from `start` on. Only where there is data do they mean anything.
    pub data: Vec<u8>,
    pub start: u64,
}

/// Says for the changes of one image whether it is frozen.
#[derive(Debug)]
pub(super) struct Freezer {
    path: PathBuf,
    /// How often it was frozen.
    freezes: AtomicU64,
    /// Which of these is on; 0: none. All that a change looks at while nothing is frozen.
    current: AtomicU64,
    /// Changes that have begun and not ended, by whether `freezes` was even then.
    under_way: [AtomicUsize; 2],
    state: Mutex<Option<Frozen>>,
}

#[derive(Debug)]
struct Frozen {
    kept: Kept,
    /// The first piece that was not read.
    next: u64,
    failure: Option<DiskError>,
}

/// A change of an image, until it is dropped.
#[derive(Debug)]
pub(super) struct Change<'a>(&'a AtomicUsize);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Freezer {
    pub fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            freezes: AtomicU64::new(0),
            current: AtomicU64::new(0),
            under_way: [AtomicUsize::new(0), AtomicUsize::new(0)],
            state: Mutex::new(None),
        })
    }

    fn state(&self) -> MutexGuard<'_, Option<Frozen>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn side(&self, freeze: u64) -> &AtomicUsize {
        let [even, odd] = &self.under_way;
        if freeze.is_multiple_of(2) { even } else { odd }
    }

    /// To be called before `length` bytes from `offset` on are changed, which `content` can still read; and to be held until they are.
    pub fn begin_change(&self, content: &mut dyn Content, offset: u64, length: u64) -> Change<'_> {
        let mut kept_for = 0;
        loop {
            let side = self.side(self.freezes.load(Ordering::SeqCst));
            side.fetch_add(1, Ordering::SeqCst);
            // Counted before it looks: a freeze that it does not see waits for it.
            let change = Change(side);
            let current = self.current.load(Ordering::SeqCst);
            if current == 0 || current == kept_for {
                return change;
            }
            drop(change);
            self.keep(current, content, offset, length);
            kept_for = current;
        }
    }

    /// Freezes the content. The number is for the reader's other calls.
    pub fn freeze(&self, spill: Arc<Spill>) -> Result<u64, DiskError> {
        let mut state = self.state();
        let freezes = self.freezes.load(Ordering::SeqCst);
        let refused = |holder: &str| DiskError::InUse { path: self.path.clone(), holder: holder.to_owned() };
        if state.is_some() {
            return Err(refused("another snapshot that is being taken"));
        }
        // Changes that began before the last freeze would be counted among those after this one.
        if self.side(freezes + 1).load(Ordering::SeqCst) > 0 {
            return Err(refused("a request from before the last snapshot"));
        }
        *state = Some(Frozen { kept: Kept::new(spill), next: 0, failure: None });
        self.freezes.store(freezes + 1, Ordering::SeqCst);
        self.current.store(freezes + 1, Ordering::SeqCst);
        Ok(freezes + 1)
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        let mut state = self.state();
        self.current.store(0, Ordering::SeqCst);
        *state = None;
    }

    /// Makes the reader fail: the image becomes something else.
    pub fn give_up(&self, error: impl FnOnce() -> DiskError) {
        if let Some(frozen) = &mut *self.state() {
            self.fail(frozen, error());
        }
    }

    /// Nothing is kept any more, as it would be of no use.
    fn fail(&self, frozen: &mut Frozen, error: DiskError) {
        self.current.store(0, Ordering::SeqCst);
        frozen.failure.get_or_insert(error);
        frozen.kept.forget();
    }

    fn is_on(&self, freeze: u64) -> bool {
        self.current.load(Ordering::SeqCst) == freeze
    }

    /// Returns when changes have ended that had begun before this freeze, or when `gives_up`.
    pub fn wait_for_earlier(&self, freeze: u64, gives_up: impl Fn() -> bool) {
        let earlier = self.side(freeze.wrapping_sub(1));
        while earlier.load(Ordering::SeqCst) > 0 && !gives_up() {
            thread::sleep(LOOK_INTERVAL);
        }
    }

    #[cold]
    fn keep(&self, freeze: u64, content: &mut dyn Content, offset: u64, length: u64) {
        self.wait_for_earlier(freeze, || !self.is_on(freeze));
        let end = offset.saturating_add(length).min(content.size_bytes());
        let (mut piece, end) = (offset / PIECE_BYTES, end.div_ceil(PIECE_BYTES));
        let mut data = Vec::new();
        while length > 0 && piece < end {
            let mut state = self.state();
            let Some(frozen) = state.as_mut().filter(|_| self.is_on(freeze)) else { return };
            piece = piece.max(frozen.next);
            let until = end.min(piece.saturating_add(PIECES_AT_ONCE_MAX));
            match frozen.kept.keep(content, piece, until, &mut data) {
                Ok(next) => piece = next,
                Err(error) => return self.fail(frozen, error),
            }
        }
    }

    /// Reads what comes next; nothing after the last.
    pub fn read(&self, freeze: u64, content: &mut dyn Content, batch: &mut Batch) -> Result<(), DiskError> {
        let mut state = self.state();
        let Some(frozen) = &mut *state else { return Ok(()) };
        if let Some(error) = frozen.failure.take() {
            return Err(error);
        }
        if !self.is_on(freeze) {
            return Err(DiskError::InUse { path: self.path.clone(), holder: "another snapshot".to_owned() });
        }
        let size_bytes = content.size_bytes();
        let offset = frozen.next * PIECE_BYTES;
        if offset >= size_bytes {
            return Ok(());
        }
        batch.start = offset;
        let end = (offset + PIECE_BYTES).min(size_bytes);
        match frozen.kept.take(frozen.next, end - offset, &mut batch.data)? {
            Found::Kept(stretches) => {
                let moved = stretches.into_iter().map(|stretch| Stretch { offset: offset + stretch.offset, ..stretch });
                batch.stretches.extend(moved);
                frozen.next += 1;
            }
            Found::Pending => {
                let until = frozen.kept.first_from(frozen.next).map_or(size_bytes, |piece| piece * PIECE_BYTES);
                let read = read_pending(content, offset, until.min(size_bytes), batch)?;
                frozen.next = read.div_ceil(PIECE_BYTES);
            }
        }
        Ok(())
    }
}

/// Reads what is still in the image, at most up to `until`, a piece's end; returns how far.
fn read_pending(content: &mut dyn Content, offset: u64, until: u64, batch: &mut Batch) -> Result<u64, DiskError> {
    let Extent { allocation, length } = content.extent_at(offset)?;
    let mut end = offset.saturating_add(length).min(until);
    if allocation == Allocation::Data {
        end = end.min(offset + READ_BYTES_MAX);
    }
    if end < until {
        end = end / PIECE_BYTES * PIECE_BYTES;
    }
    if end > offset {
        if allocation == Allocation::Data {
            batch.data.resize((end - offset) as usize, 0);
            content.read_at(offset, &mut batch.data)?;
        }
        batch.stretches.push_back(Stretch { offset, length: end - offset, allocation });
        return Ok(end);
    }
    // A piece of several kinds.
    let end = (offset + PIECE_BYTES).min(until);
    batch.stretches.extend(read_piece(content, offset, end, &mut batch.data)?);
    Ok(end)
}

/// Reads a part of a disk, and says where it comes from.
pub(super) fn read_piece(
    content: &mut dyn Content,
    offset: u64,
    end: u64,
    data: &mut Vec<u8>,
) -> Result<Vec<Stretch>, DiskError> {
    data.clear();
    data.resize((end - offset) as usize, 0);
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut at = offset;
    while at < end {
        let extent = content.extent_at(at)?;
        let stretch = Stretch { offset: at, length: extent.length.clamp(1, end - at), allocation: extent.allocation };
        if stretch.allocation == Allocation::Data {
            let place = (at - offset) as usize;
            let bytes = data.get_mut(place..place + stretch.length as usize).unwrap_or_default();
            content.read_at(at, bytes)?;
        }
        at = stretch.end();
        match stretches.last_mut().filter(|last| last.allocation == stretch.allocation) {
            Some(last) => last.length += stretch.length,
            None => stretches.push(stretch),
        }
    }
    Ok(stretches)
}
