//! Snapshot files of a VM: frozen in a pause, written while the VM goes on, and read again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use memory::GuestRam;
use serde::{Deserialize, Serialize};
use spec::{MemoryBacking, Translator};
use storage::disk::{FrozenDisk, Spill};

use super::{Vm, VmConfig, VmError, VmState, unix_now_ns};
use crate::snapshot::disk::SnapshotDisk;
use crate::snapshot::file::read_file;
use crate::snapshot::format::{FormatError, SnapshotReader, SnapshotWriter, VERSION_OF_FILES};
use crate::snapshot::image::{read_image, write_image};
use crate::snapshot::memory::{SavedMemory, SpilledPages, read_memory};

/// What a snapshot file says before its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The hardware.
    pub config: VmConfig,
    /// The spec the VM was started from, as TOML; paths in it are absolute.
    pub spec: String,
    /// The disks, in the order of the spec. The content of the files of those that the guest may write to follows.
    pub disks: Vec<SnapshotDisk>,
    /// Memory and devices of the running VM are in it as well.
    pub has_memory: bool,
    /// When it was taken, by the clock of its host, in nanoseconds since the Unix epoch.
    pub taken_unix_ns: u64,
    /// Of one with memory: the guest will notice that it was restored ([`crate::generation`]). Whoever writes the snapshot finds out.
    pub heeds_generation: bool,
}

impl SnapshotHead {
    /// The disks whose files' content is in the snapshot, in that order.
    pub fn written_disks(&self) -> impl Iterator<Item = &SnapshotDisk> {
        self.disks.iter().filter(|disk| !disk.read_only)
    }
}

const SECTION_HEAD: [u8; 4] = *b"HEAD";
const SECTION_STATE: [u8; 4] = *b"STAT";
const SECTION_MEMORY: [u8; 4] = *b"MEM\0";
const SECTION_IMAGE: [u8; 4] = *b"IMG\0";
/// Before there were images: their files.
const SECTION_DISK: [u8; 4] = *b"DISK";

/// A VM as it was in a pause, or the disks of one that is off: what a snapshot of it holds. The VM goes on meanwhile.
pub struct FrozenVm {
    taken_unix_ns: u64,
    heeds_generation: bool,
    machine: Option<(VmState, SavedMemory)>,
    /// Those that are written, in the order of the head.
    disks: Vec<FrozenDisk>,
}

impl Vm {
    /// Freezes the paused VM for a snapshot with this head. What its disks hold, and its memory on the soft engine, is read later: until then, what is
    /// written over is kept in `spill`.
    ///
    /// # Errors
    /// [`VmError`]: nothing is frozen then, and the VM goes on.
    pub fn freeze(&mut self, head: &SnapshotHead, spill: &Arc<Spill>) -> Result<FrozenVm, VmError> {
        let numbers = head.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only).map(|(number, _)| number);
        let disks = self.platform.freeze_disks(numbers, spill)?;
        let machine = if head.has_memory { Some((self.save()?, self.save_memory(spill)?)) } else { None };
        let heeds_generation = self.platform.heeds_generation();
        Ok(FrozenVm { taken_unix_ns: unix_now_ns(), heeds_generation, machine, disks })
    }

    /// Freezes memory where all who write to it ask before, and copies it elsewhere.
    fn save_memory(&mut self, spill: &Arc<Spill>) -> Result<SavedMemory, VmError> {
        let ram = self.platform.ram();
        if !self.engine.kind().can_freeze_pages() {
            return Ok(SavedMemory::copy(ram));
        }
        let frozen = ram.freeze_all(Box::new(SpilledPages::new(spill.clone(), ram.size_bytes())?));
        self.engine.ask_before_writes();
        let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another snapshot is being taken");
        Ok(SavedMemory::Frozen(frozen.ok_or_else(busy)?))
    }
}

impl FrozenVm {
    /// The disks of a VM that is off, those that are written, in the order of a snapshot's head.
    pub fn off(disks: Vec<FrozenDisk>) -> Self {
        Self { taken_unix_ns: unix_now_ns(), heeds_generation: false, machine: None, disks }
    }

    /// Whether the guest will notice that it was restored.
    pub fn heeds_generation(&self) -> bool {
        self.heeds_generation
    }

    /// Writes it to a snapshot file: state and memory, if they were frozen, and the content of the writable disks. Ends early when `is_cancelled`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn write<W: Write>(self, head: &SnapshotHead, out: W, is_cancelled: &AtomicBool) -> Result<W, VmError> {
        let Self { taken_unix_ns, heeds_generation, machine, disks } = self;
        let head = SnapshotHead { has_memory: machine.is_some(), taken_unix_ns, heeds_generation, ..head.clone() };
        let mut writer = SnapshotWriter::new(out)?;
        writer.value(SECTION_HEAD, &head)?;
        if let Some((state, memory)) = machine {
            writer.value(SECTION_STATE, &state)?;
            writer.section(SECTION_MEMORY, |out| memory.write(out, is_cancelled))?;
        }
        if disks.len() != head.written_disks().count() {
            return Err(io::Error::other("not all disks are frozen").into());
        }
        for (mut frozen, disk) in disks.into_iter().zip(head.written_disks()) {
            writer.section(SECTION_IMAGE, |out| write_image(&disk.path, &mut frozen, out, is_cancelled))?;
        }
        Ok(writer.finish()?)
    }
}

/// A snapshot file, opened: what it is of is known, its content is not read yet.
pub struct Snapshot<R: Read> {
    reader: SnapshotReader<R>,
    head: SnapshotHead,
}

/// The content of a snapshot file, for [`Vm::restore`].
pub struct SnapshotContent {
    /// Memory.
    pub ram: GuestRam,
    /// Everything else.
    pub state: VmState,
}

/// Where a disk is written that is read from a snapshot.
pub struct SnapshotPlace {
    /// A file that is empty and sparse.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
}

impl<R: Read> Snapshot<R> {
    /// Reads and checks the head of a snapshot file.
    pub fn open(input: R) -> Result<Self, VmError> {
        let mut reader = SnapshotReader::new(input)?;
        let head = reader.value(SECTION_HEAD)?;
        Ok(Self { reader, head })
    }

    /// Says what this host is to make the memory of, and whether it translates code.
    pub fn set_host_choices(&mut self, backing: MemoryBacking, translator: Translator) {
        self.head.config.backing = backing;
        self.head.config.translator = translator;
    }

    /// What the snapshot is of.
    pub fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// Reads and checks everything. The content of disk n of [`SnapshotHead::written_disks`] goes to `disk_place(n)`. Nothing but those files is changed,
    /// and as long as they are only written beside the disks, a caller can still turn back.
    ///
    /// # Errors
    /// [`VmError`]; [`VmError::Kind`] if it has no memory.
    pub fn read(
        mut self,
        disk_place: impl FnMut(usize) -> io::Result<SnapshotPlace>,
    ) -> Result<SnapshotContent, VmError> {
        if !self.head.has_memory {
            return Err(VmError::Kind { has_memory: false });
        }
        let state = self.reader.value(SECTION_STATE)?;
        let ram = GuestRam::with_backing(self.head.config.memory_bytes, &self.head.config.backing)?;
        self.reader.section(SECTION_MEMORY, |section| read_memory(&ram, section))?;
        self.read_disk_content(disk_place)?;
        Ok(SnapshotContent { ram, state })
    }

    /// The same of a snapshot that has no memory.
    ///
    /// # Errors
    /// [`VmError`]; [`VmError::Kind`] if it has memory.
    pub fn read_disks(self, disk_place: impl FnMut(usize) -> io::Result<SnapshotPlace>) -> Result<(), VmError> {
        if self.head.has_memory {
            return Err(VmError::Kind { has_memory: true });
        }
        self.read_disk_content(disk_place)
    }

    fn read_disk_content(
        mut self,
        mut disk_place: impl FnMut(usize) -> io::Result<SnapshotPlace>,
    ) -> Result<(), VmError> {
        for (number, disk) in self.head.written_disks().enumerate() {
            let failed = |source| FormatError::Disk { path: disk.path.clone(), source };
            let place = disk_place(number).map_err(failed)?;
            if self.reader.version() == VERSION_OF_FILES {
                self.reader.section(SECTION_DISK, |section| read_file(&disk.path, &place.file, section))?;
            } else {
                self.reader.section(SECTION_IMAGE, |section| read_image(disk, &place.file, &place.path, section))?;
            }
        }
        Ok(self.reader.finish()?)
    }
}
