//! A disk's file in a snapshot of format 6, which is only read any more: its length, and the extents that hold data. Whatever the file's format is, these
//! are its bytes.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | length of the file |
//! | 8 + 8 + length | offset and length of an extent, and its bytes; repeated, ascending |
//! | 8 | `u64::MAX` |

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::format::FormatError;

const END: u64 = u64::MAX;
/// Bytes of an extent that are copied at once.
const COPY_BYTES: usize = 256 << 10;

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

    fn saved() -> Vec<u8> {
        let extents: [(u64, &[u8]); 2] = [(0, b"start"), (30 << 20, &[9; 100_000])];
        let mut saved = u64::to_le_bytes(64 << 20).to_vec();
        for (at, data) in extents {
            saved.extend(at.to_le_bytes());
            saved.extend((data.len() as u64).to_le_bytes());
            saved.extend(data);
        }
        saved.extend(END.to_le_bytes());
        saved
    }

    #[test]
    fn a_sparse_file_comes_back_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(&[9; 100_000], 30 << 20).unwrap();
        let mut saved = saved();
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
        let full = File::options().write(true).open("/dev/full").unwrap();
        let message = read_file(Path::new("from"), &full, &mut &saved()[..]).unwrap_err().to_string();
        assert!(message.contains("from: "), "{message}");
    }
}
