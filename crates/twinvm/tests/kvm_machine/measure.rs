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
use crate::machine::Machine;
use crate::root;
use crate::support::guest::images_dir;

/// The variable that asks for benchmarks instead of tests: the folder that figures go to.
pub const FOLDER: &str = "TWINVM_BENCH_KVM";
/// The variable that says how often each side is measured.
const RUNS: &str = "TWINVM_BENCH_RUNS";
/// How long a benchmark may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(7200);

/// What measures, without the options for runs and JSON, and the file that figures are kept in. Replicas suspect each other late: the
/// machine is too slow for the usual 100 ms.
const BENCHES: [(&str, &str); 2] =
    [("twinvm bench kvm", "kvm.json"), ("twinvm bench ft --engine kvm --suspicion 5000", "ft-kvm.json")];
/// What builds the guests' images.
const PREPARE: [&[&str]; 2] =
    [&["bench", "kvm", "--prepare"], &["image", "build", "demo-redis", "--package", "redis-server"]];
/// Their names.
const IMAGES: [&str; 2] = ["bench-kvm", "demo-redis"];

/// Measures, and leaves the figures in `folder`.
///
/// # Errors
/// What went wrong, with what was printed.
pub fn run(folder: &Path) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(at)?;
    let made = TempDir::new_in(images_dir().parent().unwrap()).unwrap();
    let job = job::disk(&BTreeMap::new(), &images(), made.path());
    let runs = std::env::var(RUNS).unwrap_or_else(|_| "1".to_owned());
    let mut machine = Machine::boot(Emulator::Qemu, &Disks { root: root::with_peer(), job })?;
    for (command, file) in BENCHES {
        let command = format!("{command} --runs {runs} --json -");
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

/// The guests' images, built with the twinvm that is measured.
fn images() -> [Image; 2] {
    for arguments in PREPARE {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command.args(arguments).env("TWINVM_HOME", images_dir().parent().unwrap());
        assert!(command.status().unwrap().success(), "{command:?}");
    }
    let store = ImageStore::new(images_dir());
    IMAGES.map(|name| store.get(name).unwrap())
}
