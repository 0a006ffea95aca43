//! README's commands, run as they stand there, one block after the other, by a user who answers what they ask. What they print may differ from run to run; that they
//! succeed may not.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const README: &str = include_str!("../../../../README.md");
/// How long all of it may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(900);
/// How soon a user looks again whether there is something to type.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// The blocks of commands, in order.
fn blocks() -> Vec<&'static str> {
    let blocks = README.split("\n```sh\n").skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// What a user does while a command runs.
enum Habit {
    /// Leaves it by this key after a look.
    Leave(&'static str),
    /// Types this again and again until it has ended.
    Insist(&'static str),
}

/// What is typed while these commands run.
const HABITS: [(&str, Habit); 2] =
    [("twinvm top", Habit::Leave("q")), ("twinvm run shop.toml", Habit::Insist("poweroff -f\r"))];

/// A user at a terminal.
struct User {
    shell: Child,
    keys: ChildStdin,
    screen: Receiver<Vec<u8>>,
    seen: String,
    /// Up to where questions in what was seen are answered.
    answered: usize,
}

impl User {
    /// Runs a script on a terminal, each line shown before it is carried out, in a network and among processes of its own: README names ports, and starts
    /// daemons.
    fn run(folder: &Path, script: &str) -> Self {
        let path = folder.join("readme.sh");
        fs::write(&path, script).unwrap();
        let own = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user " };
        let namespaces = format!("unshare {own}--net --mount --pid --fork --kill-child --mount-proc");
        let shell = format!("{namespaces} bash -c 'ip link set lo up && exec bash -ev {}'", path.display());
        let home = images_home();
        let mut command = Command::new("script");
        command
            .args(["-q", "-e", "-f", "-c", &shell, "/dev/null"])
            .current_dir(folder)
            .env("TWINVM_HOME", home)
            .env("XDG_RUNTIME_DIR", folder.join("run"))
            .env("PATH", format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap()))
            .env_remove("TWINVM_HOST_DIR")
            .env_remove("TWINVM_OPERATOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut shell = command.spawn().expect("`script` is part of Debian");
        let (sender, screen) = channel();
        let mut stdout = shell.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut bytes) {
                if sender.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keys = shell.stdin.take().unwrap();
        Self { shell, keys, screen, seen: String::new(), answered: 0 }
    }

    /// Answers what is asked, and leaves what has to be left, until the script has ended.
    fn go_through(mut self) {
        let deadline = Instant::now() + HUNG;
        let mut left = 0;
        loop {
            assert!(Instant::now() < deadline, "hung:\n{}", self.seen);
            match self.screen.recv_timeout(LOOK_INTERVAL) {
                Ok(bytes) => {
                    self.seen.push_str(&String::from_utf8_lossy(&bytes));
                    while let Some(at) = self.question() {
                        self.answered += at + 1;
                        self.type_keys("y\r");
                    }
                    if left != self.command_at() && matches!(self.habit(), Some(Habit::Leave(_))) {
                        left = self.command_at();
                        std::thread::sleep(LOOK_INTERVAL);
                        if let Some(Habit::Leave(keys)) = self.habit() {
                            self.type_keys(keys);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(Habit::Insist(keys)) = self.habit() {
                        self.type_keys(keys);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let ended = self.shell.wait().unwrap();
        assert!(ended.success(), "{ended}:\n{}", self.seen);
    }

    /// Where the next question is that nobody has answered, counted from the last one.
    fn question(&self) -> Option<usize> {
        let asked = &self.seen[self.answered..];
        ["[y/N] ", "[Y/n] "].iter().filter_map(|end| asked.find(end)).min()
    }

    /// Where the line of the last command is that was shown before it was carried out.
    fn command_at(&self) -> usize {
        let mut begins = self.seen.match_indices('\n').map(|(at, _)| at + 1);
        begins.rfind(|at| self.seen[*at..].starts_with("twinvm ")).unwrap_or(0)
    }

    fn habit(&self) -> Option<&'static Habit> {
        let command = &self.seen[self.command_at()..];
        HABITS.iter().find(|(begin, _)| command.starts_with(begin)).map(|(_, habit)| habit)
    }

    fn type_keys(&mut self, keys: &str) {
        // The script may have ended.
        let _ = self.keys.write_all(keys.as_bytes());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.shell.id())]).status();
        let _ = self.shell.wait();
    }
}

/// The folder of the images that tests share.
fn images_home() -> std::path::PathBuf {
    let home = std::env::var_os("TWINVM_HOME");
    home.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.twinvm"), Into::into)
}

/// Everything a reader of README has: the program where `make build` puts it, and a `make` that need not compile it again.
fn checkout(folder: &Path) {
    let program = env!("CARGO_BIN_EXE_twinvm");
    for name in ["target/release", "bin", "run"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    symlink(program, folder.join("target/release/twinvm")).unwrap();
    let make = format!(
        "#!/bin/sh\ncase $1 in\nbuild) exit 0 ;;\ndemo) exec {program} demo --kills 1 ;;\n*) exit 1 ;;\nesac\n"
    );
    let path = folder.join("bin/make");
    fs::write(&path, make).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn row_18_the_commands_of_the_readme_succeed_as_they_stand_there() {
    let folder = tempfile::tempdir().unwrap();
    checkout(folder.path());
    // Packages come from outside; what is built then is found there.
    let build = README.lines().find(|line| line.starts_with("twinvm image build ")).unwrap();
    let words = build.split_whitespace().skip(1);
    let built = Command::new(env!("CARGO_BIN_EXE_twinvm")).args(words).env("TWINVM_HOME", images_home()).status();
    assert!(built.unwrap().success(), "{build}");
    User::run(folder.path(), &(blocks().join("\n") + "\n")).go_through();
}

#[test]
fn every_block_of_commands_is_found() {
    let blocks = blocks();
    assert_eq!(blocks.len(), README.matches("\n```sh\n").count());
    for command in ["make demo", "twinvm ft failover shop", "twinvm vm rm shop", "twinvm replay "] {
        assert!(blocks.iter().any(|block| block.contains(command)), "{command}");
    }
}
