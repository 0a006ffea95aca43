//! [`PageEncoder`]: from captured pages to records.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::records::{Kind, put};
use super::sent::SentPages;
use super::word_runs::{self, Changes};
use super::{Encoding, EncodingCounts, PAGE, PageContent};

/// Word runs are not tried to be beaten by LZ4, which takes several times as long, up to so many changed words of 512.
const FEW_WORDS: u32 = 96;
/// With more changed words than this the page alone may well be shorter than the difference.
const MANY_WORDS: u32 = 256;

/// Compressing is tried on every page until so many in a row did not pay,
const LOSSES_MAX: u8 = 8;
/// and then on one page of so many.
const PAGES_PER_TRIAL: u8 = 16;

/// Whether compressing pays at the moment. LZ4 takes ten times as long as word runs and gains nothing where what a guest writes looks random.
#[derive(Default)]
struct Trials {
    losses: u8,
    skipped: u8,
}

impl Trials {
    fn is_due(&mut self) -> bool {
        if self.losses < LOSSES_MAX {
            return true;
        }
        self.skipped = (self.skipped + 1) % PAGES_PER_TRIAL;
        self.skipped == 0
    }

    fn ended(&mut self, compressed: Option<&[u8]>, len_without: usize) {
        let paid = compressed.is_some_and(|compressed| compressed.len() < len_without * 3 / 4);
        self.losses = if paid { 0 } else { self.losses.saturating_add(1) };
    }
}

/// Encodes pages as differences from the versions of them that were sent last, of which it keeps a bounded number.
pub struct PageEncoder {
    sent: SentPages,
    table: CompressTable,
    scratch: Box<Scratch>,
    delta_trials: Trials,
    plain_trials: Trials,
    counts: EncodingCounts,
}

/// What is made of a page before the shortest of it goes out.
struct Scratch {
    difference: PageContent,
    runs: Vec<u8>,
    delta: Vec<u8>,
    plain: Vec<u8>,
}

impl PageEncoder {
    /// An encoder that keeps at most `cache_bytes_max` bytes of sent pages. The memory is touched as pages come.
    pub fn new(cache_bytes_max: u64) -> Self {
        let scratch = Scratch {
            difference: [0; PAGE],
            runs: Vec::with_capacity(word_runs::BYTES_MAX),
            delta: vec![0; get_maximum_output_size(PAGE)],
            plain: vec![0; get_maximum_output_size(PAGE)],
        };
        Self {
            sent: SentPages::new(cache_bytes_max),
            table: CompressTable::default(),
            scratch: Box::new(scratch),
            delta_trials: Trials::default(),
            plain_trials: Trials::default(),
            counts: EncodingCounts::default(),
        }
    }

    /// Appends the record of a page of [`crate::GuestRam`] to `out`: at most [`super::RECORD_BYTES_MAX`] bytes, and nothing
    /// if its content is what was sent last.
    pub fn encode(&mut self, page: u64, content: &PageContent, out: &mut Vec<u8>) -> Encoding {
        let start = out.len();
        let encoding = self.append(page, content, out);
        self.counts.add(encoding, out.len() - start);
        encoding
    }

    fn append(&mut self, page: u64, content: &PageContent, out: &mut Vec<u8>) -> Encoding {
        let is_zero = content.as_chunks::<64>().0.iter().all(|line| *line == [0; 64]);
        let Some(sent) = self.sent.find(page) else {
            if is_zero {
                // A place in the cache is worth more to other pages: what comes into this one is as short without.
                return put(out, page, Kind::Zero, &[]);
            }
            self.sent.insert(page, content);
            let plain = compress(content, &mut self.table, &mut self.scratch.plain);
            return put_plain(out, page, content, plain);
        };
        let changes = Changes::between(sent, content);
        let changed = changes.len();
        if changed == 0 {
            return Encoding::Unchanged;
        }
        if is_zero {
            *sent = *content;
            return put(out, page, Kind::Zero, &[]);
        }
        let Scratch { difference, runs, delta, plain } = &mut *self.scratch;
        runs.clear();
        if changed <= FEW_WORDS {
            word_runs::write(&changes, sent, content, runs);
            return put(out, page, Kind::WordRuns, runs);
        }
        let mut shorter = None;
        if self.delta_trials.is_due() {
            for ((difference, sent), new) in difference.iter_mut().zip(sent.iter()).zip(content) {
                *difference = sent ^ new;
            }
            shorter = compress(difference, &mut self.table, delta);
            self.delta_trials.ended(shorter, changed as usize * 8);
        }
        word_runs::write(&changes, sent, content, runs);
        shorter = shorter.filter(|delta| delta.len() < runs.len());
        if changed > MANY_WORDS && self.plain_trials.is_due() {
            let shortest = shorter.map_or(runs.len(), <[u8]>::len);
            let plain = compress(content, &mut self.table, plain);
            self.plain_trials.ended(plain, shortest);
            if let Some(plain) = plain.filter(|plain| plain.len() <= shortest) {
                return put(out, page, Kind::Lz4, plain);
            }
        }
        match shorter {
            Some(delta) => put(out, page, Kind::Delta, delta),
            None if runs.len() > PAGE => put(out, page, Kind::Raw, content),
            None => put(out, page, Kind::WordRuns, runs),
        }
    }

    /// Forgets what was sent: for a receiver that does not have it, or no longer for certain.
    pub fn clear(&mut self) {
        self.sent.clear();
    }

    /// What was encoded since the encoder was made.
    pub fn counts(&self) -> &EncodingCounts {
        &self.counts
    }

    /// Memory that the cache of sent pages uses now, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.sent.bytes()
    }
}

/// The page as an LZ4 block in `buffer`, if that is shorter than the page.
fn compress<'a>(page: &PageContent, table: &mut CompressTable, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let len = compress_into_with_table(page, buffer, table).ok()?;
    buffer.get(..len).filter(|_| len < PAGE)
}

fn put_plain(out: &mut Vec<u8>, page: u64, content: &PageContent, compressed: Option<&[u8]>) -> Encoding {
    match compressed {
        Some(compressed) => put(out, page, Kind::Lz4, compressed),
        None => put(out, page, Kind::Raw, content),
    }
}
