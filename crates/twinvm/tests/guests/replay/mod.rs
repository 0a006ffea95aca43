//! `twinvm run` records what reaches a guest, and `twinvm replay` repeats it offline: same instructions, same console, same last state.

mod recorded;

use std::fs::{self, File};
use std::path::Path;

use machine::input::{Input, InputEvent};
use replication::lockstep::file::{LogEnd, LogFileReader, LogFileWriter, LogRecord};
use replication::lockstep::log::{Entry, SegmentWriter};
use replication::lockstep::next_digest_at;

use self::recorded::{Recorded, copy_of, recorded, refused, replay, run, run_replay, wait_until};
use crate::support::guest::image;
use crate::support::images;

#[test]
fn a_replay_from_any_folder_ends_in_the_recorded_state() {
    let Recorded { instructions, digest, console, disk, .. } = recorded();
    let disk_before = fs::read(disk).unwrap();
    for _ in 0..2 {
        let folder = copy_of(recorded());
        let (outcome, output) = replay(folder.path(), &["vm-1.log"]);
        assert_eq!(outcome["stopped_at"], "end", "{outcome}");
        assert_eq!(outcome["digest"], digest.as_str());
        assert_eq!(outcome["instructions"], *instructions);
        assert!(outcome["digests_compared"].as_u64().unwrap() >= instructions / 10_000_000 - 1, "{outcome}");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.starts_with(console), "the guest's console is another one:\n{output}");
        assert!(output.trim_end().ends_with(digest.as_str()), "{output}");
    }
    assert!(fs::read(disk).unwrap() == disk_before, "the replay has changed the VM's own disk");
}

#[test]
fn a_replay_stops_at_any_instruction_and_is_the_same_each_time() {
    let Recorded { instructions, digest, .. } = recorded();
    let folder = copy_of(recorded());
    let until = |until: u64| {
        let (outcome, output) = replay(folder.path(), &["vm-1.log", "--quiet", "--until", &until.to_string()]);
        assert_eq!(outcome["instructions"], until);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("Linux version"), "it was to be quiet");
        outcome["digest"].as_str().unwrap().to_owned()
    };
    let half = instructions / 2 + 1;
    let first = until(half);
    assert_eq!(until(half), first);
    assert_ne!(until(half + 1), first);
    assert_eq!(until(*instructions), *digest);
    let beyond = refused(folder.path(), &["vm-1.log", "--until", &(instructions + 1).to_string()]);
    assert!(beyond.contains(&format!("ends after {instructions} instructions")), "{beyond}");
}

/// It wrote a file that was called `-`.
#[test]
fn row_23_the_result_goes_to_standard_output_as_json_alone() {
    let folder = copy_of(recorded());
    let output = run_replay(folder.path(), &["vm-1.log", "--json", "-", "--until", "1000000"]);
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["stopped_at"], &outcome["instructions"]), (&"until".into(), &1_000_000.into()));
    assert!(!folder.path().join("-").exists());
}

#[test]
fn a_damaged_log_is_refused_and_says_where() {
    let folder = copy_of(recorded());
    let log = folder.path().join("vm-1.log");
    let mut bytes = fs::read(&log).unwrap();
    let at = bytes.len() / 8;
    bytes[at] ^= 0x20;
    fs::write(&log, &bytes).unwrap();
    let message = refused(folder.path(), &["vm-1.log"]);
    let number_after = |text: &str| {
        let (_, rest) = message.split_once(text).unwrap_or_else(|| panic!("{text:?} is not in: {message}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
    };
    let record_at = number_after("damaged at byte ");
    assert!(record_at <= at && at < record_at + (1 << 20), "byte {at}: {message}");
    let until = number_after("--until ").to_string();
    assert_eq!(replay(folder.path(), &["vm-1.log", "--until", &until]).0["stopped_at"], "until");
}

#[test]
fn a_log_that_is_cut_off_replays_as_far_as_it_goes() {
    let folder = copy_of(recorded());
    let log = folder.path().join("vm-1.log");
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() / 3]).unwrap();
    let (outcome, output) = replay(folder.path(), &["vm-1.log"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warning.contains("cut off at byte"), "{warning}");
    assert_eq!(outcome["stopped_at"], "cut", "{outcome}");
    assert!(outcome["digests_compared"].as_u64().unwrap() > 0, "{outcome}");
    assert!(outcome["instructions"].as_u64().unwrap() < recorded().instructions, "{outcome}");
    fs::write(&log, &bytes[..50]).unwrap();
    assert!(refused(folder.path(), &["vm-1.log"]).contains("cut short"));
}

#[test]
fn a_snapshot_that_does_not_belong_is_refused() {
    let folder = copy_of(recorded());
    let snapshot = folder.path().join("vm-1.snapshot");
    let mut bytes = fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&snapshot, &bytes).unwrap();
    assert!(refused(folder.path(), &["vm-1.log"]).contains("vm-1.snapshot is not the one"));
    fs::remove_file(&snapshot).unwrap();
    assert!(refused(folder.path(), &["vm-1.log"]).contains("vm-1.snapshot is missing"));
    fs::write(&snapshot, b"").unwrap();
    assert!(refused(folder.path(), &["vm-1.snapshot"]).contains("cut short"));
    fs::write(&snapshot, b"something else altogether").unwrap();
    assert!(refused(folder.path(), &["vm-1.snapshot"]).contains("not a log"));
}

#[test]
fn a_replay_that_differs_is_found_out() {
    let folder = copy_of(recorded());
    let log = folder.path().join("vm-1.log");
    // The same log, but for one tick of the clock.
    let mut reader = LogFileReader::new(File::open(&log).unwrap()).unwrap();
    let head = reader.head().clone();
    let mut writer = LogFileWriter::new(Vec::new(), &head).unwrap();
    let mut segments = SegmentWriter::new(head.epoch, head.instructions, &head.positions);
    let mut changed_at = None;
    while let Some(LogRecord::Segment(segment)) = reader.next_record().unwrap() {
        for entry in segment.entries {
            match entry {
                Entry::Input(InputEvent { instructions, mut input }) => {
                    if let (Input::ClockStep(ticks), None) = (&mut input, changed_at) {
                        *ticks += 1;
                        changed_at = Some(instructions);
                    }
                    segments.input(instructions, &input);
                }
                Entry::Digest { instructions, digest } => segments.digest(instructions, digest),
            }
        }
        writer.segment(&segments.finish(segment.reached, segment.has_output)).unwrap();
    }
    let end = LogEnd { instructions: 1, digest: 0.into() };
    fs::write(&log, writer.end(&end).unwrap()).unwrap();
    let message = refused(folder.path(), &["vm-1.log"]);
    let due_at = next_digest_at(changed_at.unwrap());
    assert!(message.contains(&format!("differs from what was recorded: after {due_at} instructions")), "{message}");
}

/// A spec without disk and network, of a VM that runs a command in its initial RAM disk.
fn tiny(folder: &Path, command: &str, more: &str) {
    image(&images::tiny());
    let spec = format!(
        "name = \"vm\"\nmemory = \"128M\"\nimage = \"test-tiny\"\nrecord = \"records\"\n\
         cmdline = 'console=ttyS0 quiet twinvm.run=\"{command}\"'\n{more}"
    );
    fs::write(folder.join("vm.toml"), spec).unwrap();
}

#[test]
fn a_reset_begins_a_log_of_its_own_and_a_killed_run_leaves_one_that_replays() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path(), "reboot -f", "");
    let mut vm = run(folder.path());
    let records = folder.path().join("records");
    let second = records.join("vm-2.log");
    wait_until("the second log grows", || fs::metadata(&second).is_ok_and(|file| file.len() > 10_000));
    vm.kill().unwrap();
    vm.wait().unwrap();
    assert_eq!(replay(&records, &["vm-1.log"]).0["stopped_at"], "end");
    assert_eq!(replay(&records, &["vm-2.log"]).0["stopped_at"], "cut");
}

#[test]
fn a_disk_that_is_not_in_the_snapshot_must_be_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.img");
    fs::write(&data, vec![7; 1 << 20]).unwrap();
    let disk = "[[disk]]\npath = \"data.img\"\nformat = \"raw\"\nreadonly = true\n";
    tiny(folder.path(), "md5sum /dev/vda", disk);
    assert!(run(folder.path()).wait().unwrap().success());
    let records = folder.path().join("records");
    let (outcome, output) = replay(&records, &["vm-1.log"]);
    assert_eq!(outcome["stopped_at"], "end");
    let console = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(console.contains("exit status 0"), "{console}");
    fs::write(&data, vec![8; 1 << 20]).unwrap();
    let message = refused(&records, &["vm-1.log"]);
    assert!(message.contains("data.img is not in the snapshot, and does not hold what it held"), "{message}");
    fs::remove_file(&data).unwrap();
    assert!(refused(&records, &["vm-1.log"]).contains("data.img cannot be replayed"));
}

#[test]
fn a_vm_that_cannot_be_recorded_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path(), "true", "");
    let spec = folder.path().join("vm.toml");
    let message = recorded::refusal(folder.path(), &["run", spec.to_str().unwrap(), "--engine", "kvm", "--json"]);
    assert!(message.contains("--engine soft"), "{message}");
    assert!(!folder.path().join("records").exists());
}
