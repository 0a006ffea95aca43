//! `twinvm backup export`: a disk of a recovery point as an image file, with nothing but the repository and its key.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use backup::{BackupError, Repository, Volume};
use clap::Args;
use host::folder::HostFolder;
use host::repositories::Repositories;
use spec::DiskFormat;
use storage::disk::{DiskImage, DiskOptions, create_qcow2, create_raw};
use terminal::error_text::error_text;
use terminal::output::{human_bytes, print_json, print_line};

use super::repo::read_key;

#[derive(Args)]
pub struct ExportArguments {
    /// The recovery point: the beginning of its name, or latest:VM
    point: String,
    /// The file, which must not be there
    file: PathBuf,
    /// Number of the disk
    #[arg(long, default_value_t)]
    disk: usize,
    /// Format of the file, for QEMU and others
    #[arg(long, default_value = "qcow2")]
    format: DiskFormat,
    /// The repository by its name on this host [default: the only one that the host knows]
    #[arg(long, value_name = "NAME")]
    repo: Option<String>,
    /// The repository by its folder, where no host knows it
    #[arg(long, value_name = "DIR", requires = "key", conflicts_with = "repo")]
    path: Option<PathBuf>,
    /// The file with its key
    #[arg(long, value_name = "FILE", requires = "path")]
    key: Option<PathBuf>,
    /// Folder of the host [default: $TWINVM_HOST_DIR, else `host` in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ExportArguments {
    fn open(&self) -> Result<Repository> {
        if let (Some(path), Some(key)) = (&self.path, &self.key) {
            return Ok(Repository::open(path, &read_key(key)?)?);
        }
        let known = Repositories::of(&HostFolder::find(self.dir.as_deref())?);
        let name = match &self.repo {
            Some(name) => name.clone(),
            None => known.only()?,
        };
        known.open(&name)
    }
}

pub fn run(arguments: &ExportArguments) -> Result<()> {
    let repository = arguments.open()?;
    let point = repository.find(&arguments.point)?;
    let name = format!("disk{}", arguments.disk);
    let volume = point.volume(&name);
    let volume = volume.ok_or_else(|| anyhow!("recovery point {} holds no disk {}", point.id, arguments.disk))?;
    let file = &arguments.file;
    if file.exists() {
        bail!("{} is there already: give another name", file.display());
    }
    if let Err(error) = write(&repository, volume, arguments) {
        // Half a disk is no disk.
        let _ = fs::remove_file(file);
        return Err(error).with_context(|| format!("cannot export to {}", file.display()));
    }
    if arguments.json {
        return print_json(&serde_json::json!({ "point": point.id, "file": file, "bytes": volume.bytes }));
    }
    print_line(&format!(
        "disk {} of recovery point {}: {}, {}",
        arguments.disk,
        point.id,
        file.display(),
        human_bytes(volume.bytes)
    ))
}

fn write(repository: &Repository, volume: &Volume, arguments: &ExportArguments) -> Result<()> {
    let (file, format) = (&arguments.file, arguments.format);
    match format {
        DiskFormat::Qcow2 => create_qcow2(file, volume.bytes, None)?,
        DiskFormat::Raw => create_raw(file, volume.bytes)?,
    }
    let options = DiskOptions { format: Some(format), read_only: false, direct: false };
    let mut image = DiskImage::open(file, options)?;
    repository.read_volume(volume, |at, data| {
        image.write_at(at, data).map_err(|error| BackupError::Target(error_text(&error.into())))
    })?;
    Ok(image.flush()?)
}
