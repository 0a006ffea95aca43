//! The snapshot file: magic, version, sections with checksums.
//!
//! All numbers are little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | magic `TWINVMSN` |
//! | 4 | format version, [`VERSION`], or [`VERSION_OF_FILES`] in files of before |
//! | 4 | CRC-32 (IEEE) of the 12 bytes before |
//! | ... | sections, of which the last has the identifier `END\0` and no content |
//!
//! A section is a stream of chunks, so that it can be written without knowing its length:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | section identifier, ASCII |
//! | 4 | length of this chunk's content, at most [`CHUNK_BYTES_MAX`]; 0 ends the section |
//! | 4 | CRC-32 of identifier, the chunk's number within the file (8 bytes) and content |
//! | length | content |

use std::io::{self, Read, Write};
use std::path::PathBuf;

/// First bytes of every snapshot file.
pub const MAGIC: [u8; 8] = *b"TWINVMSN";
/// Format version written.
pub const VERSION: u32 = 7;
/// The oldest version that is read: it holds the files of disks, and not what they show.
pub const VERSION_OF_FILES: u32 = 6;
/// Longest content of a chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Longest section that is read into memory as a whole, in bytes.
const SECTION_BYTES_MAX: usize = 256 << 20;

/// Identifies a section.
pub type SectionId = [u8; 4];
const END: SectionId = *b"END\0";

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A disk's file, which is read or written, rather than that of the snapshot.
    #[error("disk {}: {source}", path.display())]
    Disk {
        /// The disk, as the VM's spec names it.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The same, by what knows images.
    #[error("disk {0}")]
    Image(#[from] storage::disk::DiskError),
    /// Memory that the guest writes over meanwhile cannot be kept.
    #[error("memory that the guest writes over while the snapshot is taken cannot be kept: {0}")]
    Memory(io::Error),
    /// Whoever waits for it does not any more.
    #[error("it was given up, as the VM has ended here")]
    Cancelled,
    /// Some other file.
    #[error("not a twinvm snapshot")]
    Magic,
    /// Written by another version of twinvm.
    #[error(
        "it has snapshot format {0}, and this twinvm reads formats {VERSION_OF_FILES} to {VERSION}: restore it with the twinvm that wrote it"
    )]
    Version(u32),
    /// The file was damaged.
    #[error("the snapshot is damaged: wrong checksum in {0}")]
    Checksum(String),
    /// The file ends early.
    #[error("the snapshot is cut short")]
    Truncated,
    /// Sections are missing, out of order or too long.
    #[error("the snapshot is damaged: expected section {expected}, found {found}")]
    Section {
        /// The section that should follow.
        expected: String,
        /// The section that follows.
        found: String,
    },
    /// A section's content does not have the form it should.
    #[error("the snapshot is damaged: section {section}: {message}")]
    Content {
        /// The section.
        section: String,
        /// What is wrong with the section.
        message: String,
    },
}

fn name(id: SectionId) -> String {
    id.escape_ascii().to_string().trim_end_matches("\\x00").to_owned()
}

/// Writes a snapshot file.
pub struct SnapshotWriter<W: Write> {
    out: W,
    chunks: u64,
}

impl<W: Write> SnapshotWriter<W> {
    /// Writes the header.
    pub fn new(mut out: W) -> Result<Self, FormatError> {
        let mut header = Vec::with_capacity(16);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend(crc32fast::hash(&header).to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out, chunks: 0 })
    }

    /// Writes one section whose content `fill` writes.
    pub fn section(
        &mut self,
        id: SectionId,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut chunks = io::BufWriter::with_capacity(CHUNK_BYTES_MAX, ChunkWriter { writer: self, id });
        fill(&mut chunks)?;
        chunks.flush()?;
        drop(chunks);
        self.chunk(id, &[])?;
        Ok(())
    }

    /// Writes one section that holds a serialized value.
    pub fn value<T: serde::Serialize>(&mut self, id: SectionId, value: &T) -> Result<(), FormatError> {
        let bytes = postcard::to_allocvec(value)
            .map_err(|error| FormatError::Content { section: name(id), message: error.to_string() })?;
        self.section(id, |out| Ok(out.write_all(&bytes)?))
    }

    /// Writes the end mark and hands the output back.
    pub fn finish(mut self) -> Result<W, FormatError> {
        self.chunk(END, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn chunk(&mut self, id: SectionId, content: &[u8]) -> io::Result<()> {
        self.out.write_all(&id)?;
        self.out.write_all(&(content.len() as u32).to_le_bytes())?;
        self.out.write_all(&checksum(id, self.chunks, content).to_le_bytes())?;
        self.out.write_all(content)?;
        self.chunks += 1;
        Ok(())
    }
}

fn checksum(id: SectionId, number: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id);
    hasher.update(&number.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

struct ChunkWriter<'a, W: Write> {
    writer: &'a mut SnapshotWriter<W>,
    id: SectionId,
}

impl<W: Write> Write for ChunkWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(CHUNK_BYTES_MAX);
        if len > 0 {
            self.writer.chunk(self.id, &bytes[..len])?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot file, section by section in the order written.
pub struct SnapshotReader<R: Read> {
    input: R,
    version: u32,
    chunks: u64,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads and checks the header.
    pub fn new(mut input: R) -> Result<Self, FormatError> {
        let mut header = [0; 16];
        read_exact(&mut input, &mut header)?;
        let (checked, crc) = header.split_at(12);
        if !checked.starts_with(&MAGIC) {
            return Err(FormatError::Magic);
        }
        if crc != crc32fast::hash(checked).to_le_bytes() {
            return Err(FormatError::Checksum("the header".into()));
        }
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if !(VERSION_OF_FILES..=VERSION).contains(&version) {
            return Err(FormatError::Version(version));
        }
        Ok(Self { input, version, chunks: 0 })
    }

    /// The file's format version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Reads the section `id`, which must come next, through `take`, which must read it to its end.
    pub fn section<T>(
        &mut self,
        id: SectionId,
        take: impl FnOnce(&mut SectionReader<'_, R>) -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        let mut section = SectionReader { reader: self, id, chunk: Vec::new(), at: 0, ended: false, error: None };
        let taken = take(&mut section);
        if let Some(error) = section.error.take() {
            return Err(error);
        }
        let taken = taken?;
        if section.at < section.chunk.len() || !section.next_chunk()? {
            return Err(FormatError::Content { section: name(id), message: "is longer than it should be".into() });
        }
        Ok(taken)
    }

    /// Reads the section `id` as a serialized value.
    pub fn value<T: serde::de::DeserializeOwned>(&mut self, id: SectionId) -> Result<T, FormatError> {
        let content = |message: String| FormatError::Content { section: name(id), message };
        let bytes = self.section(id, |section| {
            let mut bytes = Vec::new();
            section.take(SECTION_BYTES_MAX as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        })?;
        let (value, rest) = postcard::take_from_bytes(&bytes).map_err(|error| content(error.to_string()))?;
        if rest.is_empty() { Ok(value) } else { Err(content("is longer than it should be".into())) }
    }

    /// Checks that the file ends here, as it should.
    pub fn finish(mut self) -> Result<(), FormatError> {
        let (id, content) = self.chunk()?;
        let mut rest = [0; 1];
        if id != END || !content.is_empty() || self.input.read(&mut rest)? != 0 {
            return Err(FormatError::Section { expected: name(END), found: name(id) });
        }
        Ok(())
    }

    fn chunk(&mut self) -> Result<(SectionId, Vec<u8>), FormatError> {
        let mut head = [0; 12];
        read_exact(&mut self.input, &mut head)?;
        let [i0, i1, i2, i3, l0, l1, l2, l3, crc @ ..] = head;
        let id = [i0, i1, i2, i3];
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > CHUNK_BYTES_MAX {
            return Err(FormatError::Checksum(format!("the header of section {}", name(id))));
        }
        let mut content = vec![0; len];
        read_exact(&mut self.input, &mut content)?;
        if crc != checksum(id, self.chunks, &content).to_le_bytes() {
            return Err(FormatError::Checksum(format!("section {}", name(id))));
        }
        self.chunks += 1;
        Ok((id, content))
    }
}

fn read_exact(input: &mut impl Read, buf: &mut [u8]) -> Result<(), FormatError> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FormatError::Truncated,
        _ => FormatError::Io(error),
    })
}

/// The content of one section.
pub struct SectionReader<'a, R: Read> {
    reader: &'a mut SnapshotReader<R>,
    id: SectionId,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    /// What really went wrong when [`Read::read`] could only say "other".
    error: Option<FormatError>,
}

impl<R: Read> SectionReader<'_, R> {
    /// Fetches the next chunk; true at the end of the section.
    fn next_chunk(&mut self) -> Result<bool, FormatError> {
        if !self.ended {
            let (id, content) = self.reader.chunk()?;
            if id != self.id {
                return Err(FormatError::Section { expected: name(self.id), found: name(id) });
            }
            self.ended = content.is_empty();
            self.chunk = content;
            self.at = 0;
        }
        Ok(self.ended)
    }
}

impl<R: Read> Read for SectionReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.at == self.chunk.len() {
            match self.next_chunk() {
                Ok(true) => return Ok(0),
                Ok(false) => {}
                Err(error) => {
                    let message = error.to_string();
                    self.error = Some(error);
                    return Err(io::Error::other(message));
                }
            }
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = SnapshotWriter::new(Vec::new()).unwrap();
        writer.value(*b"CONF", &("redis", 7u32)).unwrap();
        writer
            .section(*b"MEM\0", |out| {
                for page in 0..600u32 {
                    out.write_all(&[page as u8; 4096])?;
                }
                Ok(())
            })
            .unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(String, u32, usize), FormatError> {
        let mut reader = SnapshotReader::new(bytes)?;
        let (text, number) = reader.value(*b"CONF")?;
        let len = reader.section(*b"MEM\0", |section| {
            let mut content = Vec::new();
            section.read_to_end(&mut content)?;
            Ok(content.len())
        })?;
        reader.finish()?;
        Ok((text, number, len))
    }

    #[test]
    fn sections_come_back_as_written() {
        assert_eq!(read(&sample()).unwrap(), ("redis".into(), 7, 600 * 4096));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sample = sample();
        for at in (0..200).chain((200..sample.len()).step_by(10_007)).chain(sample.len() - 40..sample.len()) {
            for bit in 0..8 {
                let mut damaged = sample.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let sample = sample();
        for len in (0..200).chain((200..sample.len()).step_by(10_007)).chain([sample.len() - 1]) {
            assert!(read(&sample[..len]).is_err(), "{len}");
        }
        let mut longer = sample;
        longer.push(0);
        assert!(read(&longer).is_err());
    }

    #[test]
    fn swapped_chunks_are_noticed() {
        let mut sample = sample();
        let first = sample.windows(4).position(|window| window == b"MEM\0").unwrap();
        let (head, tail) = sample.split_at_mut(first + 12 + CHUNK_BYTES_MAX);
        head[first..].swap_with_slice(&mut tail[..12 + CHUNK_BYTES_MAX]);
        assert!(read(&sample).is_err());
    }
}
