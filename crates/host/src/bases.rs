//! [`Bases`]: what the disks in a VM's folder are based on, so that it is noticed when that has changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use storage::disk::{Backing, BaseIdentity, recorded_backing};
use storage::durable::{self, Readers};
use storage::plain_file;
use terminal::error_text::error_text;

/// Longest such file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A file in the folder, which holds the identities of bases by the names of the disks' files. Folders of earlier versions have none: nothing is known of their
/// disks' bases.
#[derive(Clone, Debug)]
pub struct Bases {
    folder: PathBuf,
}

type Notes = BTreeMap<String, BaseIdentity>;

impl Bases {
    /// Those of a VM's folder.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("bases.json")
    }

    fn read(&self) -> Result<Notes> {
        let file = self.file();
        let text = match plain_file::read(&file, BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Notes::new()),
            other => other.with_context(|| format!("cannot read {}", file.display()))?,
        };
        serde_json::from_slice(&text).map_err(|error| {
            anyhow!(
                "{} is damaged ({error}), so that nobody knows whether what the disks there are based on has changed: \
                 if it has not, remove that file",
                file.display()
            )
        })
    }

    /// As they are to be written anew. What is damaged is worth nothing any more, and is set aside: it is not to keep a disk from being made.
    fn read_to_change(&self) -> Result<Notes> {
        self.read().or_else(|error| {
            let (file, aside) = (self.file(), self.folder.join("bases.json.damaged"));
            if plain_file::read(&file, BYTES_MAX).is_ok() {
                tracing::warn!("{}; it is kept as {}", error_text(&error), aside.display());
                fs::rename(&file, &aside).with_context(|| format!("cannot rename {}", file.display()))?;
                return Ok(Notes::new());
            }
            Err(error)
        })
    }

    /// Notes what a qcow2 image in the folder is based on now. Reads the base, which takes about a second for each GiB in use, unless that was done before.
    pub fn note(&self, disk: &Path) -> Result<()> {
        let mut notes = self.read_to_change()?;
        let name = name(disk)?;
        match recorded_backing(disk)? {
            Some(base) => notes.insert(name, identity(&base)?),
            None => notes.remove(&name),
        };
        let file = self.file();
        durable::write(&file, &serde_json::to_vec(&notes)?, Readers::Owner)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Refuses a folder in which a disk is based on something that has changed.
    pub fn check(&self) -> Result<()> {
        self.read()?.keys().try_for_each(|name| self.check_disk(&self.folder.join(name)))
    }

    /// Refuses a disk that is based on something that has changed.
    pub fn check_disk(&self, disk: &Path) -> Result<()> {
        let Some(noted) = self.read()?.remove(&name(disk)?) else { return Ok(()) };
        let Some(base) = recorded_backing(disk)? else { return Ok(()) };
        if identity(&base)? != noted {
            bail!(
                "disk {} is based on {}, which does not hold any more what it held when the disk was made: its guest would see parts of both. \
                 Bring the old content back, or make the VM anew",
                disk.display(),
                base.path.display()
            );
        }
        Ok(())
    }

    /// Takes the notes of another folder's disks that come here under other names, beside those of the disks that are here.
    pub fn take_from(&self, other: &Self, renamed: &[(String, String)]) -> Result<()> {
        let (mut theirs, mut notes) = (other.read()?, self.read_to_change()?);
        notes.extend(renamed.iter().filter_map(|(from, to)| Some((to.clone(), theirs.remove(from)?))));
        let file = self.file();
        durable::write(&file, &serde_json::to_vec(&notes)?, Readers::Owner)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Takes the notes of another folder, whose disks were copied.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        let text = match plain_file::read(&other.file(), BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other_text => other_text.with_context(|| format!("cannot read {}", other.file().display()))?,
        };
        durable::write(&self.file(), &text, Readers::Owner)
            .with_context(|| format!("cannot write {}", self.file().display()))
    }
}

fn name(disk: &Path) -> Result<String> {
    let name = disk.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| anyhow!("{} has no name of a disk", disk.display()))
}

fn identity(base: &Backing) -> Result<BaseIdentity> {
    Ok(BaseIdentity::of(Some(base))?)
}

#[cfg(test)]
mod tests {
    use spec::DiskFormat;
    use storage::disk::create_qcow2;

    use super::*;

    #[test]
    fn a_base_that_was_written_to_is_noticed_and_one_that_was_only_touched_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let bases = Bases::of(folder.path());
        fs::write(at("base"), [1; 8192]).unwrap();
        let base = Backing { path: at("base"), format: DiskFormat::Raw };
        create_qcow2(&at("disk0.qcow2"), 8192, Some(&base)).unwrap();
        create_qcow2(&at("disk1.qcow2"), 8192, None).unwrap();
        // Of a folder without notes nothing is known.
        bases.check().unwrap();
        for disk in ["disk0.qcow2", "disk1.qcow2"] {
            bases.note(&at(disk)).unwrap();
        }
        bases.check().unwrap();
        // The same content in another file.
        fs::remove_file(at("base")).unwrap();
        fs::write(at("base"), [1; 8192]).unwrap();
        bases.check().unwrap();
        for changed in [vec![2; 8192], vec![1; 4096]] {
            fs::write(at("base"), changed).unwrap();
            let refused = bases.check().unwrap_err().to_string();
            assert!(refused.contains("disk0.qcow2 is based on") && refused.contains("make the VM anew"), "{refused}");
            bases.check_disk(&at("disk1.qcow2")).unwrap();
        }
        fs::remove_file(at("base")).unwrap();
        assert!(format!("{:#}", bases.check().unwrap_err()).contains("base: No such file"));
        // A copy of the folder knows the same.
        fs::write(at("base"), [1; 8192]).unwrap();
        let copy = tempfile::tempdir().unwrap();
        fs::copy(at("disk0.qcow2"), copy.path().join("disk0.qcow2")).unwrap();
        Bases::of(copy.path()).copy_from(&bases).unwrap();
        fs::write(at("base"), [2; 8192]).unwrap();
        assert!(Bases::of(copy.path()).check_disk(&copy.path().join("disk0.qcow2")).is_err());
    }

    #[test]
    fn damaged_notes_say_what_to_do_and_keep_no_disk_from_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let bases = Bases::of(folder.path());
        fs::write(at("base"), [1; 8192]).unwrap();
        let base = Backing { path: at("base"), format: DiskFormat::Raw };
        create_qcow2(&at("disk0.qcow2"), 8192, Some(&base)).unwrap();
        for damaged in ["", "{"] {
            fs::write(at("bases.json"), damaged).unwrap();
            let refused = format!("{:#}", bases.check().unwrap_err());
            assert!(refused.contains("bases.json is damaged") && refused.contains("remove that file"), "{refused}");
            bases.note(&at("disk0.qcow2")).unwrap();
            bases.check().unwrap();
            assert_eq!(fs::read_to_string(at("bases.json.damaged")).unwrap(), damaged);
        }
        fs::write(at("base"), [2; 8192]).unwrap();
        assert!(bases.check().is_err());
    }
}
