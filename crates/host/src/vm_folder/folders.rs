//! Changes of folders that are on stable storage when they are done, and of which a power failure leaves all or nothing.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Makes a folder of a VM, which only its owner may enter. Fails if there is one already.
pub fn create_folder(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(is_there(path)),
        made => made.with_context(|| format!("cannot make {}", path.display()))?,
    }
    sync_parent(path)
}

/// Gives a folder of a VM another path. Fails if there is one of that path already.
pub fn rename_folder(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => bail!(is_there(to)),
        // Not every file system can do that.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_over_new(from, to)?,
        renamed => {
            renamed.with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
        }
    }
    sync_parent(to)?;
    sync_parent(from)
}

/// The same by way of an empty folder, which any file system replaces at once.
fn rename_over_new(from: &Path, to: &Path) -> Result<()> {
    create_folder(to)?;
    let renamed = fs::rename(from, to).inspect_err(|_| drop(fs::remove_dir(to)));
    renamed.with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn is_there(path: &Path) -> String {
    format!("{} is there already, from an earlier VM of this name: move it away first", path.display())
}

fn sync_parent(path: &Path) -> Result<()> {
    sync(path.parent().ok_or_else(|| anyhow!("{} is in no folder", path.display()))?)
}

/// Brings a folder's names to stable storage.
pub fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot write {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_a_free_path_and_no_other_in_any_file_system() {
        let place = tempfile::tempdir().unwrap();
        let [from, to, taken] = ["from", "to", "taken"].map(|name| place.path().join(name));
        for rename in [rename_folder, rename_over_new] {
            create_folder(&from).unwrap();
            fs::write(from.join("file"), "new").unwrap();
            // Even one with nothing in it is somebody's.
            create_folder(&taken).unwrap();
            assert!(rename(&from, &taken).unwrap_err().to_string().contains("there already"));
            rename(&from, &to).unwrap();
            assert!(!from.exists() && fs::read_dir(&taken).unwrap().next().is_none());
            assert_eq!(fs::read(to.join("file")).unwrap(), b"new");
            assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
            fs::remove_dir_all(&to).unwrap();
            rename(&from, &to).unwrap_err();
            assert!(!to.exists(), "a failure leaves something behind");
            fs::remove_dir(&taken).unwrap();
        }
    }
}
