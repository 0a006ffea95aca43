//! A directory of images.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{RenameFlags, renameat_with};
use sha2::{Digest, Sha256};

use super::build::Builder;
use super::manifest::Manifest;
use super::spec::validate_name;
use super::{ImageError, ImageSpec, Progress, Stage};
use crate::file_lock::{FileLock, LockKind};

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

    fn load(dir: PathBuf) -> Result<Self, ImageError> {
        Ok(Self { manifest: Manifest::load(&dir)?, dir })
    }

    /// Whether every file is there with its size.
    fn is_complete(&self) -> bool {
        self.manifest.files.iter().all(|f| fs::metadata(self.dir.join(&f.name)).is_ok_and(|m| m.len() == f.size_bytes))
    }
}

/// An image that [`ImageStore::build`] returns.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The image.
    pub image: Image,
    /// Whether it was there already.
    pub cached: bool,
}

/// A directory whose subdirectories are images. The package cache is in its `.cache`.
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

    /// Builds the image that `spec` describes, or returns the one of that name if it was built from the same inputs. An
    /// image of that name with other inputs is replaced in one step once the new one is complete. Builds in one directory
    /// wait for each other.
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

        let builder = Builder::resolve(spec, &cache.join("apt"), options.refresh, progress)?;
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
        builder.build(&temporary.0.join("root"), &output, progress)?;
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let dir = self.dir.join(&spec.name);
        let _root_disk = lock_root_disk(&dir)?;
        replace(&output, &dir)?;
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
        let mut images = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ImageError::at(&self.dir))?;
            if entry.file_name().to_str().is_some_and(|name| validate_name(name).is_ok())
                && let Ok(image) = Image::load(entry.path())
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| a.dir.cmp(&b.dir));
        Ok(images)
    }

    /// The image called `name`.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::BadManifest`], [`ImageError::InvalidSpec`] if that is no name.
    pub fn get(&self, name: &str) -> Result<Image, ImageError> {
        Image::load(self.existing(name)?)
    }

    /// Removes the image called `name`, even one whose manifest is damaged.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InUse`], [`ImageError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let dir = self.existing(name)?;
        let _root_disk = lock_root_disk(&dir)?;
        // Out of sight in one step; the rest is a matter of time.
        let doomed = Temporary(self.dir.join(format!("{BUILD_PREFIX}removed-{name}")));
        fs::rename(&dir, &doomed.0).map_err(ImageError::at(&dir))
    }

    fn existing(&self, name: &str) -> Result<PathBuf, ImageError> {
        validate_name(name)?;
        let dir = self.dir.join(name);
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
                fs::remove_dir_all(entry.path()).map_err(ImageError::at(entry.path()))?;
            }
        }
        Ok(())
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

/// Locks the root disk of the image in `dir`, if there is one, so that no VM has it or gets it.
fn lock_root_disk(dir: &Path) -> Result<Option<FileLock>, ImageError> {
    let path = dir.join(Image::ROOT_DISK);
    let file = match fs::File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ImageError::at(&path))?,
    };
    match FileLock::try_new(&file, LockKind::Exclusive).map_err(ImageError::at(&path))? {
        Some(lock) => Ok(Some(lock)),
        None => Err(ImageError::InUse { path }),
    }
}

/// Puts `new` in the place of `old` in one step. What was in `old` ends up at `new`.
fn replace(new: &Path, old: &Path) -> Result<(), ImageError> {
    let cwd = rustix::fs::CWD;
    match renameat_with(cwd, new, cwd, old, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => fs::rename(new, old).map_err(ImageError::at(old)),
        other => other.map_err(|e| ImageError::io(old, e.into())),
    }
}

/// Takes the lock that builds in one directory share.
fn lock(path: &Path, progress: &mut dyn Progress) -> Result<FileLock, ImageError> {
    let file = fs::File::create(path).map_err(ImageError::at(path))?;
    loop {
        if let Some(lock) = FileLock::try_new(&file, LockKind::Exclusive).map_err(ImageError::at(path))? {
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

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{BuiltFile, KernelInfo};

    fn add(store: &ImageStore, name: &str) -> PathBuf {
        let dir = store.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(Image::ROOT_DISK), "disk").unwrap();
        let kernel = KernelInfo { package: "linux".into(), version: "1".into(), release: "6.1".into() };
        let file = BuiltFile { name: Image::ROOT_DISK.into(), size_bytes: 4, sha256: String::new() };
        let spec = ImageSpec::new(name);
        Manifest::new(spec, "inputs".into(), kernel, "console=ttyS0".into(), vec![], vec![file]).store(&dir).unwrap();
        dir
    }

    #[test]
    fn images_are_listed_shown_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path().join("images"));
        assert!(store.list().unwrap().is_empty(), "a directory that is not there has no images");
        for name in ["b", "a", ".build-x"] {
            add(&store, name);
        }
        fs::create_dir(store.dir().join("no-image")).unwrap();
        let names: Vec<_> = store.list().unwrap().into_iter().map(|i| i.manifest().spec.name.clone()).collect();
        assert_eq!(names, ["a", "b"]);
        let image = store.get("a").unwrap();
        assert!(image.is_complete() && image.root_disk().is_some_and(|path| path.is_file()));
        store.remove("a").unwrap();
        assert!(!store.dir().join("a").exists());
        assert!(matches!(store.get("a"), Err(ImageError::NotFound { .. })));
        assert!(matches!(store.remove("../images"), Err(ImageError::InvalidSpec { .. })));
    }

    #[test]
    fn an_image_that_a_vm_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path());
        let root_disk = fs::File::open(add(&store, "used").join(Image::ROOT_DISK)).unwrap();
        let lock = FileLock::try_new(&root_disk, LockKind::Shared).unwrap();
        assert!(matches!(store.remove("used"), Err(ImageError::InUse { .. })));
        drop(lock);
        store.remove("used").unwrap();
    }

    #[test]
    fn damaged_manifests_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path());
        let manifest = add(&store, "bad").join(Manifest::FILE_NAME);
        let text = fs::read_to_string(&manifest).unwrap();
        for bad in ["", "{}", &text.replace("\"format\": 1", "\"format\": 2"), text.get(..text.len() / 2).unwrap()] {
            fs::write(&manifest, bad).unwrap();
            assert!(matches!(store.get("bad"), Err(ImageError::BadManifest { .. })), "{bad}");
        }
        assert!(store.list().unwrap().is_empty());
        store.remove("bad").unwrap();
    }

    #[test]
    fn replacing_an_image_is_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        for (path, content) in [(&new, "new"), (&old, "old")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), content).unwrap();
        }
        replace(&new, &old).unwrap();
        assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "new");
        replace(&new, &dir.path().join("third")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("third/file")).unwrap(), "old");
    }
}
