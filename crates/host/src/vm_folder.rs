//! A VM's folder on one host: its kernel, and this replica's copies of its disks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use api::messages::{DiskView, SessionKeys, VmContents};
use api::time::unix_ms_now;
use protocol::Generation;
use replication::disk::{CopyMark, CopyState};
use spec::DiskFormat;
use spec::{DiskSpec, VmSpec};
use storage::disk::{DiskImage, DiskOptions, create_qcow2, make_backing_absolute, recorded_backing, settle};
use storage::durable::{self, Readers};
use storage::image::{Image, ImageStore};
use storage::plain_file;
use terminal::error_text::error_text;

use super::bases::Bases;
use super::folder::{private_folder, write_private};
use super::registry::random_vm_id;
use super::vm_files::VmFiles;
use crate::foreground::open::require_file;

mod change;
mod folders;
mod place;
mod unfinished;

pub use unfinished::Unfinished;

/// Largest kernel or initial RAM disk, in bytes.
pub const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;
/// The file by which a VM's folder is known: it says what the folder holds.
pub const VM_CONTENTS: &str = "vm.json";
/// Longest such file, in bytes.
const CONTENTS_BYTES_MAX: u64 = 1 << 20;
/// Disks are copied in pieces of this size; those of zeros only become holes.
const COPY_BYTES: usize = 1 << 20;
/// Unit in which a file says how much space it takes (`st_blocks`).
const BLOCK_BYTES: u64 = 512;

/// A VM's folder. It holds everything that the VM needs on this host but read-only disks, which stay where they are.
#[derive(Clone, Debug)]
pub struct VmFolder {
    path: PathBuf,
}

impl VmFolder {
    /// The folder at this path, which may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.path.join("kernel")
    }

    /// The initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.path.join("initrd")
    }

    /// A replica's copy of disk `number`.
    fn disk(&self, number: usize, format: DiskFormat) -> PathBuf {
        self.path.join(format!("disk{number}.{}", extension(format)))
    }

    /// This replica's copy of disk `number`, whatever its format.
    fn found_disk(&self, number: usize) -> Option<(PathBuf, DiskFormat)> {
        [DiskFormat::Qcow2, DiskFormat::Raw]
            .map(|format| (self.disk(number, format), format))
            .into_iter()
            .find(|(path, _)| path.exists())
    }

    /// What the disks are based on. Noting it also keeps the digests of images, which replicas need for a first copy and may not keep themselves: they only
    /// read images.
    pub fn bases(&self) -> Bases {
        Bases::of(&self.path)
    }

    fn contents_file(&self) -> PathBuf {
        self.path.join(VM_CONTENTS)
    }

    /// What it holds; nothing if it was not filled to the end.
    pub fn contents(&self) -> Option<VmContents> {
        serde_json::from_slice(&plain_file::read(&self.contents_file(), CONTENTS_BYTES_MAX).ok()?).ok()
    }

    fn write_contents(&self, contents: &VmContents) -> Result<()> {
        write(&self.contents_file(), &serde_json::to_vec(contents)?)
    }

    /// The folder that holds the VM's disks: this one, or one on their datastore.
    ///
    /// # Errors
    /// The host does not reach that datastore.
    pub fn of_disks(&self, spec: &VmSpec, files: &VmFiles) -> Result<Self> {
        let Some(datastore) = spec.datastore() else { return Ok(self.clone()) };
        let id = spec.id.context("a VM on a datastore has an ID")?;
        Ok(Self::new(files.datastores.folder(datastore, id)?))
    }

    /// Takes what this host needs of a VM whose disks are in the folder `shared`, on a datastore: everything but them.
    pub fn adopt(&self, shared: &Self, images: &ImageStore) -> Result<()> {
        let contents = shared.contents().ok_or_else(|| anyhow!("{} holds no VM", shared.path.display()))?;
        self.clear_of_others(contents.created_unix_ms, images)?;
        private_folder(&self.path)?;
        self.take_from(shared, &contents)
    }

    fn take_from(&self, shared: &Self, contents: &VmContents) -> Result<()> {
        for (from, to) in [(shared.kernel(), self.kernel()), (shared.initrd(), self.initrd())] {
            if from.exists() && !to.exists() {
                let file = plain_file::open(&from).with_context(|| format!("cannot read {}", from.display()))?;
                copy(file, &from, &to)?;
            }
        }
        CopyMark::of(&self.path).write(CopyState::consistent(Generation::NONE)).context("cannot mark the disks")?;
        self.write_contents(contents)
    }

    /// Refuses disks that somebody else has open, or that are based on something that is not here.
    pub fn check_free(&self) -> Result<()> {
        let disks = self.contents().map_or(0, |contents| contents.disk_bytes.len());
        for (path, format) in (0..disks).filter_map(|number| self.found_disk(number)) {
            DiskImage::open(&path, DiskOptions { format: Some(format), read_only: false, direct: false })?;
        }
        self.bases().check()
    }

    /// Fills a new folder for the first replica of a VM, and one on their datastore where its disks are on one. The files that the spec names stay as they are. Returns the spec to
    /// keep, in which nothing depends on images any more but disks. Leaves nothing behind when it fails, and the note that it is [unfinished](Unfinished) when it does not.
    pub fn create(&self, spec: &VmSpec, images: &ImageStore, files: &VmFiles) -> Result<VmSpec> {
        let of_disks = self.of_disks(spec, files)?;
        if of_disks.path != self.path {
            self.begin(Some(&of_disks.path))?;
            folders::create_folder(&of_disks.path).inspect_err(|_| self.remove_after_failure())?;
            let taken = of_disks.fill(spec, images, files).and_then(|kept| {
                let contents = of_disks.contents().context("a folder that was filled holds a VM")?;
                self.take_from(&of_disks, &contents).map(|()| kept)
            });
            if taken.is_err() {
                self.remove_after_failure();
                of_disks.remove_after_failure();
            }
            return taken;
        }
        self.begin(None)?;
        let filled = self.fill(spec, images, files);
        if filled.is_err() {
            self.remove_after_failure();
        }
        filled
    }

    /// Refuses a spec whose images or files [`create`](Self::create) could not take.
    pub fn check(&self, spec: &VmSpec, images: &ImageStore, files: &VmFiles) -> Result<()> {
        let of_image = spec.image.as_deref().map(|name| image(images, name)).transpose()?;
        if spec.kernel.is_none() && of_image.is_none() {
            bail!("the spec names no kernel");
        }
        for (what, file) in [("kernel", &spec.kernel), ("initrd", &spec.initrd)] {
            file.iter().try_for_each(|file| files.open(file).map(drop)).context(what)?;
        }
        for DiskSpec { path, base_image, readonly, .. } in &spec.disks {
            let is_new = !path.exists() && !readonly;
            let checked = match base_image {
                Some(base) if is_new => image(images, base).map(drop),
                _ => require_file(path).and_then(|()| files.open(path).map(drop)),
            };
            checked.with_context(|| format!("disk {}", path.display()))?;
        }
        Ok(())
    }

    fn fill(&self, spec: &VmSpec, images: &ImageStore, files: &VmFiles) -> Result<VmSpec> {
        let image = self.copy_boot_files(spec, [true, true], images, files)?;
        let disk_bytes = spec
            .disks
            .iter()
            .enumerate()
            .map(|(number, disk)| {
                self.create_disk(number, disk, images, files).with_context(|| format!("disk {}", disk.path.display()))
            })
            .collect::<Result<_>>()?;
        CopyMark::of(&self.path).write(CopyState::consistent(Generation::NONE)).context("cannot mark the disks")?;
        self.write_contents(&VmContents { created_unix_ms: unix_ms_now(), disk_bytes, boot_changes: 0 })?;
        let cmdline = spec.cmdline.clone().or_else(|| image.map(|image| image.manifest().cmdline.clone()));
        let id = Some(spec.id.map_or_else(random_vm_id, Ok)?);
        Ok(VmSpec { id, cmdline: Some(cmdline.unwrap_or_else(|| "console=ttyS0".to_owned())), ..spec.clone() })
    }

    /// Copies the kernel and the initial RAM disk, or one of them, that a spec names or its image has. Answers that image.
    fn copy_boot_files(
        &self,
        spec: &VmSpec,
        [kernel_too, initrd_too]: [bool; 2],
        images: &ImageStore,
        files: &VmFiles,
    ) -> Result<Option<Image>> {
        let image = spec.image.as_deref().map(|name| image(images, name)).transpose()?;
        let kernel = spec.kernel.clone().or_else(|| image.as_ref().map(Image::kernel));
        let kernel = kernel.ok_or_else(|| anyhow!("the spec names no kernel"))?;
        if kernel_too {
            self.copy_boot_file(&kernel, &self.kernel(), files).context("kernel")?;
        }
        let initrd = spec.initrd.clone().or_else(|| image.as_ref().map(Image::initrd));
        if let Some(initrd) = initrd.filter(|_| initrd_too) {
            self.copy_boot_file(&initrd, &self.initrd(), files).context("initrd")?;
        }
        Ok(image)
    }

    fn copy_boot_file(&self, from: &Path, to: &Path, files: &VmFiles) -> Result<()> {
        let (file, path) = files.open(from)?;
        copy(file, &path, to)
    }

    fn create_disk(&self, number: usize, disk: &DiskSpec, images: &ImageStore, files: &VmFiles) -> Result<u64> {
        match (&disk.base_image, disk.path.exists()) {
            (Some(base), false) if !disk.readonly => {
                // Says what to do if there is none.
                image(images, base)?;
                let disk = self.disk(number, DiskFormat::Qcow2);
                let backing = images.create_disk(base, &disk)?;
                self.bases().note(&disk)?;
                Ok(fs::metadata(&backing.path)?.len())
            }
            _ => {
                require_file(&disk.path)?;
                // What a restore of a VM in the foreground has left half done is not to be copied. Only where a VM may be given the file is anything touched.
                settle(&files.open(&disk.path)?.1)?;
                let (file, path) = files.open(&disk.path)?;
                // Held while it is copied: nobody may write to it meanwhile.
                let options = DiskOptions { format: disk.format, read_only: true, direct: false };
                let source = DiskImage::open(&path, options)?;
                files.check_backing(&source)?;
                if !disk.readonly {
                    let target = self.disk(number, source.format());
                    copy(file, &path, &target)?;
                    if source.format() == DiskFormat::Qcow2 {
                        make_backing_absolute(&target, &path)?;
                        images.note_disk(&target)?;
                        self.bases().note(&target)?;
                    }
                }
                Ok(source.size_bytes())
            }
        }
    }

    /// Makes the folder fit for a secondary of the VM that has `contents`: what is there from an earlier time is kept where
    /// it fits, so that only what differs need be copied. `fetch` gets the `kernel` or `initrd` from the primary's host.
    pub fn prepare(
        &self,
        spec: &VmSpec,
        contents: &VmContents,
        images: &ImageStore,
        files: &VmFiles,
        fetch: impl Fn(&str) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if contents.disk_bytes.len() != spec.disks.len() {
            bail!("the spec has {} disks, not {}", spec.disks.len(), contents.disk_bytes.len());
        }
        self.clear_of_others(contents.created_unix_ms, images)?;
        private_folder(&self.path)?;
        for (number, (disk, &size_bytes)) in spec.disks.iter().zip(&contents.disk_bytes).enumerate() {
            self.prepare_disk(number, disk, size_bytes, images, files).with_context(|| format!("disk {number}"))?;
        }
        let has_initrd = spec.initrd.is_some() || spec.image.is_some();
        let boots_another = self.contents().is_some_and(|found| found.boot_changes != contents.boot_changes);
        if boots_another && !has_initrd && self.initrd().exists() {
            fs::remove_file(self.initrd()).with_context(|| format!("cannot remove {}", self.initrd().display()))?;
        }
        for (name, path) in [("kernel", self.kernel()), ("initrd", self.initrd())] {
            if (name == "kernel" || has_initrd) && (boots_another || !path.exists()) {
                let bytes = fetch(name).with_context(|| format!("cannot fetch the VM's {name}"))?;
                write(&path, &bytes)?;
            }
        }
        self.write_contents(contents)
    }

    fn prepare_disk(
        &self,
        number: usize,
        disk: &DiskSpec,
        size_bytes: u64,
        images: &ImageStore,
        files: &VmFiles,
    ) -> Result<()> {
        if disk.readonly {
            let options = DiskOptions { format: disk.format, read_only: true, direct: false };
            let open = || {
                let image = DiskImage::open(&files.open(&disk.path)?.1, options)?;
                files.check_backing(&image)?;
                anyhow::Ok(image.size_bytes())
            };
            let found = open().context("a read-only disk must be on every host")?;
            if found != size_bytes {
                bail!("{} has {found} bytes here, {size_bytes} on the primary's host", disk.path.display());
            }
            return Ok(());
        }
        let found = self.found_disk(number);
        if let Some((path, format)) = &found {
            let options = DiskOptions { format: Some(*format), read_only: false, direct: false };
            match DiskImage::open(path, options) {
                Ok(image) if image.size_bytes() == size_bytes => match self.bases().check_disk(path) {
                    Ok(()) => return Ok(()),
                    Err(error) => tracing::warn!("made anew: {}", error_text(&error)),
                },
                Ok(_) => tracing::info!("{}: its size is another now, made anew", path.display()),
                Err(error) => tracing::warn!("{}: made anew: {error}", path.display()),
            }
        }
        // Before it is made: an empty disk is no copy.
        CopyMark::of(&self.path).write(CopyState::incomplete(Generation::NONE)).context("cannot mark the disks")?;
        if let Some((path, _)) = &found {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // Without the image, or with another version of it, more has to be copied; nothing else changes.
        let path = self.disk(number, DiskFormat::Qcow2);
        let has_size = |root: PathBuf| fs::metadata(root).is_ok_and(|file| file.len() == size_bytes);
        let fits = |base: &&str| images.get(base).is_ok_and(|image| image.root_disk().is_some_and(has_size));
        match disk.base_image.as_deref().filter(fits) {
            Some(base) => drop(images.create_disk(base, &path)?),
            None => create_qcow2(&path, size_bytes, None)?,
        }
        self.bases().note(&path)
    }

    /// The spec as a replica here needs it: with this folder's files, and read-only disks by paths without symbolic links.
    pub fn local_spec(&self, spec: &VmSpec, files: &VmFiles) -> Result<VmSpec> {
        if !self.kernel().exists() {
            bail!("{} is missing: this host holds no copy of the VM", self.kernel().display());
        }
        let of_disks = self.of_disks(spec, files)?;
        if let Some(known) = of_disks.contents().map(|contents| contents.disk_bytes.len())
            && known != spec.disks.len()
        {
            bail!("this host's copy is of {known} disks, and the VM has {} since", spec.disks.len());
        }
        let local_disk = |(number, disk): (usize, &DiskSpec)| {
            if disk.readonly {
                let (_, path) = files.open(&disk.path).with_context(|| format!("disk {number}"))?;
                return Ok(DiskSpec { path, ..disk.clone() });
            }
            let (path, format) = of_disks
                .found_disk(number)
                .ok_or_else(|| anyhow!("disk {number} is missing in {}", of_disks.path.display()))?;
            Ok(DiskSpec { path, format: Some(format), base_image: None, ..disk.clone() })
        };
        Ok(VmSpec {
            image: None,
            kernel: Some(self.kernel()),
            initrd: Some(self.initrd()).filter(|initrd| initrd.exists()),
            disks: spec.disks.iter().enumerate().map(local_disk).collect::<Result<_>>()?,
            ..spec.clone()
        })
    }

    /// The disks, by number. Of those that are read-only, which are elsewhere, only the size.
    pub fn disk_views(&self) -> Vec<DiskView> {
        let sizes = self.contents().map(|contents| contents.disk_bytes).unwrap_or_default();
        let view = |(number, &size_bytes): (usize, &u64)| {
            let size_bytes = Some(size_bytes);
            match self.found_disk(number) {
                Some((path, format)) => disk_view(path, format, size_bytes),
                None => DiskView { size_bytes, ..DiskView::default() },
            }
        };
        sizes.iter().enumerate().map(view).collect()
    }

    /// Makes disks bigger, given by number, to sizes in bytes. All are looked at before the first is changed.
    pub fn grow_disks(&self, sizes: &BTreeMap<usize, u64>) -> Result<()> {
        let mut contents = self.contents().ok_or_else(|| anyhow!("{} holds no VM", self.path.display()))?;
        self.settle_disks()?;
        let open = |(&number, &size_bytes): (&usize, &u64)| {
            let (path, format) = self
                .found_disk(number)
                .ok_or_else(|| anyhow!("disk {number}: the VM has no disk of this number that it may write to"))?;
            let options = DiskOptions { format: Some(format), read_only: false, direct: false };
            let image = DiskImage::open(&path, options).with_context(|| format!("disk {number}"))?;
            if size_bytes < image.size_bytes() {
                bail!(
                    "disk {number} has {} bytes: it is not made smaller, as what is at its end would be lost",
                    image.size_bytes()
                );
            }
            Ok((number, size_bytes, image))
        };
        for (number, size_bytes, mut image) in sizes.iter().map(open).collect::<Result<Vec<_>>>()? {
            image.grow(size_bytes).with_context(|| format!("disk {number}"))?;
            if let Some(size) = contents.disk_bytes.get_mut(number) {
                *size = size_bytes;
            }
            self.write_contents(&contents)?;
        }
        Ok(())
    }

    /// Fills the new folder `target` for another VM with copies of what is here. Leaves nothing behind when it fails.
    pub fn copy_to(&self, target: &Self, images: &ImageStore) -> Result<()> {
        target.begin(None)?;
        let copied = self.copy_files_to(target, images);
        if copied.is_err() {
            target.remove_after_failure();
        }
        copied
    }

    fn copy_files_to(&self, target: &Self, images: &ImageStore) -> Result<()> {
        let contents = self.contents().ok_or_else(|| anyhow!("{} holds no VM", self.path.display()))?;
        let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
        for (from, to) in [(self.kernel(), target.kernel()), (self.initrd(), target.initrd())] {
            if from.exists() {
                copy(open(&from)?, &from, &to)?;
            }
        }
        for (number, (from, format)) in (0..contents.disk_bytes.len()).filter_map(|n| Some((n, self.found_disk(n)?))) {
            // Held while it is copied: nobody may write to it meanwhile.
            let options = DiskOptions { format: Some(format), read_only: true, direct: false };
            let _source = DiskImage::open(&from, options).with_context(|| format!("disk {number}"))?;
            let to = target.disk(number, format);
            copy(open(&from)?, &from, &to)?;
            if format == DiskFormat::Qcow2 {
                images.note_disk(&to)?;
            }
        }
        target.bases().copy_from(&self.bases())?;
        CopyMark::of(&target.path).write(CopyState::consistent(Generation::NONE)).context("cannot mark the disks")?;
        target.write_contents(&VmContents { created_unix_ms: unix_ms_now(), ..contents })
    }

    /// Writes the keys of a session for the replica that is about to be started; the folder that holds them.
    pub fn write_session(&self, keys: &SessionKeys) -> Result<PathBuf> {
        self.remove_session();
        let folder = self.session();
        private_folder(&folder)?;
        for (name, text) in [("ca.pem", &keys.authority), ("host.pem", &keys.certificate), ("host.key", &keys.key)] {
            write_private(&folder.join(name), text)?;
        }
        Ok(folder)
    }

    /// Removes them: whoever needed them has read them.
    pub fn remove_session(&self) {
        // Not being there is the usual case.
        let _ = fs::remove_dir_all(self.session());
    }

    fn session(&self) -> PathBuf {
        self.path.join("session")
    }

    /// Removes it with all that is in it. Not being there is no error.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes a folder that was made just now.
    pub fn remove_after_failure(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!("{}", error_text(&error));
        }
    }
}

/// A disk as its file shows.
fn disk_view(path: PathBuf, format: DiskFormat, size_bytes: Option<u64>) -> DiskView {
    // What a raw disk begins with is its guest's.
    let base = (format == DiskFormat::Qcow2).then(|| recorded_backing(&path).ok().flatten()).flatten();
    DiskView {
        allocated_bytes: fs::metadata(&path).ok().map(|file| file.blocks().saturating_mul(BLOCK_BYTES)),
        path: Some(path),
        format: Some(format),
        size_bytes,
        readonly: false,
        base: base.map(|base| base.path),
    }
}

/// Writes a file that only this host's user reads.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::write(path, bytes, Readers::Owner).with_context(|| format!("cannot write {}", path.display()))
}

fn extension(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    }
}

fn image(images: &ImageStore, name: &str) -> Result<Image> {
    images.get(name).with_context(|| {
        format!("image {name} cannot be used; see `twinvm image list`, or build it with `twinvm image build {name}`")
    })
}

/// Copies an open file; stretches of zeros become holes.
fn copy(mut source: File, from: &Path, to: &Path) -> Result<()> {
    let copied = (|| {
        let mut target = File::create_new(to)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut len = 0u64;
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.iter().any(|&byte| byte != 0) {
                target.seek(SeekFrom::Start(len))?;
                target.write_all(bytes)?;
            }
            len += read as u64;
        }
        target.set_len(len)?;
        target.sync_all()
    })();
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests;
