//! A directory of images.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use spec::DiskFormat;

use super::build::Builder;
use super::manifest::Manifest;
use super::spec::validate_name;
use super::users::UserKind;
use super::versions::{Need, Versions, lock_root_disk};
use super::{ImageError, ImageSpec, Incoming, Progress, PullSpec, Stage};
use crate::disk::{Backing, create_qcow2};
use crate::file_lock::FileLock;

/// Prefix of the directories that builds happen in.
const BUILD_PREFIX: &str = ".build-";
/// How often a waiting build looks whether it may begin.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// How to build.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildOptions {
    /// Fetch the package lists even if there are some of today.
    pub refresh: bool,
    /// Build even if the image is there already.
    pub force: bool,
}

/// An image in an images directory.
#[derive(Clone, Debug)]
pub struct Image {
    dir: PathBuf,
    manifest: Manifest,
}

impl Image {
    /// The image's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Path of the kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(Self::KERNEL)
    }

    /// Path of the initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(Self::INITRD)
    }

    /// Path of the root disk, a raw image.
    pub fn root_disk(&self) -> Option<PathBuf> {
        self.manifest.spec.root_disk_bytes.map(|_| self.dir.join(Self::ROOT_DISK))
    }

    pub(crate) const KERNEL: &str = "vmlinuz";
    pub(crate) const INITRD: &str = "initrd.img";
    pub(crate) const ROOT_DISK: &str = "root.img";

    pub(super) fn load(dir: PathBuf) -> Result<Self, ImageError> {
        Self::load_as(dir, Manifest::FILE_NAME)
    }

    /// Loads one whose manifest has another name.
    pub(super) fn load_as(dir: PathBuf, manifest: &str) -> Result<Self, ImageError> {
        Ok(Self { manifest: Manifest::load(&dir.join(manifest))?, dir })
    }

    /// Whether every file is there with its size.
    pub(super) fn is_complete(&self) -> bool {
        self.manifest.files.iter().all(|f| fs::metadata(self.dir.join(&f.name)).is_ok_and(|m| m.len() == f.size_bytes))
    }
}

/// An image that [`ImageStore::build`] or [`ImageStore::pull`] returns.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The image.
    pub image: Image,
    /// Whether it was there already.
    pub cached: bool,
}

/// What became of the files of an image that was removed, or of a version that has no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are gone.
    Removed {
        /// Where they were.
        dir: PathBuf,
    },
    /// They stay.
    Kept {
        /// Where they are.
        dir: PathBuf,
        /// Who needs them, in words.
        why: String,
    },
}

/// A directory with images. The package cache is in its `.cache`.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

impl ImageStore {
    /// The store in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where the images are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn versions(&self) -> Versions {
        Versions::new(&self.dir)
    }

    /// Builds the image that `spec` describes, or returns the one of that name if it was built from the same inputs. If there is an
    /// image of that name with other inputs, its name leads to the new one once that is complete; the version before stays, for the disks
    /// that are based on it, until [`Self::prune`]. Builds in one directory wait for each other.
    ///
    /// # Errors
    /// Any [`ImageError`]; what was there before is then still there, and nothing else.
    pub fn build(
        &self,
        spec: &ImageSpec,
        options: BuildOptions,
        progress: &mut dyn Progress,
    ) -> Result<BuiltImage, ImageError> {
        spec.validate()?;
        let cache = self.dir.join(".cache");
        fs::create_dir_all(&cache).map_err(ImageError::at(&cache))?;
        let _lock = lock(&cache.join("lock"), progress)?;
        self.remove_stale_builds()?;

        let builder = Builder::resolve(spec, &cache, options.refresh, progress)?;
        if !options.force
            && let Ok(image) = self.get(&spec.name)
            && image.manifest.inputs_sha256 == builder.inputs_sha256()
            && image.is_complete()
        {
            return Ok(BuiltImage { image, cached: true });
        }
        let temporary = Temporary::create(self.dir.join(format!("{BUILD_PREFIX}{}", spec.name)))?;
        let output = temporary.0.join("image");
        fs::create_dir(&output).map_err(ImageError::at(&output))?;
        builder.build(&cache, &temporary.0, &output, progress)?;
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let dir = self.versions().publish(&output, &spec.name, options.force)?;
        Ok(BuiltImage { image: Image::load(dir)?, cached: false })
    }

    /// Makes the disk that `spec` describes a version of an image, or returns the image of that name if it was pulled from the same content in the same
    /// way. `open` begins to fetch the disk, if it is needed. If there is an image of that name with other inputs, its name leads to the new one
    /// once that is complete, as after a build. Pulls and builds in one directory wait for each other.
    ///
    /// # Errors
    /// Any [`ImageError`]; what was there before is then still there, and nothing else.
    pub fn pull<'a>(
        &self,
        spec: &PullSpec,
        open: impl FnOnce() -> Result<Incoming<'a>, ImageError>,
        progress: &mut dyn Progress,
    ) -> Result<BuiltImage, ImageError> {
        spec.validate()?;
        let cache = self.dir.join(".cache");
        fs::create_dir_all(&cache).map_err(ImageError::at(&cache))?;
        let _lock = lock(&cache.join("lock"), progress)?;
        self.remove_stale_builds()?;
        let inputs_sha256 = spec.inputs_sha256()?;
        if let Ok(image) = self.get(&spec.name)
            && image.manifest.inputs_sha256 == inputs_sha256
            && image.is_complete()
        {
            return Ok(BuiltImage { image, cached: true });
        }
        let temporary = Temporary::create(self.dir.join(format!("{BUILD_PREFIX}{}", spec.name)))?;
        let output = temporary.0.join("image");
        fs::create_dir(&output).map_err(ImageError::at(&output))?;
        spec.make(open()?, &temporary.0, &output, progress)?;
        let dir = self.versions().publish(&output, &spec.name, false)?;
        Ok(BuiltImage { image: Image::load(dir)?, cached: false })
    }

    /// All images that can be read, by name.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the directory cannot be listed; a directory that does not exist has no images.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ImageError::io(&self.dir, e)),
        };
        let mut names = self.versions().names()?;
        for entry in entries {
            let name = entry.map_err(ImageError::at(&self.dir))?.file_name().into_string();
            names.extend(name.ok().filter(|name| validate_name(name).is_ok()));
        }
        names.sort();
        names.dedup();
        Ok(names.iter().filter_map(|name| self.get(name).ok()).collect())
    }

    /// The image called `name`.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::BadManifest`], [`ImageError::InvalidSpec`] if that is no name.
    pub fn get(&self, name: &str) -> Result<Image, ImageError> {
        Image::load(self.existing(name)?)
    }

    /// Makes a qcow2 image at `path`, which must not exist, that shows the root disk of the image called `name`; that root disk, which stays
    /// as it is from now on for as long as the new image needs it.
    ///
    /// # Errors
    /// Those of [`Self::get`]; [`ImageError::NoRootDisk`], [`ImageError::Disk`], [`ImageError::Io`].
    pub fn create_disk(&self, name: &str, path: &Path) -> Result<Backing, ImageError> {
        let _lock = self.lock_if_writable()?;
        let root = self.get(name)?.root_disk().ok_or_else(|| ImageError::NoRootDisk { name: name.to_owned() })?;
        let root = fs::canonicalize(&root).map_err(ImageError::at(&root))?;
        let size_bytes = fs::metadata(&root).map_err(ImageError::at(&root))?.len();
        let backing = Backing { path: root, format: DiskFormat::Raw };
        create_qcow2(path, size_bytes, Some(&backing)).map_err(ImageError::Disk)?;
        if let Err(error) = self.versions().note_users(path) {
            // Of a disk that nobody knows the base might go.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(backing)
    }

    /// Notes that the qcow2 image at `disk`, which somebody else made or moved, is based on an image of this store, if it is.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn note_disk(&self, disk: &Path) -> Result<(), ImageError> {
        if !self.dir.exists() {
            return Ok(());
        }
        let _lock = self.lock_if_writable()?;
        self.versions().note_users(disk)
    }

    /// The folder in which it is noted who needs `base`, if that is the root disk of an image of this store, and somebody does.
    pub fn notes_of(&self, base: &Path) -> Option<PathBuf> {
        self.versions().notes_of(base)
    }

    /// Notes that the disk at `disk` is about to be based on `base`, if that is of an image of this store: it stays for as long as the disk is.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn note_disk_on(&self, disk: &Path, base: &Path) -> Result<(), ImageError> {
        if !self.dir.exists() {
            return Ok(());
        }
        let _lock = self.lock_if_writable()?;
        self.versions().note_user_of(UserKind::Disk, disk, base)
    }

    /// Notes that the snapshot in the file `snapshot` can only be restored over `bases`, of which images of this store stay for as long as that file is there.
    /// To be called once it is there.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn note_snapshot(&self, snapshot: &Path, bases: &[&Path]) -> Result<(), ImageError> {
        if bases.is_empty() || !self.dir.exists() {
            return Ok(());
        }
        let _lock = self.lock_if_writable()?;
        self.versions().note_snapshot(snapshot, bases)
    }

    /// The image that the qcow2 image at `disk` is based on, if it is one of this store: with the kernel that belongs to what is on the disk.
    pub fn image_below(&self, disk: &Path) -> Option<Image> {
        self.versions().image_below(disk)
    }

    /// Who cannot write to the store cannot remove anything from it either.
    fn lock_if_writable(&self) -> Result<Option<FileLock>, ImageError> {
        match self.versions().lock() {
            Err(ImageError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Removes the image called `name`, even one whose manifest is damaged. Its files stay while a disk needs them.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InvalidSpec`], [`ImageError::Io`].
    pub fn remove(&self, name: &str) -> Result<Removal, ImageError> {
        // A store that is not there is not made for this.
        self.existing(name)?;
        let versions = self.versions();
        let _lock = versions.lock()?;
        // A build may have given the name to another version meanwhile.
        let dir = self.existing(name)?;
        if versions.named(name).is_none() {
            versions.supersede(name)?;
            return self.remove_old(dir, false);
        }
        versions.forget(name)?;
        // A folder that has its name from before is not to take its place.
        versions.supersede(name)?;
        if versions.is_named(&dir)? {
            return Ok(Removal::Kept { dir, why: "another image is the same".to_owned() });
        }
        self.remove_unneeded(dir)
    }

    /// Removes the versions of images that have no name any more and that no disk or snapshot needs. `all` says that folders of images from versions of twinvm
    /// which did not note the disks go as well.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn prune(&self, all: bool) -> Result<Vec<Removal>, ImageError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let versions = self.versions();
        let _lock = versions.lock()?;
        let mut removals = Vec::new();
        for version in versions.all()? {
            if !versions.is_named(&version)? {
                removals.push(self.remove_unneeded(version)?);
            }
        }
        for dir in versions.superseded()? {
            removals.push(self.remove_old(dir, all)?);
        }
        Ok(removals)
    }

    /// Removes a folder of a version of twinvm that did not note which disks are based on it, if that is wanted.
    fn remove_old(&self, dir: PathBuf, wanted: bool) -> Result<Removal, ImageError> {
        if wanted || !dir.join(Image::ROOT_DISK).exists() {
            return self.remove_unneeded(dir);
        }
        let why = "disks may be based on it that an earlier version of twinvm has made; if none is, `twinvm image prune --all` removes it";
        Ok(Removal::Kept { dir, why: why.to_owned() })
    }

    fn remove_unneeded(&self, dir: PathBuf) -> Result<Removal, ImageError> {
        let why = match Versions::need(&dir)? {
            Need::Users(users) => format!("the base of {}", users.join(", ")),
            Need::Open(error) => error.to_string(),
            Need::None => {
                let _root_disk = lock_root_disk(&dir)?;
                // Out of sight in one step; the rest is a matter of time.
                let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let doomed = Temporary(self.dir.join(format!("{BUILD_PREFIX}removed-{name}")));
                remove_folder(&doomed.0)?;
                fs::rename(&dir, &doomed.0).map_err(ImageError::at(&dir))?;
                return Ok(Removal::Removed { dir });
            }
        };
        Ok(Removal::Kept { dir, why })
    }

    fn existing(&self, name: &str) -> Result<PathBuf, ImageError> {
        validate_name(name)?;
        let dir = self.versions().named(name).unwrap_or_else(|| self.dir.join(name));
        if dir.join(Manifest::FILE_NAME).is_file() {
            return Ok(dir);
        }
        Err(ImageError::NotFound { name: name.to_owned(), dir: self.dir.clone() })
    }

    /// Removes what killed builds left. The lock is held, so no build is going on.
    fn remove_stale_builds(&self) -> Result<(), ImageError> {
        for entry in fs::read_dir(&self.dir).map_err(ImageError::at(&self.dir))? {
            let entry = entry.map_err(ImageError::at(&self.dir))?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(BUILD_PREFIX)) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a folder that a removal or a build left; somebody else may be doing the same.
fn remove_folder(path: &Path) -> Result<(), ImageError> {
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What is missing may be something in it.
                if fs::symlink_metadata(path).is_err() {
                    return Ok(());
                }
            }
            Err(error) => return Err(ImageError::io(path, error)),
        }
    }
}

/// A directory that goes away with its owner.
struct Temporary(PathBuf);

impl Temporary {
    fn create(path: PathBuf) -> Result<Self, ImageError> {
        fs::create_dir(&path).map_err(ImageError::at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next build.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes the lock that builds in one directory share.
fn lock(path: &Path, progress: &mut dyn Progress) -> Result<FileLock, ImageError> {
    let file = fs::File::create(path).map_err(ImageError::at(path))?;
    loop {
        if let Some(lock) = FileLock::try_new(&file).map_err(ImageError::at(path))? {
            return Ok(lock);
        }
        progress.update(Stage::Wait, 0, 0);
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        thread::sleep(LOCK_POLL);
    }
}

/// SHA-256 of a file in hexadecimal; `on_bytes` is told how many bytes each step read.
pub(crate) fn sha256_file(path: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<String, ImageError> {
    let mut file = fs::File::open(path).map_err(ImageError::at(path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&digest.finalize())),
            Ok(n) => {
                digest.update(buffer.get(..n).unwrap_or_default());
                on_bytes(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ImageError::io(path, e)),
        }
    }
}

/// The digest of a value as JSON, for what is remembered by its inputs. The value has no map keys that JSON cannot hold.
pub(crate) fn json_sha256(value: &impl Serialize) -> String {
    let text = serde_json::to_vec(value).expect("there are no map keys that JSON cannot hold");
    hex(&Sha256::digest(text))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
