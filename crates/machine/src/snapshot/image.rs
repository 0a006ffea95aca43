//! A disk in a snapshot: what its image is, and what it holds.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | size of the disk |
//! | 1 | how the image stores its content: 0 raw, 1 qcow2 |
//! | 4 | qcow2 alone: length of a cluster |
//! | 2 + length | qcow2 alone: what it is based on, as the image names it: length and UTF-8; length 0 if it is based on nothing |
//! | 2 + length | qcow2 alone: the format of that, likewise |
//! | 8 + 8 + 1 | offset, length and kind of a part, ascending; repeated |
//! | length | its bytes, if its kind is 0: data. Kind 1 is zeros. What is in no part is not in the image |
//! | 8 | `u64::MAX` |
//!
//! Only what a guest sees is in it, and not where an image has it in its file. So an image that is restored is made anew, and its file may be another one,
//! byte by byte, than it was.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::disk::{
    Allocation, Backing, DiskError, DiskImage, DiskOptions, FrozenDisk, ImageForm, ImageShape, RecordedBase,
};

use super::disk::SnapshotDisk;
use super::format::FormatError;

const END: u64 = u64::MAX;
const RAW: u8 = 0;
const QCOW2: u8 = 1;
const DATA: u8 = 0;
const ZEROS: u8 = 1;
/// Bytes of a part that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Writes what a disk held when it was frozen; `path` is what the disk is called.
pub(crate) fn write_image(
    path: &Path,
    disk: &mut FrozenDisk,
    out: &mut dyn Write,
    is_cancelled: &AtomicBool,
) -> Result<(), FormatError> {
    let failed = |error: DiskError| match error {
        // It does not name the disk.
        DiskError::Spill(_) => FormatError::Disk { path: path.to_owned(), source: error.into() },
        error => error.into(),
    };
    let check = || if is_cancelled.load(Ordering::Relaxed) { Err(FormatError::Cancelled) } else { Ok(()) };
    write_form(&disk.form().map_err(failed)?, out)?;
    loop {
        let next = disk.read_next(is_cancelled);
        check()?;
        let Some((stretch, data)) = next.map_err(failed)? else { break };
        let kind = match stretch.allocation {
            Allocation::Data => DATA,
            Allocation::Zeros => ZEROS,
            Allocation::Absent => continue,
        };
        out.write_all(&stretch.offset.to_le_bytes())?;
        out.write_all(&stretch.length.to_le_bytes())?;
        out.write_all(&[kind])?;
        out.write_all(data)?;
    }
    Ok(out.write_all(&END.to_le_bytes())?)
}

fn write_form(form: &ImageForm, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&form.size_bytes.to_le_bytes())?;
    let ImageShape::Qcow2 { cluster_bytes, base } = &form.shape else { return out.write_all(&[RAW]) };
    out.write_all(&[QCOW2])?;
    out.write_all(&u32::try_from(*cluster_bytes).unwrap_or(0).to_le_bytes())?;
    let (name, format) = base.as_ref().map_or(("", ""), |base| (&base.name, &base.format));
    for text in [name, format] {
        let length = u16::try_from(text.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Makes the image of a disk anew in `file`, which is empty and lies at `at`.
pub(crate) fn read_image(
    disk: &SnapshotDisk,
    file: &File,
    at: &Path,
    input: &mut impl Read,
) -> Result<(), FormatError> {
    let form = read_form(input)?;
    form.create(file, &disk.path)?;
    let options = DiskOptions { format: Some(form.shape.format()), read_only: false, direct: false };
    let mut image = DiskImage::open_as(at, &disk.path, options)?;
    check_base(&image, disk)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let mut offset = read_u64(input)?;
        if offset == END {
            return Ok(image.flush()?);
        }
        let mut left = read_u64(input)?;
        let [kind] = read(input)?;
        if offset.checked_add(left).is_none_or(|end| end > form.size_bytes) {
            return Err(damaged("a part outside of the disk"));
        }
        match kind {
            ZEROS => image.write_zeroes(offset, left, true)?,
            DATA => {
                while left > 0 {
                    let piece = buffer.get_mut(..left.min(COPY_BYTES as u64) as usize).unwrap_or_default();
                    input.read_exact(piece)?;
                    image.write_at(offset, piece)?;
                    offset += piece.len() as u64;
                    left -= piece.len() as u64;
                }
            }
            _ => return Err(damaged("a part of an unknown kind")),
        }
    }
}

/// Refuses an image that is based on another file than the snapshot's head says, which is the one that was looked at.
fn check_base(image: &DiskImage, disk: &SnapshotDisk) -> Result<(), FormatError> {
    let expected = disk.base.as_ref().map(|base| Backing { path: base.path.clone(), format: base.format });
    if image.backing() == expected.as_ref() { Ok(()) } else { Err(damaged("a disk is based on another file")) }
}

fn read_form(input: &mut impl Read) -> Result<ImageForm, FormatError> {
    let size_bytes = read_u64(input)?;
    let [shape] = read(input)?;
    let shape = match shape {
        RAW => ImageShape::Raw,
        QCOW2 => {
            let cluster_bytes = u32::from_le_bytes(read(input)?).into();
            let (name, format) = (read_text(input)?, read_text(input)?);
            let base = (!name.is_empty()).then_some(RecordedBase { name, format });
            ImageShape::Qcow2 { cluster_bytes, base }
        }
        _ => return Err(damaged("an image of an unknown format")),
    };
    Ok(ImageForm { size_bytes, shape })
}

fn read_text(input: &mut impl Read) -> Result<String, FormatError> {
    let mut text = vec![0; usize::from(u16::from_le_bytes(read(input)?))];
    input.read_exact(&mut text)?;
    String::from_utf8(text).map_err(|_| damaged("a name that is no text"))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_le_bytes(read(input)?))
}

fn read<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn damaged(message: &str) -> FormatError {
    FormatError::Content { section: "IMG".into(), message: message.into() }
}
