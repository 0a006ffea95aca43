//! A disk's file in a snapshot: its length, and the extents that hold data.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | length of the file |
//! | 8 + 8 + length | offset and length of an extent, and its bytes; repeated, ascending |
//! | 8 | `u64::MAX` |

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use rustix::fs::SeekFrom as Extent;

use super::format::FormatError;

const END: u64 = u64::MAX;

pub(crate) fn write_file(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    out.write_all(&len.to_le_bytes())?;
    let mut at = 0;
    while let Some((start, end)) = next_extent(&file, at, len)? {
        out.write_all(&start.to_le_bytes())?;
        out.write_all(&(end - start).to_le_bytes())?;
        file.seek(SeekFrom::Start(start))?;
        if io::copy(&mut (&file).take(end - start), out)? != end - start {
            return Err(io::Error::other(format!("{} shrank while it was read", path.display())));
        }
        at = end;
    }
    out.write_all(&END.to_le_bytes())
}

/// The next stretch of data in a sparse file, from `at` on.
fn next_extent(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, Extent::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, Extent::Hole(start))?.min(len);
    Ok((start < end).then_some((start, end)))
}

pub(crate) fn read_file(path: &Path, input: &mut impl Read) -> Result<(), FormatError> {
    let damaged = || FormatError::Content { section: "DISK".into(), message: "an extent outside of the disk".into() };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let len = read_u64(input)?;
    file.set_len(len)?;
    loop {
        let start = read_u64(input)?;
        if start == END {
            break;
        }
        let extent = read_u64(input)?;
        if start.checked_add(extent).is_none_or(|end| end > len) {
            return Err(damaged());
        }
        file.seek(SeekFrom::Start(start))?;
        if io::copy(&mut input.by_ref().take(extent), &mut file)? != extent {
            return Err(FormatError::Truncated);
        }
    }
    Ok(file.sync_all()?)
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_sparse_file_comes_back_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(&[9; 100_000], 30 << 20).unwrap();
        let mut saved = Vec::new();
        write_file(&from, &mut saved).unwrap();
        assert!(saved.len() < 1 << 20, "{}", saved.len());
        read_file(&to, &mut &saved[..]).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        saved[8] = 0xff;
        saved[15] = 0x7f;
        assert!(read_file(&to, &mut &saved[..]).is_err());
    }
}
