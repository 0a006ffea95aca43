//! [`ParallelEncoder`]: several encoders, each for its part of all pages, at work side by side where there is much to encode.

use std::thread;

use super::{Encoding, EncodingCounts, PageContent, PageEncoder};

/// With fewer pages, starting threads takes longer than they save.
const PAGES_MIN: usize = 128;

/// The records of many pages, in pieces that can be sent one by one. Made once and reused.
#[derive(Default)]
pub struct EncodedPages {
    parts: Vec<Part>,
}

/// What one encoder made.
#[derive(Default)]
struct Part {
    records: Vec<u8>,
    /// Where pieces end, all but the last one.
    ends: Vec<usize>,
    changed: u64,
}

impl EncodedPages {
    /// The records, in pieces of whole records that are to be applied in this order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|part| {
            let starts = [0].into_iter().chain(part.ends.iter().copied());
            let ends = part.ends.iter().copied().chain([part.records.len()]);
            starts.zip(ends).filter_map(|(start, end)| part.records.get(start..end).filter(|piece| !piece.is_empty()))
        })
    }

    /// How many pages have changed since they were sent last, and so have records.
    pub fn changed(&self) -> u64 {
        self.parts.iter().map(|part| part.changed).sum()
    }
}

/// Encodes pages as one [`PageEncoder`] does, with a number of them: a page always comes to the same one, which knows what was sent of it.
pub struct ParallelEncoder {
    encoders: Vec<PageEncoder>,
}

impl ParallelEncoder {
    /// As many encoders as `threads`, at least one. Together they keep at most `cache_bytes_max` bytes of sent pages.
    pub fn new(cache_bytes_max: u64, threads: usize) -> Self {
        let count = threads.max(1);
        let encoders = (0..count).map(|_| PageEncoder::new(cache_bytes_max / count as u64)).collect();
        Self { encoders }
    }

    /// Whether so many pages are encoded faster by [`ParallelEncoder::encode_all`].
    pub fn is_faster(&self, pages: usize) -> bool {
        self.encoders.len() > 1 && pages >= PAGES_MIN
    }

    /// Appends the record of one page to `out`, as [`PageEncoder::encode`] does.
    pub fn encode(&mut self, page: u64, content: &PageContent, out: &mut Vec<u8>) -> Encoding {
        let number = number(page, self.encoders.len());
        match self.encoders.get_mut(number) {
            Some(encoder) => encoder.encode(page, content, out),
            // There is one for each number.
            None => Encoding::Unchanged,
        }
    }

    /// Encodes all of these pages, of which none is there twice, into `out`, with a thread for each encoder. A piece ends with the record that
    /// makes it at least `piece_bytes` long.
    pub fn encode_all(&mut self, pages: &[(u64, &PageContent)], piece_bytes: usize, out: &mut EncodedPages) {
        let count = self.encoders.len();
        out.parts.resize_with(count, Part::default);
        let mut without_thread = Vec::new();
        thread::scope(|scope| {
            let mut shares = self.encoders.iter_mut().zip(&mut out.parts).enumerate();
            // The last one is this thread's own.
            let own = shares.next_back();
            for (share, (encoder, part)) in shares {
                let encode = move || encode_share(encoder, pages, (share, count), piece_bytes, part);
                if thread::Builder::new().name("encode".to_owned()).spawn_scoped(scope, encode).is_err() {
                    without_thread.push(share);
                }
            }
            if let Some((share, (encoder, part))) = own {
                encode_share(encoder, pages, (share, count), piece_bytes, part);
            }
        });
        for share in without_thread {
            if let (Some(encoder), Some(part)) = (self.encoders.get_mut(share), out.parts.get_mut(share)) {
                encode_share(encoder, pages, (share, count), piece_bytes, part);
            }
        }
    }

    /// What was encoded since this was made.
    pub fn counts(&self) -> EncodingCounts {
        self.encoders.iter().fold(EncodingCounts::default(), |sum, encoder| sum.with(encoder.counts()))
    }
}

/// Which of `count` encoders a page belongs to. By other bits than the encoders look pages up by, so that each uses all of its cache.
fn number(page: u64, count: usize) -> usize {
    let mixed = page.wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ mixed >> 29) as usize % count.max(1)
}

fn encode_share(
    encoder: &mut PageEncoder,
    pages: &[(u64, &PageContent)],
    (share, count): (usize, usize),
    piece_bytes: usize,
    part: &mut Part,
) {
    part.records.clear();
    part.ends.clear();
    part.changed = 0;
    let mut piece_start = 0;
    for &(page, content) in pages.iter().filter(|(page, _)| number(*page, count) == share) {
        part.changed += u64::from(encoder.encode(page, content, &mut part.records) != Encoding::Unchanged);
        if part.records.len() - piece_start >= piece_bytes {
            piece_start = part.records.len();
            part.ends.push(piece_start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RECORD_BYTES_MAX, apply, check};
    use super::*;
    use crate::{GuestRam, PAGE_BYTES};

    const PAGES: u64 = 2000;
    const PIECE_BYTES: usize = 10_000;

    /// Content that is encoded in every way there is as `round` goes on.
    fn content(page: u64, round: u64) -> PageContent {
        let mut content = [0; PAGE_BYTES as usize];
        let mut random = page * 31 + 1;
        for (index, word) in content.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let changes = (index as u64) < page % 512 * round;
            *word = match page % 4 {
                0 if round == 1 => 0,
                1 => 7 + u64::from(changes),
                2 => random.wrapping_add(u64::from(changes) * round),
                _ => page / 7 + index as u64 * u64::from(changes),
            }
            .to_le_bytes();
        }
        content
    }

    #[test]
    fn what_several_encoders_make_of_pages_is_what_they_hold_epoch_after_epoch() {
        for threads in [1, 2, 3] {
            let mut encoder = ParallelEncoder::new(64 << 20, threads);
            assert_eq!(encoder.is_faster(PAGES as usize), threads > 1);
            assert!(!encoder.is_faster(PAGES_MIN - 1));
            let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
            let mut out = EncodedPages::default();
            for round in 0..4 {
                let contents: Vec<_> = (0..PAGES).map(|page| content(page, round)).collect();
                let pages: Vec<_> = (0..PAGES).zip(&contents).collect();
                let before = encoder.counts();
                encoder.encode_all(&pages[..], PIECE_BYTES, &mut out);
                let mut applied = 0;
                for piece in out.pieces() {
                    assert!((1..PIECE_BYTES + RECORD_BYTES_MAX).contains(&piece.len()), "{}", piece.len());
                    applied += check(piece, PAGES).unwrap() as u64;
                    apply(piece, &ram).unwrap();
                }
                assert_eq!(applied, out.changed(), "{threads} threads, round {round}");
                let total = encoder.counts().total();
                assert_eq!(total.pages - before.total().pages, PAGES);
                let bytes: usize = out.pieces().map(<[u8]>::len).sum();
                assert_eq!(total.bytes - before.total().bytes, bytes as u64);
                for (page, content) in pages {
                    let mut held = [0; PAGE_BYTES as usize];
                    assert!(ram.read_offset(page * PAGE_BYTES, &mut held));
                    assert!(held == *content, "{threads} threads, round {round}, page {page}");
                }
            }
            // Alone, a page comes to the encoder that knows it.
            let mut records = Vec::new();
            assert_eq!(encoder.encode(5, &content(5, 3), &mut records), Encoding::Unchanged);
        }
    }

    #[test]
    fn shares_are_about_even_whatever_pages_are_written() {
        for stride in [1, 2, 3, 4, 512] {
            for count in [2, 3, 4] {
                let mut shares = vec![0usize; count];
                (0..4000u64).for_each(|index| shares[number(index * stride, count)] += 1);
                let fair = 4000 / count;
                assert!(shares.iter().all(|share| share.abs_diff(fair) < fair / 3), "{stride}: {shares:?}");
            }
        }
    }
}
