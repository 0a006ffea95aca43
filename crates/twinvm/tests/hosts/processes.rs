//! Processes of this machine, as tests see and stop them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::HUNG;

/// Stops processes in a moment in which none of them holds the lock of the store, a file: all hosts of the machine would wait for it.
pub fn stop(pids: &[u32], store: &Path) {
    let deadline = Instant::now() + HUNG;
    let is_free = || {
        let store = rusqlite::Connection::open(store).unwrap();
        store.busy_timeout(Duration::from_millis(200)).unwrap();
        store.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok()
    };
    loop {
        pids.iter().for_each(|pid| signal(*pid, "STOP"));
        while !pids.iter().all(|pid| stands_still(*pid)) {
            assert!(Instant::now() < deadline, "they go on");
        }
        if is_free() {
            return;
        }
        pids.iter().for_each(|pid| signal(*pid, "CONT"));
        std::thread::sleep(Duration::from_millis(7));
    }
}

/// Whether a process is stopped.
pub fn stands_still(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}

/// The processes that a process has started.
pub fn children(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}

/// Sends a signal to a process of the world.
pub fn signal(pid: u32, name: &str) {
    // It may have ended by itself.
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status().unwrap();
}

/// Processes of this program that work in a folder, and what they do.
pub fn processes(folder: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = command_line.split(|&byte| byte == 0).collect();
        let in_folder = |word: &&[u8]| {
            let word: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(word);
            Path::new(word).starts_with(folder)
        };
        let is_here = words.iter().any(in_folder) || environment_names(entry.path(), folder);
        if words[0] == env!("CARGO_BIN_EXE_twinvm").as_bytes() && is_here {
            found.push((pid, String::from_utf8_lossy(words.get(1).unwrap_or(&&b""[..])).into_owned()));
        }
    }
    found
}

/// A daemon is told its folder by its environment.
fn environment_names(process: PathBuf, folder: &Path) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let prefix = b"TWINVM_HOST_DIR=";
    environment.split(|&byte| byte == 0).any(|variable| {
        variable.strip_prefix(prefix).is_some_and(|value| {
            let value: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(value);
            Path::new(value).starts_with(folder)
        })
    })
}
