//! A disk's file in a snapshot: its length, and the extents that hold data.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | length of the file |
//! | 8 + 8 + length | offset and length of an extent, and its bytes; repeated, ascending |
//! | 8 | `u64::MAX` |

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use rustix::fs::SeekFrom as Extent;

use super::format::FormatError;

const END: u64 = u64::MAX;
/// Bytes of an extent that are copied at once.
const COPY_BYTES: usize = 256 << 10;

pub(crate) fn write_file(path: &Path, out: &mut dyn Write) -> Result<(), FormatError> {
    let failed = |source| FormatError::Disk { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        // Others have no length of their own, and no content that can be put back at once.
        return Err(failed(io::Error::new(io::ErrorKind::Unsupported, "not a regular file")));
    }
    let len = metadata.len();
    out.write_all(&len.to_le_bytes())?;
    let mut at = 0;
    while let Some((start, end)) = next_extent(&file, at, len).map_err(failed)? {
        out.write_all(&start.to_le_bytes())?;
        out.write_all(&(end - start).to_le_bytes())?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        if io::copy(&mut (&file).take(end - start), out)? != end - start {
            return Err(failed(io::Error::other("it shrank while it was read")));
        }
        at = end;
    }
    Ok(out.write_all(&END.to_le_bytes())?)
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

/// Reads into `file`, which is empty; `path` is what the disk is called.
pub(crate) fn read_file(path: &Path, mut file: &File, input: &mut impl Read) -> Result<(), FormatError> {
    let damaged = || FormatError::Content { section: "DISK".into(), message: "an extent outside of the disk".into() };
    let failed = |source| FormatError::Disk { path: path.to_owned(), source };
    let mut buffer = vec![0; COPY_BYTES];
    let len = read_u64(input)?;
    file.set_len(len).map_err(failed)?;
    loop {
        let start = read_u64(input)?;
        if start == END {
            return Ok(());
        }
        let mut left = read_u64(input)?;
        if start.checked_add(left).is_none_or(|end| end > len) {
            return Err(damaged());
        }
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        while left > 0 {
            let piece = buffer.get_mut(..left.min(COPY_BYTES as u64) as usize).unwrap_or_default();
            input.read_exact(piece)?;
            file.write_all(piece).map_err(failed)?;
            left -= piece.len() as u64;
        }
    }
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
        read_file(&to, &File::create(&to).unwrap(), &mut &saved[..]).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        saved[8] = 0xff;
        saved[15] = 0x7f;
        assert!(read_file(&to, &File::create(&to).unwrap(), &mut &saved[..]).is_err());
        for cut in [0, 7, 20, saved.len() - 1] {
            assert!(read_file(&to, &File::create(&to).unwrap(), &mut &saved[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_fails_at_a_disk_names_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let message = write_file(folder.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut saved = Vec::new();
        let from = folder.path().join("from");
        std::fs::write(&from, [1; 10]).unwrap();
        write_file(&from, &mut saved).unwrap();
        let message = read_file(&from, &full, &mut &saved[..]).unwrap_err().to_string();
        assert!(message.contains("from: "), "{message}");
    }
}
