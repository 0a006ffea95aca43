//! [`Digests`]: what the blocks of a disk hold, as far as it was found out and has not been changed since.
//!
//! A first copy compares the two replicas' disks by digests. Each is computed once and kept as long as its block stays as it is: in memory, as every change goes
//! through the image's lock and says so first; and from one process to the next in a file beside the disks ([`Record`]).
//!
//! A digest that is out of date would leave a secondary with a block that is not the primary's, so no record is believed but one that is whole, and
//! made of this very file as it is now. Before the first change of a disk its record is gone, on stable storage.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use machine::bus::lock;
use serde::{Deserialize, Serialize};
use storage::disk::FileStamps;
use storage::durable::{self, Readers};
use storage::plain_file;

use super::blocks::{BLOCK_BYTES, BlockDigest, block_count};

/// Most digests that are kept of a disk: those of 64 GiB, in about 50 MiB of memory. What is beyond is computed again.
const KEPT_MAX: usize = 1 << 20;
/// What a record begins with. Another format has another one.
const MAGIC: [u8; 8] = *b"TWVDIGS1";
/// Longest record in bytes.
const RECORD_BYTES_MAX: u64 = (KEPT_MAX as u64) * 44 + (64 << 10);

/// Digests of the blocks of one disk.
#[derive(Default)]
pub(super) struct Digests(Mutex<State>);

#[derive(Default)]
struct State {
    known: BTreeMap<u64, BlockDigest>,
    /// Blocks that were read and are being hashed, and have not been changed since.
    being_hashed: BTreeSet<u64>,
    /// A flush has failed: what was read may not be what the disk holds.
    is_distrusted: bool,
    /// Where the record is or will be.
    place: Option<PathBuf>,
    /// The record there holds so many digests, all of which hold.
    recorded: Option<usize>,
}

/// What a record holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size_bytes: u64,
    /// Those of the files that the disk's content depends on, since it was closed.
    files: FileStamps,
    /// The first block of a row, and the digests of that row. In order.
    rows: Vec<(u64, Vec<BlockDigest>)>,
}

impl Digests {
    /// The digest of a block, if it is known. Whoever looks without the image's lock must see changes that come later by other means.
    pub fn get(&self, block: u64) -> Option<BlockDigest> {
        lock(&self.0).known.get(&block).copied()
    }

    /// A block is about to be read, to be hashed. The image is locked.
    pub fn begin(&self, block: u64) {
        lock(&self.0).being_hashed.insert(block);
    }

    /// Keeps the digest of what was read, unless the block has been changed since.
    pub fn keep(&self, block: u64, digest: BlockDigest) {
        let mut state = lock(&self.0);
        if state.being_hashed.remove(&block) && !state.is_distrusted && state.known.len() < KEPT_MAX {
            state.known.insert(block, digest);
        }
    }

    /// A range is about to be changed: what was known of it does not hold any more. The image is locked, and stays so until that is done.
    ///
    /// # Errors
    /// The record cannot be removed: nothing may be changed.
    pub fn changing(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = lock(&self.0);
        if state.recorded.is_some()
            && let Some(place) = &state.place
        {
            durable::remove(place)?;
            state.recorded = None;
        }
        if length == 0 || (state.known.is_empty() && state.being_hashed.is_empty()) {
            return Ok(());
        }
        let blocks = offset / BLOCK_BYTES..=offset.saturating_add(length - 1) / BLOCK_BYTES;
        let State { known, being_hashed, .. } = &mut *state;
        let changed: Vec<u64> = known.range(blocks.clone()).map(|(block, _)| *block).collect();
        for block in changed {
            known.remove(&block);
        }
        being_hashed.retain(|block| !blocks.contains(block));
        Ok(())
    }

    /// Nothing that was read is believed any more, nor what will be.
    pub fn distrust(&self) {
        let mut state = lock(&self.0);
        state.is_distrusted = true;
        state.known.clear();
        state.being_hashed.clear();
    }

    /// Takes over what the record at `place` says, if that is of these files as they were `found`, with nothing written to them since; from now on the record
    /// is kept there. One that says nothing is removed.
    pub fn recall(&self, place: &Path, size_bytes: u64, found: Option<&FileStamps>) {
        let known = plain_file::read(place, RECORD_BYTES_MAX).ok().and_then(|bytes| decode(&bytes, size_bytes, found));
        if known.is_none()
            && let Err(error) = durable::remove(place)
        {
            tracing::debug!(%error, "a record of digests that says nothing cannot be removed");
        }
        let mut state = lock(&self.0);
        state.place = Some(place.to_owned());
        state.recorded = known.as_ref().map(BTreeMap::len);
        state.known = known.unwrap_or_default();
    }

    /// Whether there is something to be recorded that is not.
    pub fn is_to_be_recorded(&self) -> bool {
        let state = lock(&self.0);
        let count = state.known.len();
        state.place.is_some() && !state.is_distrusted && count > 0 && state.recorded != Some(count)
    }

    /// Records what is known, of files that were just sealed. The image is locked since before that.
    ///
    /// # Errors
    /// The host's.
    pub fn record(&self, size_bytes: u64, files: FileStamps) -> io::Result<()> {
        let mut state = lock(&self.0);
        let Some(place) = state.place.clone().filter(|_| !state.is_distrusted) else { return Ok(()) };
        let mut rows: Vec<(u64, Vec<BlockDigest>)> = Vec::new();
        for (block, digest) in &state.known {
            match rows.last_mut() {
                Some((first, row)) if *first + row.len() as u64 == *block => row.push(*digest),
                _ => rows.push((*block, vec![*digest])),
            }
        }
        let record = Record { size_bytes, files, rows };
        durable::write(&place, &encode(&record)?, Readers::Owner)?;
        state.recorded = Some(state.known.len());
        Ok(())
    }
}

/// The magic, the digest of all that follows, the record.
fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let content = postcard::to_stdvec(record).map_err(io::Error::other)?;
    Ok([&MAGIC[..], blake3::hash(&content).as_bytes(), &content].concat())
}

/// What a record says; nothing if it is not whole, or not of these files as they are.
fn decode(bytes: &[u8], size_bytes: u64, found: Option<&FileStamps>) -> Option<BTreeMap<u64, BlockDigest>> {
    let (digest, content) = bytes.strip_prefix(&MAGIC)?.split_first_chunk::<32>()?;
    if blake3::hash(content).as_bytes() != digest {
        return None;
    }
    let Record { size_bytes: recorded_bytes, files, rows } = postcard::from_bytes(content).ok()?;
    if recorded_bytes != size_bytes || Some(&files) != found {
        return None;
    }
    let mut known = BTreeMap::new();
    for (first, row) in rows {
        let fits = first.checked_add(row.len() as u64).is_some_and(|end| end <= block_count(size_bytes));
        if !fits || known.len() + row.len() > KEPT_MAX {
            return None;
        }
        known.extend((first..).zip(row));
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use storage::disk::{DiskImage, DiskOptions, create_raw};

    use super::*;

    const SIZE_BYTES: u64 = 4 * BLOCK_BYTES;

    fn image(path: &Path) -> DiskImage {
        DiskImage::open(path, DiskOptions::default()).unwrap()
    }

    /// A disk, and its record, which says of block 1 what it holds.
    fn recorded() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (disk, place) = (folder.path().join("disk.raw"), folder.path().join("digests-0"));
        create_raw(&disk, SIZE_BYTES).unwrap();
        let mut image = image(&disk);
        let digests = Digests::default();
        digests.recall(&place, SIZE_BYTES, image.found());
        digests.begin(1);
        digests.keep(1, [7; 32]);
        assert!(digests.is_to_be_recorded());
        let sealed = image.seal().unwrap().unwrap();
        digests.record(SIZE_BYTES, sealed).unwrap();
        assert!(!digests.is_to_be_recorded());
        (folder, disk, place)
    }

    fn recalled(disk: &Path, place: &Path) -> Option<BlockDigest> {
        let image = image(disk);
        let digests = Digests::default();
        digests.recall(place, image.size_bytes(), image.found());
        digests.get(1)
    }

    #[test]
    fn a_digest_is_kept_only_if_nothing_was_changed_since_its_block_was_read() {
        let digests = Digests::default();
        digests.keep(1, [1; 32]);
        assert_eq!(digests.get(1), None, "nobody has said that it is read");
        digests.begin(1);
        digests.begin(2);
        digests.changing(2 * BLOCK_BYTES - 1, 1).unwrap();
        digests.keep(1, [1; 32]);
        digests.keep(2, [2; 32]);
        assert_eq!((digests.get(1), digests.get(2)), (None, Some([2; 32])));
        digests.changing(u64::MAX, u64::MAX).unwrap();
        digests.changing(2 * BLOCK_BYTES, 0).unwrap();
        assert_eq!(digests.get(2), Some([2; 32]));
        digests.changing(0, 2 * BLOCK_BYTES + 1).unwrap();
        assert_eq!(digests.get(2), None);
        digests.begin(3);
        digests.keep(3, [3; 32]);
        digests.begin(4);
        digests.distrust();
        digests.keep(4, [4; 32]);
        assert_eq!((digests.get(3), digests.get(4)), (None, None));
    }

    #[test]
    fn a_record_is_found_by_the_next_one_and_gone_before_the_first_change() {
        let (_folder, disk, place) = recorded();
        assert_eq!(recalled(&disk, &place), Some([7; 32]));
        // That one has changed nothing.
        let image = image(&disk);
        let digests = Digests::default();
        digests.recall(&place, SIZE_BYTES, image.found());
        assert!(!digests.is_to_be_recorded() && place.exists());
        digests.changing(3 * BLOCK_BYTES, 512).unwrap();
        assert!(!place.exists());
        assert_eq!(digests.get(1), Some([7; 32]), "another block was changed");
        assert!(digests.is_to_be_recorded());
    }

    #[test]
    fn what_cannot_be_forgotten_for_good_must_not_be_changed() {
        let (folder, disk, place) = recorded();
        let digests = Digests::default();
        digests.recall(&place, SIZE_BYTES, image(&disk).found());
        // Neither can be removed as a file.
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        digests.changing(0, 512).unwrap_err();
        fs::remove_dir(&place).unwrap();
        digests.changing(0, 512).unwrap();
        drop(folder);
    }

    #[test]
    fn a_record_that_is_torn_changed_or_of_another_disk_says_nothing() {
        let (folder, disk, place) = recorded();
        let whole = fs::read(&place).unwrap();
        for length in [0, 4, 8, 39, 40, whole.len() - 1] {
            fs::write(&place, &whole[..length]).unwrap();
            assert_eq!(recalled(&disk, &place), None, "{length} bytes");
            assert!(!place.exists(), "it is not tried again");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&place, &changed).unwrap();
            assert_eq!(recalled(&disk, &place), None, "byte {at}");
        }
        // One that is whole, and of another file: a copy of the disk, as by a restore from a backup.
        let copy = folder.path().join("copy.raw");
        fs::copy(&disk, &copy).unwrap();
        fs::write(&place, &whole).unwrap();
        assert_eq!(recalled(&copy, &place), None);
        // A link or a pipe in its place, or more than fits into memory.
        let other = folder.path().join("other");
        fs::write(&other, &whole).unwrap();
        std::os::unix::fs::symlink(&other, &place).unwrap();
        assert_eq!(recalled(&disk, &place), None);
        fs::write(&place, &whole).unwrap();
        assert_eq!(recalled(&disk, &place), Some([7; 32]), "it was the others' fault");
    }

    /// As by `qemu-img`, or by an administrator who mounts the disk, while no replica has it open. At once, so that it may get the time of the last change.
    #[test]
    fn a_disk_that_was_changed_behind_its_record_is_read_again() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("written, in place", |disk| {
                let mut image = image(disk);
                image.write_at(BLOCK_BYTES, &[1; 512]).unwrap();
            }),
            ("made bigger", |disk| image(disk).grow(2 * SIZE_BYTES).unwrap()),
            ("replaced", |disk| {
                let new = disk.with_extension("new");
                fs::copy(disk, &new).unwrap();
                fs::rename(&new, disk).unwrap();
            }),
            // The time of the last change can be set, that of the last change of the file's attributes cannot.
            ("written, and its time set as before", |disk| {
                let before = fs::metadata(disk).unwrap().modified().unwrap();
                let file = fs::File::options().write(true).open(disk).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &[1; 512], BLOCK_BYTES).unwrap();
                // Beyond the granularity of the file system's clock.
                std::thread::sleep(std::time::Duration::from_millis(50));
                file.set_modified(before).unwrap();
            }),
        ];
        for (what, change) in changes {
            let (_folder, disk, place) = recorded();
            change(&disk);
            assert_eq!(recalled(&disk, &place), None, "{what}");
            assert!(!place.exists(), "{what}");
        }
    }
}
