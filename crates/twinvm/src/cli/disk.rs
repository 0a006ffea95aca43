//! `twinvm disk`: disk images for VMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use host::{VM_CONTENTS, paths};
use serde_json::json;
use spec::{ByteSize, DiskFormat};
use storage::disk::{Backing, DiskImage, DiskInfo, DiskOptions, create_qcow2, create_raw};
use storage::image::ImageStore;
use terminal::output::{human_bytes, print_json, print_line};

pub const HELP: &str = "\
What this does not do, qemu-img does (Debian: qemu-utils), on a disk that no VM has:
  qemu-img convert -O qcow2 disk.vmdk disk.qcow2   converts from other formats
  qemu-img check disk.qcow2                        checks, and repairs with -r
  qemu-img snapshot -l disk.qcow2                  lists internal snapshots; -d removes one";

#[derive(Subcommand)]
pub enum DiskCommand {
    /// Make a disk: empty, or based on another one or on an image
    #[command(after_help = "\
Examples:
  twinvm disk create data.qcow2 20G
  twinvm disk create data.raw 20G --format raw
  twinvm disk create top.qcow2 --base base.qcow2      shows base.qcow2 until it is written to
  twinvm disk create root.qcow2 --image redis         as `base_image` in a VM spec does")]
    Create(CreateArguments),
    /// Make a disk bigger that no VM has; the guest's file system is grown by the guest
    Resize(ResizeArguments),
    /// Show what a disk is, what it is based on, and who has it
    Info(InfoArguments),
}

#[derive(Args)]
pub struct CreateArguments {
    /// The file
    file: PathBuf,
    /// Its size [default: that of what it is based on]
    #[arg(required_unless_present_any = ["base", "image"])]
    size: Option<ByteSize>,
    /// Its format: qcow2 or raw
    #[arg(long, default_value = "qcow2")]
    format: DiskFormat,
    /// The disk that it is based on
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// The format of that disk [default: by its name and content]
    #[arg(long, value_name = "FORMAT", requires = "base")]
    base_format: Option<DiskFormat>,
    /// The image of `twinvm image list` that it is based on
    #[arg(long, value_name = "NAME", conflicts_with = "base")]
    image: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ResizeArguments {
    /// The file
    file: PathBuf,
    /// The new size
    size: ByteSize,
    /// Its format: qcow2 or raw [default: by its name and content]
    #[arg(long)]
    format: Option<DiskFormat>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct InfoArguments {
    /// The file
    file: PathBuf,
    /// Its format: qcow2 or raw [default: by its name and content]
    #[arg(long)]
    format: Option<DiskFormat>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: DiskCommand) -> Result<ExitCode> {
    match command {
        DiskCommand::Create(arguments) => create(&arguments)?,
        DiskCommand::Resize(arguments) => resize(&arguments)?,
        DiskCommand::Info(arguments) => show(&arguments.file, arguments.format, arguments.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(arguments: &CreateArguments) -> Result<()> {
    let CreateArguments { file, format, .. } = arguments;
    let size_bytes = arguments.size.map(ByteSize::bytes);
    let is_based = arguments.base.is_some() || arguments.image.is_some();
    if is_based && *format != DiskFormat::Qcow2 {
        bail!("a raw disk cannot be based on another one: leave --format out");
    }
    let images = ImageStore::new(paths::images_dir()?);
    match (&arguments.base, &arguments.image, size_bytes) {
        (Some(base), _, _) => {
            let options = DiskOptions { format: arguments.base_format, read_only: true, direct: false };
            let found = DiskImage::open(base, options)?;
            let backing = Backing { path: base.clone(), format: found.format() };
            create_qcow2(file, size_bytes.unwrap_or(found.size_bytes()), Some(&backing))?;
            or_remove(file, images.note_disk(file).map_err(Into::into))?;
        }
        (None, Some(image), _) => {
            images.create_disk(image, file)?;
            if let Some(size_bytes) = size_bytes {
                or_remove(file, grow(file, Some(*format), size_bytes))?;
            }
        }
        (None, None, Some(size_bytes)) if *format == DiskFormat::Raw => create_raw(file, size_bytes)?,
        (None, None, Some(size_bytes)) => create_qcow2(file, size_bytes, None)?,
        (None, None, None) => bail!("how big? as in `twinvm disk create {} 20G`", file.display()),
    }
    show(file, Some(*format), arguments.json)
}

/// Removes a disk that was just made if what makes it whole has failed.
fn or_remove(disk: &Path, result: Result<()>) -> Result<()> {
    if result.is_err() {
        // The error that is returned says more than one about this.
        let _ = fs::remove_file(disk);
    }
    result
}

fn resize(arguments: &ResizeArguments) -> Result<()> {
    let ResizeArguments { file, size, format, json } = arguments;
    let folder = file.canonicalize().ok().and_then(|file| Some(file.parent()?.to_owned()));
    if let Some(folder) = folder.filter(|folder| folder.join(VM_CONTENTS).exists()) {
        let vm = folder.file_name().unwrap_or_default().to_string_lossy();
        bail!(
            "{} belongs to VM {vm} of a host, which keeps its size: use `twinvm vm set {vm} --grow-disk NUMBER={size}`",
            file.display()
        );
    }
    grow(file, *format, size.bytes())?;
    show(file, *format, *json)
}

fn grow(file: &Path, format: Option<DiskFormat>, size_bytes: u64) -> Result<()> {
    let options = DiskOptions { format, ..DiskOptions::default() };
    Ok(DiskImage::open(file, options)?.grow(size_bytes)?)
}

fn show(file: &Path, format: Option<DiskFormat>, json: bool) -> Result<()> {
    let info = DiskInfo::of(file, format)?;
    if json {
        return print_json(&json!({
            "path": std::path::absolute(file).with_context(|| format!("cannot resolve {}", file.display()))?,
            "format": info.format.to_string(),
            "size_bytes": info.size_bytes,
            "allocated_bytes": info.allocated_bytes,
            "base": info.backing.as_ref().map(|base| &base.path),
            "base_format": info.backing.as_ref().map(|base| base.format.to_string()),
            "in_use_by": info.holder,
        }));
    }
    let base = info.backing.map(|base| format!("{} ({})", base.path.display(), base.format));
    for (what, value) in [
        ("disk", Some(file.display().to_string())),
        ("format", Some(info.format.to_string())),
        ("size", Some(format!("{} ({} in use)", human_bytes(info.size_bytes), human_bytes(info.allocated_bytes)))),
        ("based on", base),
        ("in use by", info.holder),
    ] {
        if let Some(value) = value {
            print_line(&format!("{:12}{value}", format!("{what}:")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_cannot_get_its_size_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.qcow2");
        for (size_bytes, is_there) in [(1 << 20, false), (4 << 20, true)] {
            create_qcow2(&disk, 2 << 20, None).unwrap();
            assert_eq!(or_remove(&disk, grow(&disk, None, size_bytes)).is_ok(), is_there);
            assert_eq!(disk.exists(), is_there);
        }
    }
}
