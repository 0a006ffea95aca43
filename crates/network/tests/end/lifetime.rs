//! How ends start and end, and that they leave nothing behind.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use network::end::{self, EndConfig, EndProcess, Lifetime, SpawnError};
use network::{Attach, Link};
use spec::{NetworkSpec, UserSpec};

use crate::host::{spawn, this_program, wait_until};
use crate::{Outcome, Test};

pub const TESTS: &[Test] = &[
    ("lifetime::stop_leaves_nothing_behind", stop_leaves_nothing_behind),
    ("lifetime::sigterm_leaves_nothing_behind", sigterm_leaves_nothing_behind),
    ("lifetime::end_goes_with_its_killed_parent", end_goes_with_its_killed_parent),
    ("lifetime::end_without_clients_goes_in_time", end_without_clients_goes_in_time),
    ("lifetime::end_that_is_to_be_kept_stays", end_that_is_to_be_kept_stays),
    ("lifetime::socket_of_a_live_end_is_respected_and_of_a_dead_one_replaced", sockets_of_others),
    ("lifetime::of_many_that_replace_a_dead_end_one_is_left", of_many_that_replace_a_dead_end_one_is_left),
    ("lifetime::program_that_is_no_end_is_reported", program_that_is_no_end_is_reported),
];

fn network() -> NetworkSpec {
    NetworkSpec::User(UserSpec::default())
}

fn stop_leaves_nothing_behind() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let process = spawn(network(), Lifetime::UntilStopped, &socket).unwrap();
    let link = Link::connect(&socket, &Attach::default()).unwrap();
    assert_eq!(end::status(&socket).unwrap().pid, process.pid());
    let pid = process.pid();
    process.stop().unwrap();
    assert!(!socket.exists() && !is_alive(pid));
    drop(link);
    let error = Link::connect(&socket, &Attach::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot reach the network end at "), "{error}");
    Outcome::Passed
}

fn sigterm_leaves_nothing_behind() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let process = spawn(network(), Lifetime::WithParent, &socket).unwrap();
    let kill = Command::new("kill").arg(process.pid().to_string()).status().unwrap();
    assert!(kill.success());
    wait_until(|| !socket.exists());
    Outcome::Passed
}

/// Main function of a process that starts an end and then waits to be killed.
pub fn parent(socket: &Path) -> ExitCode {
    let process = spawn(network(), Lifetime::WithParent, socket).unwrap();
    println!("{}", process.pid());
    thread::sleep(Duration::from_secs(60));
    ExitCode::FAILURE
}

fn end_goes_with_its_killed_parent() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let mut parent = Command::new(this_program()).arg("parent").arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
    wait_until(|| end::status(&socket).is_ok());
    let _link = Link::connect(&socket, &Attach::default()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until(|| !socket.exists());
    Outcome::Passed
}

fn end_without_clients_goes_in_time() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let _process = spawn(network(), Lifetime::WithoutClient { limit_s: 1 }, &socket).unwrap();
    let link = Link::connect(&socket, &Attach::default()).unwrap();
    thread::sleep(Duration::from_millis(1300));
    assert!(end::status(&socket).unwrap().attached);
    drop(link);
    thread::sleep(Duration::from_millis(500));
    assert!(socket.exists());
    wait_until(|| !socket.exists());
    Outcome::Passed
}

fn end_that_is_to_be_kept_stays() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let _process = spawn(network(), Lifetime::WithoutClient { limit_s: 1 }, &socket).unwrap();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(100));
        end::keep(&socket).unwrap();
    }
    // To look at it is not to keep it.
    wait_until(|| end::status(&socket).is_err());
    Outcome::Passed
}

/// Hosts that share an end may all start it anew at once.
fn of_many_that_replace_a_dead_end_one_is_left() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    for _ in 0..5 {
        let started: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..6).map(|_| scope.spawn(|| spawn(network(), Lifetime::UntilStopped, &socket))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut started: Vec<EndProcess> = started.into_iter().flatten().collect();
        assert_eq!(started.len(), 1);
        let end = started.pop().unwrap();
        assert_eq!(end::status(&socket).unwrap().pid, end.pid(), "the socket is another one's");
        // It leaves its socket behind.
        let killed = Command::new("kill").args(["-KILL", &end.pid().to_string()]).status().unwrap();
        assert!(killed.success());
        wait_until(|| end::status(&socket).is_err());
    }
    Outcome::Passed
}

fn sockets_of_others() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let mut first = Command::new(this_program());
    let config = EndConfig { network: network(), lifetime: Lifetime::UntilStopped };
    let json = serde_json::to_string(&config).unwrap();
    let mut first = first
        .args(["net-end", "--config", &json, "--socket"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(|| end::status(&socket).is_ok());
    let error = spawn(network(), Lifetime::WithParent, &socket).unwrap_err().to_string();
    assert!(error.ends_with("Address already in use (os error 98)"), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(socket.exists());
    spawn(network(), Lifetime::WithParent, &socket).unwrap().stop().unwrap();

    fs::write(&socket, "somebody's file").unwrap();
    assert!(spawn(network(), Lifetime::WithParent, &socket).is_err());
    assert_eq!(fs::read_to_string(&socket).unwrap(), "somebody's file");

    let long = folder.path().join("x".repeat(120));
    let error = spawn(network(), Lifetime::WithParent, &long).unwrap_err().to_string();
    assert!(error.contains("its path must have 1 to 107 bytes"), "{error}");
    Outcome::Passed
}

fn program_that_is_no_end_is_reported() -> Outcome {
    let config = EndConfig { network: network(), lifetime: Lifetime::WithParent };
    let spawn = |exe: &str| EndProcess::spawn(Path::new(exe), &config, Path::new("/nonexistent/s"), Stdio::null());
    assert!(matches!(spawn("/nonexistent/twinvm"), Err(SpawnError::Start { .. })));
    assert!(matches!(spawn("/bin/true"), Err(SpawnError::Died(_))));
    assert!(matches!(spawn("/bin/echo"), Err(SpawnError::Failed(_))));
    Outcome::Passed
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
