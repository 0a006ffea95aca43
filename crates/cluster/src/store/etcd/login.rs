//! Who one is to etcd, where it asks for more than a certificate: a user with a password, for which a member gives a token.
//!
//! The JSON gateway does not pass on whom a client's certificate names, so that a user of etcd's cannot be known by it there; a certificate that
//! names anybody is even refused (etcd v3.4, `embed/serve.go`). Tokens are given by all members at once, each of which forgets one that it has not seen
//! for five minutes, and all when it is started again.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::address::EtcdKeys;
use super::wire::Problem;
use crate::store::StoreError;

/// Path at which a member gives a token.
pub const AUTHENTICATE: &str = "/v3/auth/authenticate";
/// How old a token may be before whoever makes ready for a transaction gets another one.
const FRESH: Duration = Duration::from_secs(120);

/// A user of etcd's, and the token that it has got.
pub struct Login {
    user: String,
    password: String,
    token: Mutex<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    given: Instant,
}

/// What a member is asked for a token with.
#[derive(Serialize)]
pub struct AuthenticateRequest<'a> {
    name: &'a str,
    password: &'a str,
}

/// A token.
#[derive(Debug, Deserialize)]
pub struct AuthenticateResponse {
    /// Its text.
    #[serde(default)]
    pub token: String,
}

impl Login {
    /// That of the keys, if they name a user.
    ///
    /// # Errors
    /// If the file with the password cannot be read.
    pub fn of(keys: &EtcdKeys) -> Result<Option<Self>, StoreError> {
        let Some(user) = &keys.user else { return Ok(None) };
        let password = fs::read_to_string(&user.password).map_err(|error| {
            let path = user.password.display();
            StoreError::Unreachable(format!("the keys for etcd cannot be used: {path}: {error}"))
        })?;
        Ok(Some(Self { user: user.name.clone(), password: password.trim().to_owned(), token: Mutex::default() }))
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What to ask for a token with.
    pub fn request(&self) -> AuthenticateRequest<'_> {
        AuthenticateRequest { name: &self.user, password: &self.password }
    }

    /// The token; none before there was one.
    pub fn token(&self) -> Option<String> {
        self.locked().as_ref().map(|token| token.text.clone())
    }

    /// Whether there is a token that no member will forget soon.
    pub fn is_fresh(&self) -> bool {
        self.locked().as_ref().is_some_and(|token| token.given.elapsed() < FRESH)
    }

    /// Takes a token that was just given.
    pub fn take(&self, text: String) {
        *self.locked() = Some(Token { text, given: Instant::now() });
    }

    /// Forgets a token that a member does not know; not one that another thread has got meanwhile.
    pub fn forget(&self, text: &str) {
        let mut token = self.locked();
        if token.as_ref().is_some_and(|token| token.text == text) {
            *token = None;
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Problem {
    /// Whether a member does not take the token that came with a request, or misses one: nothing was done, and another token may help.
    pub fn is_about_the_token(&self) -> bool {
        let text = self.text();
        ["invalid auth token", "user name is empty", "revision of auth store is old"]
            .iter()
            .any(|why| text.contains(why))
    }

    /// Whether etcd knows of no users: whoever reaches it may do everything.
    pub fn says_that_there_are_no_users(&self) -> bool {
        self.text().contains("authentication is not enabled")
    }
}
