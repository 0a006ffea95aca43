//! What becomes of a VM's folder as a whole: it takes another place, or loses its copies of disks.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use api::time::unix_ms_now;
use protocol::Generation;
use replication::disk::{CopyMark, CopyState};
use spec::DiskFormat;
use storage::disk::{DiskInfo, settle};
use storage::image::ImageStore;
use terminal::error_text::error_text;

use super::super::folder::private_folder;
use super::{VmFolder, extension, folders};
use crate::replica::config;

impl VmFolder {
    /// Becomes the folder `target`, which is not there yet. Stays as it is when that fails.
    pub fn move_to(&self, target: &Self, images: &ImageStore) -> Result<()> {
        let moved = folders::rename_folder(&self.path, &target.path);
        let was_moved = !self.path.exists() && target.path.exists();
        let Err(error) = moved.and_then(|()| target.note_users(images)) else { return Ok(()) };
        if was_moved && let Err(back) = folders::rename_folder(&target.path, &self.path) {
            return Err(error.context(error_text(&back)));
        }
        Err(error)
    }

    /// Moves the folder of another VM of this name out of the way: one of an older cluster, or one that was removed while this host was away.
    /// Nobody here can tell whether its disks are the only ones.
    pub(super) fn set_aside(&self, images: &ImageStore) -> Result<()> {
        let place = self.beside("set-aside")?;
        private_folder(place.path.parent().unwrap_or(&place.path))?;
        let mut target = place.path.into_os_string();
        target.push(format!("-{}", unix_ms_now()));
        let target = Self::new(PathBuf::from(target));
        self.move_to(&target, images)?;
        tracing::warn!("{} was that of another VM: it is {} now", self.path.display(), target.path.display());
        Ok(())
    }

    /// Makes room for the VM that was created then, if this is not its folder: what may be the only copy of another VM's disks, or has snapshots, is set
    /// aside.
    pub fn clear_of_others(&self, created_unix_ms: u64, images: &ImageStore) -> Result<()> {
        if self.contents().is_some_and(|found| found.created_unix_ms == created_unix_ms) {
            return Ok(());
        }
        if self.contents_file().exists() || self.has_snapshots()? {
            return self.set_aside(images);
        }
        // It was not filled to the end, so nobody has ever run a VM from it.
        self.remove()
    }

    /// Removes the copies of disks. Snapshots stay, with what they need; where there are none, nothing does. Not being there is no error.
    pub fn remove_copies(&self) -> Result<()> {
        if !self.has_snapshots()? {
            return self.remove();
        }
        CopyMark::of(&self.path).write(CopyState::incomplete(Generation::NONE)).context("cannot mark the disks")?;
        for file in self.disk_files()? {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }

    /// Whether there is a snapshot of the VM here.
    pub fn has_snapshots(&self) -> Result<bool> {
        let folder = config::snapshots(&self.path);
        match fs::read_dir(&folder) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot look into {}", folder.display())),
        }
    }

    /// Carries restores of disks that were cut short through, or drops them, whichever was decided.
    pub fn settle_disks(&self) -> Result<()> {
        let numbers = 0..self.contents().map_or(0, |contents| contents.disk_bytes.len());
        for number in numbers {
            for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
                settle(&self.disk(number, format))?;
            }
        }
        Ok(())
    }

    /// Notes what the disks are after a snapshot has taken their place: they may have had another size then, and another base.
    pub fn note_restored(&self, images: &ImageStore) -> Result<()> {
        let Some(mut contents) = self.contents() else { bail!("{} holds no VM", self.path.display()) };
        let mut based = Vec::new();
        for (number, size_bytes) in contents.disk_bytes.iter_mut().enumerate() {
            let Some((path, format)) = self.found_disk(number) else { continue };
            *size_bytes = DiskInfo::of(&path, Some(format))?.size_bytes;
            based.extend(Some(path).filter(|_| format == DiskFormat::Qcow2));
        }
        self.write_contents(&contents)?;
        based.iter().try_for_each(|disk| self.bases().note(disk))?;
        self.note_users(images)
    }

    /// Tells the image store of disks that are in another place now.
    pub(super) fn note_users(&self, images: &ImageStore) -> Result<()> {
        let qcow2 = format!(".{}", extension(DiskFormat::Qcow2));
        let is_qcow2 = |file: &PathBuf| file.to_str().is_some_and(|file| file.ends_with(&qcow2));
        self.disk_files()?.iter().filter(|file| is_qcow2(file)).try_for_each(|disk| Ok(images.note_disk(disk)?))
    }

    /// The files that hold copies of disks, and what an interrupted restore has left of them.
    fn disk_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("cannot look into {}", self.path.display()))?;
        let is_disk = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b"disk");
        Ok(entries.flatten().filter(is_disk).map(|entry| entry.path()).collect())
    }
}
