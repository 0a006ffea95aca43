//! A full disk: a limit on the size of files stands in for it, as no privileges are needed to set one. A process of its own, as the limit
//! is one of the process.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use replication::disk::{DiskApplier, DiskOp, DiskSet, DiskSyncError, DiskWrite};
use spec::DiskFormat;
use storage::disk::{DiskImage, DiskOptions, create_qcow2, create_raw};

const DISK_BYTES: u64 = 4 << 20;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// As long as this is there, files cannot grow beyond [`FILE_BYTES_MAX`], nor can sparse ones get data there.
struct FullDisk<'a> {
    before: libc::rlimit,
    _alone: MutexGuard<'a, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl FullDisk<'_> {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `before` is a valid place for the answer, and ignoring a signal runs no code of ours.
        unsafe {
            assert_ne!(libc::signal(libc::SIGXFSZ, libc::SIG_IGN), libc::SIG_ERR);
            assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut before), 0);
        }
        set_limit(libc::rlimit { rlim_cur: FILE_BYTES_MAX, ..before });
        Self { before, _alone: alone }
    }
}

impl Drop for FullDisk<'_> {
    fn drop(&mut self) {
        set_limit(self.before);
    }
}

fn set_limit(limit: libc::rlimit) {
    // SAFETY: the limit is a valid structure that is only read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
}

fn disk(path: &Path, format: DiskFormat) -> DiskSet {
    match format {
        DiskFormat::Raw => create_raw(path, DISK_BYTES).unwrap(),
        DiskFormat::Qcow2 => create_qcow2(path, DISK_BYTES, None).unwrap(),
    }
    DiskSet::new(vec![DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap()])
}

fn content(set: &DiskSet) -> Vec<u8> {
    let mut content = vec![0xee; DISK_BYTES as usize];
    set.backends()[0].read_at(0, &mut content).unwrap();
    content
}

#[test]
fn a_full_disk_of_the_secondarys_is_reported() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let secondary = {
            let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            disk(&dir.path().join("there"), format)
        };
        let applier = DiskApplier::start(secondary.clone(), 1 << 20).unwrap();
        let _full = FullDisk::new();
        for piece in 0..DISK_BYTES / 65536 {
            let op = DiskOp::Write { offset: piece * 65536, data: vec![piece as u8 + 1; 65536] };
            applier.push(vec![DiskWrite { disk: 0, op }]);
        }
        let error = applier.drain().unwrap_err();
        assert!(matches!(*error, DiskSyncError::Image { disk: 0, .. }), "{error}");
        assert!(error.to_string().contains("there"), "{error} does not name the file");
        assert!(applier.error().is_some());
        // What comes later is not applied: it would not be what the guest did.
        applier.push(vec![DiskWrite { disk: 0, op: DiskOp::Write { offset: 0, data: vec![0xaa; 512] } }]);
        assert!(applier.drain().is_err());
        assert_eq!(content(&secondary)[..512], [1; 512]);
    }
}

/// The guest gets an error; what it then reads in that range must be what it would read after a takeover.
#[test]
fn a_write_that_fails_halfway_on_the_primary_leaves_both_sides_equal() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let (primary, secondary) = {
            let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            (disk(&dir.path().join("here"), format), disk(&dir.path().join("there"), format))
        };
        primary.start_log();
        let (mut failures, mut partly) = (0, false);
        {
            let _full = FullDisk::new();
            let guest = primary.backends();
            // Not in step with the limit, so that one write crosses it.
            for piece in 0..17 {
                let offset = 1000 * 512 + piece * 130_560;
                let result = guest[0].write_at(offset, &vec![piece as u8 + 1; 130_560]);
                failures += usize::from(result.is_err());
                let mut found = vec![0; 130_560];
                guest[0].read_at(offset, &mut found).unwrap();
                partly |= result.is_err() && found.contains(&(piece as u8 + 1));
            }
        }
        assert!((1..17).contains(&failures), "{failures}");
        assert!(partly || format == DiskFormat::Qcow2, "no write failed halfway");
        // Not while another test's disk is full: the limit is the process's.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        secondary.apply(&primary.take_log()).unwrap();
        assert!(content(&primary) == content(&secondary));
    }
}

#[test]
fn a_change_that_fails_on_too_long_a_range_makes_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let primary = {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        disk(&dir.path().join("here"), DiskFormat::Raw)
    };
    primary.start_log();
    let _full = FullDisk::new();
    assert!(primary.backends()[0].write_at(0, &vec![1; DISK_BYTES as usize]).is_err());
    assert_eq!(primary.take_log(), [DiskWrite { disk: 0, op: DiskOp::Lost }]);
}
