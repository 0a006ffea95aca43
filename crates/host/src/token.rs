//! Tokens with which hosts join: what an administrator carries from one host to another.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use anyhow::{Context, Result};
use api::client::Target;
use replication::channel::Fingerprint;
use sha2::{Digest, Sha256};

use super::config::check_host_name;

/// How a token begins. The number is the version of its form.
const BEGINNING: &str = "twinvm1";
/// Bytes of a secret: nobody can guess it while the token is valid.
const SECRET_BYTES: usize = 16;

/// A token: whom to ask, how to know that host, and what to say. As text: `twinvm1/HOST/IP:PORT/FINGERPRINT/SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The host that signs certificates.
    pub target: Target,
    /// The authority by which it is known.
    pub authority: Fingerprint,
    /// Its secret, as hexadecimal digits.
    pub secret: String,
}

impl Token {
    /// A token with a new secret.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(target: Target, authority: Fingerprint) -> Result<Self> {
        Ok(Self { target, authority, secret: random_text()? })
    }
}

/// A secret that nobody can guess, as hexadecimal digits.
///
/// # Errors
/// If the system gives no random numbers.
pub fn random_text() -> Result<String> {
    let mut secret = [0; SECRET_BYTES];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut secret));
    random.context("the system gives no random numbers")?;
    Ok(hex(&secret))
}

/// What the store knows a secret by: whoever can read the store cannot join.
pub fn secret_digest(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, authority, secret } = self;
        write!(f, "{BEGINNING}/{}/{}/{authority}/{secret}", target.host, target.address)
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("target", &self.target).finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = String;

    /// Errors do not repeat the text, which may hold a secret.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "this is not a token made by `twinvm host token`: copy all of it, from `twinvm1/` on, as it is";
        let parts: Vec<&str> = text.trim().split('/').collect();
        let [BEGINNING, host, address, authority, secret] = parts[..] else { return Err(wrong.to_owned()) };
        let is_secret = secret.len() == 2 * SECRET_BYTES && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (check_host_name(host), address.parse(), authority.parse()) {
            (Ok(()), Ok(address), Ok(authority)) if is_secret => {
                let target = Target { host: host.to_owned(), address };
                Ok(Self { target, authority, secret: secret.to_owned() })
            }
            _ => Err(wrong.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_or_not_at_all() {
        for address in ["192.0.2.1:7441", "[2001:db8::1]:7441"] {
            let target = Target { host: "a".to_owned(), address: address.parse().unwrap() };
            let token = Token::new(target, "0f".repeat(32).parse().unwrap()).unwrap();
            let text = token.to_string();
            assert_eq!(text.parse::<Token>(), Ok(token.clone()));
            assert_eq!(format!(" {text}\n").parse::<Token>(), Ok(token.clone()));
            let shorter = &text[..text.len() - 1];
            for wrong in ["", "twinvm1", shorter, &text.replace("twinvm1", "twinvm2"), &text.replace("7441", "x")] {
                let error = wrong.parse::<Token>().unwrap_err();
                assert!(error.contains("twinvm host token") && !error.contains(&token.secret), "{error}");
            }
            assert!(!format!("{token:?}").contains(&token.secret));
        }
    }

    #[test]
    fn no_two_tokens_have_one_secret() {
        let target = Target { host: "a".to_owned(), address: "192.0.2.1:7441".parse().unwrap() };
        let token = || Token::new(target.clone(), "00".repeat(32).parse().unwrap()).unwrap();
        assert_ne!(token().secret, token().secret);
        assert_ne!(secret_digest(&token().secret), secret_digest(&token().secret));
    }
}
