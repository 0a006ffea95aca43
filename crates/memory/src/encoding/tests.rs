//! Round trips, garbage, and figures.

use proptest::prelude::*;

use super::*;
use crate::ram::GuestRam;

const PAGES: u64 = 64;

/// Small and good enough: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }
}

fn content(ram: &GuestRam, page: u64) -> PageContent {
    let mut content = [0; PAGE];
    assert!(ram.read_offset(page * PAGE_BYTES, &mut content));
    content
}

/// Changes a page as a guest might.
fn mutate(ram: &GuestRam, page: u64, random: &mut Random) {
    let mut bytes = content(ram, page);
    match random.below(8) {
        0 => bytes = [0; PAGE],
        1 => bytes.fill(random.next() as u8),
        2 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
        3 => {
            let words = [random.next() as u8; 24];
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = words[at % 24].wrapping_add((at / 100) as u8);
            }
        }
        4 => {}
        _ => {
            for _ in 0..random.below(300) {
                let at = random.below(PAGE as u64 - 8) as usize;
                bytes[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
            }
        }
    }
    ram.write_offset(page * PAGE_BYTES, &bytes);
}

#[test]
fn the_receiver_holds_what_the_sender_does_after_each_round() {
    for (seed, cache_pages) in [(1, 0), (2, 8), (3, 24), (4, 200)] {
        let mut random = Random(seed);
        let (primary, secondary) =
            (GuestRam::new(PAGES * PAGE_BYTES).unwrap(), GuestRam::new(PAGES * PAGE_BYTES).unwrap());
        let mut encoder = PageEncoder::new(cache_pages * 5000);
        let mut captured = CapturedPages::new();
        let mut records = Vec::new();
        for round in 0..300 {
            for _ in 0..random.below(40) {
                mutate(&primary, random.below(PAGES), &mut random);
            }
            if random.below(50) == 0 {
                encoder.clear();
            }
            let harvest = primary.harvest();
            captured.capture(&primary, harvest.pages());
            records.clear();
            let mut expected = 0;
            for (page, content) in captured.iter() {
                let before = records.len();
                let encoding = encoder.encode(page, content, &mut records);
                assert_eq!(records.len() == before, encoding == Encoding::Unchanged);
                assert!(records.len() - before <= RECORD_BYTES_MAX);
                expected += usize::from(encoding != Encoding::Unchanged);
            }
            harvest.acknowledge();
            assert_eq!(check(&records, PAGES), Ok(expected), "seed {seed}, round {round}");
            secondary.harvest().acknowledge();
            apply(&records, &secondary).unwrap();
            for page in 0..PAGES {
                assert!(
                    content(&primary, page) == content(&secondary, page),
                    "seed {seed}, round {round}, page {page}"
                );
            }
            assert_eq!(secondary.harvest().len(), expected as u64, "applying marks pages");
        }
        let counts = *encoder.counts();
        for encoding in Encoding::ALL {
            let is_difference = matches!(encoding, Encoding::Unchanged | Encoding::WordRuns | Encoding::Delta);
            assert!(counts.of(encoding).pages > 0 || is_difference && cache_pages == 0, "seed {seed}: {encoding:?}");
        }
        assert!(encoder.cache_bytes() <= cache_pages * 5000);
    }
}

#[test]
fn each_kind_is_chosen_where_it_is_the_shortest() {
    let mut random = Random(7);
    let mut encoder = PageEncoder::new(1 << 20);
    let mut out = Vec::new();
    let noise: PageContent = std::array::from_fn(|_| random.next() as u8);
    assert_eq!(encoder.encode(5, &[0; PAGE], &mut out), Encoding::Zero);
    assert_eq!(out, [5, 0, 0, 0, 0, 0, 0, 0]);
    out.clear();
    assert_eq!(encoder.encode(0x123, &noise, &mut out), Encoding::Raw);
    assert_eq!(out[..8], [0x23, 1, 0, 0, 0, 4, 0, 0x10]);
    assert_eq!(out[8..], noise);
    out.clear();
    assert_eq!(encoder.encode(0x123, &noise, &mut out), Encoding::Unchanged);
    assert!(out.is_empty());
    let mut changed = noise;
    changed[24] ^= 0xff;
    changed[33] ^= 1;
    assert_eq!(encoder.encode(0x123, &changed, &mut out), Encoding::WordRuns);
    let run = [3, 1 << 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(out, [&[0x23, 1, 0, 0, 0, 1, 18, 0][..], &run].concat());
    let inverted = changed.map(|byte| !byte);
    assert_eq!(encoder.encode(0x123, &inverted, &mut out), Encoding::Delta);
    let text: PageContent = std::array::from_fn(|at| (at / 7 % 50) as u8);
    assert_eq!(encoder.encode(0x123, &text, &mut out), Encoding::Lz4);
    assert_eq!(encoder.encode(0x123, &[0; PAGE], &mut out), Encoding::Zero);
    assert_eq!(encoder.encode(0x123, &[0; PAGE], &mut out), Encoding::Unchanged);
    encoder.clear();
    assert_eq!(encoder.encode(0x123, &noise, &mut out), Encoding::Raw);
    let total = encoder.counts().total();
    assert_eq!((total.pages, encoder.counts().of(Encoding::Raw).bytes), (9, 2 * (8 + 4096)));
}

#[test]
fn records_that_are_not_valid_are_refused_with_their_offset() {
    let header = |page: u64, kind: u64, len: u64| (page | kind << 40 | len << 48).to_le_bytes().to_vec();
    let good = header(1, 0, 0);
    let after_good = |record: Vec<u8>| [good.clone(), record].concat();
    let at = 8;
    let payload = |encoding, len| Err(EncodingError::Payload { at, encoding, len });
    let cases = [
        (vec![9; 7], Err(EncodingError::Truncated { at })),
        (header(PAGES, 0, 0), Err(EncodingError::Page { at, page: PAGES, pages: PAGES })),
        (header(1, 5, 0), Err(EncodingError::Kind { at, kind: 5 })),
        (header(1, 4, 4096), Err(EncodingError::Truncated { at })),
        ([header(1, 4, 10), vec![0; 10]].concat(), payload(Encoding::Raw, 10)),
        ([header(1, 0, 1), vec![0; 1]].concat(), payload(Encoding::Zero, 1)),
        (header(1, 1, 0), payload(Encoding::WordRuns, 0)),
        ([header(1, 1, 1), vec![0; 1]].concat(), payload(Encoding::WordRuns, 1)),
        ([header(1, 1, 9), vec![0; 9]].concat(), payload(Encoding::WordRuns, 9)),
        // One word, and one after it that lies beyond the page.
        (
            [header(1, 1, 20), vec![0; 10], vec![0xff, 1, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
            payload(Encoding::WordRuns, 20),
        ),
        ([header(1, 2, 0)].concat(), payload(Encoding::Delta, 0)),
        ([header(1, 3, 2), vec![0x10, 7]].concat(), payload(Encoding::Lz4, 2)),
        ([header(1, 3, 4096), vec![0; 4096]].concat(), payload(Encoding::Lz4, 4096)),
        ([header(1, 1, 10), vec![0xff, 1, 1, 2, 3, 4, 5, 6, 7, 8]].concat(), Ok(2)),
    ];
    for (record, expected) in cases {
        let records = after_good(record);
        assert_eq!(check(&records, PAGES), expected);
        // Whatever was checked applies; the rest must do no harm.
        let applied = apply(&records, &GuestRam::new(PAGES * PAGE_BYTES).unwrap());
        assert!(applied.is_ok() || expected.is_err());
    }
    assert_eq!(check(&[], 0), Ok(0));
}

/// Valid records with some bytes changed: near the edge of what is valid.
#[test]
fn damaged_records_never_panic_and_what_passes_applies() {
    let mut random = Random(99);
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    let mut encoder = PageEncoder::new(PAGES * 5000);
    let mut passed = 0;
    for _ in 0..3000 {
        let mut records = Vec::new();
        for _ in 0..1 + random.below(4) {
            let page = random.below(PAGES);
            mutate(&ram, page, &mut random);
            encoder.encode(page, &content(&ram, page), &mut records);
        }
        for _ in 0..random.below(4) {
            if !records.is_empty() {
                let at = random.below(records.len() as u64) as usize;
                records[at] = random.next() as u8;
            }
        }
        if random.below(4) == 0 {
            records.truncate(random.below(records.len() as u64 + 1) as usize);
        }
        if check(&records, PAGES).is_ok() {
            apply(&records, &ram).unwrap();
            passed += 1;
        } else {
            let _ = apply(&records, &ram);
        }
    }
    assert!((100..2900).contains(&passed), "{passed}");
}

proptest! {
    #[test]
    fn any_change_of_a_page_survives(
        old in proptest::collection::vec(any::<u8>(), PAGE),
        edits in proptest::collection::vec((0..PAGE, any::<u8>(), 1..600usize), 0..20),
        tile in 1..2000usize,
    ) {
        let old: PageContent = std::array::from_fn(|at| old[at % tile]);
        let mut new = old;
        for (at, byte, len) in edits {
            let end = (at + len).min(PAGE);
            new[at..end].fill(byte);
        }
        let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
        let mut encoder = PageEncoder::new(1 << 20);
        for page in [&old, &new, &old, &[0; PAGE], &new] {
            let mut records = Vec::new();
            encoder.encode(3, page, &mut records);
            prop_assert!(check(&records, PAGES).is_ok());
            apply(&records, &ram).unwrap();
            prop_assert!(content(&ram, 3) == *page);
        }
    }

    #[test]
    fn garbage_is_refused_or_applies(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6u8) {
        let mut records = bytes;
        if let Some(header) = records.first_chunk_mut::<8>() {
            let len = 200u64.saturating_sub(8);
            let page = u64::from(header[0]) % (PAGES + 1);
            *header = (page | u64::from(kind) << 40 | len.min(u64::from(header[6])) << 48).to_le_bytes();
        }
        let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
        if check(&records, PAGES).is_ok() {
            prop_assert!(apply(&records, &ram).is_ok());
        }
    }
}

#[test]
fn a_capture_copies_and_leaves_out_what_is_not_there() {
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    let mut captured = CapturedPages::new();
    captured.reserve(3);
    assert!(captured.is_empty() && captured.capacity() >= 3);
    for pages in [vec![1, 5, PAGES, u64::MAX, 63], vec![5], vec![]] {
        for &page in &pages {
            ram.write_offset(page.saturating_mul(PAGE_BYTES), &[(page as u8).wrapping_add(1); PAGE]);
        }
        captured.capture(&ram, pages.iter().copied());
        ram.write_offset(5 * PAGE_BYTES, &[0; PAGE]);
        let expected: Vec<_> = pages.into_iter().filter(|&page| page < PAGES).collect();
        assert_eq!(captured.len(), expected.len());
        assert!(captured.iter().map(|(page, _)| page).eq(expected));
        assert!(captured.iter().all(|(page, content)| *content == [page as u8 + 1; PAGE]));
    }
    captured.clear();
    assert!(captured.is_empty());
}
