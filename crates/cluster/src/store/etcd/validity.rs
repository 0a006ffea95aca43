//! [`Validity`]: until when a host's certificate for etcd is good.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::parse_x509_certificate;

/// Until when a host's certificate for etcd is good. etcd does not say what it minds: it hangs up on whoever comes with one that has expired.
pub struct Validity {
    file: PathBuf,
    /// In s since 1970.
    until_unix_s: i64,
}

impl Validity {
    /// That of the certificate in a file, whose contents are `der`; none if it cannot be read, which TLS finds out.
    pub fn of(file: &Path, der: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(der).ok()?;
        Some(Self { file: file.to_owned(), until_unix_s: certificate.validity().not_after.timestamp() })
    }

    /// That it has expired, if it has by this host's clock.
    pub fn problem(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let has_expired = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) > self.until_unix_s;
        has_expired.then(|| format!("{} has expired: renew it", self.file.display()))
    }
}
