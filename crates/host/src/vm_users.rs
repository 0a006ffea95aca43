//! Users of VMs: the processes of each VM on a host run as a user that no other VM of the machine has.
//!
//! Such users have no names, no homes and no files but those of their VM's folder, which belongs to its user: that is where a host keeps who it is. As
//! several hosts may be on one machine, each notes in a folder of the machine whose user is whose; that folder is empty after the machine was started, and what
//! is noted counts only while the VM's folder belongs to that user.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::ptr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use super::folder::private_folder;

/// Where the hosts of a machine note whose user is whose. It need not survive a restart of the machine, and must not be another one for another host.
const NOTES: &str = "/run/twinvm/vm-users";
/// Local lists of users and groups, and of those that they give to containers. The fields of a line are separated by colons; the number is the field of
/// this index, and how many there are is that of the next index, or it is one.
const LISTS: [(&str, usize, bool); 4] =
    [("/etc/passwd", 2, false), ("/etc/group", 2, false), ("/etc/subuid", 1, true), ("/etc/subgid", 1, true)];
/// What a VM's folder holds that stays its host's: what the host itself relies on while the VM runs, and keys.
const HOSTS_OWN: [&str; 6] = ["replica.json", "replica.pid", "session", "vm.json", "bases.json", "unfinished.json"];
/// Below are the users of the system.
const UID_MIN: u32 = 1000;
/// Who stands for a user without a number.
const NOBODY: u32 = 65_534;
/// Room for what is said of a user, in bytes.
const ENTRY_BYTES: usize = 16 << 10;

/// Numbers of users and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// What neither systemd, containers nor directories of users give away by themselves.
    pub const DEFAULT: Self = Self { first: 2_100_000_000, last: 2_100_065_535 };

    /// The first of them.
    pub fn first(self) -> u32 {
        self.first
    }

    fn contains(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    fn overlaps(self, first: u32, count: u32) -> bool {
        count > 0 && first <= self.last && first.saturating_add(count - 1) >= self.first
    }
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('-').and_then(|(first, last)| {
            Some(Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        });
        let range =
            numbers.ok_or_else(|| format!("`{text}` is not a range of users' numbers such as {}", Self::DEFAULT))?;
        if range.first > range.last || range.first < UID_MIN || range.last >= u32::MAX - 1 || range.contains(NOBODY) {
            return Err(format!(
                "{text} is no range of users: it begins at {UID_MIN} or above, and leaves out {NOBODY}"
            ));
        }
        Ok(range)
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Gives VMs their users.
#[derive(Debug)]
pub struct VmUsers {
    given: Result<UidRange, String>,
    notes: PathBuf,
}

impl fmt::Display for VmUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.given {
            Ok(range) => write!(f, "a user for each VM ({range})"),
            Err(why) => write!(f, "VMs run as the daemon's user ({why})"),
        }
    }
}

impl VmUsers {
    /// Users from this range.
    pub fn new(range: UidRange) -> Self {
        Self { given: Ok(range), notes: PathBuf::from(NOTES) }
    }

    /// None, for this reason: VMs run as the daemon's user.
    pub fn none(why: impl Into<String>) -> Self {
        Self { given: Err(why.into()), notes: PathBuf::from(NOTES) }
    }

    /// The user of the VM whose folder this is; from now on the folder is that user's, and no other VM on this machine is given the same. None of the VM's processes
    /// on this host may run, but for its network ends.
    ///
    /// # Errors
    /// The folder is in a file system without users, or there is no free user.
    pub fn assign(&self, folder: &Path) -> Result<Option<u32>> {
        let own = geteuid();
        let Ok(range) = self.given else {
            // An administrator has turned them off: without capabilities, not even root reads what is another one's.
            if own.is_root() && owner(folder)? != own.as_raw() {
                give(folder, own.as_raw(), &[])?;
            }
            return Ok(None);
        };
        private_folder(&self.notes)?;
        let lock = self.notes.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).open(&lock).and_then(|file| {
            file.lock()?;
            Ok(file)
        });
        let lock = lock.with_context(|| format!("cannot lock {}", self.notes.display()))?;
        let before = owner(folder)?;
        let keeps = range.contains(before) && self.is_free(before, folder);
        let user = if keeps { before } else { self.choose(range, folder)? };
        let note = self.note(user);
        fs::write(&note, folder.as_os_str().as_encoded_bytes())
            .with_context(|| format!("cannot write {}", note.display()))?;
        let given = lchown(folder, Some(user), Some(user));
        drop(lock);
        given.and_then(|()| give_contents(folder, user, &HOSTS_OWN)).with_context(|| {
            format!(
                "{} cannot belong to the VM's user {user}; vm_uids = \"\" in host.toml has VMs run as the daemon's user",
                folder.display()
            )
        })?;
        Ok(Some(user))
    }

    fn note(&self, user: u32) -> PathBuf {
        self.notes.join(user.to_string())
    }

    /// Whether no other folder has this user, as far as is noted.
    fn is_free(&self, user: u32, folder: &Path) -> bool {
        use std::os::unix::ffi::OsStringExt;
        let Ok(noted) = fs::read(self.note(user)) else { return true };
        let noted = PathBuf::from(std::ffi::OsString::from_vec(noted));
        noted == folder || owner(&noted).is_ok_and(|owner| owner != user) || !noted.exists()
    }

    /// A user that nobody has.
    fn choose(&self, range: UidRange, folder: &Path) -> Result<u32> {
        let mut taken = running_users();
        for folders in folder.parent().into_iter().flat_map(|vms| [vms.to_owned(), vms.with_file_name("set-aside")]) {
            let entries = fs::read_dir(folders).into_iter().flatten().flatten();
            taken.extend(entries.filter_map(|entry| owner(&entry.path()).ok()));
        }
        let count = u64::from(range.last - range.first) + 1;
        // Anywhere, so that hosts that know nothing of each other do not meet.
        let begin = RandomState::new().build_hasher().finish() % count;
        let numbers = (0..count).filter_map(|step| u32::try_from((begin + step) % count).ok());
        let mut users = numbers.filter_map(|number| range.first.checked_add(number));
        let free = users.find(|&user| !taken.contains(&user) && self.is_free(user, folder) && !is_known(user));
        free.with_context(|| format!("all users of vm_uids = \"{range}\" are in use: make the range larger"))
    }
}

/// Refuses a range in which there are users or groups of this machine, or such that its users give to containers.
pub fn refuse_if_used(range: UidRange) -> Result<()> {
    for (list, number_at, has_count) in LISTS {
        let text = fs::read(list).unwrap_or_default();
        if let Some(name) = overlap(range, &String::from_utf8_lossy(&text), number_at, has_count) {
            bail!("vm_uids = \"{range}\" overlaps with {name} in {list}: choose another range");
        }
    }
    Ok(())
}

/// Who of a list is in a range.
fn overlap(range: UidRange, list: &str, number_at: usize, has_count: bool) -> Option<&str> {
    list.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let number = fields.get(number_at)?.parse().ok()?;
        let count = if has_count { fields.get(number_at + 1)?.parse().ok()? } else { 1 };
        range.overlaps(number, count).then(|| fields.first().copied()).flatten()
    })
}

/// Whether a user or a group of this number has a name, also in a directory.
fn is_known(number: u32) -> bool {
    let mut buffer = vec![0; ENTRY_BYTES];
    let (mut user, mut group) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: all-zero entries are valid, as their pointers may be null; the buffer lives longer than what points into it, which nobody
    // reads, and its length is given.
    unsafe {
        let mut entry = std::mem::zeroed();
        libc::getpwuid_r(number, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut user);
        let mut entry = std::mem::zeroed();
        libc::getgrgid_r(number, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut group);
    }
    !user.is_null() || !group.is_null()
}

/// The users of all processes.
fn running_users() -> BTreeSet<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.flat_map(|pid: u32| users_of(pid)).collect()
}

/// As whom a process runs: its real, effective, saved and file system user. None if it is gone.
pub fn users_of(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    users.split_whitespace().filter_map(|user| user.parse().ok()).collect()
}

/// Whose a file or folder is.
pub fn owner(path: &Path) -> Result<u32> {
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(found.uid())
}

/// Gives what the daemon has just made in a VM's folder to the user whose the folder is.
pub fn share(folder: &Path, made: &Path) -> Result<()> {
    let user = owner(folder)?;
    if user == geteuid().as_raw() {
        return Ok(());
    }
    lchown(made, Some(user), Some(user)).with_context(|| format!("cannot give {} to user {user}", made.display()))
}

fn give(folder: &Path, user: u32, except: &[&str]) -> Result<()> {
    lchown(folder, Some(user), Some(user))
        .and_then(|()| give_contents(folder, user, except))
        .with_context(|| format!("cannot give {} to user {user}", folder.display()))
}

/// Gives all that is in a folder to a user, but for some of what is directly in it. Links are not followed.
fn give_contents(folder: &Path, user: u32, except: &[&str]) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if except.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let found = entry.metadata()?;
        if (found.uid(), found.gid()) != (user, user) {
            lchown(entry.path(), Some(user), Some(user))?;
        }
        if found.is_dir() {
            give_contents(&entry.path(), user, &[])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let range: UidRange = "3000-3999".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.first()), ("3000-3999", 3000));
        assert_eq!(UidRange::DEFAULT.to_string().parse(), Ok(UidRange::DEFAULT));
        for wrong in ["", "5", "a-b", "4000-3000", "0-10", "999-2000", "65000-66000", "4000-4294967295", "-1-5"] {
            assert!(wrong.parse::<UidRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_with_users_of_the_machine_is_refused() {
        let range: UidRange = "3000-3999".parse().unwrap();
        for (passwd, expected) in [
            ("root:x:0:0::/root:/bin/sh\nann:x:3000:1::/:/bin/sh\n", Some("ann")),
            ("bob:x:3999:1::/:/bin/sh", Some("bob")),
            ("low:x:2999:1::/:/bin/sh\nhigh:x:4000:1::/:/bin/sh\n\nbroken\n+::::::\n", None),
        ] {
            assert_eq!(overlap(range, passwd, 2, false), expected, "{passwd}");
        }
        for (subuid, expected) in [
            ("ann:2000:1000\n", None),
            ("ann:2000:1001\n", Some("ann")),
            ("ann:4000:65536", None),
            ("ann:3500:0", None),
        ] {
            assert_eq!(overlap(range, subuid, 1, true), expected, "{subuid}");
        }
        assert!(is_known(0) && !is_known(UidRange::DEFAULT.first()));
        refuse_if_used(UidRange::DEFAULT).unwrap();
    }

    /// The users of this process: giving files away takes root.
    fn users(range: &str, notes: &Path) -> Option<VmUsers> {
        if !geteuid().is_root() {
            crate::skipped("only root gives files to other users");
            return None;
        }
        Some(VmUsers { given: Ok(range.parse().unwrap()), notes: notes.to_owned() })
    }

    fn vm(host: &Path, name: &str) -> PathBuf {
        let folder = host.join("vms").join(name);
        fs::create_dir_all(folder.join("snapshots")).unwrap();
        for file in ["disk0.raw", "snapshots/a.snapshot", "replica.json"] {
            fs::write(folder.join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", folder.join("link")).unwrap();
        folder
    }

    #[test]
    fn no_two_vms_of_a_machine_have_one_user() {
        let place = tempfile::tempdir().unwrap();
        let [notes, a, b] = ["notes", "a", "b"].map(|name| place.path().join(name));
        let Some(users) = users("2100100000-2100100003", &notes) else { return };
        let folders = [vm(&a, "x"), vm(&a, "y"), vm(&b, "x"), vm(&b, "y")];
        let given: Vec<u32> = folders.iter().map(|folder| users.assign(folder).unwrap().unwrap()).collect();
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 4, "{given:?}");
        for (folder, user) in folders.iter().zip(&given) {
            assert_eq!(users.assign(folder).unwrap(), Some(*user), "it keeps its user");
            for path in ["", "disk0.raw", "snapshots", "snapshots/a.snapshot", "link"] {
                assert_eq!(owner(&folder.join(path)).unwrap(), *user, "{path}");
            }
            assert_eq!(owner(&folder.join("replica.json")).unwrap(), 0, "the host relies on it");
        }
        assert_eq!(fs::metadata("/etc/hostname").unwrap().uid(), 0, "a link was followed");
        let error = users.assign(&vm(&b, "z")).unwrap_err().to_string();
        assert!(error.contains("make the range larger"), "{error}");
        // What a VM had that is gone, another one may have.
        fs::remove_dir_all(&folders[2]).unwrap();
        assert_eq!(users.assign(&vm(&a, "z")).unwrap(), Some(given[2]));
        // After a restart of the machine nothing is noted: who comes first keeps its user, and whoever had the same gets another one.
        fs::remove_dir_all(&notes).unwrap();
        give(&folders[3], given[0], &[]).unwrap();
        assert_eq!(users.assign(&folders[0]).unwrap(), Some(given[0]));
        assert_ne!(users.assign(&folders[3]).unwrap(), Some(given[0]));
    }

    #[test]
    fn a_user_as_whom_a_process_runs_is_not_given() {
        use std::os::unix::process::CommandExt;
        let place = tempfile::tempdir().unwrap();
        let Some(users) = users("2100200000-2100200000", &place.path().join("notes")) else { return };
        let mut sleep = std::process::Command::new("/bin/sleep").arg("600").uid(2_100_200_000).spawn().unwrap();
        let folder = vm(&place.path().join("a"), "x");
        let refused = users.assign(&folder);
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert!(refused.unwrap_err().to_string().contains("in use"));
        assert_eq!(users.assign(&folder).unwrap(), Some(2_100_200_000));
        // Turned off again, as by an administrator.
        assert_eq!(VmUsers::none("for a test").assign(&folder).unwrap(), None);
        assert_eq!((owner(&folder).unwrap(), owner(&folder.join("disk0.raw")).unwrap()), (0, 0));
    }
}
