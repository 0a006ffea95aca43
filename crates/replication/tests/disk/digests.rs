//! Digests that are kept between first copies: what is not read again, and that nothing is missed by that.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;
use replication::disk::{BLOCK_BYTES, DiskCopy, DiskSet, DiskSummary, SummaryReader, SummaryWriter};
use spec::DiskFormat;
use storage::disk::{create_qcow2, create_raw};
use tempfile::TempDir;

use crate::pair::{SIZE, Step, assert_equal, copy_all, copy_piece, open, perform, perform_all, step, steps};

/// One disk on two hosts, whose replicas come and go.
struct Hosts {
    dir: TempDir,
    format: DiskFormat,
}

/// The replicas' disks.
struct Replicas {
    primary: DiskSet,
    secondary: DiskSet,
}

impl Hosts {
    fn new(format: DiskFormat) -> Self {
        let hosts = Self { dir: tempfile::tempdir().unwrap(), format };
        for host in ["here", "there"] {
            fs::create_dir(hosts.dir.path().join(host)).unwrap();
            match format {
                DiskFormat::Raw => create_raw(&hosts.disk(host), SIZE).unwrap(),
                DiskFormat::Qcow2 => create_qcow2(&hosts.disk(host), SIZE, None).unwrap(),
            }
        }
        hosts
    }

    /// The same after first copies of a disk that is full, and after replicas that have ended in order: each host has on record what it holds.
    fn that_know_their_disks(format: DiskFormat) -> Self {
        let hosts = Self::new(format);
        let replicas = hosts.open();
        fill(&replicas.primary);
        replicas.copy();
        replicas.copy();
        replicas.close();
        hosts
    }

    fn disk(&self, host: &str) -> PathBuf {
        self.dir.path().join(host).join("disk0")
    }

    fn record(&self, host: &str) -> PathBuf {
        self.dir.path().join(host).join("digests-0")
    }

    fn open(&self) -> Replicas {
        let set = |host: &str| {
            let set = DiskSet::new(vec![open(&self.disk(host), self.format)]);
            set.recall_digests(&self.dir.path().join(host));
            set
        };
        Replicas { primary: set("here"), secondary: set("there") }
    }
}

impl Replicas {
    /// The secondary's summary, and how much of its disk was read for it.
    fn summary(&self) -> (DiskSummary, u64) {
        let mut writer = SummaryWriter::new(&self.secondary, &self.primary.describe().unwrap()).unwrap();
        let mut reader = SummaryReader::new(&self.primary).unwrap();
        loop {
            let mut piece = Vec::new();
            writer.next_piece(&mut piece).unwrap();
            if let Some(summary) = reader.push(&piece).unwrap() {
                return (summary, writer.read_bytes());
            }
        }
    }

    /// A whole first copy: bytes read there, read here to be compared, and bytes that differed.
    fn copy(&self) -> (u64, u64, u64) {
        let (summary, read_bytes) = self.summary();
        let mut copy = DiskCopy::new(&self.primary, summary).unwrap();
        copy_all(&mut copy, &self.secondary);
        self.primary.stop_log();
        assert_equal(&self.primary, &self.secondary);
        (read_bytes, copy.compared_bytes(), copy.differing_bytes())
    }

    /// As a replica that ends in order.
    fn close(self) {
        self.primary.record_digests().unwrap();
        self.secondary.record_digests().unwrap();
    }
}

fn fill(set: &DiskSet) {
    perform_all(set, &[Step::Write(0, SIZE as usize, 85)]);
}

#[test]
fn what_was_not_written_since_is_not_read_again() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let hosts = Hosts::new(format);
        let replicas = hosts.open();
        fill(&replicas.primary);
        assert_eq!(replicas.copy(), (0, SIZE, SIZE), "{format:?}: there is nothing there");
        // The secondary has seen whole blocks come, the primary has yet to compute what they are.
        assert_eq!(replicas.copy(), (0, SIZE, 0), "{format:?}");
        assert_eq!(replicas.copy(), (0, 0, 0), "{format:?}");
        // One sector is changed on either side: its block is read again, there.
        perform_all(&replicas.primary, &[Step::Write(3 * BLOCK_BYTES, 512, 170)]);
        assert_eq!(replicas.copy(), (0, BLOCK_BYTES, BLOCK_BYTES), "{format:?}");
        perform_all(&replicas.secondary, &[Step::Write(5 * BLOCK_BYTES - 512, 1024, 170)]);
        assert_eq!(replicas.copy(), (2 * BLOCK_BYTES, 0, 2 * BLOCK_BYTES), "{format:?}");
        assert_eq!(replicas.copy(), (0, 0, 0), "{format:?}");
        // The next processes know it as well.
        replicas.close();
        let replicas = hosts.open();
        assert_eq!(replicas.copy(), (0, 0, 0), "{format:?}");
        replicas.close();
        // Those that are killed leave what was recorded, as long as they have written nothing.
        drop(hosts.open());
        let replicas = hosts.open();
        perform_all(&replicas.primary, &[Step::Flush]);
        if format == DiskFormat::Raw {
            // A qcow2 image may be written to when it is opened.
            assert_eq!(replicas.copy(), (0, 0, 0), "{format:?}");
        }
    }
}

#[test]
fn a_process_that_was_killed_leaves_no_record_of_what_it_has_written() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let hosts = Hosts::that_know_their_disks(format);
        let replicas = hosts.open();
        for host in ["here", "there"] {
            assert!(hosts.record(host).exists(), "{format:?}");
        }
        // The first write of each: by a guest, and from the log.
        replicas.primary.start_log();
        let guest = replicas.primary.backends().remove(0);
        guest.write_at(BLOCK_BYTES, &[3; 512]).unwrap();
        assert!(!hosts.record("here").exists() && hosts.record("there").exists(), "{format:?}");
        replicas.secondary.apply(&replicas.primary.take_log()).unwrap();
        assert!(!hosts.record("there").exists(), "{format:?}");
        drop((guest, replicas));
        assert_eq!(hosts.open().copy().2, 0, "{format:?}");
    }
}

/// As by a guest's write that fails, after which the range may hold anything.
#[test]
fn a_record_is_gone_before_anything_is_written() {
    let hosts = Hosts::that_know_their_disks(DiskFormat::Raw);
    let replicas = hosts.open();
    // It cannot be removed.
    fs::remove_file(hosts.record("here")).unwrap();
    fs::create_dir(hosts.record("here")).unwrap();
    let guest = replicas.primary.backends().remove(0);
    let before = fs::read(hosts.disk("here")).unwrap();
    let error = guest.write_at(0, &[7; 512]).unwrap_err();
    assert!(error.to_string().contains("forget the digests"), "{error}");
    guest.discard(0, BLOCK_BYTES).unwrap_err();
    assert!(fs::read(hosts.disk("here")).unwrap() == before);
    fs::remove_dir(hosts.record("here")).unwrap();
    guest.write_at(0, &[7; 512]).unwrap();
    assert_eq!(replicas.copy(), (0, BLOCK_BYTES, BLOCK_BYTES));
}

#[test]
fn a_disk_that_somebody_else_has_written_is_compared_anew() {
    for (host, format) in [
        ("here", DiskFormat::Raw),
        ("there", DiskFormat::Raw),
        ("here", DiskFormat::Qcow2),
        ("there", DiskFormat::Qcow2),
    ] {
        let hosts = Hosts::that_know_their_disks(format);
        match format {
            // As `dd` does, past all locks.
            DiskFormat::Raw => {
                let file = fs::File::options().write(true).open(hosts.disk(host)).unwrap();
                file.write_all_at(&[9; 512], 7 * BLOCK_BYTES).unwrap();
            }
            // As `qemu-io` does.
            DiskFormat::Qcow2 => {
                let mut image = open(&hosts.disk(host), format);
                image.write_at(7 * BLOCK_BYTES, &[9; 512]).unwrap();
                image.flush().unwrap();
            }
        }
        assert_eq!(hosts.open().copy().2, BLOCK_BYTES, "{host}, {format:?}");
    }
}

#[test]
fn a_record_of_another_host_or_time_is_not_believed() {
    let hosts = Hosts::that_know_their_disks(DiskFormat::Raw);
    let [here, there] = ["here", "there"].map(|host| fs::read(hosts.record(host)).unwrap());
    let replicas = hosts.open();
    perform_all(&replicas.primary, &[Step::Write(0, 512, 170)]);
    drop(replicas);
    // An older record comes back, as by a backup of the folder; the other host's; one that was cut short.
    for record in [&here[..], &there[..], &here[..here.len() / 2]] {
        fs::write(hosts.record("here"), record).unwrap();
        let replicas = hosts.open();
        assert!(!hosts.record("here").exists());
        let (summary, _) = replicas.summary();
        let mut copy = DiskCopy::new(&replicas.primary, summary).unwrap();
        copy_all(&mut copy, &replicas.secondary);
        assert_equal(&replicas.primary, &replicas.secondary);
        assert_eq!(copy.compared_bytes(), SIZE, "all of it is read");
    }
}

/// What happens to the replicas between two first copies.
#[derive(Clone, Copy, Debug)]
enum Turn {
    GoOn,
    End,
    Killed,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![Just(Turn::GoOn), Just(Turn::End), Just(Turn::Killed)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever was written in between, by whichever side, and whenever the processes were others.
    #[test]
    fn copies_by_kept_digests_end_with_equal_disks(
        format in prop_oneof![Just(DiskFormat::Raw), Just(DiskFormat::Qcow2)],
        rounds in prop::collection::vec((steps(), steps(), prop::collection::vec(step(), 0..6), turn()), 1..5),
    ) {
        let hosts = Hosts::new(format);
        let mut replicas = hosts.open();
        for (newer, stale, during, turn) in rounds {
            perform_all(&replicas.primary, &newer);
            perform_all(&replicas.secondary, &stale);
            let (summary, _) = replicas.summary();
            let mut copy = DiskCopy::new(&replicas.primary, summary).unwrap();
            let guest = replicas.primary.backends();
            for step in &during {
                perform(&*guest[0], step);
                copy_piece(&mut copy, &replicas.secondary);
            }
            copy_all(&mut copy, &replicas.secondary);
            replicas.secondary.apply(&replicas.primary.take_log()).unwrap();
            replicas.primary.stop_log();
            assert_equal(&replicas.primary, &replicas.secondary);
            drop((guest, copy));
            match turn {
                Turn::GoOn => continue,
                Turn::End => replicas.close(),
                Turn::Killed => drop(replicas),
            }
            replicas = hosts.open();
        }
    }
}
