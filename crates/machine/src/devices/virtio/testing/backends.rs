//! Disks and a network whose insides tests can see.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};

use crate::bus::lock;
use crate::devices::virtio::block::BlockBackend;

/// What a [`MemoryDisk`] holds and was asked for.
#[derive(Debug, Default)]
pub struct DiskContent {
    /// The bytes of the disk.
    pub bytes: Vec<u8>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether every operation fails.
    pub broken: bool,
    /// The operations done, by name.
    pub log: Vec<&'static str>,
}

/// A disk in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<DiskContent>>);

impl MemoryDisk {
    /// A disk of zeros.
    pub fn new(size_bytes: usize, read_only: bool) -> Self {
        Self(Arc::new(Mutex::new(DiskContent { bytes: vec![0; size_bytes], read_only, ..DiskContent::default() })))
    }

    /// The bytes of the disk.
    pub fn content(&self) -> MutexGuard<'_, DiskContent> {
        lock(&self.0)
    }

    fn range(&self, name: &'static str, offset: u64, len: usize, act: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut content = self.content();
        content.log.push(name);
        if content.broken {
            return Err(io::Error::other("broken disk"));
        }
        // A device that checks its requests never gets here with a range beyond the end.
        let offset = usize::try_from(offset).expect("offset fits");
        act(&mut content.bytes[offset..offset + len]);
        Ok(())
    }
}

impl BlockBackend for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.content().bytes.len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.content().read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.range("read", offset, buf.len(), |bytes| buf.copy_from_slice(bytes))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(!self.is_read_only(), "write to a read-only disk");
        self.range("write", offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn flush(&self) -> io::Result<()> {
        self.range("flush", 0, 0, |_| {})
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(!self.is_read_only(), "discard on a read-only disk");
        self.range("discard", offset, len as usize, |bytes| bytes.fill(0))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        assert!(!self.is_read_only(), "zeroes to a read-only disk");
        self.range("write_zeroes", offset, len as usize, |bytes| bytes.fill(0))
    }
}

/// How long a test waits for something that should come.
const HUNG: Duration = Duration::from_secs(60);

/// A disk in memory that leaves writes and flushes undone as long as it is told to. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct HeldDisk {
    /// The bytes of the disk. reads reach it at once.
    pub disk: MemoryDisk,
    hold: Arc<(Mutex<Hold>, Condvar)>,
}

#[derive(Debug, Default)]
struct Hold {
    writes: bool,
    flushes: bool,
    is_cached: bool,
    held: usize,
}

impl HeldDisk {
    /// A disk of zeros that holds nothing up.
    pub fn new(size_bytes: usize) -> Self {
        Self { disk: MemoryDisk::new(size_bytes, false), ..Self::default() }
    }

    /// Says what is held up from now on.
    pub fn hold(&self, writes: bool, flushes: bool) {
        let (hold, changed) = &*self.hold;
        let mut hold = lock(hold);
        (hold.writes, hold.flushes) = (writes, flushes);
        changed.notify_all();
    }

    /// Says whether reads take no wait from now on.
    pub fn set_cached(&self, is_cached: bool) {
        lock(&self.hold.0).is_cached = is_cached;
    }

    /// Returns when `count` operations are held up.
    pub fn wait_for_held(&self, count: usize) {
        let (hold, changed) = &*self.hold;
        let waited = changed.wait_timeout_while(lock(hold), HUNG, |hold| hold.held != count);
        assert!(!waited.expect("nobody panicked").1.timed_out(), "not {count} operations are held up");
    }

    fn pass(&self, is_held: impl Fn(&Hold) -> bool) {
        let (hold, changed) = &*self.hold;
        let mut hold = lock(hold);
        if is_held(&hold) {
            hold.held += 1;
            changed.notify_all();
            // Not for ever: a test that fails has to end.
            hold = changed.wait_timeout_while(hold, HUNG, |hold| is_held(hold)).expect("nobody panicked").0;
            hold.held -= 1;
            changed.notify_all();
        }
    }
}

impl BlockBackend for HeldDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> bool {
        lock(&self.hold.0).is_cached && self.disk.read_at(offset, buf).is_ok()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(|hold| hold.writes);
        self.disk.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.pass(|hold| hold.flushes);
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pass(|hold| hold.writes);
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.pass(|hold| hold.writes);
        self.disk.write_zeroes(offset, len, may_unmap)
    }
}

/// What a [`MemoryNetwork`] was sent and told.
#[derive(Debug, Default)]
pub struct NetworkContent {
    /// Frames taken, in order.
    pub sent: Vec<(Vec<u8>, FrameOffload)>,
    /// Whether there is room for no more.
    pub full: bool,
    /// What the card last said it accepts.
    pub accepted: Option<ReceiveOffloads>,
}

/// A network that remembers what it is sent. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork(Arc<Mutex<NetworkContent>>);

impl MemoryNetwork {
    /// What it was sent and told.
    pub fn content(&self) -> MutexGuard<'_, NetworkContent> {
        lock(&self.0)
    }
}

impl FrameBackend for MemoryNetwork {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let mut content = self.content();
        if content.full {
            return Ok(SendOutcome::Full);
        }
        content.sent.push((frame.to_vec(), offload));
        Ok(SendOutcome::Sent)
    }

    fn recv(&mut self, _buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        Ok(None)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.content().accepted = Some(offloads);
        Ok(())
    }

    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    fn position(&self) -> InputPosition {
        InputPosition::default()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        static NULL: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("/dev/null opens"));
        NULL.as_fd()
    }
}
