//! Snapshots of a VM in the foreground, and what a restore needs.
//!
//! A restore changes nothing before it has all that it needs: what disks are based on is what it was, the snapshot is whole, the new content of all
//! disks lies beside the old, and the VM is made. Then the disks are replaced, all of them or none ([`Replacement`]).

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use backup::StreamWriter;
use machine::engine::soft::InputMode;
use machine::generation::GenerationId;
use machine::platform::Parts;
use machine::snapshot::disk::{SnapshotBase, SnapshotDisk};
use machine::vm::{
    FrozenVm, Snapshot, SnapshotContent, SnapshotHead, SnapshotPlace, Vm, VmConfig, VmError, unix_now_ns,
};
use spec::{DiskFormat, EngineKind, VmSpec};
use storage::disk::{Backing, BaseIdentity, DiskImage, DiskOptions, Replacement, Spill};
use storage::plain_file;
use terminal::error_text::error_text;

use super::open;

/// What a snapshot of a VM says of its disks.
pub struct SnapshotDisks {
    disks: Vec<Known>,
    /// Found out when it is first needed: reading an image takes its time.
    bases: OnceLock<Vec<Option<SnapshotBase>>>,
}

/// What is known of a disk that is open.
struct Known {
    path: PathBuf,
    format: DiskFormat,
    read_only: bool,
    /// What it shows where a snapshot has nothing of it: of one whose content is in the snapshot, what that is based on; all of another one.
    base: Option<Backing>,
}

impl SnapshotDisks {
    /// Of a VM that has these disks, in the order of its spec.
    pub fn of(disks: &[DiskImage]) -> Self {
        let known = |disk: &DiskImage| {
            let whole = || Backing { path: disk.path().to_owned(), format: disk.format() };
            let base = if disk.is_read_only() { Some(whole()) } else { disk.backing().cloned() };
            Known { path: disk.path().to_owned(), format: disk.format(), read_only: disk.is_read_only(), base }
        };
        Self { disks: disks.iter().map(known).collect(), bases: OnceLock::new() }
    }

    /// Finds out what images hold that no snapshot has, which takes about a second for each GiB the first time. They do not change while the VM has
    /// them, so this is done once, and may be while it runs.
    pub fn identify(&self) -> Result<&[Option<SnapshotBase>]> {
        if let Some(bases) = self.bases.get() {
            return Ok(bases);
        }
        let bases = self.disks.iter().map(Known::identify).collect::<Result<Vec<_>>>()?;
        Ok(self.bases.get_or_init(|| bases))
    }

    /// As [`Self::identify`], as a log names it.
    pub fn identities(&self) -> Result<Vec<BaseIdentity>> {
        let bases = self.identify()?.iter();
        Ok(bases.map(|base| base.as_ref().map_or(BaseIdentity::Zeros, |base| base.content)).collect())
    }

    /// The spec, with the formats that the disks have: they are not to be found out again.
    fn spec(&self, spec: &VmSpec) -> VmSpec {
        let mut spec = spec.clone();
        for (disk, known) in spec.disks.iter_mut().zip(&self.disks) {
            disk.format = Some(known.format);
        }
        spec
    }

    /// What a snapshot says in its beginning. `replaces`: the file whose place it takes, by device and inode.
    fn head(
        &self,
        config: VmConfig,
        spec: &VmSpec,
        replaces: Option<(u64, u64)>,
        holds: Holds,
    ) -> Result<SnapshotHead> {
        if replaces.is_some_and(|file| self.disks.iter().any(|disk| disk.uses(file))) {
            bail!("it would take the place of a disk of this VM: give the snapshot another name");
        }
        let spec = spec::to_toml(&self.spec(spec))?;
        Ok(SnapshotHead {
            config,
            spec,
            disks: self.for_snapshot()?,
            has_memory: holds == Holds::Memory,
            taken_unix_ns: unix_now_ns(),
            heeds_generation: false,
        })
    }

    fn for_snapshot(&self) -> Result<Vec<SnapshotDisk>> {
        let bases = self.identify()?;
        self.disks.iter().zip(bases).map(|(disk, base)| disk.for_snapshot(base.clone())).collect()
    }
}

impl Known {
    fn identify(&self) -> Result<Option<SnapshotBase>> {
        let Some(base) = &self.base else { return Ok(None) };
        let content = BaseIdentity::of(Some(base));
        let content = content.with_context(|| format!("disk {}", self.path.display()))?;
        Ok(Some(SnapshotBase { path: base.path.clone(), format: base.format, content }))
    }

    fn for_snapshot(&self, base: Option<SnapshotBase>) -> Result<SnapshotDisk> {
        let metadata = fs::metadata(&self.path).with_context(|| format!("disk {}", self.path.display()))?;
        if !self.read_only && metadata.file_type().is_block_device() {
            bail!(
                "disk {} is a block device, whose content a restore could not replace at once: take a snapshot of it by its own means (such as \
                 lvcreate --snapshot) while the VM is off, or use an image file",
                self.path.display()
            );
        }
        Ok(SnapshotDisk { path: self.path.clone(), read_only: self.read_only, mode: metadata.mode() & 0o7777, base })
    }

    /// Whether the VM's disk is this file, by device and inode, or needs it.
    fn uses(&self, file: (u64, u64)) -> bool {
        let is_it = |path: &Path| fs::metadata(path).is_ok_and(|own| (own.dev(), own.ino()) == file);
        is_it(&self.path) || self.base.as_ref().is_some_and(|base| is_it(&base.path))
    }
}

/// What a snapshot is to hold beside disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Memory and devices.
    Memory,
    /// Nothing.
    DisksAlone,
}

/// A snapshot that is about to be taken: all that needs no pause is done.
pub struct Prepared {
    head: SnapshotHead,
    spill: Arc<Spill>,
}

impl Prepared {
    /// Gets ready. `replaces` is the file whose place the snapshot takes, by device and inode; `spill` is an empty file that is nobody else's.
    pub fn new(
        spec: &VmSpec,
        disks: &SnapshotDisks,
        replaces: Option<(u64, u64)>,
        holds: Holds,
        spill: File,
    ) -> Result<Self> {
        let head = disks.head(open::config(spec)?, spec, replaces, holds)?;
        Ok(Self { head, spill: Arc::new(Spill::new(spill)) })
    }

    /// Freezes the paused VM, which goes on while [`Frozen::write_to`] reads it.
    pub fn freeze(mut self, vm: &mut Vm) -> Result<Frozen> {
        let begun = Instant::now();
        self.head.config = vm.config().clone();
        let vm = vm.freeze(&self.head, &self.spill)?;
        Ok(Frozen { head: self.head, vm, pause: begun.elapsed(), _read_only: Vec::new() })
    }

    /// The same of the disks of a VM that is off.
    fn freeze_disks(self, images: Vec<DiskImage>) -> Result<Frozen> {
        let (read_only, written): (Vec<_>, Vec<_>) = images.into_iter().partition(DiskImage::is_read_only);
        let mut disks = Vec::new();
        for image in written {
            let freezer = image.freezer();
            disks.push(freezer.freeze(Arc::new(Mutex::new(image)), &self.spill)?);
        }
        Ok(Frozen { head: self.head, vm: FrozenVm::off(disks), pause: Duration::ZERO, _read_only: read_only })
    }
}

/// A VM as a snapshot is to hold it. It goes on meanwhile.
pub struct Frozen {
    head: SnapshotHead,
    vm: FrozenVm,
    /// How long that took, with the guest standing still.
    pause: Duration,
    /// Disks that are open for this alone: nobody writes to them as long as they are.
    _read_only: Vec<DiskImage>,
}

impl Frozen {
    /// Whether the guest will notice that it was restored.
    pub fn heeds_generation(&self) -> bool {
        self.vm.heeds_generation()
    }

    /// Writes the snapshot to a file that is open, which somebody else puts in its place; fails soon when `is_cancelled`.
    pub fn write_to(self, file: File, is_cancelled: &AtomicBool) -> Result<()> {
        self.vm.write(&self.head, BufWriter::new(file), is_cancelled)?.flush()?;
        Ok(())
    }
}

/// Takes a snapshot to a file, which is there when it is complete and on stable storage. Only its owner may read it: it holds the guest's memory, with all
/// secrets that are in it. `freeze` is where the VM is paused; the rest of the time it may run. Answers how long the guest stood still for it.
pub fn take(
    spec: &VmSpec,
    disks: &SnapshotDisks,
    path: &Path,
    holds: Holds,
    is_cancelled: &AtomicBool,
    freeze: impl FnOnce(Prepared) -> Result<Frozen>,
) -> Result<Duration> {
    let take = || -> Result<Duration> {
        let replaces = fs::metadata(path).ok().map(|there| (there.dev(), there.ino()));
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let prepared = Prepared::new(spec, disks, replaces, holds, tempfile::tempfile_in(folder)?)?;
        let mut replacement = Replacement::new();
        replacement.add_private(path)?;
        let file = replacement.file(0)?;
        let frozen = freeze(prepared)?;
        let pause = frozen.pause;
        frozen.write_to(file, is_cancelled)?;
        replacement.commit()?;
        Ok(pause)
    };
    take().with_context(|| format!("cannot write snapshot {}", path.display()))
}

/// The same of a VM that does not run yet.
pub fn write(vm: &mut Vm, spec: &VmSpec, disks: &SnapshotDisks, path: &Path, holds: Holds) -> Result<()> {
    take(spec, disks, path, holds, &AtomicBool::new(false), |prepared| prepared.freeze(vm)).map(drop)
}

/// The same of the disks of a VM that is off, which are open here, so that nobody writes to them.
pub fn write_disks(spec: &VmSpec, images: Vec<DiskImage>, path: &Path) -> Result<()> {
    let disks = SnapshotDisks::of(&images);
    let freeze = |prepared: Prepared| prepared.freeze_disks(images);
    take(spec, &disks, path, Holds::DisksAlone, &AtomicBool::new(false), freeze).map(drop)
}

/// Notes that a snapshot that was written needs the images that its disks are based on. A VM has them still, so none has been removed before this.
pub(super) fn note_snapshot(snapshot: &Path) {
    let noted = open_snapshot(snapshot).and_then(|(_, written)| {
        let bases = written.head().disks.iter().filter_map(|disk| Some(disk.base.as_ref()?.path.as_path()));
        let bases: Vec<&Path> = bases.collect();
        Ok(open::images()?.note_snapshot(snapshot, &bases)?)
    });
    if let Err(error) = noted {
        tracing::warn!("nobody will know that snapshot {} needs an image: {}", snapshot.display(), error_text(&error));
    }
}

/// Notes which images disks are going to be based on that are brought back from a snapshot.
pub(super) fn note_bases(head: &SnapshotHead) {
    for disk in head.disks.iter().filter(|disk| !disk.read_only) {
        let Some(base) = &disk.base else { continue };
        if let Err(error) = open::images().and_then(|images| Ok(images.note_disk_on(&disk.path, &base.path)?)) {
            tracing::warn!(
                "nobody will know that {} is based on an image: {}",
                disk.path.display(),
                error_text(&error)
            );
        }
    }
}

/// A snapshot file that is open.
pub type OpenSnapshot = Snapshot<BufReader<File>>;

/// Opens a snapshot file; returns it with the spec of the VM that it is of.
pub fn open_snapshot(path: &Path) -> Result<(VmSpec, OpenSnapshot)> {
    let file = File::open(path).with_context(|| format!("cannot read snapshot {}", path.display()))?;
    let mut snapshot = Snapshot::open(BufReader::new(file)).with_context(|| format!("snapshot {}", path.display()))?;
    let spec = VmSpec::parse(&snapshot.head().spec)?;
    snapshot.set_host_choices(spec.backing(), spec.translator);
    if !has_disks_of(snapshot.head(), &spec) {
        bail!("snapshot {}: its disks are not those of its spec", path.display());
    }
    Ok((spec, snapshot))
}

/// Whether a snapshot is of a VM with the disks of this spec, in the same files.
pub fn has_disks_of(head: &SnapshotHead, spec: &VmSpec) -> bool {
    let named = spec.disks.iter().map(|disk| (&disk.path, disk.readonly));
    named.eq(head.disks.iter().map(|disk| (&disk.path, disk.read_only)))
}

/// A snapshot that has been read, and disks with its content that have not taken the place of the old ones.
pub struct Restoring {
    /// The disks, open.
    pub disks: Vec<DiskImage>,
    /// All else.
    pub saved: Saved,
}

/// A VM that is about to go on from a snapshot.
pub struct Saved {
    /// The hardware.
    config: VmConfig,
    /// Memory and state, as they were saved.
    pub content: SnapshotContent,
    /// What is still to be done once the VM is made.
    replacement: Replacement,
}

impl Saved {
    /// Makes the VM, of which the disks that were restored are parts, as one of its own. When that has succeeded, its disks take the place of those
    /// that are there.
    pub fn go_on(self, parts: Parts, engine: EngineKind, mode: InputMode) -> Result<Vm> {
        let Self { config, mut content, replacement } = self;
        content.state.catch_up(unix_now_ns());
        let mut vm = Vm::restore(config, &content.ram, content.state, parts, engine, mode)?;
        vm.begin_generation(GenerationId::random()?)?;
        replacement.commit().context("the snapshot's disks cannot take the place of those that are there")?;
        Ok(vm)
    }
}

impl Restoring {
    /// Reads a snapshot. Nothing has been changed when this fails, or when the result is dropped.
    pub fn begin(path: &Path, spec: &VmSpec, snapshot: OpenSnapshot) -> Result<Self> {
        let config = snapshot.head().config.clone();
        let read =
            |snapshot: OpenSnapshot, replacement: &Replacement| snapshot.read(|number| place_in(replacement, number));
        let (disks, content, replacement) =
            read_disks(spec, snapshot, own_place, read).with_context(|| cannot_restore(path))?;
        Ok(Self { disks, saved: Saved { config, content, replacement } })
    }
}

/// Brings back the disks of a VM that is off from a snapshot without memory: all of them or none.
pub fn restore_disks(path: &Path, spec: &VmSpec, snapshot: OpenSnapshot) -> Result<()> {
    let read =
        |snapshot: OpenSnapshot, replacement: &Replacement| snapshot.read_disks(|number| place_in(replacement, number));
    // They can be opened, and nobody else does before all are in place.
    let (_disks, (), replacement) =
        read_disks(spec, snapshot, own_place, read).with_context(|| cannot_restore(path))?;
    replacement.commit().context("the snapshot's disks cannot take the place of those that are there")
}

/// Where the new content of a disk is written.
fn place_in(replacement: &Replacement, number: usize) -> io::Result<SnapshotPlace> {
    let path = replacement.new_path(number).ok_or(io::ErrorKind::NotFound)?.to_owned();
    Ok(SnapshotPlace { file: replacement.file(number)?, path })
}

/// Where a disk that is brought back belongs.
fn own_place(_number: usize, disk: &SnapshotDisk) -> PathBuf {
    disk.path.clone()
}

/// Tells what a backup holds of a VM: the disks of a snapshot that its guest may write to, kernel and initial RAM disk. The VM may run: disks are laid out
/// beside the snapshot, and removed again.
pub fn tell_disks(path: &Path, spec: &VmSpec, snapshot: OpenSnapshot, out: impl Write) -> Result<()> {
    let read =
        |snapshot: OpenSnapshot, replacement: &Replacement| snapshot.read_disks(|number| place_in(replacement, number));
    // No file has that name, nor gets it.
    let place = |number: usize, _: &SnapshotDisk| path.with_extension(format!("disk{number}"));
    let told =
        read_disks(spec, snapshot, place, read).with_context(|| format!("snapshot {} cannot be read", path.display()));
    let (mut disks, (), _replacement) = told?;
    let mut stream = StreamWriter::new(out);
    for (name, file) in [("kernel", &spec.kernel), ("initrd", &spec.initrd)] {
        if let Some(path) = file {
            let failed = || format!("{name} {}", path.display());
            let file = plain_file::open(path).with_context(failed)?;
            stream.file(name, file.metadata()?.len(), file).with_context(failed)?;
        }
    }
    for (number, disk) in disks.iter_mut().enumerate().filter(|(_, disk)| !disk.is_read_only()) {
        stream.disk(&format!("disk{number}"), disk).with_context(|| format!("disk {number}"))?;
    }
    Ok(stream.end()?)
}

fn cannot_restore(path: &Path) -> String {
    format!("snapshot {} cannot be restored", path.display())
}

/// Writes the content of a snapshot's disks beside the places that they are for, and opens it. `read` reads all that the snapshot holds.
fn read_disks<T>(
    spec: &VmSpec,
    snapshot: OpenSnapshot,
    place: impl Fn(usize, &SnapshotDisk) -> PathBuf,
    read: impl FnOnce(OpenSnapshot, &Replacement) -> Result<T, VmError>,
) -> Result<(Vec<DiskImage>, T, Replacement)> {
    let head = snapshot.head().clone();
    if !has_disks_of(&head, spec) {
        bail!("the VM has other disks now");
    }
    check_bases(&head)?;
    let mut replacement = Replacement::new();
    for (number, disk) in head.written_disks().enumerate() {
        replacement.add(&place(number, disk), disk.mode)?;
    }
    let content = read(snapshot, &replacement)?;
    let mut disks = Vec::new();
    let mut written = 0;
    for disk in &spec.disks {
        let options = DiskOptions { format: disk.format, read_only: disk.readonly, direct: false };
        let at = if disk.readonly {
            disk.path.clone()
        } else {
            written += 1;
            replacement.new_path(written - 1).ok_or_else(|| anyhow!("a disk is missing"))?.to_owned()
        };
        let image = DiskImage::open_as(&at, &disk.path, options);
        disks.push(image.with_context(|| format!("disk {}", disk.path.display()))?);
    }
    Ok((disks, content, replacement))
}

/// Refuses a snapshot whose disks rely on images that are not what they were.
fn check_bases(head: &SnapshotHead) -> Result<()> {
    for disk in &head.disks {
        let Some(base) = &disk.base else { continue };
        let backing = Backing { path: base.path.clone(), format: base.format };
        let is_itself = disk.read_only;
        let found = BaseIdentity::of(Some(&backing)).with_context(|| match is_itself {
            true => format!("read-only disk {}, which is not in the snapshot, cannot be used", disk.path.display()),
            false => format!("what disk {} is based on cannot be used", disk.path.display()),
        })?;
        if found == base.content {
            continue;
        }
        if is_itself {
            bail!(
                "read-only disk {}, which is not in the snapshot, does not hold what it held then: put the old file back",
                disk.path.display()
            );
        }
        bail!(
            "disk {} is based on {}, which does not hold what it held when the snapshot was taken: put the old file back",
            disk.path.display(),
            base.path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
