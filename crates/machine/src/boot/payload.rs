//! The compressed kernel inside a bzImage, decompressed on the host: the guest's own decompressor would take a soft
//! vCPU several seconds.

use std::io::{Cursor, Read, Write};

/// How a payload is compressed, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: an ELF file.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// xz, perhaps with the x86 branch filter.
    Xz,
    /// The older LZMA file format ("lzma alone").
    Lzma,
    /// Blocks of LZ4 in the legacy frame format.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Why a payload cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The payload says that it is bigger than the machine can take.
    #[error("its payload claims to be {claimed_bytes} bytes when decompressed, more than the {limit_bytes} possible")]
    TooBig {
        /// Bytes claimed.
        claimed_bytes: u64,
        /// Bytes possible.
        limit_bytes: u64,
    },
    /// The payload's size is not the one it claims.
    #[error("its payload does not have the {claimed_bytes} bytes that it claims")]
    WrongSize {
        /// Bytes claimed.
        claimed_bytes: u64,
    },
    /// The decoder found an error.
    #[error("its payload is no valid {compression:?} data: {reason}")]
    Corrupt {
        /// The format.
        compression: Compression,
        /// What the decoder says.
        reason: String,
    },
}

/// Largest decompressed payload, in bytes.
const SIZE_BYTES_MAX: u64 = 1 << 30;
/// Largest window of a Zstandard frame and largest dictionary of an LZMA stream: what `zstd --ultra -22` and `xz -9`
/// at their largest choose.
const WINDOW_BYTES_MAX: usize = 128 << 20;
/// Bytes of the decompressed size at the end of every payload. Of gzip it is part of the format; for the others the
/// kernel's build appends it.
const SIZE_FIELD_BYTES: usize = 4;

impl Compression {
    /// The compression of a payload, or `None` for one that this loader does not know (bzip2, LZO, or no payload).
    pub fn detect(payload: &[u8]) -> Option<Self> {
        // The values that the kernel's lib/decompress.c looks for; LZMA has no magic but always these properties.
        const MAGICS: [(&[u8], Compression); 6] = [
            (b"\x7fELF", Compression::None),
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, compression)| *compression)
    }

    /// Decompresses a payload of this compression: the vmlinux, perhaps with relocations after it. At most
    /// `limit_bytes`, and never more than 1 GiB.
    pub(super) fn decompress(self, payload: &[u8], limit_bytes: u64) -> Result<Vec<u8>, DecompressError> {
        if self == Self::None {
            return Ok(payload.to_vec());
        }
        let corrupt = |reason: String| DecompressError::Corrupt { compression: self, reason };
        let (stream, size) =
            payload.split_last_chunk::<SIZE_FIELD_BYTES>().ok_or_else(|| corrupt("it is too short".into()))?;
        let claimed_bytes = u64::from(u32::from_le_bytes(*size));
        let limit_bytes = limit_bytes.min(SIZE_BYTES_MAX);
        if claimed_bytes > limit_bytes {
            return Err(DecompressError::TooBig { claimed_bytes, limit_bytes });
        }
        let size = claimed_bytes as usize;
        let vmlinux = match self {
            Self::None => Ok(stream.to_vec()),
            Self::Gzip => read_all(flate2::read::GzDecoder::new(payload), size),
            Self::Xz => unxz(stream, size),
            Self::Lzma => unlzma(stream, size),
            Self::Lz4 => unlz4(stream, size),
            Self::Zstd => unzstd(stream, size),
        }
        .map_err(corrupt)?;
        if vmlinux.len() == size { Ok(vmlinux) } else { Err(DecompressError::WrongSize { claimed_bytes }) }
    }
}

/// Reads to the end, but at most one byte more than expected.
fn read_all(decoder: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size);
    decoder.take(size as u64 + 1).read_to_end(&mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

fn unxz(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    use xz4rust::XzNextBlockResult::{EndOfStream, NeedMoreData};

    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(xz4rust::DICT_SIZE_MIN, WINDOW_BYTES_MAX);
    // One byte more than expected, so that a longer stream shows itself.
    let mut out = vec![0; size + 1];
    let (mut rest, mut filled) = (stream, 0);
    loop {
        let room = out.get_mut(filled..).unwrap_or_default();
        let result = decoder.decode(rest, room).map_err(|error| error.to_string())?;
        let (NeedMoreData(consumed, produced) | EndOfStream(consumed, produced)) = result;
        rest = rest.get(consumed..).unwrap_or_default();
        filled += produced;
        if matches!(result, EndOfStream(..)) || filled > size {
            out.truncate(filled);
            return Ok(out);
        }
        if consumed == 0 && produced == 0 {
            return Err("it ends early".into());
        }
    }
}

fn unlzma(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let options = lzma_rs::decompress::Options { memlimit: Some(WINDOW_BYTES_MAX), ..Default::default() };
    let mut out = Cursor::new(vec![0; size]);
    let written = lzma_rs::lzma_decompress_with_options(&mut &*stream, &mut Full(&mut out), &options);
    written.map_err(|error| format!("{error:?}"))?;
    let len = out.position() as usize;
    let mut out = out.into_inner();
    out.truncate(len);
    Ok(out)
}

/// A writer over a buffer of fixed size that refuses what does not fit.
struct Full<'a>(&'a mut Cursor<Vec<u8>>);

impl Write for Full<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = self.0.get_ref().len() - self.0.position() as usize;
        if bytes.len() > room {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The legacy LZ4 frame: a magic number, then blocks, each after its compressed length. A block never refers to an
/// earlier one.
fn unlz4(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; size];
    let mut filled = 0;
    let mut rest = stream.get(4..).unwrap_or_default();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (block, next) = after
            .split_at_checked(u32::from_le_bytes(*len) as usize)
            .ok_or_else(|| "a block is longer than the payload".to_owned())?;
        let room = out.get_mut(filled..).unwrap_or_default();
        filled += lz4_flex::block::decompress_into(block, room).map_err(|error| error.to_string())?;
        rest = next;
    }
    out.truncate(filled);
    Ok(out)
}

fn unzstd(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(stream, WINDOW_BYTES_MAX as u64)
        .map_err(|error| error.to_string())?;
    let out = read_all(&mut decoder, size)?;
    let decoder = decoder.into_frame_decoder();
    match decoder.get_checksum_from_data() {
        Some(expected) if decoder.get_calculated_checksum() != Some(expected) => Err("its checksum is wrong".into()),
        _ => Ok(out),
    }
}
