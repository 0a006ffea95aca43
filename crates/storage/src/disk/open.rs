//! Opening images. What is refused, for whatever reason, is refused before a byte of the file has changed.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use spec::DiskFormat;

use super::lock::{ImageLock, open_locked, require_disk};
use super::qcow2_header::{self, BackingName, Header, INCOMPATIBLE_DIRTY, Refusal};
use super::qcow2_tables::{self, Tables};
use super::{Backing, DiskError, DiskOptions, FileStamps, ImageShape, RecordedBase, check_size, format};

/// Longest chain of backing files.
const CHAIN_LENGTH_MAX: usize = 32;

type Storage = imago::file::File;
type Format = FormatAccess<Storage>;

/// An image that is open.
pub(super) struct Content {
    pub access: Format,
    pub shape: ImageShape,
    /// What a qcow2 image is based on.
    pub backing: Option<Backing>,
    /// The image's file, then those it is based on.
    pub locks: Vec<ImageLock>,
    /// As those files were before anything was written to them.
    pub found: Option<FileStamps>,
}

/// Opens and locks the image at `path`, and what it is based on: of which a relative name is meant as one in an image called `name`.
pub(super) fn open_image(path: &Path, name: &Path, options: DiskOptions) -> Result<Content, DiskError> {
    let (file, lock) = open_locked(path, options.access(), options.direct)?;
    let mut locks = vec![lock];
    let format = match options.format {
        Some(format) => format,
        None => format::guess(path, &reopen(path, false)?)?,
    };
    // Locked by now, and what opens it to be written may write at once.
    let own = FileStamps::of(locks.iter().map(ImageLock::file)).ok().flatten();
    let (access, shape, backing) = open_format(path, name, file, format, options, &mut locks)?;
    check_size(path, access.size())?;
    let bases = FileStamps::of(locks.iter().skip(1).map(ImageLock::file)).ok().flatten();
    let found = own.zip(bases).map(|(own, bases)| own.with(bases));
    Ok(Content { access, shape, backing, locks, found })
}

/// Opens an image to look at it, without a lock.
pub(super) fn open_to_look(path: &Path) -> Result<File, DiskError> {
    require_disk(path)?;
    reopen(path, false)
}

/// An image that is locked already once more, through the page cache: its metadata is read at no alignment.
fn reopen(path: &Path, writable: bool) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .open(path)
        .map_err(|source| DiskError::Open { path: path.to_path_buf(), source })
}

/// Opens the image in `file`, which is locked, and for qcow2 what it is based on; the locks of that are added to `locks`.
/// A relative name of that is meant as one in an image called `name`.
fn open_format(
    path: &Path,
    name: &Path,
    file: File,
    format: DiskFormat,
    options: DiskOptions,
    locks: &mut Vec<ImageLock>,
) -> Result<(Format, ImageShape, Option<Backing>), DiskError> {
    let io = |action| move |source| DiskError::Io { path: path.to_path_buf(), action, source };
    let storage = |file, writable| {
        let options = StorageOpenOptions::new().filename(path).write(writable).direct(options.direct);
        Storage::from_open_file(file, options).map_err(io("open"))
    };
    let writable = !options.read_only;
    if format == DiskFormat::Raw {
        let builder = Raw::builder(storage(file, writable)?).write(writable);
        let raw = builder.open(DenyImplicitOpenGate::default()).map_err(io("open"))?;
        return Ok((FormatAccess::new(raw), ImageShape::Raw, None));
    }
    let header = read_header(path)?;
    check_size(path, header.size_bytes)?;
    // What the image refers to is opened here, read-only and locked, and by nobody else.
    let base = header.backing.as_ref().map(|base| open_backing(path, name, base, options, locks)).transpose()?;
    let open = |file, writable| {
        let builder = Qcow2::<Storage>::builder(storage(file, writable)?).write(writable).backing(None).data_file(None);
        builder.open(DenyImplicitOpenGate::default()).map_err(|e: io::Error| DiskError::Corrupt {
            path: path.to_path_buf(),
            format,
            reason: e.to_string(),
        })
    };
    let is_dirty = header.incompatible & INCOMPATIBLE_DIRTY != 0;
    if !writable && is_dirty {
        let reason =
            "it was not closed, and can only be read once it has been repaired: `qemu-img check -r all` does it";
        return Err(DiskError::Unsupported { path: path.to_path_buf(), reason: reason.to_owned() });
    }
    if writable {
        let own = reopen(path, true)?;
        let mut tables = check_tables(path, &own, &header)?;
        // The library, which takes no image that is dirty, may refuse this one, and when it is to write it writes at once.
        if !is_dirty {
            drop(open(file.try_clone().map_err(io("open"))?, false)?);
        }
        tables.repair().map_err(io("repair"))?;
    }
    let mut qcow2 = open(file, writable)?;
    let (access, backing) = base.unzip();
    if access.is_some() {
        qcow2.set_backing(access);
    }
    let recorded = header.backing.map(|base| RecordedBase { name: base.name, format: base.format.unwrap_or_default() });
    let shape = ImageShape::Qcow2 { cluster_bytes: header.cluster_bytes, base: recorded };
    Ok((FormatAccess::new(qcow2), shape, backing))
}

fn open_backing(
    path: &Path,
    image: &Path,
    recorded: &BackingName,
    options: DiskOptions,
    locks: &mut Vec<ImageLock>,
) -> Result<(Format, Backing), DiskError> {
    let unsupported = |reason: String| DiskError::Unsupported { path: path.to_path_buf(), reason };
    if locks.len() > CHAIN_LENGTH_MAX {
        return Err(unsupported("too many backing files, or a loop of them".to_owned()));
    }
    let name = &recorded.name;
    let format = recorded.format.as_deref().ok_or_else(|| {
        unsupported(format!(
            "the format of its backing file {name:?} is not recorded; `qemu-img rebase -u -b {name} -F FORMAT` records it"
        ))
    })?;
    let format = format.parse::<DiskFormat>().map_err(|e| unsupported(format!("backing file {name:?}: {e}")))?;
    let file_name = file_name(name).ok_or_else(|| {
        unsupported(format!(
            "its backing file {name:?} is not the name of a file; `qemu-img rebase -u -b FILE -F FORMAT` records one"
        ))
    })?;
    let backing = Backing { path: resolve(image, file_name), format };
    let options = DiskOptions { format: Some(format), read_only: true, ..options };
    let (file, lock) = open_locked(&backing.path, options.access(), options.direct)
        .map_err(|source| DiskError::Backing { path: path.to_path_buf(), source: Box::new(source) })?;
    locks.push(lock);
    let (access, _, _) = open_format(&backing.path, &backing.path, file, format, options, locks)?;
    Ok((access, backing))
}

/// The name of a file in what is recorded as that of a backing file; `None` for what QEMU would take for something else: a protocol with its
/// address, or options as JSON (`path_has_protocol` in its `block.c`).
pub(super) fn file_name(recorded: &str) -> Option<&str> {
    let name = recorded.strip_prefix("file:").unwrap_or(recorded);
    let has_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    (!has_protocol && !name.is_empty()).then_some(name)
}

/// The file that an image is based on: relative names are relative to the image's folder.
pub(super) fn resolve(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// Reads the header of a qcow2 image, and holds it against its limits before anything relies on it.
pub(super) fn read_header(path: &Path) -> Result<Header, DiskError> {
    let file = reopen(path, false)?;
    let io = |source| DiskError::Io { path: path.to_path_buf(), action: "read", source };
    let file_bytes = length(&file).map_err(io)?;
    let mut prefix = vec![0; file_bytes.min(qcow2_header::PREFIX_BYTES as u64) as usize];
    file.read_exact_at(&mut prefix, 0).map_err(io)?;
    qcow2_header::parse(&prefix, file_bytes).map_err(|refusal| refused(path, refusal))
}

/// Holds all tables of a qcow2 image that is to be written against each other.
fn check_tables<'a>(path: &Path, file: &'a File, header: &'a Header) -> Result<Tables<'a>, DiskError> {
    let io = |source| DiskError::Io { path: path.to_path_buf(), action: "read", source };
    let file_bytes = length(file).map_err(io)?;
    let checked = qcow2_tables::check(file, file_bytes, header).map_err(io)?;
    checked.map_err(|refusal| refused(path, refusal))
}

/// Not the metadata's length: that of a block device is 0.
pub(super) fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn refused(path: &Path, refusal: Refusal) -> DiskError {
    let path = path.to_path_buf();
    match refusal {
        Refusal::Corrupt(reason) => DiskError::Corrupt { path, format: DiskFormat::Qcow2, reason },
        Refusal::Unsupported(reason) => DiskError::Unsupported { path, reason: reason.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use imago::FormatCreateBuilder;

    use super::*;
    use crate::disk::{DiskImage, create_raw};

    /// A restore opened the new content, which lies where the link leads, as if its base were there.
    #[test]
    fn a_relative_base_lies_in_the_folder_of_the_name_that_an_image_is_opened_by() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        create_raw(&at("base"), 1 << 20).unwrap();
        let new = at("elsewhere/disk.new");
        let options = StorageOpenOptions::new().filename(&new).write(true);
        let file = File::options().read(true).write(true).create_new(true).open(&new).unwrap();
        let storage = Storage::from_open_file(file, options).unwrap();
        let builder = Qcow2::<Storage>::create_builder(storage).size(1 << 20);
        builder.backing("base".to_owned(), "raw".to_owned()).create().unwrap();
        symlink("elsewhere/disk", at("disk")).unwrap();
        let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
        let named = DiskImage::open_as(&new, &at("disk"), options).unwrap();
        assert_eq!(named.backing().unwrap().path, at("base"));
        drop(named);
        assert!(DiskImage::open(&new, options).is_err());
        // As it is opened later.
        fs::rename(&new, at("elsewhere/disk")).unwrap();
        assert_eq!(DiskImage::open(&at("disk"), options).unwrap().backing().unwrap().path, at("base"));
    }
}
