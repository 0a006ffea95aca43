//! The bzImage format: a setup header, a real-mode part nobody runs, a protected-mode part with the compressed kernel.

use super::BootError;

/// Where the setup header lies in the file and in `boot_params` alike.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// First byte after the room for the setup header in `boot_params`.
pub(super) const SETUP_HEADER_END_MAX: usize = 0x290;
/// Offset of the 64-bit entry point of the decompressor in the protected-mode part.
pub(super) const ENTRY_64_OFFSET: u64 = 0x200;

const SECTOR_BYTES: usize = 512;
/// Protocol 2.12: `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;

/// A bzImage, its fields read and its parts checked to lie within the file. Field names are those of boot.rst.
#[derive(Debug)]
pub(super) struct BzImage<'a> {
    /// The setup header as in the file, from [`SETUP_HEADER`] on.
    pub setup_header: &'a [u8],
    /// The decompressor with the payload inside.
    pub protected_mode: &'a [u8],
    /// The compressed vmlinux, or nothing if the header does not say where it is.
    pub payload: &'a [u8],
    /// Highest address that the initrd may touch.
    pub initrd_addr_max: u64,
    /// Most bytes of the command line, without its NUL.
    pub cmdline_size: u64,
    /// Where the decompressor prefers to run.
    pub pref_address: u64,
    /// Contiguous bytes that the decompressor and the kernel need from their load address on until the kernel can see
    /// the memory map.
    pub init_size: u64,
}

impl<'a> BzImage<'a> {
    /// Whether a file claims to be a bzImage.
    pub fn is_one(file: &[u8]) -> bool {
        file.get(0x202..0x206) == Some(b"HdrS") && file.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
    }

    /// Reads and checks the header.
    pub fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        const CUT_SHORT: BootError = BootError::CutShort("setup header");
        let u16_at = |at| scalar(file, at).map(u16::from_le_bytes).ok_or(CUT_SHORT);
        let u32_at = |at| scalar(file, at).map(u32::from_le_bytes).ok_or(CUT_SHORT);
        let u64_at = |at| scalar(file, at).map(u64::from_le_bytes).ok_or(CUT_SHORT);
        let u8_at = |at: usize| file.get(at).copied().ok_or(CUT_SHORT);

        let version = u16_at(0x206)?;
        if version < VERSION_MIN {
            return Err(BootError::TooOld(version));
        }
        if u16_at(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(BootError::Not64Bit);
        }
        // The jump instruction at 0x200 leads past the header's end.
        let header_end = (0x202 + usize::from(u8_at(0x201)?)).min(SETUP_HEADER_END_MAX);
        let setup_header = file.get(SETUP_HEADER..header_end).ok_or(CUT_SHORT)?;

        let setup_sects = match u8_at(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let protected_mode = file
            .get((setup_sects + 1) * SECTOR_BYTES..)
            .filter(|part| part.len() as u64 > ENTRY_64_OFFSET)
            .ok_or(BootError::CutShort("protected-mode part"))?;
        let (offset, len) = (u32_at(0x248)? as usize, u32_at(0x24c)? as usize);
        let payload = offset
            .checked_add(len)
            .and_then(|end| protected_mode.get(offset..end))
            .ok_or(BootError::CutShort("payload"))?;
        Ok(Self {
            setup_header,
            protected_mode,
            payload,
            initrd_addr_max: u64::from(u32_at(0x22c)?),
            cmdline_size: u64::from(u32_at(0x238)?),
            pref_address: u64_at(0x258)?,
            init_size: u64::from(u32_at(0x260)?),
        })
    }
}

/// `N` bytes at an offset.
pub(super) fn scalar<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
