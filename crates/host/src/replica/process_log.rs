//! [`ProcessLog`]: what a replica logs, without waiting for the file system that it is on.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use machine::bus::lock;
use tracing_subscriber::fmt::MakeWriter;

use crate::foreground::output::{Output, OutputSink};
use crate::log_file::{LogFile, LogLine};

/// The log of this process, to which standard error leads. Whoever logs waits for the file until [`ProcessLog::queue`], and not from then on: a file
/// system that hangs would stop each thread that has something to say, and it is the one that holds the VM's disks. Clones are the same log.
#[derive(Clone)]
pub struct ProcessLog(Arc<Inner>);

struct Inner {
    file: Arc<LogFile>,
    sink: OnceLock<OutputSink>,
    output: Mutex<Option<Output>>,
}

/// Writes lines to a file that is standard error.
struct Lines(Arc<LogFile>);

/// Writes one line.
pub enum ProcessLogLine<'a> {
    /// To the file.
    Now(LogLine<'a>),
    /// To the thread that writes to it.
    Queued(OutputSink),
}

impl ProcessLog {
    /// The log at `path`, to which standard error leads.
    pub fn new(path: &Path) -> Self {
        let file = Arc::new(LogFile::new(path));
        Self(Arc::new(Inner { file, sink: OnceLock::new(), output: Mutex::new(None) }))
    }

    /// Starts the thread that writes to the file. It has the rights that the caller has then, so this is for a process that is confined already.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn queue(&self) -> io::Result<()> {
        let note = |bytes| format!("({bytes} bytes of log were left out here)\n");
        let output = Output::start(Lines(self.0.file.clone()), note)?;
        let _ = self.0.sink.set(output.sink());
        *lock(&self.0.output) = Some(output);
        Ok(())
    }

    /// Waits until what was logged is written, as long as it gets on.
    pub fn finish(&self) {
        let output = lock(&self.0.output).take();
        drop(output);
    }
}

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.make_writer().write(lines)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for ProcessLogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Now(file) => file.write(line),
            Self::Queued(sink) => sink.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for ProcessLog {
    type Writer = ProcessLogLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match self.0.sink.get() {
            Some(sink) => ProcessLogLine::Queued(sink.clone()),
            None => ProcessLogLine::Now(self.0.file.make_writer()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{PipeReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Names the folder of the child.
    const FOLDER: &str = "TWINVM_TEST_LOG_FOLDER";
    const PATIENCE: Duration = Duration::from_secs(60);

    fn wait_for(what: &Path) {
        let deadline = Instant::now() + PATIENCE;
        while !what.exists() {
            assert!(Instant::now() < deadline, "no {}", what.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A child whose standard error is a pipe that nobody reads yet.
    fn child(folder: &Path) -> (Child, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "replica::process_log::tests::as_a_process_that_logs_much", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        (child, reader)
    }

    /// Each thread that had something to log waited, that of the guest among them.
    #[test]
    fn row_28_a_log_that_hangs_holds_nobody_up_and_says_what_it_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, mut reader) = child(folder.path());
        wait_for(&folder.path().join("has-logged"));
        let (mut seen, mut chunk) = (String::new(), [0; 1 << 16]);
        while !seen.contains("the end") {
            let len = reader.read(&mut chunk).unwrap();
            assert_ne!(len, 0, "the log ends");
            seen.push_str(&String::from_utf8_lossy(&chunk[..len]));
        }
        assert!(seen.contains("bytes of log were left out here)\n"), "nothing says what is missing");
        fs::write(folder.path().join("is-read"), "").unwrap();
        // Nor does the end of the process wait for it.
        wait_for(&folder.path().join("is-over"));
        assert!(child.wait().unwrap().success());
    }

    #[test]
    #[ignore = "the part of a child process"]
    fn as_a_process_that_logs_much() {
        let folder = std::path::PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let log = ProcessLog::new(&folder.join("replica.log"));
        log.make_writer().write_all(b"written at once\n").unwrap();
        log.queue().unwrap();
        // More than the queue and a pipe hold, and less than a file, which would take the place of the pipe.
        let many = |text: &[u8]| (0..1000).for_each(|_| log.make_writer().write_all(text).unwrap());
        many(&[b'x'; 1200]);
        fs::write(folder.join("has-logged"), "").unwrap();
        while !folder.join("is-read").exists() {
            log.make_writer().write_all(b"the end\n").unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        many(&[b'y'; 300]);
        log.finish();
        fs::write(folder.join("is-over"), "").unwrap();
    }
}
