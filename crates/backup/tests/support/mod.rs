//! What tests of repositories share.

use std::fs;
use std::path::{Path, PathBuf};

use backup::{BackupError, PointOf, RecoveryPoint, Repository, RepositoryKey};

/// A repository in a folder of its own.
pub struct Place {
    pub root: tempfile::TempDir,
    pub key: RepositoryKey,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { root: tempfile::tempdir().unwrap(), key: RepositoryKey::random().unwrap() };
        Repository::create(&place.folder(), &place.key).unwrap();
        place
    }

    pub fn folder(&self) -> PathBuf {
        self.root.path().join("repository")
    }

    pub fn open(&self) -> Repository {
        Repository::open(&self.folder(), &self.key).unwrap()
    }

    pub fn packs(&self) -> Vec<PathBuf> {
        files(&self.folder().join("packs"))
    }

    pub fn bytes(&self) -> u64 {
        self.packs().iter().map(|pack| fs::metadata(pack).unwrap().len()).sum()
    }
}

/// The files in a folder, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a point is of.
pub fn of(vm: &str, taken_unix_ms: u64) -> PointOf {
    PointOf { vm: vm.to_owned(), host: "a".to_owned(), taken_unix_ms, spec: "name = \"shop\"\n".to_owned() }
}

/// Bytes that do not get shorter by compression, other ones for each seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new_derive_key("noise").update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// All of a volume.
pub fn read(repository: &Repository, point: &RecoveryPoint, volume: &str) -> Result<Vec<u8>, BackupError> {
    let volume = point.volume(volume).unwrap();
    let mut content = vec![0; volume.bytes as usize];
    repository.read_volume(volume, |offset, data| {
        content[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    })?;
    Ok(content)
}
