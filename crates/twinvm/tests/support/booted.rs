//! Guests that have booted, saved for all tests that begin with one: a boot takes seconds of a processor, going on from a snapshot a fraction of one.
//!
//! What is saved is a snapshot as `twinvm` writes it, in the folder that cargo keeps for tests. Its name says which program wrote it and of which guest. One that
//! cannot be restored is made anew.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use machine::snapshot::format::SnapshotWriter;
use machine::vm::{Snapshot, SnapshotHead};
use spec::{EngineKind, VmSpec};
use storage::image::Image;

use super::place;

/// The name of the snapshots that replicas write and go on from.
pub const NAME: &str = "booted";
/// How long one is used: a guest's clock steps forward by no more than this, and what earlier programs have left is gone soon.
const KEPT: Duration = Duration::from_secs(3600);
/// Bytes of a snapshot file before its first section, and of the head of a chunk.
const HEADER_BYTES: u64 = 16;
const CHUNK_HEAD_BYTES: u64 = 12;

/// A guest that may have been saved.
pub struct Booted(PathBuf);

impl Booted {
    /// The guest of this image, with a spec that differs from that of others in nothing but where its files are. Nothing where guests are not saved: what
    /// runs on KVM boots on it.
    pub fn of(image: &Image, spec: &str) -> Option<Self> {
        if place::engine() != EngineKind::Soft {
            return None;
        }
        let program = fs::metadata(env!("CARGO_BIN_EXE_twinvm")).unwrap();
        let mut hasher = DefaultHasher::new();
        (program.len(), program.mtime(), program.mtime_nsec(), program.ino()).hash(&mut hasher);
        (spec, [image.kernel(), image.initrd(), image.root_disk().unwrap()].map(|file| file.canonicalize().unwrap()))
            .hash(&mut hasher);
        Some(Self(folder().join(format!("{:016x}.snapshot", hasher.finish()))))
    }

    /// Puts a snapshot of it at a path: for a VM whose disks are in a folder. Nothing if it has not been saved.
    pub fn put(&self, vm_folder: &Path, at: &Path) -> Option<()> {
        if !is_fresh(&self.0) {
            return None;
        }
        let put = put(&self.0, vm_folder, at);
        if let Err(error) = &put {
            self.forget(&error.to_string());
        }
        put.ok()
    }

    /// Readies a guest's Redis for the snapshot. It saves in the background when some changes are older than five minutes, as they are at once when the guest's
    /// clock steps forward, and refuses what a test asks it to save meanwhile. It still saves what it holds when it is shut down.
    pub fn settle(redis: SocketAddr) {
        let client = redis::Client::open((redis.ip().to_string(), redis.port())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let () = redis::cmd("CONFIG").arg("SET").arg("save").arg("86400 1").query(&mut connection).unwrap();
    }

    /// Saves a copy of its snapshot. Where that fails, others boot.
    pub fn keep(&self, at: &Path) {
        if let Err(error) = self.copy(at) {
            eprintln!("{} is not kept: {error}", self.0.display());
        }
    }

    fn copy(&self, at: &Path) -> io::Result<()> {
        fs::create_dir_all(folder())?;
        for entry in fs::read_dir(folder())?.flatten().filter(|entry| !is_fresh(&entry.path())) {
            // Somebody else may do the same.
            let _ = fs::remove_file(entry.path());
        }
        let mut new = tempfile::NamedTempFile::new_in(folder())?;
        io::copy(&mut File::open(at)?, &mut new)?;
        new.persist(&self.0)?;
        Ok(())
    }

    /// It could not be restored.
    pub fn forget(&self, why: &str) {
        eprintln!("{} is made anew: {why}", self.0.display());
        let _ = fs::remove_file(&self.0);
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("booted")
}

fn is_fresh(file: &Path) -> bool {
    let modified = fs::metadata(file).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < KEPT))
}

/// Copies a snapshot, but for its head, which names the files of the VM that it was taken of.
fn put(saved: &Path, vm_folder: &Path, at: &Path) -> io::Result<()> {
    let mut saved = File::open(saved)?;
    let snapshot = Snapshot::open(BufReader::new(&saved)).map_err(io::Error::other)?;
    let head = moved(snapshot.head(), vm_folder).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    SnapshotWriter::new(&mut bytes).and_then(|mut writer| writer.value(*b"HEAD", &head)).map_err(io::Error::other)?;
    skip_head(&mut saved)?;
    let mut out = File::create(at)?;
    out.write_all(&bytes)?;
    io::copy(&mut saved, &mut out)?;
    Ok(())
}

/// The head of a snapshot of the same VM with its disks in this folder.
fn moved(head: &SnapshotHead, folder: &Path) -> anyhow::Result<SnapshotHead> {
    let mut head = head.clone();
    let mut spec = VmSpec::parse(&head.spec)?;
    for (disk, named) in head.disks.iter_mut().zip(&mut spec.disks) {
        disk.path = folder.join(disk.path.file_name().unwrap_or_default());
        named.path.clone_from(&disk.path);
    }
    head.spec = spec::to_toml(&spec)?;
    Ok(head)
}

/// Goes to where the first section ends: at a chunk without content.
fn skip_head(file: &mut File) -> io::Result<()> {
    let mut at = HEADER_BYTES;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let mut chunk = [0; CHUNK_HEAD_BYTES as usize];
        file.read_exact(&mut chunk)?;
        let len = u64::from(u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]));
        at += CHUNK_HEAD_BYTES + len;
        if len == 0 {
            return Ok(());
        }
    }
}
