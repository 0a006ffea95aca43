//! A view of the file system in which nothing is but what a process was given.
//!
//! The process gets a mount namespace of its own, whose root is an empty file system that it may not write to; what is named appears there by the paths that it
//! has outside, and the folders on the way can be passed by anybody. So whoever runs in it needs no permission of the folders above what it uses, and
//! finds nothing else, Unix sockets of others included. An unprivileged process makes a user namespace for that, in which it stays who it is.
#![allow(unsafe_code)]

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::process::{getegid, geteuid, pivot_root};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};

use super::Confinement;

/// Where the new root is put together: a folder that is there on every machine.
const WORKSHOP: &str = "/proc";
/// `AT_RECURSIVE`, which `open_tree` takes as well.
const AND_BELOW: OpenTreeFlags = OpenTreeFlags::from_bits_retain(0x8000);
/// What the new root itself is not for.
const BARE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// Permissions of a folder that can be passed by anybody.
const PASSABLE: u32 = 0o755;

/// Something that is to be in it.
struct Shown {
    /// As the process calls it.
    path: PathBuf,
    /// The same without symbolic links.
    real: PathBuf,
    is_writable: bool,
}

/// Gives the calling thread, which is to be the only one of its process, a root with what a confinement names.
///
/// # Errors
/// The kernel, or what runs this in a container, does not let it have one. It sees the same as before.
pub fn enter(confinement: &Confinement) -> io::Result<()> {
    let shown = shown(confinement)?;
    new_namespaces()?;
    // Before anything is mounted over what they are in.
    let trees = shown.iter().map(tree_of).collect::<Result<Vec<_>, _>>()?;
    mount("twinvm", WORKSHOP, "tmpfs", BARE, c"mode=0755,size=1m")?;
    fill(&shown, &trees).and_then(|()| change_to_it()).inspect_err(|_| {
        // What was there is to be seen again; if that fails too, the first error says more.
        let _ = unmount(WORKSHOP, UnmountFlags::DETACH);
    })?;
    Ok(mount_remount("/", BARE | MountFlags::BIND | MountFlags::RDONLY, c"")?)
}

/// What is to be in it and is there, each folder before what is in it.
fn shown(confinement: &Confinement) -> io::Result<Vec<Shown>> {
    let readable = confinement.readable.iter().map(|path| (path, false));
    let writable = confinement.writable.iter().map(|path| (path, true));
    let mut shown = Vec::new();
    for (path, is_writable) in readable.chain(writable) {
        match fs::canonicalize(path) {
            Ok(real) => shown.push(Shown { path: path.clone(), real, is_writable }),
            // What is not there is not missed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    shown.sort_by(|a, b| (&a.real, b.is_writable).cmp(&(&b.real, a.is_writable)));
    Ok(shown)
}

/// Whether this process may mount, without a user namespace.
fn may_mount() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn new_namespaces() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    let needs_user = !may_mount();
    let flags = if needs_user { UnshareFlags::NEWUSER | UnshareFlags::NEWNS } else { UnshareFlags::NEWNS };
    // SAFETY: neither flag concerns descriptors or memory that other code relies on.
    unsafe { unshare_unsafe(flags) }?;
    if needs_user {
        let (user, group) = (user.as_raw(), group.as_raw());
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// What is mounted at a path and below it, to be mounted elsewhere.
fn tree_of(shown: &Shown) -> rustix::io::Result<OwnedFd> {
    open_tree(CWD, &shown.real, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | AND_BELOW)
}

fn fill(shown: &[Shown], trees: &[OwnedFd]) -> io::Result<()> {
    let mut placed: Vec<&Shown> = Vec::new();
    for (item, tree) in shown.iter().zip(trees) {
        let is_there = |above: &&Shown| item.real.starts_with(&above.real) && (above.is_writable || !item.is_writable);
        if !placed.iter().any(is_there) {
            place(item, tree)?;
            placed.push(item);
        }
    }
    for item in shown.iter().filter(|item| item.path != item.real) {
        let link = within(&item.path);
        if fs::symlink_metadata(&link).is_err() {
            make_folders_of(&link)?;
            symlink(&item.real, &link)?;
        }
    }
    Ok(())
}

fn change_to_it() -> io::Result<()> {
    std::env::set_current_dir(WORKSHOP)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// Where something is while the new root is put together.
fn within(path: &Path) -> PathBuf {
    Path::new(WORKSHOP).join(path.strip_prefix("/").unwrap_or(path))
}

fn place(item: &Shown, tree: &OwnedFd) -> io::Result<()> {
    let target = within(&item.real);
    if fs::symlink_metadata(&target).is_err() {
        make_folders_of(&target)?;
        if is_folder(tree)? { make_folder(&target)? } else { drop(File::create_new(&target)?) }
    }
    move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    if item.is_writable {
        return Ok(());
    }
    // What is forbidden on the mount that it comes from stays so: in a user namespace nothing else is accepted.
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let found = statvfs(&target)?.f_flag;
    let kept = kept.into_iter().filter(|(seen, _)| found.contains(*seen)).map(|(_, flag)| flag);
    let flags = kept.fold(MountFlags::BIND | MountFlags::RDONLY, |flags, flag| flags | flag);
    Ok(mount_remount(&target, flags, c"")?)
}

fn is_folder(tree: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir())
}

/// Makes the folders in which something is, whatever the process's mask of permissions.
fn make_folders_of(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    match fs::symlink_metadata(parent) {
        Ok(_) => Ok(()),
        Err(_) => {
            make_folders_of(parent)?;
            make_folder(parent)
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(PASSABLE).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(PASSABLE))
}
