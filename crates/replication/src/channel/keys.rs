//! The files that hold keys and certificates.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::IdentityError;

/// The authority's certificate, in its own folder and in each host's.
pub(super) const AUTHORITY: &str = "ca.pem";
/// The authority's key.
pub(super) const AUTHORITY_KEY: &str = "ca.key";
/// A host's certificate.
pub(super) const HOST: &str = "host.pem";
/// A host's key.
pub(super) const HOST_KEY: &str = "host.key";

/// A certificate with its key, and the certificate of the authority that vouches for others: each as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemKeys {
    /// The authority's certificate.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl PemKeys {
    /// Those of a host, as the files of its folder of keys: names and texts.
    pub fn files(&self) -> [(&'static str, &str); 3] {
        [(HOST_KEY, &self.key), (HOST, &self.certificate), (AUTHORITY, &self.authority)]
    }

    /// All of it in one text: the certificate, its key, the authority's certificate.
    pub fn to_text(&self) -> String {
        [&self.certificate, &self.key, &self.authority].map(|part| part.trim_end().to_owned() + "\n").concat()
    }
}

/// It holds a key: nobody needs to see that.
impl fmt::Debug for PemKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemKeys").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What was written so far; all of it is removed again unless the whole succeeds.
pub(super) struct NewFiles<'a> {
    folder: &'a Path,
    written: Vec<PathBuf>,
}

impl<'a> NewFiles<'a> {
    pub fn begin(folder: &'a Path) -> Result<Self, IdentityError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| io(folder, error))?;
        Ok(Self { folder, written: Vec::new() })
    }

    /// Writes a file that is not there yet. `mode` holds from its first moment.
    pub fn write(&mut self, name: &str, text: &str, mode: u32) -> Result<(), IdentityError> {
        let path = self.folder.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let mut file = file.map_err(|error| io(&path, error))?;
        self.written.push(path.clone());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| io(&path, error))
    }

    pub fn keep(mut self) {
        self.written.clear();
    }
}

impl Drop for NewFiles<'_> {
    fn drop(&mut self) {
        for path in &self.written {
            // It was there a moment ago; whoever removed it did what is wanted.
            let _ = fs::remove_file(path);
        }
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|error| io(path, error))
}

/// The text of a key, which nobody else may be able to read.
pub(super) fn read_private(path: &Path) -> Result<String, IdentityError> {
    let mode = fs::metadata(path).map_err(|error| io(path, error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Readable { path: path.to_owned(), mode });
    }
    read(path)
}

pub(super) fn invalid(path: &Path, reason: impl ToString) -> IdentityError {
    IdentityError::Invalid { path: path.to_owned(), reason: reason.to_string() }
}

fn io(path: &Path, error: std::io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_owned(), error }
}
