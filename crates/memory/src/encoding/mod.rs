//! Pages of a checkpoint as bytes: captured, encoded as differences from what was sent before, checked, applied.
//!
//! [`CapturedPages`] copies pages out of a paused VM. [`PageEncoder`] turns each copy into a record, which the receiver
//! validates with [`check`] and puts into its RAM with [`apply`]. Differences are against the content that the receiver's
//! page has, so records must be applied in the order they were encoded, each exactly once; when records were lost or not
//! applied, [`PageEncoder::clear`] makes the encoder start over with records that stand alone. [`ParallelEncoder`] has several of them work side by side.
//!
//! # Format
//!
//! Records follow one another without padding. Integers are little-endian.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 5 | page number (offset in RAM / 4096) |
//! | 5 | 1 | kind |
//! | 6 | 2 | length of the payload in bytes |
//! | 8 | length | payload |
//!
//! | kind | name | length | payload |
//! | --- | --- | --- | --- |
//! | 0 | zero | 0 | none: every byte of the page is 0 |
//! | 1 | word runs | 10 to 4104 | runs of 64-bit words, XORed into the page |
//! | 2 | delta | 1 to 4095 | 4096 bytes compressed as an LZ4 block, XORed into the page |
//! | 3 | LZ4 | 1 to 4095 | the page's 4096 bytes compressed as an LZ4 block |
//! | 4 | raw | 4096 | the page |
//!
//! A word run skips some of the page's 512 words and changes those after them:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 2 | bits 0 to 8: words skipped since the last run's end, or the page's start; bits 9 to 15: words changed, minus 1 |
//! | 2 | 8 each | old XOR new content of each changed word |
//!
//! LZ4 blocks are those of <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>.

mod captured;
mod counts;
mod encoder;
mod parallel;
mod records;
mod sent;
mod word_runs;

#[cfg(test)]
mod tests;

pub use captured::CapturedPages;
pub use counts::{EncodingCounts, KindCount};
pub use encoder::PageEncoder;
pub use parallel::{EncodedPages, ParallelEncoder};
pub use records::{EncodingError, apply, check};

use crate::layout::PAGE_BYTES;

/// A page's bytes as an array length.
const PAGE: usize = PAGE_BYTES as usize;

/// Bytes of a record before its payload.
const HEADER_BYTES: usize = 8;

/// Most bytes of one record: header and payload.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + word_runs::BYTES_MAX;

/// The content of a page.
pub type PageContent = [u8; PAGE];

/// How a page was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// All bytes are 0.
    Zero,
    /// The content is what was sent last: no record.
    Unchanged,
    /// The words that changed.
    WordRuns,
    /// LZ4 of the difference.
    Delta,
    /// LZ4 of the page.
    Lz4,
    /// The page as it is.
    Raw,
}

impl Encoding {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Zero, Self::Unchanged, Self::WordRuns, Self::Delta, Self::Lz4, Self::Raw];

    /// A name for figures: lower case, words joined by underscores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Unchanged => "unchanged",
            Self::WordRuns => "word_runs",
            Self::Delta => "delta",
            Self::Lz4 => "lz4",
            Self::Raw => "raw",
        }
    }
}
