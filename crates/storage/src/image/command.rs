//! Running the host's programs so that they can be watched and stopped.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::{ImageError, Progress};

/// How long a cancelled build may go on.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// What a program left behind.
pub(crate) struct Finished {
    pub status: ExitStatus,
    pub stderr: Vec<String>,
}

impl Finished {
    /// The line of standard error that says most: the last one that apt marks as an error, else the last one.
    pub fn reason(&self) -> String {
        let lines = || self.stderr.iter().map(|l| l.trim()).filter(|l| !l.is_empty());
        let line = lines().rfind(|l| l.starts_with("E: ")).or_else(|| lines().next_back());
        line.map_or_else(|| self.status.to_string(), |l| l.trim_start_matches("E: ").to_owned())
    }
}

/// A command with a clean environment, so that the user's locale and settings do not reach the image.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let proxies = ["http_proxy", "https_proxy", "no_proxy", "ftp_proxy"];
    let kept: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| proxies.iter().any(|p| name.eq_ignore_ascii_case(p)) || name == "HOME" || name == "TMPDIR")
        .collect();
    command.env_clear().envs(kept);
    // The sbin directories are not on every user's path.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin");
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command
}

/// Runs `command` to its end and gives each line it prints to `on_line`. Standard error is also kept.
///
/// # Errors
/// [`ImageError::MissingProgram`] naming `package`, [`ImageError::Cancelled`] (the program has been killed). A program that
/// ran but failed is not an error here: see [`Finished::status`].
pub(crate) fn run(
    mut command: Command,
    package: &'static str,
    progress: &mut dyn Progress,
    mut on_line: impl FnMut(&mut dyn Progress, Stream, &str),
) -> Result<Finished, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // The child stays in our process group, so that a terminal's interrupt reaches it as well.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = KilledOnDrop(command.spawn().map_err(|e| spawn_error(e, &program, package))?);
    let (sender, lines) = channel();
    let readers = [
        child.0.stdout.take().map(|pipe| read_lines(pipe, Stream::Stdout, sender.clone())),
        child.0.stderr.take().map(|pipe| read_lines(pipe, Stream::Stderr, sender)),
    ];
    let mut stderr = Vec::new();
    loop {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        match lines.recv_timeout(CANCEL_POLL) {
            Ok((stream, line)) => {
                on_line(progress, stream, &line);
                if stream == Stream::Stderr {
                    stderr.push(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for reader in readers.into_iter().flatten() {
        // A reader ends when its pipe does; it has nothing to panic about.
        let _ = reader.join();
    }
    let status = child.0.wait().map_err(ImageError::at(Path::new(&program)))?;
    Ok(Finished { status, stderr })
}

/// As [`run`], for a program whose failure has no special meaning.
pub(crate) fn run_checked(
    command: Command,
    package: &'static str,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let finished = run(command, package, progress, |_, _, _| {})?;
    if finished.status.success() {
        return Ok(());
    }
    Err(ImageError::Program { program, reason: finished.reason() })
}

/// Turns a failed spawn into the error that says which package is missing.
pub(crate) fn spawn_error(error: io::Error, program: &str, package: &'static str) -> ImageError {
    match error.kind() {
        io::ErrorKind::NotFound => ImageError::MissingProgram { program: program.to_owned(), package },
        _ => ImageError::io(program, error),
    }
}

fn read_lines(
    pipe: impl Read + Send + 'static,
    stream: Stream,
    sender: Sender<(Stream, String)>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send((stream, String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    })
}

/// A child that does not outlive its caller's interest in it.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // Both fail only when the child is gone already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::image::{NoProgress, Stage};

    struct Cancelled;

    impl Progress for Cancelled {
        fn update(&mut self, _: Stage, _: u64, _: u64) {}
        fn is_cancelled(&self) -> bool {
            true
        }
    }

    fn shell(script: &str) -> Command {
        let mut shell = command("sh");
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn lines_and_reason_are_kept() {
        let mut seen = Vec::new();
        let script = "echo one; echo 'E: broken' >&2; echo 'see the log' >&2; exit 3";
        let finished =
            run(shell(script), "dash", &mut NoProgress, |_, stream, line| seen.push((stream, line.to_owned())))
                .unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.reason(), "broken");
        assert!(seen.contains(&(Stream::Stdout, "one".to_owned())));
    }

    #[test]
    fn cancelling_kills_at_once() {
        let begin = Instant::now();
        let result = run(shell("sleep 30 & sleep 30"), "dash", &mut Cancelled, |_, _, _| {});
        assert!(matches!(result, Err(ImageError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let result = run(command("no-such-program-here"), "somepackage", &mut NoProgress, |_, _, _| {});
        let Err(error) = result else { panic!("it ran") };
        assert_eq!(error.to_string(), "no-such-program-here not found; install the Debian package somepackage");
    }
}
