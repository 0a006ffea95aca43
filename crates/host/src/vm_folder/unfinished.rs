//! The note in a VM's folder of what is being made of it: whoever finds it after a daemon was killed knows what to take back, or to finish.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use spec::VmName;
use storage::durable;
use storage::plain_file;

use super::{VmFolder, folders, write};

/// The file.
const NOTE: &str = "unfinished.json";
/// Longest such file, in bytes.
const NOTE_BYTES_MAX: u64 = 16 << 10;

/// What is being made of a VM's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unfinished {
    /// That of a new VM, which is there when the store has its record.
    Made {
        /// The folder of its disks, if they are on a datastore.
        disks: Option<PathBuf>,
    },
    /// That of a VM with another name. The VM has it when its folder does.
    Renamed {
        /// The name before.
        from: VmName,
        /// The name after it.
        to: VmName,
    },
}

impl VmFolder {
    /// Makes the folder of a new VM, with the note that it is not one yet. `disks`: the folder of its disks, if they are on a datastore.
    pub(super) fn begin(&self, disks: Option<&Path>) -> Result<()> {
        folders::create_folder(&self.path)?;
        let noted = self.note_unfinished(&Unfinished::Made { disks: disks.map(PathBuf::from) });
        noted.inspect_err(|_| self.remove_after_failure())
    }

    /// Notes what is being made of it.
    pub fn note_unfinished(&self, unfinished: &Unfinished) -> Result<()> {
        write(&self.note(), &serde_json::to_vec(unfinished)?)
    }

    /// What was being made of it, if a daemon of this user has noted that: a replica may write in its VM's folder, but nothing that is this user's.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let found = fs::symlink_metadata(self.note()).ok()?;
        let text = plain_file::read(&self.note(), NOTE_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok().filter(|_| found.uid() == geteuid().as_raw())
    }

    /// It is made.
    pub fn finished(&self) -> Result<()> {
        let note = self.note();
        if !note.exists() {
            return Ok(());
        }
        durable::remove(&note).with_context(|| format!("cannot remove {}", note.display()))
    }

    fn note(&self) -> PathBuf {
        self.path.join(NOTE)
    }
}
