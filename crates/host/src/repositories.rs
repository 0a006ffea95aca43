//! The backup repositories that a host knows, with their keys.
//!
//! They are added by whoever administers the host, in its folder, and not by its API: a path that an operator names would be one that the daemon writes to,
//! and a key need not travel.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::backups::RepositoryView;
use backup::{Repository, RepositoryKey};
use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};
use storage::plain_file;

use super::folder::{HostFolder, private_folder};

/// Longest note of a repository, in bytes.
const NOTE_BYTES_MAX: u64 = 16 << 10;
/// Longest name of one, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// What is noted of a repository.
#[derive(Serialize, Deserialize)]
struct Note {
    path: PathBuf,
    key: String,
}

/// The repositories that a host knows: a note of each in a folder that only the host may read.
pub struct Repositories {
    folder: PathBuf,
}

impl Repositories {
    /// Those of a host.
    pub fn of(folder: &HostFolder) -> Self {
        Self { folder: folder.backup() }
    }

    /// Notes a repository: a new one in a folder that is empty or not there, or with its `key` one that is there. Answers its key.
    pub fn add(&self, name: &str, path: &Path, key: Option<RepositoryKey>) -> Result<RepositoryKey> {
        let note = self.note_file(name)?;
        if note.exists() {
            bail!("there is a repository named {name} already: choose another name, or see `twinvm backup repo list`");
        }
        let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
        let key = match key {
            Some(key) => {
                Repository::open(&path, &key)?;
                key
            }
            None => {
                let key = RepositoryKey::random()?;
                if path.join("repository").exists() {
                    bail!("there is a repository in {} already: name the file with its key by --key", path.display());
                }
                // The key is noted first: a repository without its key would be of no use.
                self.write(&note, &path, &key)?;
                if let Err(error) = Repository::create(&path, &key) {
                    durable::remove(&note).with_context(|| format!("cannot remove {}", note.display()))?;
                    return Err(error.into());
                }
                key
            }
        };
        self.write(&note, &path, &key)?;
        Ok(key)
    }

    fn write(&self, note: &Path, path: &Path, key: &RepositoryKey) -> Result<()> {
        private_folder(&self.folder)?;
        let text = serde_json::to_vec_pretty(&Note { path: path.to_owned(), key: key.to_text() })?;
        durable::write(note, &text, Readers::Owner).with_context(|| format!("cannot write {}", note.display()))
    }

    /// Forgets a repository, which stays as it is.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.read(name)?;
        let note = self.note_file(name)?;
        durable::remove(&note).with_context(|| format!("cannot remove {}", note.display()))
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<RepositoryView>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot look into {}", self.folder.display()))?,
        };
        let mut views = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json")).filter(|name| is_name(name));
            if let Some(name) = name {
                let path = self.read(name)?.path.display().to_string();
                views.push(RepositoryView { name: name.to_owned(), path });
            }
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    /// The name of the only one.
    pub fn only(&self) -> Result<String> {
        let names: Vec<String> = self.list()?.into_iter().map(|view| view.name).collect();
        match &names[..] {
            [] => bail!("this host knows no backup repository: add one on it with `twinvm backup repo add NAME PATH`"),
            [name] => Ok(name.clone()),
            _ => bail!("this host knows several backup repositories ({}): say which one", names.join(", ")),
        }
    }

    /// Opens a repository.
    pub fn open(&self, name: &str) -> Result<Repository> {
        let Note { path, key } = self.read(name)?;
        Ok(Repository::open(&path, &RepositoryKey::from_text(&key)?)?)
    }

    fn read(&self, name: &str) -> Result<Note> {
        let note = self.note_file(name)?;
        let text = match plain_file::read(&note, NOTE_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("this host knows no backup repository named {name}: see `twinvm backup repo list` on it");
            }
            text => text.with_context(|| format!("cannot read {}", note.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", note.display()))
    }

    fn note_file(&self, name: &str) -> Result<PathBuf> {
        if !is_name(name) {
            bail!("{name:?} cannot be the name of a repository: use 1 to 63 letters, digits, '-' or '_'");
        }
        Ok(self.folder.join(format!("{name}.json")))
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_repository_is_known_by_its_name_and_its_key_is_kept_from_others() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| HostFolder::find(Some(&root.path().join(name))).unwrap();
        let (here, there) = (Repositories::of(&folder("a")), Repositories::of(&folder("b")));
        assert!(here.list().unwrap().is_empty());
        assert!(here.only().unwrap_err().to_string().contains("repo add"));
        let place = root.path().join("repository");
        let key = here.add("nas", &place, None).unwrap();
        assert_eq!((here.only().unwrap(), here.list().unwrap()[0].name.as_str()), ("nas".to_owned(), "nas"));
        let note = root.path().join("a/backup/nas.json");
        assert_eq!(fs::metadata(&note).unwrap().permissions().mode() & 0o777, 0o600);
        here.open("nas").unwrap();
        // Another host needs the key.
        assert!(there.add("nas", &place, None).unwrap_err().to_string().contains("--key"));
        assert!(there.add("nas", &place, Some(RepositoryKey::random().unwrap())).is_err());
        there.add("nas", &place, Some(key)).unwrap();
        there.open("nas").unwrap();
        assert!(here.add("nas", &root.path().join("other"), None).unwrap_err().to_string().contains("already"));
        for bad in ["", "../x", "a.b", &"x".repeat(64)] {
            assert!(here.add(bad, &place, None).is_err(), "{bad}");
        }
        // Nothing is noted of one that could not be made.
        fs::write(root.path().join("file"), "").unwrap();
        assert!(here.add("bad", &root.path().join("file"), None).is_err());
        here.remove("nas").unwrap();
        assert!(here.open("nas").is_err() && here.remove("nas").is_err() && here.list().unwrap().is_empty());
    }
}
