//! Installs packages as Debian does: with their maintainer scripts, as root of namespaces of our own.
//!
//! `install/chroot` makes a new system in memory, a tmpfs that only its own mount namespace has, lets dpkg and then apt of that system install the packages
//! (`install/packages`), and writes the result as a tar archive. Root needs no more; an ordinary user becomes root of a user namespace with the subordinate
//! IDs that Debian gives to every user. Nothing can stay behind: the first process of the namespace dies with whoever started it, and with it the
//! rest of its processes and its mounts. The scripts have no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;

use super::apt::Package;
use super::command::{Stream, command, run};
use super::{ImageError, Progress, Stage};

/// What runs on the host, in the namespaces.
pub(crate) const CHROOT: &str = include_str!("../../install/chroot");
/// What runs in the new system.
pub(crate) const PACKAGES: &str = include_str!("../../install/packages");

/// What the script prints first.
const ENTERED: &str = "twinvm: entered";
/// Lines of dpkg that a package gets on its way: two for each.
const STEPS: [&str; 2] = ["Unpacking ", "Setting up "];

/// Where the packages are, and a folder to work in.
pub(crate) struct Installer<'a> {
    /// The folder of the packages.
    pub archives: &'a Path,
    /// The folder of the package lists.
    pub lists: PathBuf,
    /// The lists' sources, as apt has them.
    pub sources: &'a str,
    /// A folder that does not exist yet.
    pub work: PathBuf,
    /// Time of what does not come from a package, in seconds since 1970.
    pub mtime_s: u32,
}

impl Installer<'_> {
    /// Installs packages on the system in the archive `base`, or on none, and writes the archive `output`.
    ///
    /// # Errors
    /// [`ImageError::Namespaces`], [`ImageError::Script`], [`ImageError::MissingProgram`], [`ImageError::Cancelled`], [`ImageError::Io`].
    pub fn install(
        &self,
        base: Option<&Path>,
        packages: &[Package],
        output: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let list: String = match base {
            None => packages.iter().map(|package| format!("{}\n", package.file_name)).collect(),
            Some(_) => packages.iter().map(|p| format!("{}={}\n", p.info.name, p.info.version)).collect(),
        };
        let root = self.work.join("root");
        fs::create_dir_all(&root).map_err(ImageError::at(&root))?;
        for (name, text) in [("install", PACKAGES), ("packages", &list), ("sources.list", self.sources)] {
            let path = self.work.join(name);
            fs::write(&path, text).map_err(ImageError::at(&path))?;
        }
        let mut script = in_namespaces();
        script.args(["bash", "-c", CHROOT, "chroot"]).arg(&self.work).arg(self.archives).arg(&self.lists).arg(output);
        script.arg(base.unwrap_or(Path::new(""))).env("SOURCE_DATE_EPOCH", self.mtime_s.to_string());
        let total = STEPS.len() as u64 * packages.len() as u64;
        let (mut done, mut entered, mut said) = (0, false, Vec::new());
        progress.update(Stage::Install, 0, total);
        let finished = run(script, "util-linux", progress, |progress, stream, line| {
            if stream != Stream::Stdout {
                return;
            }
            entered |= line == ENTERED;
            if STEPS.iter().any(|step| line.starts_with(step)) {
                done += 1;
                progress.update(Stage::Install, total.min(done), total);
            }
            said.push(line.to_owned());
        })?;
        if finished.status.success() {
            return fs::remove_dir_all(&self.work).map_err(ImageError::at(&self.work));
        }
        if !entered {
            let remedy = remedy(geteuid().is_root(), |setting| {
                fs::read_to_string(Path::new("/proc/sys").join(setting)).ok().map(|text| text.trim().to_owned())
            });
            return Err(ImageError::Namespaces { reason: finished.reason(), remedy });
        }
        Err(failure(&said, finished.reason()))
    }
}

/// The beginning of a command that runs the rest of it as root of new namespaces. All of them end when this process does.
fn in_namespaces() -> Command {
    let mut unshare = command("setpriv");
    unshare.args(["--pdeathsig", "KILL", "unshare"]);
    // An ordinary user is root of a user namespace first.
    if !geteuid().is_root() {
        unshare.args(["--user", "--map-root-user", "--map-auto"]);
    }
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--"]);
    unshare
}

/// What lets a host that refuses namespaces allow them, by its settings below `/proc/sys`.
fn remedy(is_root: bool, setting: impl Fn(&str) -> Option<String>) -> &'static str {
    let is = |name: &str, value: &str| setting(name).is_some_and(|found| found == value);
    if is("user/max_mnt_namespaces", "0") || is("user/max_pid_namespaces", "0") {
        "allow some with `sysctl user.max_mnt_namespaces=10000 user.max_pid_namespaces=10000`"
    } else if is_root {
        "a container needs the capability SYS_ADMIN"
    } else if is("user/max_user_namespaces", "0") {
        "allow users some with `sysctl user.max_user_namespaces=10000`, build as root"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "allow users some with `sysctl kernel.unprivileged_userns_clone=1`, build as root"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "allow users some with `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, build as root"
    } else {
        "an ordinary user needs the Debian package uidmap and subordinate IDs (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`)"
    }
}

/// What went wrong, from what dpkg and the scripts said.
fn failure(said: &[String], otherwise: String) -> ImageError {
    if said.iter().any(|line| line.contains("No space left on device")) {
        return ImageError::Script {
            package: None,
            reason: "not enough memory: a new system is put together in memory, of which it takes as much as its packages are big".to_owned(),
        };
    }
    // "dpkg: error processing package NAME (--configure):", then the reason.
    let at = said.iter().position(|line| line.starts_with("dpkg: error processing "));
    let package = at.and_then(|at| said.get(at)).and_then(|line| {
        let rest = line.strip_prefix("dpkg: error processing ")?;
        let name = rest.trim_start_matches("package ").trim_start_matches("archive ").split(' ').next()?;
        Some(name.to_owned())
    });
    let reason = match at {
        Some(at) => said.get(at + 1).map(|line| line.trim().to_owned()),
        None => said.iter().rfind(|line| line.starts_with("E: ")).map(|line| line.trim_start_matches("E: ").to_owned()),
    };
    ImageError::Script { package, reason: reason.unwrap_or(otherwise) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    /// What the kernel says is the same for all of them: that something is not permitted, or, for a limit, that there is no space.
    #[test]
    fn whoever_may_have_no_namespaces_learns_which_setting_it_is() {
        for (is_root, settings, expected) in [
            (false, &[("user/max_user_namespaces", "0"), ("kernel/unprivileged_userns_clone", "0")][..], "max_user_"),
            (false, &[("kernel/unprivileged_userns_clone", "0")], "kernel.unprivileged_userns_clone=1"),
            (false, &[("kernel/apparmor_restrict_unprivileged_userns", "1")], "apparmor_restrict"),
            (
                false,
                &[("kernel/apparmor_restrict_unprivileged_userns", "0"), ("user/max_user_namespaces", "9")],
                "uidmap",
            ),
            (false, &[("user/max_pid_namespaces", "0")], "max_pid_namespaces"),
            (true, &[("kernel/unprivileged_userns_clone", "0")], "SYS_ADMIN"),
            (true, &[("user/max_mnt_namespaces", "0")], "max_mnt_namespaces"),
        ] {
            let remedy = remedy(is_root, |name| {
                settings.iter().find(|(setting, _)| *setting == name).map(|(_, value)| (*value).to_owned())
            });
            assert!(remedy.contains(expected), "{settings:?}: {remedy}");
        }
        let refused = ImageError::Namespaces { reason: "Operation not permitted".to_owned(), remedy: "do this" };
        let text = refused.to_string();
        assert!(text.contains("namespaces: Operation not permitted; do this, or build the image on another"), "{text}");
    }

    #[test]
    fn a_failed_script_is_told_with_its_package() {
        let lines = said(&[
            "Setting up nginx (1.22.1-9) ...",
            "dpkg: error processing package nginx (--configure):",
            " installed nginx package post-installation script subprocess returned error exit status 1",
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        ]);
        assert_eq!(
            failure(&lines, String::new()).to_string(),
            "package nginx: installed nginx package post-installation script subprocess returned error exit status 1"
        );
        let lines =
            said(&["Reading package lists...", "E: Unable to correct problems, you have held broken packages."]);
        assert_eq!(
            failure(&lines, String::new()).to_string(),
            "packages cannot be installed: Unable to correct problems, you have held broken packages."
        );
        let full = failure(&said(&["tar: x: Cannot write: No space left on device"]), String::new());
        assert!(full.to_string().contains("not enough memory"), "{full}");
        assert_eq!(
            failure(&[], "exit status: 3".to_owned()).to_string(),
            "packages cannot be installed: exit status: 3"
        );
    }
}
