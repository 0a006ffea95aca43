//! Drives network ends as processes of their own with a real TCP/IP stack (smoltcp) in the guest's place.
//!
//! This program is its own harness, as it is also the processes that its tests start: the network end (`net-end`), a VM
//! process that can be killed (`vm`), and a process whose death its network end must notice (`parent`). Arguments that
//! are no such command select the tests whose names contain one of them.

mod bridge;
mod guest;
mod host;
mod hostile;
mod lifetime;
mod takeover;
mod user;
mod vm_process;

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use network::end::{self, EndConfig};

/// What one test may take; far more than it needs, for slow machines.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A test: it passes when it returns, unless it says why it could not run.
type Test = (&'static str, fn() -> Outcome);

enum Outcome {
    Passed,
    Skipped(&'static str),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["net-end", "--config", json, "--socket", socket] => {
            let config: EndConfig = serde_json::from_str(json).unwrap();
            match end::run(&config, Path::new(socket)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        ["vm", socket] => vm_process::relay(Path::new(socket)),
        ["parent", socket] => lifetime::parent(Path::new(socket)),
        ref filters => run_tests(filters),
    }
}

fn run_tests(arguments: &[&str]) -> ExitCode {
    let filters: Vec<_> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let tests = [user::TESTS, takeover::TESTS, lifetime::TESTS, hostile::TESTS, bridge::TESTS].concat();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(**filter));
    if arguments.contains(&"--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filtered_out = tests.iter().filter(|(name, _)| !chosen(name)).count();
    println!("\nrunning {} tests", tests.len() - filtered_out);
    let begin = Instant::now();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in tests.into_iter().filter(|(name, _)| chosen(name)) {
        let start = Instant::now();
        let (done, result) = mpsc::channel();
        let thread = thread::spawn(move || done.send(test()));
        // A test that panics drops `done`.
        let verdict = match result.recv_timeout(TEST_TIMEOUT) {
            Ok(Outcome::Passed) => {
                passed += 1;
                "ok".to_owned()
            }
            Ok(Outcome::Skipped(reason)) => {
                skipped += 1;
                format!("ignored, {reason}")
            }
            Err(error) => {
                failed += 1;
                if error == RecvTimeoutError::Disconnected { "FAILED" } else { "FAILED: took too long" }.to_owned()
            }
        };
        if thread.is_finished() {
            let _ = thread.join();
        }
        println!("test {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
    }
    // In the words of the usual test harness, so that whoever counts tests counts these too.
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; \
         {filtered_out} filtered out; finished in {:.2}s\n",
        begin.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
