//! What a process may still do once it parses what a guest or a peer sends.
//!
//! [`Confinement::enter`] gives up, for good and for the calling thread and those it starts:
//!
//! - the file system but for what is named ([`private_root`]);
//! - the daemon's user, for one that no other VM has, where there is such a user;
//! - capabilities, and any way to get some (`no_new_privs`);
//! - files but those named (Landlock), connections and ports of TCP, signals to processes outside;
//! - system calls but those listed (`seccomp`): above all programs, new sockets, and what debuggers use.
//!
//! It has to be entered while the process has one thread. What is open already stays open. A system call that is not listed fails with EPERM, and
//! the process says so once for each on standard error ([`seccomp`]): a VM goes on where it can, and whoever reads the log finds what was missing.

mod calls;
mod files;
mod private_root;
mod seccomp;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, AtFlags, CWD, access, accessat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

/// What says what the machine can do, and devices that anybody may use.
pub const MACHINE: [&str; 8] = [
    "/dev/null",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system",
    "/sys/kernel/mm/hugepages",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/module/kvm",
];

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs a VM: a replica, or in the foreground.
    Replica,
    /// A network end of a bridge: it has the TAP device open.
    BridgeEnd,
    /// A network end in user mode: it makes connections for its guest, to wherever the guest wants.
    UserEnd,
    /// A replica's broker: it has the cluster store, and makes connections for its replica.
    Broker,
    /// The broker of a VM in the foreground: it connects to the VM's network ends, which it has started, ends them, and removes their sockets.
    RunBroker,
}

/// What a process may do from now on.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// What it does.
    pub kind: Kind,
    /// Whom it becomes, and the group of the same number: a user that nobody else has. It stays who it is if there is none. Becoming another one
    /// takes a process of root's.
    pub user: Option<u32>,
    /// Files it reads, and folders of such.
    pub readable: Vec<PathBuf>,
    /// Files and devices it reads and writes, and folders in which it makes and removes files. The broker of a VM in the foreground only removes them.
    pub writable: Vec<PathBuf>,
}

/// What of a confinement this machine's kernel enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// Version of Landlock's interface; 0 for none.
    pub landlock: i32,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Why the process sees the whole file system, if it does.
    pub no_private_root: Option<String>,
    /// Whom it has become.
    pub user: Option<u32>,
    /// It may read files that are named and that only others may read, or as root, which stays who it is, write them: by the one kind of capability that it has.
    pub reads_for_others: bool,
}

impl Enforced {
    /// Refuses a machine that offers no Landlock at all, no seccomp, or no file system of its own: what each of them would keep from a process that was broken
    /// into, one of the others may keep from it as well, or nothing does.
    ///
    /// # Errors
    /// What is not there.
    pub fn require(&self) -> Result<()> {
        if self.landlock > 0 && self.seccomp && self.no_private_root.is_none() {
            return Ok(());
        }
        bail!("this machine does not confine the processes of VMs as require_sandbox wants it: {self}")
    }

    /// Whether nothing is missing.
    pub fn is_full(&self) -> bool {
        self.landlock >= files::WANTED && self.seccomp && self.no_private_root.is_none()
    }

    /// What is enforced in a process that `exe host sandbox` has made for that, as this user or as `user`.
    ///
    /// # Errors
    /// It cannot become that user, or be confined.
    pub fn tried_by(exe: &Path, user: Option<u32>) -> Result<Self> {
        let mut command = Command::new(exe);
        command.args(["host", "sandbox", "--json"]).stdin(Stdio::null());
        command.args(user.iter().flat_map(|user| ["--user".to_owned(), user.to_string()]));
        let output = command.output().with_context(|| format!("cannot start {}", exe.display()))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it ended without a word");
            bail!("{}", last.trim().trim_start_matches("twinvm: "));
        }
        serde_json::from_slice(&output.stdout).context("what a confined process says of itself makes no sense")
    }
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock {
            0 => f.write_str("no Landlock in this kernel")?,
            version if version < files::WANTED => write!(f, "Landlock {version} of {} wanted", files::WANTED)?,
            version => write!(f, "Landlock {version}")?,
        }
        f.write_str(if self.seccomp { ", seccomp" } else { ", no seccomp in this kernel" })?;
        match &self.no_private_root {
            None => f.write_str(", file system of its own"),
            Some(why) => write!(f, ", no file system of its own ({why})"),
        }
    }
}

impl Confinement {
    /// One that leaves a replica nothing, to find out what can be enforced.
    pub fn of_nothing(user: Option<u32>) -> Self {
        Self { kind: Kind::Replica, user, readable: Vec::new(), writable: Vec::new() }
    }

    /// Enters it. What the kernel does not have is left out: [`Enforced`] says so, for the log.
    ///
    /// # Errors
    /// What the kernel has failed, or the process cannot become the user.
    pub fn enter(&self) -> Result<Enforced> {
        // What the kernel tells a process at its start, rustix reads once, before Linux 6.4 from a file below /proc, and panics if it cannot.
        rustix::param::page_size();
        let mut enforced = Enforced {
            landlock: files::version(),
            seccomp: seccomp::is_offered(),
            no_private_root: private_root::enter(self).err().map(|error| error.to_string()),
            user: self.user,
            reads_for_others: false,
        };
        if let (Some(user), Some(why)) = (self.user, &enforced.no_private_root) {
            bail!("user {user} needs a file system of its own, as it may not pass the folders of others: {why}");
        }
        let kept = self.become_user().context("cannot become the VM's user")?;
        enforced.reads_for_others = !kept.is_empty();
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })
            .context("cannot give up capabilities")?;
        set_no_new_privs(true).context("cannot give up new privileges")?;
        if enforced.landlock > 0 {
            self.restrict_files().context("Landlock")?;
        }
        if enforced.seccomp {
            seccomp::enter(self.kind).context("seccomp")?;
        }
        Ok(enforced)
    }

    /// Becomes the user, if there is one; the capabilities that it needs all the same. Administrators keep images as they like, also so that only
    /// their owner may read them: what is named can be read then, and nothing else is in sight.
    fn become_user(&self) -> Result<CapabilitySet> {
        let none = CapabilitySet::empty();
        let Some(user) = self.user else { return self.rights_of_root() };
        if user == u32::MAX {
            // To the kernel that means whoever one is, which would leave this process with all that root has.
            bail!("nobody can be user {user}");
        }
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        set_keep_capabilities(true)?;
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let is_refused = |path: &PathBuf| access(path, Access::READ_OK) == Err(Errno::ACCESS);
        Ok(if self.readable.iter().any(is_refused) { CapabilitySet::DAC_READ_SEARCH } else { none })
    }

    /// What root needs to be able to do with others' files that are named to it, when it stays who it is: by its capabilities it could before.
    fn rights_of_root(&self) -> Result<CapabilitySet> {
        let none = CapabilitySet::empty();
        if !geteuid().is_root() {
            return Ok(none);
        }
        let before = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: none, ..before })?;
        let is_refused = |path: &PathBuf, how| accessat(CWD, path, how, AtFlags::EACCESS) == Err(Errno::ACCESS);
        let reads = self.readable.iter().any(|path| is_refused(path, Access::READ_OK));
        let writes = self.writable.iter().any(|path| is_refused(path, Access::READ_OK | Access::WRITE_OK));
        let wanted = [(reads, CapabilitySet::DAC_READ_SEARCH), (writes, CapabilitySet::DAC_OVERRIDE)];
        let wanted = wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).fold(none, |all, (_, one)| all | one);
        Ok(wanted & before.permitted)
    }
}

/// Filters the system calls of this process, which must not have more threads than one, and gives up new privileges: for one that needs what its user has,
/// and runs no programs. Where the kernel filters none, it goes on without.
///
/// # Errors
/// What the kernel has failed.
pub fn filter_calls(kind: Kind) -> Result<()> {
    set_no_new_privs(true).context("cannot give up new privileges")?;
    if seccomp::is_offered() { seccomp::enter(kind).context("seccomp") } else { Ok(()) }
}

/// What is enforced, as text for a log.
pub fn log(enforced: &Enforced) {
    if enforced.is_full() {
        tracing::info!("sandbox: {enforced}");
    } else {
        tracing::warn!("the sandbox is incomplete: {enforced}");
    }
    if enforced.reads_for_others {
        tracing::info!("some of the VM's files are open to their owner only: this process has them by a capability");
    }
}

#[cfg(test)]
mod tests;
