//! Other disks, another kernel or initial RAM disk for a VM that is off.
//!
//! What is new is laid out in a folder beside those of VMs, where no replica can write. Then the store is told of the VM's new spec, which decides: whoever
//! looks after the VM next carries the change through if the store has that spec, and drops it otherwise, whatever has become of the daemon meanwhile.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use api::messages::VmContents;
use api::time::unix_ms_now;
use serde::{Deserialize, Serialize};
use spec::VmSpec;
use storage::durable::{self, Readers};
use storage::image::ImageStore;
use storage::plain_file;

use super::super::folder::private_folder;
use super::super::vm_files::VmFiles;
use super::{VmFolder, extension, folders};

/// What is noted of a change, beside what is new.
const NOTES: &str = "change.json";
/// Longest such file, in bytes.
const NOTES_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Change {
    /// The spec with which the store has it.
    spec: String,
    /// When the VM was created.
    created_unix_ms: u64,
    /// Files of disks that stay, with their names from then on.
    kept: Vec<(String, String)>,
    /// Files of disks that the VM has no more, with their names where they are put.
    removed: Vec<(String, String)>,
    /// There is no initial RAM disk from then on.
    drops_initrd: bool,
    stage: Stage,
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// The store decides.
    Proposed,
    /// The VM's folder is being emptied of the disks that it has.
    Decided,
    /// All that the VM has is among what is new, and takes its place.
    Gathered,
}

impl VmFolder {
    /// Lays out what the VM needs to have the spec `after`, which the store is to have as `text`: new disks, and `boots`, kernel and initial RAM disk, as far as they
    /// are others or may have other contents. Changes nothing of what it has.
    pub fn propose(
        &self,
        (before, after): (&VmSpec, &VmSpec),
        text: &str,
        boots: [bool; 2],
        images: &ImageStore,
        files: &VmFiles,
    ) -> Result<()> {
        let new = self.beside("changes")?;
        private_folder(new.path.parent().unwrap_or(Path::new("/")))?;
        folders::create_folder(&new.path)?;
        let proposed = self.lay_out(&new, (before, after), text, boots, images, files);
        if proposed.is_err() {
            new.remove_after_failure();
        }
        proposed
    }

    fn lay_out(
        &self,
        new: &Self,
        (before, after): (&VmSpec, &VmSpec),
        text: &str,
        boots: [bool; 2],
        images: &ImageStore,
        files: &VmFiles,
    ) -> Result<()> {
        let contents = self.contents().ok_or_else(|| anyhow!("{} holds no VM", self.path.display()))?;
        if boots != [false; 2] {
            new.copy_boot_files(after, boots, images, files)?;
        }
        let (mut kept, mut disk_bytes) = (Vec::new(), Vec::new());
        let position = |disk: &Path| before.disks.iter().position(|old| old.path == disk);
        for (number, disk) in after.disks.iter().enumerate() {
            let Some(old) = position(&disk.path) else {
                let made = new.create_disk(number, disk, images, files);
                disk_bytes.push(made.with_context(|| format!("disk {}", disk.path.display()))?);
                continue;
            };
            disk_bytes.push(*contents.disk_bytes.get(old).context("the VM's folder does not know all of its disks")?);
            let found = self.found_disk(old).filter(|_| !disk.readonly);
            kept.extend(found.map(|(_, format)| (file(old, format), file(number, format))));
        }
        let is_removed = |path: &Path| after.disks.iter().all(|disk| disk.path != path);
        let (vm, now) = (&before.name, unix_ms_now());
        let gone = before.disks.iter().enumerate().filter(|(_, disk)| is_removed(&disk.path));
        let gone = gone.filter_map(|(number, _)| Some((number, self.found_disk(number)?.1)));
        let gone = gone.map(|(number, format)| (file(number, format), format!("{vm}-{now}-{}", file(number, format))));
        new.bases().take_from(&self.bases(), &kept)?;
        new.write_contents(&VmContents {
            created_unix_ms: contents.created_unix_ms,
            disk_bytes,
            boot_changes: contents.boot_changes.wrapping_add((boots != [false; 2]).into()),
        })?;
        let change = Change {
            spec: text.to_owned(),
            created_unix_ms: contents.created_unix_ms,
            removed: gone.collect(),
            kept,
            drops_initrd: boots[1] && !new.initrd().exists(),
            stage: Stage::Proposed,
        };
        new.write_change(&change)
    }

    /// Carries a change through if the store has its spec, `text`, and drops it otherwise. Where disks are put that the VM has no more: files of the folder `aside`, by
    /// which they may be given to a VM.
    pub fn settle_change(&self, text: &str, aside: &Path, images: &ImageStore) -> Result<Vec<PathBuf>> {
        let new = self.beside("changes")?;
        let Some(mut change) = new.read_change()? else { return new.remove().map(|()| Vec::new()) };
        let is_ours = self.contents().is_some_and(|contents| contents.created_unix_ms == change.created_unix_ms);
        if change.stage == Stage::Proposed {
            if !is_ours || change.spec != text {
                return new.remove().map(|()| Vec::new());
            }
            change.stage = Stage::Decided;
            new.write_change(&change)?;
        } else if !is_ours {
            // It may hold the only copy of a disk of that VM.
            return new.set_aside(images).map(|()| Vec::new());
        }
        if change.stage == Stage::Decided {
            private_folder(aside)?;
            for (from, to) in &change.removed {
                rename(&self.path.join(from), &aside.join(to))?;
            }
            for (from, to) in &change.kept {
                rename(&self.path.join(from), &new.path.join(to))?;
            }
            [aside, &self.path, &new.path].into_iter().try_for_each(folders::sync)?;
            change.stage = Stage::Gathered;
            new.write_change(&change)?;
        }
        self.take_over(&new, &change)?;
        self.note_users(images)?;
        let removed: Vec<PathBuf> = change.removed.iter().map(|(_, to)| aside.join(to)).collect();
        let qcow2 = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "qcow2") && path.exists();
        removed.iter().filter(qcow2).try_for_each(|disk| images.note_disk(disk))?;
        new.remove()?;
        Ok(removed)
    }

    /// Puts what is new in the places of what was.
    fn take_over(&self, new: &Self, change: &Change) -> Result<()> {
        for entry in entries(&new.path)? {
            if entry.file_name() != NOTES {
                rename(&entry.path(), &self.path.join(entry.file_name()))?;
            }
        }
        // What is known of the disks goes by their numbers.
        let digests = entries(&self.path)?.into_iter().map(|entry| entry.path());
        let is_digest =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"digests-"));
        let initrd = Some(self.initrd()).filter(|_| change.drops_initrd);
        for path in digests.filter(is_digest).chain(initrd) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        folders::sync(&self.path)
    }

    /// Drops a change of a VM that is removed.
    pub fn drop_change(&self) -> Result<()> {
        self.beside("changes")?.remove()
    }

    fn write_change(&self, change: &Change) -> Result<()> {
        #[cfg(test)]
        tests::stop_when_due()?;
        let path = self.path.join(NOTES);
        durable::write(&path, &serde_json::to_vec(change)?, Readers::Owner)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Nothing if there is none, or one that was never laid out to its end.
    fn read_change(&self) -> Result<Option<Change>> {
        let path = self.path.join(NOTES);
        match plain_file::read(&path, NOTES_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(bytes) => {
                let change = serde_json::from_slice(&bytes);
                change.map(Some).with_context(|| format!("{} is damaged", path.display()))
            }
        }
    }

    /// The folder of the same name in another folder of the host's.
    pub(super) fn beside(&self, place: &str) -> Result<Self> {
        let (Some(folders), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            bail!("{} is not the folder of a VM", self.path.display());
        };
        Ok(Self::new(folders.with_file_name(place).join(name)))
    }
}

/// The name of the file of a disk.
fn file(number: usize, format: spec::DiskFormat) -> String {
    format!("disk{number}.{}", extension(format))
}

/// Renames a file unless that was done before.
fn rename(from: &Path, to: &Path) -> Result<()> {
    #[cfg(test)]
    tests::stop_when_due()?;
    match fs::rename(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect);
    entries.with_context(|| format!("cannot look into {}", folder.display()))
}

/// Stopping at any step, as if the daemon had been killed there.
#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Does something that fails after so many steps.
    pub(in crate::vm_folder) fn stopping_after<T>(steps: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
        STEPS_LEFT.set(Some(steps));
        let done = work();
        STEPS_LEFT.set(None);
        done
    }

    pub fn stop_when_due() -> Result<()> {
        match STEPS_LEFT.get() {
            Some(0) => bail!("killed"),
            Some(left) => STEPS_LEFT.set(Some(left - 1)),
            None => {}
        }
        Ok(())
    }
}
