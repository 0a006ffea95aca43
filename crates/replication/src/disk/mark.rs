//! [`CopyMark`]: what a host's copy of a VM's disks is, kept beside it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{DiskCopy, Generation};
use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};
use storage::plain_file;

/// Longest mark, in bytes.
const BYTES_MAX: u64 = 4 << 10;

/// What a copy of a VM's disks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "kebab-case")]
pub enum CopyState {
    /// A first copy to it has begun and not ended: it holds parts of different times, and no VM may start from it.
    Incomplete {
        /// The primary's generation; 0 where it is not known yet.
        generation: u64,
        /// When it began, in ms since 1970.
        since_unix_ms: u64,
    },
    /// It is what the VM's disks were at some time of this generation: since this one was noted, or later.
    Consistent {
        /// The generation in which the disks were so.
        generation: u64,
        /// When that was noted, in ms since 1970.
        since_unix_ms: u64,
    },
}

impl CopyState {
    /// The copy is incomplete from now on.
    pub fn incomplete(generation: Generation) -> Self {
        DiskCopy::Incomplete { generation }.into()
    }

    /// The copy is that of a VM of this generation now.
    pub fn consistent(generation: Generation) -> Self {
        DiskCopy::Consistent { generation }.into()
    }

    /// When that was noted, in ms since 1970.
    pub fn since_unix_ms(self) -> u64 {
        let (Self::Incomplete { since_unix_ms, .. } | Self::Consistent { since_unix_ms, .. }) = self;
        since_unix_ms
    }

    /// The generation that it names.
    pub fn generation(self) -> Generation {
        let (Self::Incomplete { generation, .. } | Self::Consistent { generation, .. }) = self;
        Generation::new(generation)
    }

    /// The same without when it was noted.
    pub fn copy(self) -> DiskCopy {
        match self {
            Self::Incomplete { generation, .. } => DiskCopy::Incomplete { generation: Generation::new(generation) },
            Self::Consistent { generation, .. } => DiskCopy::Consistent { generation: Generation::new(generation) },
        }
    }
}

/// Noted now.
impl From<DiskCopy> for CopyState {
    fn from(copy: DiskCopy) -> Self {
        let since_unix_ms = unix_ms_now();
        match copy {
            DiskCopy::Incomplete { generation } => Self::Incomplete { generation: generation.number(), since_unix_ms },
            DiskCopy::Consistent { generation } => Self::Consistent { generation: generation.number(), since_unix_ms },
        }
    }
}

/// The file that says what a copy is. It is on stable storage before whatever it says stops to be so: a copy is marked as incomplete before
/// its first byte is written, and as consistent after its last one is on stable storage.
#[derive(Clone, Debug)]
pub struct CopyMark {
    folder: PathBuf,
}

impl CopyMark {
    /// The mark of the disks in a folder.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("copy.json")
    }

    /// What it says; nothing where there is none, as in folders from before there were marks.
    ///
    /// # Errors
    /// The host's, and [`ErrorKind::InvalidData`] if the file is not a mark: then nobody knows what the copy is.
    pub fn read(&self) -> io::Result<Option<CopyState>> {
        match plain_file::read(&self.path(), BYTES_MAX) {
            Ok(text) => {
                let state = serde_json::from_slice(&text);
                state.map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says something else from now on. Returns when that is on stable storage; a power failure before leaves what was said before.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, state: CopyState) -> io::Result<()> {
        durable::write(&self.path(), &serde_json::to_vec(&state)?, Readers::Owner)
    }
}

fn unix_ms_now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_mark_says_what_was_last_written_or_that_nobody_knows() {
        let folder = tempfile::tempdir().unwrap();
        let mark = CopyMark::of(folder.path());
        assert_eq!(mark.read().unwrap(), None);
        for state in [CopyState::incomplete(Generation::new(7)), CopyState::consistent(Generation::new(8))] {
            mark.write(state).unwrap();
            assert_eq!(mark.read().unwrap(), Some(state));
        }
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["copy.json"]);
        fs::write(folder.path().join("copy.json"), "{\"copy\":").unwrap();
        assert_eq!(mark.read().unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(CopyMark::of(&folder.path().join("gone")).write(CopyState::incomplete(Generation::NONE)).is_err());
    }
}
