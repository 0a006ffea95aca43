//! Processes of this program, found by the folder that they work in.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long killed processes may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process of this program does, as its command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `twinvm host`
    Daemon,
    /// `twinvm replica`
    Replica,
    /// `twinvm broker`
    Broker,
    /// `twinvm net-end`
    NetworkEnd,
}

/// A process that was found. The descriptor refers to it even when its number is used again.
#[derive(Debug)]
pub struct Process {
    /// What it does.
    pub kind: Kind,
    descriptor: OwnedFd,
}

impl Process {
    /// Kills it, if it is still there.
    pub fn kill(&self) {
        // It fails only if the process is gone.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }
}

impl Process {
    /// Has it stand still, until it is killed or told to go on.
    pub fn stop(&self) {
        let _ = pidfd_send_signal(&self.descriptor, Signal::STOP);
    }
}

/// All processes of this program whose command line names something in `folder`, daemons first.
pub fn in_folder(folder: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // Opened first: what is read of it then belongs to the same process or to none.
            let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            let kind = kind(&fs::read(entry.path().join("cmdline")).ok()?, folder)?;
            Some(Process { kind, descriptor })
        })
        .collect();
    found.sort_by_key(|process| process.kind != Kind::Daemon);
    found
}

/// Kills all processes of this program that work in `folder`, and waits until they are gone.
pub fn kill_all(folder: &Path) {
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        // Again and again: one may have started another before it was killed.
        let found = in_folder(folder);
        found.iter().for_each(Process::kill);
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a process does, if it works in `folder`. The command line of one that has ended is empty.
fn kind(command_line: &[u8], folder: &Path) -> Option<Kind> {
    let mut arguments = command_line.split(|&byte| byte == 0).skip(1);
    let kind = match arguments.next()? {
        b"host" => Kind::Daemon,
        b"replica" => Kind::Replica,
        b"broker" => Kind::Broker,
        b"net-end" => Kind::NetworkEnd,
        _ => return None,
    };
    arguments.any(|argument| Path::new(OsStr::from_bytes(argument)).starts_with(folder)).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_by_command_and_folder() {
        let folder = Path::new("/tmp/demo");
        for (command_line, expected) in [
            ("twinvm\0host\0start\0--dir\0/tmp/demo\0", Some(Kind::Daemon)),
            ("twinvm\0replica\0--config\0/tmp/demo/vms/v/replica.json\0", Some(Kind::Replica)),
            ("twinvm\0broker\0--config\0/tmp/demo/vms/v/replica.json\0", Some(Kind::Broker)),
            ("twinvm\0net-end\0--config\0{}\0--socket\0/tmp/demo/ends/v.sock\0", Some(Kind::NetworkEnd)),
            ("twinvm\0host\0start\0--dir\0/tmp/demo2\0", None),
            ("tail\0-f\0/tmp/demo/log\0", None),
            ("twinvm\0demo\0--json\0/tmp/demo/out\0", None),
            ("", None),
        ] {
            assert_eq!(kind(command_line.as_bytes(), folder), expected, "{command_line:?}");
        }
    }

    #[test]
    fn processes_of_a_folder_are_found_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("replica"), "read line").unwrap();
        let start = |argument: &Path| {
            let mut command = std::process::Command::new("/bin/sh");
            command.current_dir(folder.path()).arg("replica").arg(argument).stdin(std::process::Stdio::piped());
            command.spawn().unwrap()
        };
        let mut inside = start(&folder.path().join("vms/v/replica.json"));
        let mut outside = start(Path::new("/elsewhere/replica.json"));
        // Whoever spawns goes on before the new program has its arguments: in that moment its command line is empty.
        let deadline = Instant::now() + GONE_TIMEOUT;
        while in_folder(folder.path()).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(in_folder(folder.path()).iter().map(|process| process.kind).collect::<Vec<_>>(), [Kind::Replica]);
        kill_all(folder.path());
        assert!(!inside.wait().unwrap().success());
        assert!(in_folder(folder.path()).is_empty());
        assert!(outside.try_wait().unwrap().is_none(), "a process that works elsewhere was killed");
        outside.kill().unwrap();
        outside.wait().unwrap();
    }
}
