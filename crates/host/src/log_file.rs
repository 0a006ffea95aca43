//! Logs that do not grow without end: [`LogFile`], which is standard error, and [`BoundedFile`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use machine::bus::lock;
use tracing_subscriber::fmt::MakeWriter;

/// Longest log, in bytes; the one before it is kept as well.
const BYTES_MAX: u64 = 1 << 20;

/// The standard error of this process, which is a file of a given name. When that is full it is renamed to `NAME.1`, in place of the one before,
/// and standard error and output go to a new one.
pub struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    /// Bytes in the file, as far as they were written here.
    len_bytes: Mutex<u64>,
}

impl LogFile {
    /// The log at `path`, to which standard error leads.
    pub fn new(path: &Path) -> Self {
        Self::with_limit(path, BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> Self {
        let len_bytes = fs::metadata(path).map_or(0, |file| file.len());
        Self { path: path.to_owned(), bytes_max, len_bytes: Mutex::new(len_bytes) }
    }

    /// Counts a line that is about to be written; the file for it if a new one is begun.
    fn account(&self, line_bytes: usize) -> io::Result<Option<File>> {
        let mut len_bytes = lock(&self.len_bytes);
        let line_bytes = u64::try_from(line_bytes).unwrap_or(u64::MAX);
        *len_bytes = len_bytes.saturating_add(line_bytes);
        if *len_bytes <= self.bytes_max {
            return Ok(None);
        }
        *len_bytes = line_bytes;
        fs::rename(&self.path, older(&self.path))?;
        append(&self.path).map(Some)
    }
}

/// Where the log before the one at `path` is.
pub fn older(path: &Path) -> PathBuf {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    older.into()
}

/// The file at `path`, to be written at its end; for its owner only.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A file that is written at its end. When it is full it is renamed to `NAME.1`, in place of the one before, and a new one is begun.
pub struct BoundedFile {
    log: LogFile,
    /// None until it could be opened.
    file: Option<File>,
}

impl BoundedFile {
    /// The file at `path`, which is made, or gone on with, by the first write.
    pub fn new(path: &Path) -> Self {
        Self { log: LogFile::new(path), file: None }
    }
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(next) = self.log.account(bytes.len())? {
            self.file = Some(next);
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(append(&self.log.path)?),
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one line.
pub struct LogLine<'a>(&'a LogFile);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = self.0.account(line.len())? {
            rustix::stdio::dup2_stderr(&file)?;
            rustix::stdio::dup2_stdout(&file)?;
        }
        // Past the lock of standard error, which who panics takes: this may hang.
        Ok(rustix::io::write(rustix::stdio::stderr(), line)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LogLine(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_kept_once_and_a_new_one_is_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.log");
        fs::write(&path, "older").unwrap();
        let log = LogFile::with_limit(&path, 100);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        for number in 0..1000 {
            let line = format!("line {number:4}\n");
            file = log.account(line.len()).unwrap().unwrap_or(file);
            file.write_all(line.as_bytes()).unwrap();
        }
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 2, "{files:?}");
        assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 100));
        assert!(fs::read_to_string(&path).unwrap().ends_with("line  999\n"));
    }

    /// Names the log of the child.
    const LOG: &str = "TWINVM_TEST_LOG";

    /// Else the log before would grow without end, by a name that nobody looks at.
    #[test]
    fn a_process_whose_log_is_full_writes_to_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.log");
        let log = append(&path).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log_file::tests::as_a_process_that_logs", "--ignored", "--nocapture"])
            .env(LOG, &path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status();
        assert!(child.unwrap().success());
        let [new, old] = [path.clone(), older(&path)].map(|log| fs::read_to_string(log).unwrap());
        // The harness of the tests writes some lines of its own.
        assert!(new.contains("line  999\n") && new.len() < 4000 && old.len() < 4000, "{} {}", new.len(), old.len());
        assert!(new.contains("said by somebody else"), "standard output: {new}");
    }

    #[test]
    #[ignore = "the part of a child process"]
    fn as_a_process_that_logs() {
        let log = LogFile::with_limit(Path::new(&std::env::var_os(LOG).unwrap()), 1000);
        for number in 0..1000 {
            LogLine(&log).write_all(format!("line {number:4}\n").as_bytes()).unwrap();
        }
        rustix::io::write(rustix::stdio::stdout(), b"said by somebody else\n").unwrap();
    }

    #[test]
    fn a_bounded_file_is_gone_on_with_and_survives_that_it_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm").join("console.log");
        let mut file = BoundedFile { log: LogFile::with_limit(&path, 100), file: None };
        assert!(file.write_all(b"lost").is_err());
        fs::create_dir(folder.path().join("vm")).unwrap();
        file.write_all(b"kept ").unwrap();
        let mut file = BoundedFile { log: LogFile::with_limit(&path, 100), file: None };
        file.write_all(b"as well").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept as well");
        for _ in 0..1000 {
            file.write_all(&[b'x'; 40]).unwrap();
        }
        for file in [&path, &older(&path)] {
            assert!((1..=100).contains(&fs::metadata(file).unwrap().len()), "{}", file.display());
        }
    }
}
