//! Benchmarks of the kvm engine in the nested machine, with QEMU in it as the peer (`make bench-kvm`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use storage::image::{Image, ImageStore};
use tempfile::TempDir;

use crate::emulator::{Disks, Emulator};
use crate::job;
use crate::root;
use crate::support::guest::images_dir;

/// The variable that asks for benchmarks instead of tests: the folder that figures go to.
pub const FOLDER: &str = "TWINVM_BENCH_KVM";
/// The variable that says how often each side is measured.
const RUNS: &str = "TWINVM_BENCH_RUNS";
/// The variable that names the parts of `twinvm bench kvm` that are measured; nothing else is then.
const ONLY: &str = "TWINVM_BENCH_ONLY";
/// How long a benchmark may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(7200);

/// What measures, without the options for runs and JSON, and the file that figures are kept in. Replicas suspect each other late: the
/// machine is too slow for the usual 100 ms.
const BENCHES: [(&str, &str); 2] =
    [("twinvm bench kvm", "kvm.json"), ("twinvm bench ft --engine kvm --suspicion 5000", "ft-kvm.json")];
/// What builds the image of each one's guest, and the image's name.
const IMAGES: [(&[&str], &str); 2] = [
    (&["bench", "kvm", "--prepare"], "bench-kvm"),
    (&["image", "build", "demo-redis", "--package", "redis-server"], "demo-redis"),
];

/// Measures, and leaves the figures in `folder`.
///
/// # Errors
/// What went wrong, with what was printed.
pub fn run(folder: &Path) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(at)?;
    let made = TempDir::new_in(images_dir().parent().unwrap()).unwrap();
    let only = std::env::var(ONLY).unwrap_or_default();
    let count = if only.is_empty() { BENCHES.len() } else { 1 };
    let job = job::disk(&BTreeMap::new(), &images(count), made.path());
    let runs = std::env::var(RUNS).unwrap_or_else(|_| "1".to_owned());
    let mut machine = Emulator::QemuOfTwo.boot(&Disks { root: root::with_peer(), job })?;
    let options = if only.is_empty() { String::new() } else { format!(" --only {only}") };
    for (command, file) in BENCHES.iter().take(count) {
        let command = format!("{command}{options} --runs {runs} --json -");
        println!("in the nested machine: {command}");
        let outcome = machine.run(&command, LIMIT)?;
        let figures = outcome.output.lines().rev().find(|line| line.starts_with('{'));
        let (0, Some(figures)) = (outcome.status, figures) else {
            return Err(format!("{command}: status {}:\n{}", outcome.status, outcome.output));
        };
        fs::write(folder.join(file), figures).map_err(at)?;
        println!("{}: {figures}", folder.join(file).display());
    }
    Ok(())
}

/// The images of the first `count` guests, built with the twinvm that is measured.
fn images(count: usize) -> Vec<Image> {
    let store = ImageStore::new(images_dir());
    let image = |(arguments, name): &(&[&str], &str)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command.args(*arguments).env("TWINVM_HOME", images_dir().parent().unwrap());
        assert!(command.status().unwrap().success(), "{command:?}");
        store.get(name).unwrap()
    };
    IMAGES.iter().take(count).map(image).collect()
}
