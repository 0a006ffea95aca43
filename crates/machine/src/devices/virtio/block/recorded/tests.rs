use super::*;
use crate::devices::virtio::testing::MemoryDisk;

const SECTOR: usize = 512;
const DISK_BYTES: usize = 2 << 20;

/// A disk whose changes and reads fail while it is `broken`; a change is done in part all the same.
#[derive(Clone)]
struct Breaking {
    disk: MemoryDisk,
    broken: bool,
    /// Reading back what a failure left fails as well.
    is_unreadable: bool,
}

impl Breaking {
    fn new() -> Self {
        Self { disk: MemoryDisk::new(DISK_BYTES, false), broken: false, is_unreadable: false }
    }

    fn result(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl BlockBackend for Breaking {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.is_unreadable {
            return Err(io::Error::other("unreadable"));
        }
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let done = if self.broken { &data[..data.len() / 2] } else { data };
        self.disk.write_at(offset, done)?;
        self.result()
    }

    fn flush(&self) -> io::Result<()> {
        self.result()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
}

/// The device's end of a disk that breaks when it is told to.
struct Side {
    disk: RecordedDisk,
    memory: MemoryDisk,
    signal: TakenSignal,
}

impl Side {
    fn new(backend: Breaking, is_recorded: bool, is_replayed: bool) -> Self {
        let (memory, signal) = (backend.disk.clone(), TakenSignal::default());
        let mut disk = RecordedDisk::new(Arc::new(backend));
        disk.follow(is_recorded.then(|| signal.clone()), is_replayed);
        Self { disk, memory, signal }
    }

    fn bytes(&self) -> Vec<u8> {
        self.memory.content().bytes.clone()
    }
}

fn broken() -> Breaking {
    Breaking { broken: true, ..Breaking::new() }
}

/// Does one of each kind; returns which succeeded.
fn requests(disk: &mut RecordedDisk) -> [bool; 5] {
    [
        disk.write_at(0, &[7; 2 * SECTOR]).is_ok(),
        disk.read_at(0, &mut [0; SECTOR]).is_ok(),
        disk.discard(4096, 4096).is_ok(),
        disk.flush().is_ok(),
        disk.write_zeroes(512, 4096, false).is_ok(),
    ]
}

#[test]
fn what_fails_and_what_it_leaves_is_the_same_in_a_replay() {
    let mut recorded = Side::new(broken(), true, false);
    let succeeded = requests(&mut recorded.disk);
    assert_eq!(succeeded, [false, true, false, false, false]);
    assert!(recorded.signal.is_raised());
    let failures = recorded.disk.take_failures();
    assert_eq!(failures.iter().map(|failure| failure.request).collect::<Vec<_>>(), [0, 2, 3, 4]);
    assert_eq!(failures[0].content, FailedContent::Bytes([[7; SECTOR], [0; SECTOR]].concat()));
    assert_eq!(failures[2].content, FailedContent::Unchanged);

    let mut replayed = Side::new(Breaking::new(), true, true);
    failures.iter().for_each(|failure| replayed.disk.expect(failure.clone()));
    assert_eq!(requests(&mut replayed.disk), succeeded);
    assert_eq!(replayed.disk.divergence(), None);
    assert!(replayed.bytes() == recorded.bytes());
    assert_eq!(replayed.disk.take_failures(), failures);
    // Nothing fails after that: the count goes on.
    assert_eq!(requests(&mut replayed.disk), [true; 5]);
}

#[test]
fn a_request_that_fails_in_the_log_is_not_carried_out() {
    let mut side = Side::new(Breaking::new(), false, true);
    side.disk.expect(DiskFailure { request: 0, content: FailedContent::Unchanged });
    assert!(side.disk.flush().is_err());
    assert!(side.memory.content().log.is_empty());
}

#[test]
fn a_failure_that_was_not_recorded_ends_the_replay_before_it_does_more() {
    let mut side = Side::new(broken(), true, true);
    assert!(side.disk.flush().is_err());
    assert!(side.disk.divergence().unwrap().contains("operation 0 failed"));
    let before = side.bytes();
    assert!(side.disk.write_at(0, &[9; SECTOR]).is_err());
    assert!(side.bytes() == before);
    assert_eq!(side.disk.take_failures(), []);
}

#[test]
fn a_log_that_does_not_fit_ends_the_replay() {
    let cases = [
        // A write is said to have left what is longer than itself, nothing, or nobody knows what.
        (0, FailedContent::Bytes(vec![0; 3 * SECTOR])),
        (0, FailedContent::Unchanged),
        (0, FailedContent::Unknown),
        // A read is said to have left something.
        (1, FailedContent::Bytes(vec![0; SECTOR])),
    ];
    for (request, content) in cases {
        let mut side = Side::new(Breaking::new(), false, true);
        side.disk.expect(DiskFailure { request, content });
        requests(&mut side.disk);
        assert!(side.disk.divergence().unwrap().starts_with(&format!("operation {request} ")));
    }
    let mut side = Side::new(Breaking::new(), false, true);
    side.disk.flush().unwrap();
    side.disk.expect(DiskFailure { request: 0, content: FailedContent::Unchanged });
    assert!(side.disk.flush().is_err());
    assert!(side.disk.divergence().is_some());
}

#[test]
fn content_that_cannot_be_read_back_or_is_too_long_is_unknown() {
    let mut unreadable = Side::new(Breaking { is_unreadable: true, ..broken() }, true, false);
    assert!(unreadable.disk.write_at(0, &[1; SECTOR]).is_err());
    assert_eq!(unreadable.disk.take_failures(), [DiskFailure { request: 0, content: FailedContent::Unknown }]);

    let mut long = Side::new(broken(), true, false);
    assert!(long.disk.discard(0, FAILED_CONTENT_BYTES_MAX as u64).is_err());
    assert!(long.disk.discard(0, FAILED_CONTENT_BYTES_MAX as u64 + 512).is_err());
    let contents = long.disk.take_failures().into_iter().map(|failure| failure.content);
    assert_eq!(
        contents.collect::<Vec<_>>(),
        [FailedContent::Bytes(vec![0; FAILED_CONTENT_BYTES_MAX]), FailedContent::Unknown]
    );
}

#[test]
fn failures_are_neither_counted_nor_kept_without_a_recorder() {
    let mut side = Side::new(broken(), false, false);
    requests(&mut side.disk);
    assert_eq!((side.disk.take_failures(), side.disk.divergence(), side.signal.is_raised()), (vec![], None, false));
    // A run that is recorded from here on starts at 0.
    side.disk.follow(Some(side.signal.clone()), false);
    assert!(side.disk.flush().is_err());
    assert_eq!(side.disk.take_failures()[0].request, 0);
}
