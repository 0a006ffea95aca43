//! What a process may still do once it parses what a guest or a peer sends.
//!
//! [`Confinement::enter`] gives up, for good and for the calling thread and those it starts:
//!
//! - capabilities, and any way to get some (`no_new_privs`);
//! - files but those named (Landlock), connections and ports of TCP, signals to processes outside;
//! - system calls but those listed (`seccomp`): above all programs, new sockets, and what debuggers use.
//!
//! It has to be entered while the process has one thread. What is open already stays open. A system call that is not listed fails with EPERM, and
//! the process says so once for each on standard error ([`seccomp`]): a VM goes on where it can, and whoever reads the log finds what was missing.

mod calls;
mod files;
mod seccomp;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A replica of a VM.
    Replica,
    /// A network end of a bridge: it has the TAP device open.
    BridgeEnd,
    /// A network end in user mode: it makes connections for its guest, to wherever the guest wants.
    UserEnd,
}

/// What a process may do from now on.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// What it does.
    pub kind: Kind,
    /// Files it reads, and folders of such.
    pub readable: Vec<PathBuf>,
    /// Files and devices it reads and writes, and folders in which it makes and removes files.
    pub writable: Vec<PathBuf>,
    /// Folders from which it may remove files, and nothing more.
    pub removable: Vec<PathBuf>,
}

/// What of a confinement this machine's kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Version of Landlock's interface; 0 for none.
    pub landlock: i32,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

impl Enforced {
    /// What the kernel offers.
    pub fn by_kernel() -> Self {
        Self { landlock: files::version(), seccomp: seccomp::is_offered() }
    }

    /// Whether nothing is missing.
    pub fn is_full(self) -> bool {
        self.landlock >= files::WANTED && self.seccomp
    }
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock {
            0 => f.write_str("no Landlock in this kernel")?,
            version if version < files::WANTED => write!(f, "Landlock {version} of {} wanted", files::WANTED)?,
            version => write!(f, "Landlock {version}")?,
        }
        f.write_str(if self.seccomp { ", seccomp" } else { ", no seccomp in this kernel" })
    }
}

impl Confinement {
    /// Enters it. What the kernel does not have is left out: [`Enforced`] says so, for the log.
    pub fn enter(&self) -> Result<Enforced> {
        let enforced = Enforced::by_kernel();
        // What the kernel tells a process at its start, rustix reads once, before Linux 6.4 from a file below /proc, and panics if it cannot.
        rustix::param::page_size();
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .context("cannot give up capabilities")?;
        set_no_new_privs(true).context("cannot give up new privileges")?;
        if enforced.landlock > 0 {
            self.restrict_files().context("Landlock")?;
        }
        if enforced.seccomp {
            seccomp::enter(self.kind, !self.removable.is_empty()).context("seccomp")?;
        }
        Ok(enforced)
    }
}

/// The same as text for a log.
pub fn log(enforced: Enforced) {
    if enforced.is_full() {
        tracing::info!("sandbox: {enforced}");
    } else {
        tracing::warn!("the sandbox is incomplete: {enforced}");
    }
}

#[cfg(test)]
mod tests;
