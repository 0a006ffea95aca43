//! vmlinux: an ELF executable whose segments say where they want to lie in physical memory.

use memory::GuestRam;

use super::bzimage::scalar;
use super::error::{BootError, mib};
use crate::map;

/// ELF64, little-endian, version 1.
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const PT_LOAD: u32 = 1;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has about five.
const PROGRAM_HEADERS_MAX: u16 = 64;

/// A segment to load.
#[derive(Debug)]
struct Segment<'a> {
    /// Guest-physical address.
    address: u64,
    /// First address after it.
    end: u64,
    /// What the file holds of it; the rest is zero.
    bytes: &'a [u8],
}

/// A vmlinux, parsed and checked.
#[derive(Debug)]
pub(super) struct Vmlinux<'a> {
    entry: u64,
    segments: Vec<Segment<'a>>,
}

impl<'a> Vmlinux<'a> {
    /// Whether a file claims to be an ELF executable.
    pub fn is_one(file: &[u8]) -> bool {
        file.starts_with(b"\x7fELF")
    }

    /// Reads the headers. Bytes after the ELF file (the relocations that a bzImage's payload carries) do not matter.
    pub fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        const CUT_SHORT: BootError = BootError::CutShort("ELF header");
        if !file.starts_with(&IDENT) {
            return Err(BootError::Not64Bit);
        }
        let u16_at = |at| scalar(file, at).map(u16::from_le_bytes).ok_or(CUT_SHORT);
        let u64_at = |at| scalar(file, at).map(u64::from_le_bytes).ok_or(CUT_SHORT);
        if u16_at(0x12)? != EM_X86_64 {
            return Err(BootError::Not64Bit);
        }
        if u16_at(0x10)? != ET_EXEC {
            return Err(BootError::BadElf("the ELF file is no executable"));
        }
        let (entry, table) = (u64_at(0x18)?, u64_at(0x20)?);
        let (entry_bytes, entries) = (u16_at(0x36)?, u16_at(0x38)?);
        if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES || entries > PROGRAM_HEADERS_MAX {
            return Err(BootError::BadElf("its program headers have an unknown form"));
        }
        let table_bytes = PROGRAM_HEADER_BYTES * usize::from(entries);
        let headers = usize::try_from(table)
            .ok()
            .and_then(|table| file.get(table..table.checked_add(table_bytes)?))
            .ok_or(BootError::CutShort("program headers"))?;
        let mut segments = Vec::new();
        for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
            segments.extend(Segment::parse(file, header)?);
        }
        if !segments.iter().any(|segment| (segment.address..segment.end).contains(&entry)) {
            return Err(BootError::BadElf("its entry point lies in no segment"));
        }
        Ok(Self { entry, segments })
    }

    /// First guest-physical address after the kernel, BSS included.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).max().unwrap_or(0)
    }

    /// Writes the segments into memory and gives the entry point.
    pub fn load(&self, ram: &GuestRam) -> Result<u64, BootError> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        let low_bytes = ram.layout().low_bytes();
        if self.end() > low_bytes {
            return Err(BootError::KernelTooBig { needs_mib: mib(self.end()), has_mib: low_bytes >> 20 });
        }
        for segment in &self.segments {
            ram.write_bytes(segment.address, segment.bytes)?;
            let mut at = segment.address + segment.bytes.len() as u64;
            while at < segment.end {
                let step = (segment.end - at).min(ZEROES.len() as u64);
                ram.write_bytes(at, &ZEROES[..step as usize])?;
                at += step;
            }
        }
        Ok(self.entry)
    }
}

impl<'a> Segment<'a> {
    fn parse(file: &'a [u8], header: &[u8]) -> Result<Option<Self>, BootError> {
        const CUT_SHORT: BootError = BootError::CutShort("program headers");
        let u64_at = |at| scalar(header, at).map(u64::from_le_bytes).ok_or(CUT_SHORT);
        let kind = scalar(header, 0).map(u32::from_le_bytes).ok_or(CUT_SHORT)?;
        let (offset, address, file_bytes, memory_bytes) = (u64_at(8)?, u64_at(24)?, u64_at(32)?, u64_at(40)?);
        if kind != PT_LOAD || memory_bytes == 0 {
            return Ok(None);
        }
        let bytes = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(file_bytes).ok())
            .and_then(|(offset, len)| file.get(offset..offset.checked_add(len)?))
            .ok_or(BootError::CutShort("segment"))?;
        let end = address.checked_add(memory_bytes).filter(|_| file_bytes <= memory_bytes);
        match end {
            Some(end) if address >= map::HIGH_MEMORY => Ok(Some(Self { address, end, bytes })),
            _ => Err(BootError::BadElf("one of its segments lies at an impossible address")),
        }
    }
}
