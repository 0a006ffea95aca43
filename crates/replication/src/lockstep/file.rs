//! The event log as a file, beside the snapshot of the state that it begins with.
//!
//! The layout is in `docs/event-log.md`. A file that its writer did not finish, because it was killed, can be read up to where it ends;
//! one that was damaged cannot be read beyond the damage, and says where that is.

use std::io::{self, Read, Write};
use std::path::Path;

use machine::digest::Digest;
use network::InputPosition;
use protocol::Epoch;
use storage::disk::BaseIdentity;

use super::log::{FORMAT_VERSION, LogError, SEGMENT_BYTES_MAX, Segment, SegmentReader};

/// First bytes of every log file.
pub const MAGIC: [u8; 8] = *b"TWINVMLG";
/// Version of the layout written, and the only one read; the segments' is [`FORMAT_VERSION`].
pub const FILE_VERSION: u16 = 1;

/// Longest head, in bytes, without its fixed beginning and its checksum.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Kinds of records.
const SEGMENT: u8 = 1;
const END: u8 = 2;
/// What precedes a record's content: kind, length, checksum.
const RECORD_HEAD_BYTES: usize = 8;
/// Content of the record that ends a log: instruction count, digest, checksum.
const END_BYTES: usize = 8 + 16 + 4;

/// What a log file says of the log in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFileHead {
    /// The epoch after which the log begins.
    pub epoch: Epoch,
    /// The instruction count at which the log begins: the snapshot's.
    pub instructions: u64,
    /// [`machine::engine::soft::host_signature`] of where it was written.
    pub host_signature: u64,
    /// The name of the snapshot's file, which is in the same folder.
    pub snapshot: String,
    /// [`snapshot_digest`] of that file.
    pub snapshot_digest: [u8; 32],
    /// How far each card's frames had been taken.
    pub positions: Vec<InputPosition>,
    /// What each disk shows where the snapshot has nothing of it: of a disk that is in the snapshot what its image is based on, of one that
    /// is not, as the guest may only read it, what it holds.
    pub bases: Vec<BaseIdentity>,
}

/// What a log ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Instructions retired since power-on.
    pub instructions: u64,
    /// [`machine::vm::Vm::digest`] of the VM then.
    pub digest: Digest,
}

/// A part of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The next segment.
    Segment(Segment),
    /// The log was ended here.
    End(LogEnd),
    /// The file ends here, and the log was not ended: whoever wrote it was killed, or had no room left.
    Cut {
        /// Where what cannot be used begins, in bytes; the file's length if nothing is lost.
        offset: u64,
    },
}

/// Why a log file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Some other file.
    #[error("not a log that twinvm has recorded")]
    Magic,
    /// Written by another version of twinvm.
    #[error("its format {file}.{log} is not supported: this twinvm reads {FILE_VERSION}.{FORMAT_VERSION}")]
    Version {
        /// The layout's version.
        file: u16,
        /// The segments' version.
        log: u16,
    },
    /// The file ends before its first record.
    #[error("it is cut short: it ends within its head, so nothing of the log is left")]
    NoHead,
    /// The head is not as it was written, or makes no sense.
    #[error("its head is damaged: {0}")]
    Head(&'static str),
    /// A record is not as it was written.
    #[error("it is damaged at byte {offset}: {reason}")]
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// What is wrong with the record.
        reason: String,
    },
}

/// By which a log file knows its snapshot: BLAKE3 of the snapshot's file.
///
/// # Errors
/// Those of reading it.
pub fn snapshot_digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().into())
}

impl LogFileHead {
    fn encode(&self) -> io::Result<Vec<u8>> {
        let refuse = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let mut rest = Vec::new();
        rest.extend(self.epoch.number().to_le_bytes());
        rest.extend(self.instructions.to_le_bytes());
        rest.extend(self.host_signature.to_le_bytes());
        rest.extend(self.snapshot_digest);
        let name_bytes = u16::try_from(self.snapshot.len()).map_err(|_| refuse("the snapshot's name is too long"))?;
        rest.extend(name_bytes.to_le_bytes());
        rest.extend(self.snapshot.as_bytes());
        rest.push(u8::try_from(self.positions.len()).map_err(|_| refuse("too many cards"))?);
        for position in &self.positions {
            rest.extend(position.end.to_le_bytes());
            rest.extend(position.frames.to_le_bytes());
        }
        rest.push(u8::try_from(self.bases.len()).map_err(|_| refuse("too many disks"))?);
        for base in &self.bases {
            match base {
                BaseIdentity::Zeros => rest.push(0),
                BaseIdentity::Content(digest) => {
                    rest.push(1);
                    rest.extend(digest);
                }
            }
        }
        let rest_bytes = u32::try_from(rest.len()).ok().filter(|&bytes| bytes as usize <= HEAD_BYTES_MAX);
        let rest_bytes = rest_bytes.ok_or_else(|| refuse("the head is too long"))?;
        let mut out = Vec::with_capacity(20 + rest.len());
        out.extend(MAGIC);
        out.extend(FILE_VERSION.to_le_bytes());
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend(rest_bytes.to_le_bytes());
        out.append(&mut rest);
        out.extend(crc32fast::hash(&out).to_le_bytes());
        Ok(out)
    }

    /// Reads the head; returns it and its length in bytes.
    fn read(input: &mut impl Read) -> Result<(Self, u64), LogFileError> {
        let mut head = vec![0; 16];
        read_whole(input, &mut head)?;
        let mut fields = Fields(&head);
        if fields.array()? != MAGIC {
            return Err(LogFileError::Magic);
        }
        let (file, log) = (u16::from_le_bytes(fields.array()?), u16::from_le_bytes(fields.array()?));
        if (file, log) != (FILE_VERSION, FORMAT_VERSION) {
            return Err(LogFileError::Version { file, log });
        }
        let rest_bytes = u32::from_le_bytes(fields.array()?) as usize;
        if rest_bytes > HEAD_BYTES_MAX {
            return Err(LogFileError::Head("it is too long"));
        }
        let mut rest = vec![0; rest_bytes];
        read_whole(input, &mut rest)?;
        head.extend(&rest);
        let mut checksum = [0; 4];
        read_whole(input, &mut checksum)?;
        if crc32fast::hash(&head).to_le_bytes() != checksum {
            return Err(LogFileError::Head("its checksum does not match"));
        }
        Ok((Self::decode(Fields(&rest))?, (head.len() + checksum.len()) as u64))
    }

    fn decode(mut fields: Fields<'_>) -> Result<Self, LogFileError> {
        let (epoch, instructions, host_signature) = (Epoch::new(fields.u64()?), fields.u64()?, fields.u64()?);
        let snapshot_digest = fields.array()?;
        let name_bytes = u16::from_le_bytes(fields.array()?).into();
        let snapshot = String::from_utf8(fields.take(name_bytes)?.to_vec());
        let snapshot = snapshot.map_err(|_| LogFileError::Head("the snapshot's name is not text"))?;
        if Path::new(&snapshot).file_name().is_none_or(|name| name != snapshot.as_str()) {
            return Err(LogFileError::Head("the snapshot is not in the same folder"));
        }
        let [cards] = fields.array()?;
        let positions = (0..cards).map(|_| Ok(InputPosition { end: fields.u64()?, frames: fields.u64()? }));
        let positions = positions.collect::<Result<_, LogFileError>>()?;
        let [disks] = fields.array()?;
        let bases = (0..disks).map(|_| match fields.array()? {
            [0] => Ok(BaseIdentity::Zeros),
            [1] => Ok(BaseIdentity::Content(fields.array()?)),
            _ => Err(LogFileError::Head("a disk is of an unknown kind")),
        });
        let bases = bases.collect::<Result<_, _>>()?;
        if !fields.0.is_empty() {
            return Err(LogFileError::Head("it is longer than it should be"));
        }
        Ok(Self { epoch, instructions, host_signature, snapshot, snapshot_digest, positions, bases })
    }
}

/// Reads from the front of a head.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], LogFileError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(LogFileError::Head("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LogFileError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(LogFileError::Head("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64, LogFileError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// Reads what must be there of a head.
fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), LogFileError> {
    if read_up_to(input, buffer)? == buffer.len() { Ok(()) } else { Err(LogFileError::NoHead) }
}

/// Fills the buffer as far as there is something; returns how far.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The checksum of a record's kind and length, which no record elsewhere in the file has.
fn record_checksum(offset: u64, kind_and_length: [u8; 4]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(&kind_and_length);
    hasher.finalize().to_le_bytes()
}

/// Writes a log file. Each record is handed to the output as a whole: what a process that is killed leaves in the file can be read.
#[derive(Debug)]
pub struct LogFileWriter<W: Write> {
    out: W,
    offset: u64,
}

impl<W: Write> LogFileWriter<W> {
    /// Writes the head.
    ///
    /// # Errors
    /// Those of the output, and [`io::ErrorKind::InvalidInput`] if there is too much to say.
    pub fn new(mut out: W, head: &LogFileHead) -> io::Result<Self> {
        let head = head.encode()?;
        out.write_all(&head)?;
        Ok(Self { out, offset: head.len() as u64 })
    }

    /// Adds a segment, as [`SegmentWriter::finish`](super::log::SegmentWriter::finish) gives it.
    ///
    /// # Errors
    /// Those of the output. Nothing may be added then.
    pub fn segment(&mut self, segment: &[u8]) -> io::Result<()> {
        self.record(SEGMENT, segment)
    }

    /// Ends the log, and hands the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(mut self, end: &LogEnd) -> io::Result<W> {
        let mut content = Vec::with_capacity(END_BYTES);
        content.extend(end.instructions.to_le_bytes());
        content.extend(end.digest.value().to_le_bytes());
        content.extend(crc32fast::hash(&content).to_le_bytes());
        self.record(END, &content)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn record(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).ok().filter(|&length| length as usize <= SEGMENT_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a segment is too long"))?;
        let kind_and_length = (u32::from(kind) | length << 8).to_le_bytes();
        let mut record = Vec::with_capacity(RECORD_HEAD_BYTES + content.len());
        record.extend(kind_and_length);
        record.extend(record_checksum(self.offset, kind_and_length));
        record.extend(content);
        self.out.write_all(&record)?;
        self.offset += record.len() as u64;
        Ok(())
    }
}

/// Reads and checks a log file, record by record.
#[derive(Debug)]
pub struct LogFileReader<R: Read> {
    input: R,
    head: LogFileHead,
    segments: SegmentReader,
    offset: u64,
    is_over: bool,
}

impl<R: Read> LogFileReader<R> {
    /// Reads and checks the head.
    ///
    /// # Errors
    /// [`LogFileError`].
    pub fn new(mut input: R) -> Result<Self, LogFileError> {
        let (head, offset) = LogFileHead::read(&mut input)?;
        let segments = SegmentReader::new(head.epoch, head.instructions, &head.positions);
        Ok(Self { input, head, segments, offset, is_over: false })
    }

    /// What the file says of its log.
    pub fn head(&self) -> &LogFileHead {
        &self.head
    }

    /// The next record; `None` after the last one, which is [`LogRecord::End`] or [`LogRecord::Cut`].
    ///
    /// # Errors
    /// [`LogFileError::Damaged`], after which nothing more can be read; [`LogFileError::Io`].
    pub fn next_record(&mut self) -> Result<Option<LogRecord>, LogFileError> {
        if self.is_over {
            return Ok(None);
        }
        let record = self.read();
        self.is_over = !matches!(record, Ok(LogRecord::Segment(_)));
        record.map(Some)
    }

    fn read(&mut self) -> Result<LogRecord, LogFileError> {
        let offset = self.offset;
        let damaged = |reason: &str| LogFileError::Damaged { offset, reason: reason.to_owned() };
        let mut head = [0; RECORD_HEAD_BYTES];
        if read_up_to(&mut self.input, &mut head)? < head.len() {
            return Ok(LogRecord::Cut { offset });
        }
        let [k0, l0, l1, l2, checksum @ ..] = head;
        if record_checksum(offset, [k0, l0, l1, l2]) != checksum {
            // Some file systems leave zeros where a machine that lost its power has not written yet.
            if head == [0; RECORD_HEAD_BYTES] && self.only_zeros_follow()? {
                return Ok(LogRecord::Cut { offset });
            }
            return Err(damaged("a record's checksum does not match"));
        }
        let length = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
        if length > SEGMENT_BYTES_MAX {
            return Err(damaged("a record is too long"));
        }
        let mut content = vec![0; length];
        if read_up_to(&mut self.input, &mut content)? < length {
            return Ok(LogRecord::Cut { offset });
        }
        let record = match k0 {
            SEGMENT => {
                let segment = self.segments.read(&content).map_err(|error: LogError| damaged(&error.to_string()))?;
                LogRecord::Segment(segment)
            }
            END => {
                let end = decode_end(&content).ok_or_else(|| damaged("the end's checksum does not match"))?;
                if self.input.read(&mut [0])? != 0 {
                    return Err(damaged("something follows the log's end"));
                }
                LogRecord::End(end)
            }
            _ => return Err(damaged("a record is of an unknown kind")),
        };
        self.offset += (RECORD_HEAD_BYTES + length) as u64;
        Ok(record)
    }

    fn only_zeros_follow(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            let bytes = read_up_to(&mut self.input, &mut buffer)?;
            if buffer.iter().take(bytes).any(|&byte| byte != 0) {
                return Ok(false);
            }
            if bytes < buffer.len() {
                return Ok(true);
            }
        }
    }
}

fn decode_end(content: &[u8]) -> Option<LogEnd> {
    let (content, checksum) = content.split_last_chunk::<4>()?;
    let (instructions, digest) = content.split_first_chunk()?;
    let digest = u128::from_le_bytes(digest.try_into().ok()?);
    let is_whole = crc32fast::hash(content).to_le_bytes() == *checksum;
    is_whole.then(|| LogEnd { instructions: u64::from_le_bytes(*instructions), digest: digest.into() })
}

#[cfg(test)]
mod tests;
