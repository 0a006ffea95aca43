//! The KVM engine on virtualization hardware: a Debian 12 machine in an emulator whose processors have it, and in that machine, on a
//! true `/dev/kvm`, tests of this workspace with their stock guests. Each is a test here, with its output if it fails.
//!
//! Without arguments a few run; `--include-ignored` runs all (`make test-kvm`). With [`measure::FOLDER`] set, benchmarks run in their place.

mod binaries;
mod emulator;
mod inner;
mod job;
mod measure;
mod root;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};

use binaries::Binaries;
use inner::{Bench, Inner};

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(measure::FOLDER) {
        return match measure::run(Path::new(&folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // They share the machine.
    arguments.test_threads = Some(1);
    let binaries = Binaries::find(&inner::targets());
    let all = Inner::all(&binaries);
    let is_thorough = arguments.include_ignored || arguments.ignored;
    let chosen = all.iter().filter(|inner| is_chosen(&arguments, inner));
    let bench = Arc::new(Mutex::new(Bench::new(binaries, is_thorough, chosen)));
    let trial = |inner: Inner| {
        let (name, is_quick) = (inner.name(), inner.is_quick);
        let bench = bench.clone();
        let run = move || bench.lock().unwrap_or_else(PoisonError::into_inner).run(&inner).map_err(Into::into);
        Trial::test(name, run).with_ignored_flag(!is_quick)
    };
    libtest_mimic::run(&arguments, all.into_iter().map(trial).collect()).exit_code()
}

/// Whether a test is going to run, as far as its name and the arguments say it.
fn is_chosen(arguments: &Arguments, inner: &Inner) -> bool {
    let is_of_the_kind =
        if inner.is_quick { !arguments.ignored } else { arguments.ignored || arguments.include_ignored };
    is_of_the_kind && arguments.filter.as_ref().is_none_or(|filter| inner.name().contains(filter))
}
