use machine::input::Input;

use super::*;
use crate::lockstep::log::{Entry, SegmentWriter};

/// Where the records of [`sample`] begin: its three segments, and the end.
const RECORDS: usize = 4;

fn head() -> LogFileHead {
    LogFileHead {
        epoch: Epoch::NONE,
        instructions: 1000,
        host_signature: 0x0123_4567_89ab_cdef,
        snapshot: "shop-1.snapshot".to_owned(),
        snapshot_digest: std::array::from_fn(|index| index as u8),
        positions: vec![InputPosition { end: 0x1122, frames: 7 }],
        bases: vec![BaseIdentity::Content([0xbb; 32]), BaseIdentity::Zeros],
    }
}

fn end() -> LogEnd {
    LogEnd { instructions: 4000, digest: 0x00ff_eedd_ccbb_aa99_8877_6655_4433_2211.into() }
}

/// A log file, and where each of its records begins.
fn sample() -> (Vec<u8>, Vec<usize>) {
    let head = head();
    let mut log = SegmentWriter::new(head.epoch, head.instructions, &head.positions);
    let mut file = LogFileWriter::new(Vec::new(), &head).unwrap();
    let mut offsets = Vec::new();
    for number in 1..=3 {
        log.input(1000 * number, &Input::Console(vec![b'x'; 3]));
        log.input(1000 * number + 500, &Input::ClockStep(12_345));
        if number == 2 {
            log.digest(2500, 77);
        }
        offsets.push(file.out.len());
        file.segment(&log.finish(1000 * number + 1000, number == 1)).unwrap();
    }
    offsets.push(file.out.len());
    (file.end(&end()).unwrap(), offsets)
}

/// Everything in a file up to its end.
fn read(bytes: &[u8]) -> Result<Vec<LogRecord>, LogFileError> {
    let mut reader = LogFileReader::new(bytes)?;
    assert_eq!(*reader.head(), head());
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    assert_eq!(reader.next_record()?, None);
    Ok(records)
}

#[test]
fn a_log_comes_back_as_written() {
    let (bytes, _) = sample();
    let records = read(&bytes).unwrap();
    assert_eq!(records.len(), RECORDS);
    assert_eq!(records[3], LogRecord::End(end()));
    let LogRecord::Segment(second) = &records[1] else { panic!("{:?}", records[1]) };
    assert_eq!((second.epoch, second.reached, second.entries.len()), (Epoch::new(2), 3000, 3));
    assert_eq!(second.entries[2], Entry::Digest { instructions: 2500, digest: 77 });
}

#[test]
fn the_layout_is_the_one_documented() {
    let golden = include_str!("golden.hex");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let golden: String = golden.lines().flat_map(|line| line.split('#').next()).collect();
    assert_eq!(hex(&sample().0), golden.split_whitespace().collect::<String>());
}

#[test]
fn a_file_cut_anywhere_gives_what_is_before_the_cut() {
    let (bytes, offsets) = sample();
    let whole = read(&bytes).unwrap();
    for len in 0..bytes.len() {
        let cut = read(&bytes[..len]);
        if len < offsets[0] {
            assert!(matches!(cut, Err(LogFileError::NoHead)), "{len}: {cut:?}");
            continue;
        }
        let records = cut.unwrap();
        let complete = offsets[1..].iter().filter(|&&offset| offset <= len).count();
        assert_eq!(records.len(), complete + 1, "{len}");
        assert_eq!(records[..complete], whole[..complete], "{len}");
        assert_eq!(records[complete], LogRecord::Cut { offset: offsets[complete] as u64 }, "{len}");
    }
}

#[test]
fn zeros_at_the_end_are_what_was_never_written() {
    let (bytes, offsets) = sample();
    for zeros in [8, 9, 4096, 10_000] {
        let mut torn = bytes[..offsets[2]].to_vec();
        torn.resize(offsets[2] + zeros, 0);
        assert_eq!(read(&torn).unwrap().last(), Some(&LogRecord::Cut { offset: offsets[2] as u64 }));
        *torn.last_mut().unwrap() = 1;
        let error = read(&torn).unwrap_err();
        assert!(matches!(error, LogFileError::Damaged { offset, .. } if offset == offsets[2] as u64), "{error}");
    }
}

#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let (bytes, offsets) = sample();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let error = LogFileReader::new(&damaged[..])
                .and_then(|mut reader| {
                    while reader.next_record()?.is_some() {}
                    Ok(())
                })
                .expect_err("a flipped bit is not noticed");
            let record = offsets.iter().rev().find(|&&offset| offset <= at);
            match (&error, record) {
                (LogFileError::Damaged { offset, .. }, Some(&record)) => assert_eq!(*offset, record as u64, "{at}"),
                (LogFileError::Magic, None) => assert!(at < 8, "{at}"),
                (LogFileError::Version { .. }, None) => assert!((8..12).contains(&at), "{at}"),
                (LogFileError::Head(_) | LogFileError::NoHead, None) => assert!(at >= 12, "{at}"),
                _ => panic!("byte {at} bit {bit}: {error}"),
            }
        }
    }
}

#[test]
fn records_that_are_missing_repeated_or_from_elsewhere_are_found() {
    let (bytes, offsets) = sample();
    let damaged_at = |bytes: &[u8]| match read(bytes) {
        Err(LogFileError::Damaged { offset, .. }) => offset as usize,
        other => panic!("{other:?}"),
    };
    let without_second = [&bytes[..offsets[1]], &bytes[offsets[2]..]].concat();
    assert_eq!(damaged_at(&without_second), offsets[1]);
    let second_twice = [&bytes[..offsets[2]], &bytes[offsets[1]..]].concat();
    assert_eq!(damaged_at(&second_twice), offsets[2]);
    assert_eq!(damaged_at(&[&bytes[..], b"x"].concat()), offsets[3]);
}

#[test]
fn a_head_that_makes_no_sense_is_refused() {
    let refused = |head: &LogFileHead| LogFileReader::new(&head.encode().unwrap()[..]).unwrap_err().to_string();
    for snapshot in ["../other/shop-1.snapshot", "/shop-1.snapshot", "", ".."] {
        assert!(
            refused(&LogFileHead { snapshot: snapshot.to_owned(), ..head() }).contains("same folder"),
            "{snapshot}"
        );
    }
    let too_many = LogFileHead { positions: vec![InputPosition::default(); 300], ..head() };
    assert!(LogFileWriter::new(Vec::new(), &too_many).is_err());
    let mut other_version = sample().0;
    other_version[8] = 9;
    let message = LogFileReader::new(&other_version[..]).unwrap_err().to_string();
    assert!(message.contains("9.1") && message.contains("1.1"), "{message}");
    assert!(matches!(LogFileReader::new(&b"TWINVMSN and something else"[..]), Err(LogFileError::Magic)));
}
