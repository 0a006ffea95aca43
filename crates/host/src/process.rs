//! The process of a replica, as the daemon sees it. It outlives the daemon.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::status::{ReplicaStatus, Role};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use storage::plain_file;

use crate::paths::remove_if_there;
use crate::replica::config::{self, ReplicaConfig};
use crate::replica::control::{self, Request};
use crate::replica::end::ReplicaEnd;
use crate::vm_users::{owner, share, users_of};

/// How long a status may take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a replica may take from its start until it is ready. It may have to measure engines and unpack a kernel.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for one that goes on from a snapshot, which has to read all of it and write the disks.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the replica that an earlier daemon has started may take until it listens.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);
/// What of a log is shown when a replica did not start, in bytes.
const LOG_TAIL_BYTES: u64 = 2000;
/// Longest file that names a process, in bytes.
const PID_BYTES_MAX: u64 = 32;

/// A replica's process.
#[derive(Debug)]
pub struct ReplicaProcess {
    folder: PathBuf,
    /// Only if this daemon started it: an earlier one may have.
    child: Option<Child>,
    /// How the child ended.
    exit: Option<ExitStatus>,
}

impl ReplicaProcess {
    /// Starts a replica and waits until it runs the VM, or listens for its primary. It takes a session of its own before it does anything else, so that neither
    /// Ctrl-C in the daemon's terminal nor the daemon's end reaches it: in the process group that it is started in it could not.
    pub fn start(exe: &Path, config: &ReplicaConfig) -> Result<(Self, ReplicaStatus)> {
        let file = config::file(&config.folder);
        config.save(&file)?;
        ReplicaEnd::clear(&config.folder);
        let log = log_file(&config.folder);
        let log = remove_if_there(&log).and_then(|()| {
            // At the end, whoever writes: the replica starts a new file when this one is full.
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(&log)
        });
        let log = log.context("cannot write the replica's log")?;
        share(&config.folder, &log_file(&config.folder))?;
        let child = Command::new(exe)
            .arg("replica")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", exe.display()))?;
        let pid = child.id();
        let mut process = Self { folder: config.folder.clone(), child: Some(child), exit: None };
        if let Err(error) = plain_file::write_anew(&pid_file(&config.folder), pid.to_string().as_bytes()) {
            process.kill();
            return Err(error).context("cannot note the replica's process");
        }
        let patience = if config.snapshot.is_some() { RESTORE_TIMEOUT } else { START_TIMEOUT };
        let deadline = Instant::now() + patience;
        loop {
            if let Ok(status) = process.status()
                && is_ready(&status)
            {
                return Ok((process, status));
            }
            if process.is_gone() {
                let end = ReplicaEnd::left_in(&config.folder);
                bail!("{}", end.map_or_else(|| process.why_it_died(), |end| end.to_string()));
            }
            if Instant::now() > deadline {
                process.kill();
                bail!("the replica was not ready within {} s", patience.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Finds the process of a replica that an earlier daemon has started, even if that daemon was killed before it could note
    /// the process. It is this user's or the VM's, was started for this folder, and is who listens at the folder's socket: a command line alone anybody can
    /// have. If it answers there, it says that it is this VM's; one that was stopped does not answer.
    pub fn adopt(folder: &Path) -> Option<Self> {
        let deadline = Instant::now() + ADOPT_TIMEOUT;
        loop {
            let noted = noted_pid(folder).filter(|&pid| is_replica(pid, folder));
            let pid = noted.or_else(|| search(folder))?;
            if listens(pid, folder) && !answers_otherwise(pid, folder) {
                if noted.is_none() {
                    plain_file::write_anew(&pid_file(folder), pid.to_string().as_bytes()).ok()?;
                }
                return find(folder).map(|_| Self { folder: folder.to_owned(), child: None, exit: None });
            }
            if Instant::now() > deadline {
                tracing::warn!("{}: process {pid} looks like its replica, and is not", folder.display());
                return None;
            }
            // It may have been started a moment ago.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether any process is left that was started as the replica of this folder, whoever started it.
    pub fn is_there(folder: &Path) -> bool {
        search(folder).is_some()
    }

    /// Whether a replica was ever started from this folder.
    pub fn was_started(folder: &Path) -> bool {
        pid_file(folder).exists()
    }

    /// What it says of itself.
    pub fn status(&self) -> Result<ReplicaStatus> {
        Ok(control::ask(&config::socket(&self.folder), &Request::Status, STATUS_TIMEOUT)?.status)
    }

    /// Whether the process has ended. If so, it is reaped.
    pub fn is_gone(&mut self) -> bool {
        match &mut self.child {
            Some(child) => match child.try_wait() {
                Ok(None) => false,
                Ok(Some(exit)) => {
                    self.exit = Some(exit);
                    true
                }
                Err(_) => true,
            },
            None => find(&self.folder).is_none(),
        }
    }

    /// Kills it, even if it is stopped, and waits until it is gone.
    pub fn kill(&mut self) {
        let killed = match &mut self.child {
            Some(child) => child.kill(),
            None => find(&self.folder).map_or(Ok(()), |process| Ok(pidfd_send_signal(&process, Signal::KILL)?)),
        };
        if let Err(error) = killed {
            tracing::warn!("{}: cannot kill the replica: {error}", self.folder.display());
        }
        if !self.wait(KILL_TIMEOUT) {
            tracing::warn!("{}: the replica cannot be killed", self.folder.display());
        }
    }

    /// Waits until it has ended; whether it has.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.is_gone() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Why a process that is gone has ended, if it did not come to say so itself.
    pub fn why_it_died(&self) -> String {
        match self.exit {
            Some(exit) if exit.signal().is_some() => format!("its process was killed ({exit})"),
            // What it wrote last says why.
            Some(_) => match log_tail(&self.folder) {
                Some(line) => format!("its process ended: {line}"),
                None => "its process ended".to_owned(),
            },
            None => "its process died".to_owned(),
        }
    }
}

/// Whether a replica that was started has become what it is to be. It acts in no generation while it opens files.
fn is_ready(status: &ReplicaStatus) -> bool {
    match status.role {
        Role::Primary => status.generation > 0,
        Role::Secondary => status.listen.is_some(),
    }
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.join("replica.pid")
}

fn log_file(folder: &Path) -> PathBuf {
    config::log(folder)
}

/// The running process of the replica in this folder. Process ids are used again: a process with another command line is
/// not it. The descriptor refers to the process that was checked, whatever happens to its id.
fn find(folder: &Path) -> Option<OwnedFd> {
    let pid = noted_pid(folder)?;
    let process = pidfd_open(Pid::from_raw(pid).filter(|_| pid > 0)?, PidfdFlags::empty()).ok()?;
    is_replica(pid, folder).then_some(process)
}

fn noted_pid(folder: &Path) -> Option<i32> {
    let text = plain_file::read(&pid_file(folder), PID_BYTES_MAX).ok()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

/// Whether this process listens at the folder's socket. That holds for one that was stopped as well.
fn listens(pid: i32, folder: &Path) -> bool {
    let peer = UnixStream::connect(config::socket(folder)).ok().and_then(|stream| socket_peercred(&stream).ok());
    peer.is_some_and(|peer| peer.pid.as_raw_nonzero().get() == pid && peer.uid == geteuid())
}

/// Whether it says that it is another VM's replica, or another process.
fn answers_otherwise(pid: i32, folder: &Path) -> bool {
    let vm = folder.file_name().and_then(|name| name.to_str());
    control::ask(&config::socket(folder), &Request::Status, STATUS_TIMEOUT)
        .is_ok_and(|it| Some(it.status.vm.as_str()) != vm || i32::try_from(it.status.pid) != Ok(pid))
}

/// Looks for it among all processes.
fn search(folder: &Path) -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|&pid| is_replica(pid, folder))
}

fn is_replica(pid: i32, folder: &Path) -> bool {
    let users = u32::try_from(pid).map(users_of).unwrap_or_default();
    let is_whose = |user: &u32| *user == geteuid().as_raw() || owner(folder).is_ok_and(|owner| owner == *user);
    if users.is_empty() || !users.iter().all(is_whose) {
        return false;
    }
    let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = command_line.split(|&byte| byte == 0).skip(1);
    let file = config::file(folder);
    let expected = [b"replica".as_slice(), b"--config", file.as_os_str().as_bytes()];
    expected.iter().all(|&expected| arguments.next() == Some(expected))
}

/// The last line of a replica's log.
fn log_tail(folder: &Path) -> Option<String> {
    let mut file = plain_file::open(&log_file(folder)).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;

    use super::*;

    /// Listens at the socket that its second argument's folder has.
    const LISTENS: &str = "use IO::Socket::UNIX; my $folder = $ARGV[1] =~ s{/[^/]*$}{}r; \
                           my $socket = IO::Socket::UNIX->new(Local => \"$folder/$ARGV[2]\", Listen => 9) or die; <STDIN>;";

    /// A process with the command line of a replica that does something else.
    fn impostor(folder: &Path, script: &str) -> Child {
        impostor_as(geteuid().as_raw(), folder, script)
    }

    fn impostor_as(user: u32, folder: &Path, script: &str) -> Child {
        fs::write(folder.join("replica"), script).unwrap();
        let socket = config::socket(folder);
        let child = Command::new("/usr/bin/perl")
            .uid(user)
            .current_dir(folder)
            .args(["replica", "--config"])
            .arg(config::file(folder))
            .arg(socket.file_name().unwrap())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // Whoever spawns goes on before the new program has its arguments: in that moment its command line is empty.
        while fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        child
    }

    #[test]
    fn a_process_that_only_looks_like_the_replica_is_not_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = impostor(folder.path(), "<STDIN>;");
        fs::write(pid_file(folder.path()), child.id().to_string()).unwrap();
        assert!(ReplicaProcess::adopt(folder.path()).is_none(), "nobody listens at the folder's socket");
        // Somebody else does.
        let _socket = std::os::unix::net::UnixListener::bind(config::socket(folder.path())).unwrap();
        assert!(ReplicaProcess::adopt(folder.path()).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Listens there as well, and answers with what a file says.
    const ANSWERS: &str = "use IO::Socket::UNIX; my $folder = $ARGV[1] =~ s{/[^/]*$}{}r; \
                           my $socket = IO::Socket::UNIX->new(Local => \"$folder/$ARGV[2]\", Listen => 9) or die; \
                           $SIG{PIPE} = 'IGNORE'; while (my $client = $socket->accept) { <$client>; open my $file, '<', 'answer'; print {$client} <$file>; }";

    /// Has that process say that it is a primary of this VM, with this number.
    fn say(folder: &Path, vm: &str, pid: u32) {
        let status = format!(
            r#"{{"vm":"{vm}","host":"a","pid":{pid},"role":"primary","engine":"soft","generation":3,"running_s":0,
                "protection":{{"state":"starting","since_unix_ms":1}}}}"#
        );
        let answer = format!("{{\"answer\":\"done\",\"status\":{}}}\n", status.replace('\n', ""));
        fs::write(folder.join("answer"), answer).unwrap();
    }

    #[test]
    fn a_replica_that_says_that_it_is_another_one_is_not_adopted() {
        let vms = tempfile::tempdir().unwrap();
        let folder = vms.path().join("v");
        fs::create_dir(&folder).unwrap();
        let mut child = impostor(&folder, ANSWERS);
        let pid = child.id();
        say(&folder, "w", pid);
        assert!(ReplicaProcess::adopt(&folder).is_none(), "another VM's");
        say(&folder, "v", pid + 1);
        assert!(ReplicaProcess::adopt(&folder).is_none(), "another process");
        say(&folder, "v", pid);
        assert!(ReplicaProcess::adopt(&folder).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Two users that no VM on this machine is likely to have.
    const USERS: [u32; 2] = [2_100_300_000, 2_100_300_001];

    /// Both look like the replica and answer as it would; one was not started by this user, and the other is none of the VM's any more.
    #[test]
    fn a_process_of_another_user_is_not_adopted_even_if_it_listens_and_answers() {
        if !geteuid().is_root() {
            return crate::skipped("only root starts processes as other users");
        }
        let vms = tempfile::tempdir().unwrap();
        fs::set_permissions(vms.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let folder = vms.path().join("v");
        fs::create_dir(&folder).unwrap();

        // Whoever has broken into one of the VM's processes may listen in its folder.
        chown(&folder, Some(USERS[0]), None).unwrap();
        let mut vms_own = impostor_as(USERS[0], &folder, ANSWERS);
        say(&folder, "v", vms_own.id());
        assert!(ReplicaProcess::adopt(&folder).is_none(), "the socket is not this user's");
        vms_own.kill().unwrap();
        vms_own.wait().unwrap();

        chown(&folder, Some(0), None).unwrap();
        fs::remove_file(config::socket(&folder)).unwrap();
        let becomes_another = ANSWERS.replace("or die;", &format!("or die; use POSIX; POSIX::setuid({});", USERS[1]));
        let mut strange = impostor(&folder, &becomes_another);
        let pid = i32::try_from(strange.id()).unwrap();
        while users_of(strange.id()).iter().any(|user| *user != USERS[1]) {
            thread::sleep(Duration::from_millis(1));
        }
        say(&folder, "v", strange.id());
        assert!(listens(pid, &folder) && !answers_otherwise(pid, &folder));
        assert!(ReplicaProcess::adopt(&folder).is_none(), "the process is neither this user's nor the VM's");
        strange.kill().unwrap();
        strange.wait().unwrap();
    }

    #[test]
    fn only_the_process_that_was_started_is_taken_for_the_replica() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ReplicaProcess::adopt(folder.path()).is_none());
        // The number is this test's: its command line is another.
        fs::write(pid_file(folder.path()), std::process::id().to_string()).unwrap();
        assert!(ReplicaProcess::adopt(folder.path()).is_none());
        let child = impostor(folder.path(), LISTENS);
        // An earlier daemon was killed before it could note the process.
        let mut adopted = ReplicaProcess::adopt(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(pid_file(folder.path())).unwrap(), child.id().to_string());
        assert_eq!(adopted.why_it_died(), "its process died");
        adopted.child = Some(child);
        assert!(!adopted.is_gone());
        adopted.kill();
        assert!(adopted.is_gone() && ReplicaProcess::adopt(folder.path()).is_none());
        assert_eq!(adopted.why_it_died(), "its process was killed (signal: 9 (SIGKILL))");
        let exit = Command::new("/bin/false").status().unwrap();
        fs::write(log_file(folder.path()), "one\ntwo\n\n").unwrap();
        adopted.exit = Some(exit);
        assert_eq!(adopted.why_it_died(), "its process ended: two");
    }
}
