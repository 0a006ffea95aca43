//! Images that are pulled: a disk that somebody else has made becomes the root disk of a version of an image.
//!
//! What comes is written into a folder of its own, and read only when it has the digest that its user expects. Nothing of it is left when anything fails.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spec::DiskFormat;

use super::boot_files::{self, is_disk};
use super::manifest::{KernelInfo, Manifest};
use super::spec::validate_name;
use super::store::{Image, hex, json_sha256, sha256_file};
use super::{ImageError, ImageSpec, Progress, Stage};
use crate::disk::{Allocation, DiskError, DiskImage, DiskOptions, has_backing};

/// Most bytes of a disk, and of what it comes as, unless its user wants more.
pub const PULL_BYTES_MAX_DEFAULT: u64 = 64 << 30;
/// Digits of a SHA-256 digest.
const SHA256_DIGITS: usize = 64;
/// Bytes that are read, and looked at for zeros, at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Where what comes is written.
const COMING: &str = "coming";
/// What is no disk image, by its first bytes, and what unpacks it.
const PACKED: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gunzip"),
    (b"\xfd7zXZ\0", "unxz"),
    (b"\x28\xb5\x2f\xfd", "unzstd"),
    (b"BZh", "bunzip2"),
    (b"PK\x03\x04", "unzip"),
];
/// What x86 kernels that can be started have at a place: those of Linux' boot protocol, and ELF files.
const KERNELS: [(usize, &[u8]); 2] = [(0x202, b"HdrS"), (0, b"\x7fELF")];

/// A disk to be pulled.
#[derive(Clone, Debug)]
pub struct PullSpec {
    /// Name of the image.
    pub name: String,
    /// Where it comes from: a file or an address.
    pub from: String,
    /// The SHA-256 digest that it must have, in hexadecimal.
    pub sha256: String,
    /// Its format, if its content is not to decide.
    pub format: Option<DiskFormat>,
    /// Kernel and initial RAM disk, instead of those on the disk.
    pub boot: Option<BootFiles>,
    /// The kernel's command line, instead of one with the root file system that is found.
    pub cmdline: Option<String>,
    /// Most bytes that may come, and that the disk may have.
    pub bytes_max: u64,
}

/// Files that a guest is booted with.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

/// What a pulled image was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Where it came from.
    pub from: String,
    /// Its SHA-256 digest then, in hexadecimal.
    pub sha256: String,
}

/// A disk that comes.
pub struct Incoming<'a> {
    /// Its content. Whoever waits in it for long returns [`io::ErrorKind::Interrupted`] now and then, so that a pull can be cancelled.
    pub content: Box<dyn Read + 'a>,
    /// Bytes of it, if that is known.
    pub bytes: Option<u64>,
}

impl PullSpec {
    /// Refuses what cannot be pulled, whatever it is.
    pub(super) fn validate(&self) -> Result<(), ImageError> {
        validate_name(&self.name)?;
        let invalid = |reason: &str| ImageError::InvalidSpec { name: self.name.clone(), reason: reason.to_owned() };
        if self.sha256.len() != SHA256_DIGITS || !self.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid("a SHA-256 digest has 64 hexadecimal digits, as `sha256sum FILE` prints"));
        }
        for path in self.boot.iter().flat_map(|boot| [&boot.kernel, &boot.initrd]) {
            File::open(path).map_err(ImageError::at(path))?;
        }
        Ok(())
    }

    /// Digest over everything that determines the image.
    pub(super) fn inputs_sha256(&self) -> Result<String, ImageError> {
        let files = self.boot.iter().flat_map(|boot| [&boot.kernel, &boot.initrd]);
        let digests = files.map(|path| sha256_file(path, &mut |_| {})).collect::<Result<Vec<_>, _>>()?;
        let format = self.format.map(|format| format.to_string());
        Ok(json_sha256(&("pulled", self.sha256.to_ascii_lowercase(), format, digests, &self.cmdline)))
    }

    /// Makes the image in the existing folder `output`, with the existing folder `staging` for what comes between.
    pub(super) fn make(
        &self,
        incoming: Incoming<'_>,
        staging: &Path,
        output: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let came = staging.join(COMING);
        let sha256 = self.receive(incoming, &came, progress)?;
        if !sha256.eq_ignore_ascii_case(&self.sha256) {
            return Err(ImageError::DigestMismatch {
                path: PathBuf::from(&self.from),
                expected: self.sha256.to_ascii_lowercase(),
                found: sha256,
            });
        }
        let root_disk_bytes = self.unpack(&came, &output.join(Image::ROOT_DISK), progress)?;
        let found = boot_files::take(output, self.boot.is_none(), progress)?;
        let release = match (&self.boot, found.release) {
            (Some(boot), _) => self.take_boot_files(boot, output)?,
            (None, Some(release)) => release,
            (None, None) => {
                return Err(self.unusable(
                    "no kernel with an initial RAM disk was found in /boot of an ext4 file system on it: name those of its \
                     system with --kernel and --initrd",
                ));
            }
        };
        check_kernel(&output.join(Image::KERNEL))?;
        let cmdline = match (&self.cmdline, found.root) {
            (Some(cmdline), _) => cmdline.clone(),
            (None, root) => format!("console=ttyS0 root={} cryptomgr.notests", root.as_deref().unwrap_or("/dev/vda")),
        };
        let files = super::build::digest_files(output, &[Image::KERNEL, Image::INITRD, Image::ROOT_DISK], progress)?;
        let kernel = KernelInfo { package: String::new(), version: String::new(), release };
        let spec = ImageSpec { root_disk_bytes: Some(root_disk_bytes), ..ImageSpec::pulled(&self.name) };
        let mut manifest = Manifest::new(spec, self.inputs_sha256()?, kernel, cmdline, Vec::new(), files);
        manifest.pulled = Some(Pulled { from: self.from.clone(), sha256 });
        manifest.store(output)
    }

    /// Writes what comes to a file, without the zeros; its digest.
    fn receive(
        &self,
        mut incoming: Incoming<'_>,
        path: &Path,
        progress: &mut dyn Progress,
    ) -> Result<String, ImageError> {
        let too_big = || self.unusable(&format!("it has more than {} bytes; --max-size allows more", self.bytes_max));
        if incoming.bytes.is_some_and(|bytes| bytes > self.bytes_max) {
            return Err(too_big());
        }
        let file = File::create_new(path).map_err(ImageError::at(path))?;
        let (mut digest, mut done) = (Sha256::new(), 0u64);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            let read = match incoming.content.read(&mut chunk) {
                Ok(read) => chunk.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unusable(&format!("it did not come whole: {error}"))),
            };
            if read.is_empty() {
                break;
            }
            digest.update(read);
            write_sparse(&file, done, read).map_err(ImageError::at(path))?;
            done += read.len() as u64;
            if done > self.bytes_max {
                return Err(too_big());
            }
            progress.update(Stage::Fetch, done, incoming.bytes.unwrap_or_default());
        }
        if let Some(bytes) = incoming.bytes.filter(|&bytes| bytes != done) {
            return Err(self.unusable(&format!("it did not come whole: {done} of {bytes} bytes")));
        }
        file.set_len(done).map_err(ImageError::at(path))?;
        Ok(hex(&digest.finalize()))
    }

    /// Makes a raw disk of what came; the size of the disk.
    fn unpack(&self, came: &Path, disk: &Path, progress: &mut dyn Progress) -> Result<u64, ImageError> {
        let refused = |error: DiskError| match error {
            DiskError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ImageError::io(disk, source),
            error => {
                let text = error.to_string();
                self.unusable(text.strip_prefix(&format!("{}: ", came.display())).unwrap_or(&text))
            }
        };
        let format = self.format(came, refused)?;
        if format == DiskFormat::Qcow2 && has_backing(came).map_err(refused)? {
            return Err(self.unusable(
                "it shows another image, its backing file, where it holds nothing itself; `qemu-img convert -O qcow2` makes an \
                 image that is whole",
            ));
        }
        let options = DiskOptions { format: Some(format), read_only: true, direct: false };
        let mut image = DiskImage::open(came, options).map_err(refused)?;
        let size_bytes = image.size_bytes();
        if size_bytes > self.bytes_max {
            let reason =
                format!("the disk has {size_bytes} bytes, more than {}; --max-size allows more", self.bytes_max);
            return Err(self.unusable(&reason));
        }
        if format == DiskFormat::Raw {
            drop(image);
            fs::rename(came, disk).map_err(ImageError::at(disk))?;
        } else {
            self.copy(&mut image, disk, progress)?;
            drop(image);
            fs::remove_file(came).map_err(ImageError::at(came))?;
        }
        let file = File::open(disk).map_err(ImageError::at(disk))?;
        if self.boot.is_none() && self.format.is_none() && !is_disk(&file) {
            return Err(self.unusable(
                "it is neither a qcow2 image nor a raw disk with partitions or an ext4 file system; if it is a raw disk, say so \
                 with --format raw",
            ));
        }
        Ok(size_bytes)
    }

    /// The format that its content has.
    fn format(&self, came: &Path, refused: impl Fn(DiskError) -> ImageError) -> Result<DiskFormat, ImageError> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let file = File::open(came).map_err(ImageError::at(came))?;
        let mut start = [0; 8];
        let read = file.read_at(&mut start, 0).map_err(ImageError::at(came))?;
        let start = start.get(..read).unwrap_or_default();
        if let Some((_, program)) = PACKED.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(self.unusable(&format!("it is packed: unpack it with {program}, and pull what comes out")));
        }
        crate::disk::format_of_content(came, &file).map_err(refused)
    }

    /// Writes all that an image shows to a raw disk, without the zeros.
    fn copy(&self, image: &mut DiskImage, disk: &Path, progress: &mut dyn Progress) -> Result<(), ImageError> {
        let size_bytes = image.size_bytes();
        let file = File::create_new(disk).map_err(ImageError::at(disk))?;
        file.set_len(size_bytes).map_err(ImageError::at(disk))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = 0;
        while offset < size_bytes {
            let damaged = |error: DiskError| self.unusable(&format!("it is damaged: {error}"));
            let extent = image.extent_at(offset).map_err(damaged)?;
            let end = offset.saturating_add(extent.length).min(size_bytes);
            while extent.allocation == Allocation::Data && offset < end {
                if progress.is_cancelled() {
                    return Err(ImageError::Cancelled);
                }
                let wanted = (end - offset).min(CHUNK_BYTES as u64) as usize;
                let content = chunk.get_mut(..wanted).unwrap_or_default();
                image.read_at(offset, content).map_err(damaged)?;
                write_sparse(&file, offset, content).map_err(ImageError::at(disk))?;
                offset += wanted as u64;
                progress.update(Stage::RootDiskCopy, offset, size_bytes);
            }
            offset = end;
        }
        Ok(())
    }

    /// Copies files that boot the guest; the kernel's release, as far as its name says it.
    fn take_boot_files(&self, boot: &BootFiles, output: &Path) -> Result<String, ImageError> {
        for (from, name) in [(&boot.kernel, Image::KERNEL), (&boot.initrd, Image::INITRD)] {
            let to = output.join(name);
            let copied = File::open(from).and_then(|mut from| {
                let mut to = File::create_new(&to)?;
                io::copy(&mut from, &mut to)
            });
            copied.map_err(ImageError::at(from))?;
        }
        let name = boot.kernel.file_name().unwrap_or_default().to_string_lossy();
        Ok(name.strip_prefix("vmlinuz-").unwrap_or(&name).to_owned())
    }

    fn unusable(&self, reason: &str) -> ImageError {
        ImageError::NotPulled { from: self.from.clone(), reason: reason.to_owned() }
    }
}

/// Writes content that is not all zeros; what nobody writes reads as zeros.
fn write_sparse(file: &File, offset: u64, content: &[u8]) -> io::Result<()> {
    if content.iter().all(|&byte| byte == 0) { Ok(()) } else { file.write_all_at(content, offset) }
}

fn check_kernel(kernel: &Path) -> Result<(), ImageError> {
    let file = File::open(kernel).map_err(ImageError::at(kernel))?;
    let is_one = |(at, magic): &(usize, &[u8])| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, *at as u64).is_ok() && found == *magic
    };
    if KERNELS.iter().any(is_one) {
        return Ok(());
    }
    let reason = "it is no Linux kernel for x86-64".to_owned();
    Err(ImageError::NotPulled { from: kernel.file_name().unwrap_or_default().to_string_lossy().into_owned(), reason })
}
