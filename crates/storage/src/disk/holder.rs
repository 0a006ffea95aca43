//! Who has an image, for the message that says so.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is said when nobody can be named: another user's processes, another machine's, or those of another container.
const UNKNOWN: &str = "another program or VM (as root, `fuser -v` with this file names it)";

/// Who holds locks on the image in `file`, as far as this process can see: "qemu-img (process 4711)". None of them is this open file's.
pub(super) fn describe(file: &File) -> String {
    let Ok(image) = file.metadata() else { return UNKNOWN.to_owned() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let holders: Vec<String> = processes
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse::<u32>().ok()?;
            has_locked(&entry.path(), (image.dev(), image.ino())).then(|| name(process, &entry.path()))
        })
        .collect();
    if holders.is_empty() { UNKNOWN.to_owned() } else { holders.join(", ") }
}

fn name(process: u32, folder: &Path) -> String {
    if process == std::process::id() {
        return "another disk of this process".to_owned();
    }
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    format!("{} (process {process})", name.trim())
}

/// Whether the process in `folder` has the file open and locked: an image, or what a restore leaves beside one while it is under way.
fn has_locked(folder: &Path, file: (u64, u64)) -> bool {
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    open.filter(|entry| fs::metadata(entry.path()).is_ok_and(|found| (found.dev(), found.ino()) == file)).any(|entry| {
        let about = fs::read_to_string(folder.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        about.lines().any(|line| line.starts_with("lock:") && line.contains("OFDLCK"))
    })
}
