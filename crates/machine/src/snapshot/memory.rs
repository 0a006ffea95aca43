//! Guest memory in a snapshot: the pages that are not zero, each compressed.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | page number (offset in RAM / 4096), ascending; `u64::MAX` ends the list |
//! | 2 | length of the content: 4096 for a plain page, else LZ4 (block format) |
//! | length | content |

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memory::{FrozenMemory, GuestRam, PAGE_BYTES, PageStore};
use storage::disk::Spill;

use super::format::FormatError;

const PAGE: usize = PAGE_BYTES as usize;
const END: u64 = u64::MAX;
/// Most pages that are in memory twice for longer than they have to be.
const RUN_PAGES_MAX: u64 = 4096;

/// Memory of a VM that was paused.
pub(crate) enum SavedMemory {
    /// Copied in the pause, by the first page of each stretch that the host has allocated. All others are zero.
    Copied(Vec<(u64, Vec<u8>)>),
    /// Frozen in the pause.
    Frozen(FrozenMemory),
}

impl SavedMemory {
    /// Copies memory, for an engine whose vCPUs ask nobody before they write.
    pub fn copy(ram: &GuestRam) -> Self {
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some(pages) = ram.allocated_pages(from) {
            from = pages.end.min(pages.start + RUN_PAGES_MAX);
            let mut content = vec![0; ((from - pages.start) * PAGE_BYTES) as usize];
            ram.read_offset(pages.start * PAGE_BYTES, &mut content);
            runs.push((pages.start, content));
        }
        Self::Copied(runs)
    }

    /// Writes it while the VM goes on.
    pub fn write(self, out: &mut dyn Write, is_cancelled: &AtomicBool) -> Result<(), FormatError> {
        let check = || if is_cancelled.load(Ordering::Relaxed) { Err(FormatError::Cancelled) } else { Ok(()) };
        let mut compressed = vec![0; lz4_flex::block::get_maximum_output_size(PAGE)];
        match self {
            // Each part is gone from this process when it was written.
            Self::Copied(runs) => {
                for (first, run) in runs {
                    check()?;
                    for (number, page) in (first..).zip(run.as_chunks().0) {
                        write_page(number, page, &mut compressed, out)?;
                    }
                }
            }
            Self::Frozen(mut memory) => {
                let mut page = [0; PAGE];
                while let Some(number) = memory.copy_next(&mut page).map_err(FormatError::Memory)? {
                    check()?;
                    write_page(number, &page, &mut compressed, out)?;
                }
            }
        }
        Ok(out.write_all(&END.to_le_bytes())?)
    }
}

/// Pages in a spill, each in a place of its own.
pub(crate) struct SpilledPages {
    spill: Arc<Spill>,
    place: u64,
}

impl SpilledPages {
    /// Reserves a place for each page of so much memory.
    pub fn new(spill: Arc<Spill>, size_bytes: u64) -> io::Result<Self> {
        let place = spill.reserve(size_bytes)?;
        Ok(Self { spill, place })
    }
}

impl PageStore for SpilledPages {
    fn put(&self, page: u64, content: &[u8; PAGE]) -> io::Result<()> {
        self.spill.put(self.place + page * PAGE_BYTES, content)
    }

    fn get(&self, page: u64, content: &mut [u8; PAGE]) -> io::Result<()> {
        self.spill.get(self.place + page * PAGE_BYTES, content)
    }
}

fn write_page(number: u64, page: &[u8; PAGE], compressed: &mut [u8], out: &mut dyn Write) -> io::Result<()> {
    if *page == [0; PAGE] {
        return Ok(());
    }
    let content = match lz4_flex::block::compress_into(page, compressed) {
        Ok(len) if len < PAGE => compressed.get(..len).unwrap_or(page),
        _ => page,
    };
    out.write_all(&number.to_le_bytes())?;
    out.write_all(&(content.len() as u16).to_le_bytes())?;
    out.write_all(content)
}

/// Reads into RAM that is all zero.
pub(crate) fn read_memory(ram: &GuestRam, input: &mut impl Read) -> Result<(), FormatError> {
    let damaged = |message: &str| FormatError::Content { section: "MEM".into(), message: message.into() };
    let mut page = [0; PAGE];
    let mut content = [0; PAGE];
    loop {
        let mut number = [0; 8];
        input.read_exact(&mut number)?;
        let number = u64::from_le_bytes(number);
        if number == END {
            return Ok(());
        }
        let mut len = [0; 2];
        input.read_exact(&mut len)?;
        let content =
            content.get_mut(..usize::from(u16::from_le_bytes(len))).ok_or_else(|| damaged("page too long"))?;
        input.read_exact(content)?;
        let bytes = if content.len() == PAGE {
            &*content
        } else {
            match lz4_flex::block::decompress_into(content, &mut page) {
                Ok(PAGE) => &page,
                _ => return Err(damaged("a page does not decompress")),
            }
        };
        let in_ram = number < ram.pages() && ram.write_offset(number * PAGE_BYTES, bytes);
        if !in_ram {
            return Err(damaged("a page outside of memory"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_every_kind_come_back() {
        let ram = GuestRam::new(16 * PAGE_BYTES).unwrap();
        let mut seed = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(PAGE)
        .collect();
        ram.write_offset(0, b"some text, then zeros");
        ram.write_offset(5 * PAGE_BYTES, &noise);
        ram.write_offset(15 * PAGE_BYTES, &[7; PAGE]);
        let mut saved = Vec::new();
        SavedMemory::copy(&ram).write(&mut saved, &AtomicBool::new(false)).unwrap();
        assert!(saved.len() < PAGE + 300, "{}", saved.len());
        let restored = GuestRam::new(16 * PAGE_BYTES).unwrap();
        read_memory(&restored, &mut &saved[..]).unwrap();
        for page in 0..16 {
            let (mut before, mut after) = ([0; PAGE], [0; PAGE]);
            ram.read_offset(page * PAGE_BYTES, &mut before);
            restored.read_offset(page * PAGE_BYTES, &mut after);
            assert_eq!(before, after, "page {page}");
        }
        let small = GuestRam::new(4 * PAGE_BYTES).unwrap();
        assert!(read_memory(&small, &mut &saved[..]).is_err());
        for len in [0, 7, 9, 30, saved.len() - 1] {
            assert!(read_memory(&restored, &mut &saved[..len]).is_err(), "{len}");
        }
    }
}
