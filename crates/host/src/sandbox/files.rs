//! Files, TCP and signals, by Landlock.
#![allow(unsafe_code)]

use std::io::ErrorKind;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope,
};

use super::{Confinement, Kind};

/// The version from which on everything here is enforced.
pub const WANTED: i32 = 6;
const ABI_WANTED: ABI = ABI::V6;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;

/// The version of the kernel's interface; 0 if it has none, or was booted without.
pub fn version() -> i32 {
    // SAFETY: with this flag the call takes no memory, and only answers.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, ASK_VERSION) };
    i32::try_from(version).unwrap_or(0).max(0)
}

impl Confinement {
    /// Leaves the calling thread nothing but what is named. What an older kernel does not know is left out.
    pub(super) fn restrict_files(&self) -> Result<()> {
        let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI_WANTED))?;
        if self.kind != Kind::UserEnd {
            ruleset = ruleset.handle_access(AccessNet::from_all(ABI_WANTED))?;
        }
        // The broker of a VM in the foreground ends what it has a handle of, which lies outside: the filter of system calls leaves it nothing else.
        let scope = match self.kind {
            Kind::RunBroker => Scope::AbstractUnixSocket.into(),
            _ => Scope::from_all(ABI_WANTED),
        };
        let mut rules = ruleset.scope(scope)?.create()?;
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        for path in &self.readable {
            rules = allow(rules, path, read)?;
        }
        // No programs, devices or links are made, and none are run.
        let write = match self.kind {
            Kind::RunBroker => AccessFs::RemoveFile.into(),
            _ => {
                read | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::IoctlDev
                    | AccessFs::MakeReg
                    | AccessFs::MakeDir
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
            }
        };
        for path in &self.writable {
            rules = allow(rules, path, write)?;
        }
        rules.restrict_self()?;
        Ok(())
    }
}

/// Adds a rule for a file, or for everything below a folder. What is not there needs none.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated> {
    let is_folder = match path.metadata() {
        Ok(found) => found.is_dir(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(rules),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    let access = if is_folder { access } else { access & AccessFs::from_file(ABI_WANTED) };
    let fd = PathFd::new(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(rules.add_rule(PathBeneath::new(fd, access))?)
}
