//! Records on the receiver's side: [`check`] and [`apply`]; and their header.

use lz4_flex::block::decompress_into;

use super::word_runs::{BadRun, Runs};
use super::{Encoding, HEADER_BYTES, PAGE, PageContent};
use crate::layout::PAGE_BYTES;
use crate::ram::GuestRam;

/// Bits of the header's page number, and where the kind and the length follow.
const PAGE_BITS: u32 = 40;
const LENGTH_SHIFT: u32 = 48;

const _: () = assert!(GuestRam::SIZE_BYTES_MAX / PAGE_BYTES <= 1 << PAGE_BITS);

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Zero = 0,
    WordRuns = 1,
    Delta = 2,
    Lz4 = 3,
    Raw = 4,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Zero, Self::WordRuns, Self::Delta, Self::Lz4, Self::Raw].into_iter().find(|kind| *kind as u8 == code)
    }

    fn encoding(self) -> Encoding {
        match self {
            Self::Zero => Encoding::Zero,
            Self::WordRuns => Encoding::WordRuns,
            Self::Delta => Encoding::Delta,
            Self::Lz4 => Encoding::Lz4,
            Self::Raw => Encoding::Raw,
        }
    }
}

/// Appends a record.
pub(super) fn put(out: &mut Vec<u8>, page: u64, kind: Kind, payload: &[u8]) -> Encoding {
    let header = page & ((1 << PAGE_BITS) - 1) | (kind as u64) << PAGE_BITS | (payload.len() as u64) << LENGTH_SHIFT;
    out.extend_from_slice(&header.to_le_bytes());
    out.extend_from_slice(payload);
    kind.encoding()
}

/// Why records are not valid. Offsets are bytes from the start of the records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// The records end within one.
    #[error("the page record at offset {at} is cut off")]
    Truncated {
        /// Where the record starts.
        at: usize,
    },
    /// A page that is not there.
    #[error("the page record at offset {at} is of page {page}, and there are {pages}")]
    Page {
        /// Where the record starts.
        at: usize,
        /// The page.
        page: u64,
        /// Pages of RAM.
        pages: u64,
    },
    /// A kind that does not exist.
    #[error("the page record at offset {at} is of unknown kind {kind}")]
    Kind {
        /// Where the record starts.
        at: usize,
        /// The kind.
        kind: u8,
    },
    /// A payload that is not a page's.
    #[error("the page record at offset {at} ({encoding:?}, {len} bytes) does not give a page")]
    Payload {
        /// Where the record starts.
        at: usize,
        /// Its kind.
        encoding: Encoding,
        /// Bytes of its payload.
        len: usize,
    },
}

/// Validates records for a RAM of `pages` pages. Returns how many records there are. [`apply`] cannot fail on records
/// that passed, if its RAM has as many pages.
pub fn check(records: &[u8], pages: u64) -> Result<usize, EncodingError> {
    let mut count = 0;
    let mut content = [0; PAGE];
    for record in Records::new(records, pages) {
        let record = record?;
        let is_valid = match record.kind {
            Kind::Zero => record.payload.is_empty(),
            Kind::WordRuns => !record.payload.is_empty() && Runs::new(record.payload).all(|run| run.is_ok()),
            Kind::Delta | Kind::Lz4 => record.payload.len() < PAGE && decompress(record.payload, &mut content),
            Kind::Raw => record.payload.len() == PAGE,
        };
        if !is_valid {
            return Err(record.error());
        }
        count += 1;
    }
    Ok(count)
}

/// Puts records into RAM, whose pages must hold what the encoder sent before, and marks the pages dirty. To be called with
/// records that passed [`check`]; with others it stops at the first that is not valid, and those before it are applied.
pub fn apply(records: &[u8], ram: &GuestRam) -> Result<(), EncodingError> {
    let mut content = [0; PAGE];
    for record in Records::new(records, ram.pages()) {
        let record = record?;
        let offset = record.page * PAGE_BYTES;
        let done = match record.kind {
            Kind::Zero => ram.write_offset(offset, &[0; PAGE]),
            Kind::Raw => record.payload.len() == PAGE && ram.write_offset(offset, record.payload),
            Kind::Lz4 => decompress(record.payload, &mut content) && ram.write_offset(offset, &content),
            Kind::Delta => decompress(record.payload, &mut content) && xor(ram, offset, [Ok((0, &content[..]))]),
            Kind::WordRuns => xor(ram, offset, Runs::new(record.payload)),
        };
        if !done {
            return Err(record.error());
        }
    }
    Ok(())
}

/// XORs runs into the page at an offset, up to the first that is not valid. Whether all were.
fn xor<'a>(ram: &GuestRam, page: u64, runs: impl IntoIterator<Item = Result<(usize, &'a [u8]), BadRun>>) -> bool {
    let done = runs.into_iter().all(|run| run.is_ok_and(|(start, words)| ram.xor_unmarked(page + start as u64, words)));
    ram.mark_written(page, PAGE_BYTES);
    done
}

/// Whether an LZ4 block decompresses to exactly a page.
fn decompress(block: &[u8], content: &mut PageContent) -> bool {
    matches!(decompress_into(block, content), Ok(PAGE))
}

struct Record<'a> {
    at: usize,
    page: u64,
    kind: Kind,
    payload: &'a [u8],
}

impl Record<'_> {
    #[cold]
    fn error(&self) -> EncodingError {
        EncodingError::Payload { at: self.at, encoding: self.kind.encoding(), len: self.payload.len() }
    }
}

/// The records, until one that cannot be told from the next.
struct Records<'a> {
    rest: &'a [u8],
    at: usize,
    pages: u64,
}

impl<'a> Records<'a> {
    fn new(records: &'a [u8], pages: u64) -> Self {
        Self { rest: records, at: 0, pages }
    }

    fn split(&self) -> Result<(Record<'a>, &'a [u8]), EncodingError> {
        let (at, pages) = (self.at, self.pages);
        let (header, rest) = self.rest.split_first_chunk::<HEADER_BYTES>().ok_or(EncodingError::Truncated { at })?;
        let header = u64::from_le_bytes(*header);
        let page = header & ((1 << PAGE_BITS) - 1);
        if page >= pages {
            return Err(EncodingError::Page { at, page, pages });
        }
        let code = (header >> PAGE_BITS) as u8;
        let kind = Kind::from_code(code).ok_or(EncodingError::Kind { at, kind: code })?;
        let len = (header >> LENGTH_SHIFT) as usize;
        let (payload, rest) = rest.split_at_checked(len).ok_or(EncodingError::Truncated { at })?;
        Ok((Record { at, page, kind, payload }, rest))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, EncodingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(match self.split() {
            Ok((record, rest)) => {
                self.at += HEADER_BYTES + record.payload.len();
                self.rest = rest;
                Ok(record)
            }
            Err(error) => {
                self.rest = &[];
                Err(error)
            }
        })
    }
}
