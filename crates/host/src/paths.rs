//! Where twinvm keeps things.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder of images and other data: `$TWINVM_HOME`, or `twinvm` in the user's data folder (XDG base directory
/// specification).
pub fn data_dir() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("TWINVM_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|data| data.is_absolute()) {
        return Ok(data.join("twinvm"));
    }
    let home = std::env::home_dir().context("there is no home folder: set TWINVM_HOME to where images should go")?;
    Ok(home.join(".local/share/twinvm"))
}

/// The folder of guest images.
pub fn images_dir() -> Result<PathBuf> {
    Ok(data_dir()?.join("images"))
}

/// The folder of sockets of running VMs, made if need be: only its owner may enter.
pub fn runtime_dir() -> Result<PathBuf> {
    // The name can be guessed: a folder that somebody else made in a world-writable place is refused below.
    let user = current_user();
    let dir = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("twinvm"),
        None => std::env::temp_dir().join(format!("twinvm-{user}")),
    };
    if let Err(error) = DirBuilder::new().mode(0o700).create(&dir)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot make {}", dir.display()));
    }
    let owner = fs::symlink_metadata(&dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    if !owner.is_dir() || owner.uid() != user {
        bail!("{} belongs to somebody else: set XDG_RUNTIME_DIR to a folder of your own", dir.display());
    }
    Ok(dir)
}

/// Removes a file or a link; not being there is no error.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[allow(unsafe_code)]
fn current_user() -> u32 {
    // SAFETY: geteuid cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}
