//! The key of a repository, from which all that is used in it is derived.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};

use super::error::BackupError;

/// What a key's text begins with; the number is the version.
const PREFIX: &str = "twinvm-backup-key-1:";
/// Length of a key, in bytes.
const KEY_BYTES: usize = 32;
/// Of its check sum, which tells a mistyped key from a wrong one.
const CHECK_BYTES: usize = 4;

/// The key of a repository: 256 random bits. Without it nothing in the repository can be read, by anybody.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositoryKey([u8; KEY_BYTES]);

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepositoryKey(..)")
    }
}

impl RepositoryKey {
    /// A new one.
    ///
    /// # Errors
    /// [`BackupError::Random`].
    pub fn random() -> Result<Self, BackupError> {
        Ok(Self(random()?))
    }

    /// As text: one line, which [`Self::from_text`] reads.
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}:{}", hex(&self.0), hex(&check(&self.0)))
    }

    /// What an administrator keeps in a safe place.
    pub fn escrow_text(&self, repository: &str) -> String {
        format!(
            "# The key of the twinvm backup repository {repository}.\n\
             # Keep a copy apart from the hosts and from the repository. Whoever has it can read all backups; without it nobody can.\n\
             # `twinvm backup repo add NAME PATH --key FILE` opens the repository with this file, on any host.\n{}\n",
            self.to_text()
        )
    }

    /// Reads a key: a line of a text whose other lines are empty or begin with `#`.
    ///
    /// # Errors
    /// [`BackupError::BadKey`].
    pub fn from_text(text: &str) -> Result<Self, BackupError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or(BackupError::BadKey("it is empty"))?;
        if lines.next().is_some() {
            return Err(BackupError::BadKey("it has more than one line"));
        }
        let rest = line.strip_prefix(PREFIX);
        let rest = rest.ok_or(BackupError::BadKey("it does not begin with `twinvm-backup-key-1:`"))?;
        let (key, sum) = rest.split_once(':').ok_or(BackupError::BadKey("its end is missing"))?;
        let key = from_hex::<KEY_BYTES>(key).ok_or(BackupError::BadKey("it is not 64 hexadecimal digits"))?;
        if from_hex::<CHECK_BYTES>(sum) != Some(check(&key)) {
            return Err(BackupError::BadKey("a digit of it is wrong"));
        }
        Ok(Self(key))
    }

    /// A key for one purpose.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; KEY_BYTES] {
        blake3::derive_key(purpose, &self.0)
    }
}

fn check(key: &[u8; KEY_BYTES]) -> [u8; CHECK_BYTES] {
    let [a, b, c, d, ..] = blake3::derive_key("twinvm backup 1: check sum of a key", key);
    [a, b, c, d]
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], BackupError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| BackupError::Random)?;
    Ok(bytes)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse of [`hex`], and nothing else.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_escrow_file_and_a_wrong_digit_is_noticed() {
        let key = RepositoryKey::random().unwrap();
        let text = key.escrow_text("/backups");
        assert_eq!(RepositoryKey::from_text(&text).unwrap(), key);
        let line = key.to_text();
        for at in PREFIX.len()..line.len() {
            let mut wrong = line.clone().into_bytes();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            assert!(RepositoryKey::from_text(&String::from_utf8(wrong).unwrap()).is_err(), "{at}");
        }
        for other in ["", "# nothing", "key", &format!("{line}\n{line}"), &line[..80], "twinvm-backup-key-2:00:00"] {
            assert!(RepositoryKey::from_text(other).is_err(), "{other}");
        }
        assert!(!format!("{key:?}").contains(&hex(&key.0[..4])));
    }
}
