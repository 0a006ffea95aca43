//! [`LogFile`]: a log that does not grow without end.

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
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        fs::rename(&self.path, older)?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path).map(Some)
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
        io::stderr().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
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
}
