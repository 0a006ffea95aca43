//! Calls to the members of an etcd cluster.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::address::{EtcdAddress, EtcdKeys};
use super::login::{AUTHENTICATE, AuthenticateResponse, Login};
use super::pace::Pace;
use super::sight::{Seen, Sight};
use super::validity::Validity;
use super::wire::{Answered, Header, Problem, Streamed};
use super::{RANGE, TXN, receipts_of};
use crate::store::StoreError;

/// How long a call may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long is waited after each member was asked in vain.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest answer, in bytes: as long as all that is stored may be, in base64.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How much is told of what etcd, or whatever stands before it, says of a problem, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// Why a call came to nothing.
#[derive(Clone, Debug)]
pub enum CallError {
    /// Nobody knows whether it was done, or will be.
    Ambiguous(String),
    /// etcd has refused it: it was not done.
    Refused(Problem),
}

/// A client of an etcd cluster.
pub struct Client {
    agent: Agent,
    address: EtcdAddress,
    scheme: &'static str,
    /// The member that is asked first: to begin with, and again when all is well, the first of the address.
    preferred: AtomicUsize,
    /// How long a member may take.
    pace: Pace,
    /// What it has seen of etcd: another etcd cluster, or an older copy of this one, would be another arbiter.
    seen: Seen,
    /// Until when its certificate is good, if it has one.
    validity: Option<Validity>,
    /// Who this client is to etcd, beyond its certificate.
    login: Option<Login>,
}

impl Client {
    /// Prepares one. Connects to nobody.
    /// `sight` is what was seen of it before.
    pub fn new(address: EtcdAddress, keys: Option<&EtcdKeys>, sight: Option<Sight>) -> Result<Self, StoreError> {
        let mut config = Agent::config_builder().http_status_as_error(false).proxy(None).max_redirects(0);
        let mut validity = None;
        if let Some(keys) = keys {
            let chain = certificates(&keys.cert)?;
            validity = chain.first().and_then(|own| Validity::of(&keys.cert, own.der()));
            config = config.tls_config(tls(keys, &chain)?);
        }
        let scheme = if keys.is_some() { "https" } else { "http" };
        Ok(Self {
            agent: config.build().into(),
            pace: Pace::new(address.members.len()),
            address,
            scheme,
            preferred: AtomicUsize::new(0),
            seen: Seen::from(sight),
            validity,
            login: keys.map(Login::of).transpose()?.flatten(),
        })
    }

    /// Where it is.
    pub fn address(&self) -> &EtcdAddress {
        &self.address
    }

    /// What the keys of the receipts of this client begin with.
    pub fn receipts(&self) -> String {
        receipts_of(&self.address, self.login.as_ref().map(Login::user))
    }

    /// Asks one member, the preferred one. If it does not answer, or has no leader, the next one is preferred.
    pub fn ask<T: Answered>(&self, path: &str, request: &impl Serialize) -> Result<T, CallError> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let answer = self.ask_member(preferred, path, request);
        if let Err(CallError::Ambiguous(_)) = &answer {
            self.seen.doubt();
            self.turn_from(preferred);
        }
        answer
    }

    /// What was seen of etcd.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Asks what may be asked twice until there is an answer, for as long as a call may take.
    pub fn ask_until_answered<T: Answered>(&self, path: &str, request: &impl Serialize) -> Result<T, StoreError> {
        self.ask_until_said(path, request)?.map_err(|problem| self.explain(&problem))
    }

    /// The same; the answer may be that etcd refuses.
    pub fn ask_until_said<T: Answered>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<Result<T, Problem>, StoreError> {
        let mut patience = self.patience();
        loop {
            match self.ask(path, request) {
                Ok(answer) => return Ok(Ok(answer)),
                Err(CallError::Refused(problem)) => return Ok(Err(problem)),
                Err(CallError::Ambiguous(why)) if !patience.is_left() => return Err(self.unreachable(&why)),
                Err(CallError::Ambiguous(_)) => {}
            }
        }
    }

    /// How long one goes on asking.
    pub fn patience(&self) -> Patience {
        Patience { asked: 0, members: self.address.members.len(), until: Instant::now() + CALL_TIMEOUT }
    }

    /// Asks for a stream of messages, which is over after `lifetime`.
    pub fn stream(&self, path: &str, request: &impl Serialize, lifetime: Duration) -> Result<Messages, CallError> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        if let Some(why) = self.seen.gone_back() {
            return Err(self.ambiguous(preferred, why));
        }
        let answer = self.send(preferred, path, request, lifetime);
        match answer {
            Ok(body) => Ok(Messages { lines: BufReader::new(Box::new(body.into_reader())), member: preferred }),
            Err(error) => {
                self.turn_from(preferred);
                Err(error)
            }
        }
    }

    /// Prefers the next member to this one. Several threads that failed at one member turn to the same next one.
    pub fn turn_from(&self, member: usize) {
        let next = member.wrapping_add(1);
        let _ = self.preferred.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Prefers the first member of the address again, which may not have answered for a while.
    pub fn prefer_first(&self) {
        self.preferred.store(0, Ordering::Relaxed);
    }

    /// Waits a little, not beyond a time.
    pub fn pause(&self, until: Instant) {
        thread::sleep(PAUSE.min(until.saturating_duration_since(Instant::now())));
    }

    /// Makes sure that what a member has answered is of the etcd cluster that has answered before.
    pub fn check_cluster(&self, member: usize, header: Header) -> Result<(), CallError> {
        let answers = header.cluster_id.0;
        if answers == 0 {
            return Err(self.ambiguous(member, "its answer makes no sense: it says not of which etcd cluster it is"));
        }
        let first = self.seen.cluster_id(answers);
        if answers == first {
            return Ok(());
        }
        let member = self.member(member);
        let why = format!(
            "{member}: it is of another etcd cluster ({answers:x}) than the others ({first:x}): correct the address of the store, or, if etcd was restored from a snapshot, see `twinvm cluster accept-store`"
        );
        tracing::error!("{}: {why}", self.address);
        Err(CallError::Ambiguous(why))
    }

    fn ask_member<T: Answered>(&self, member: usize, path: &str, request: &impl Serialize) -> Result<T, CallError> {
        if let Some(why) = self.seen.gone_back() {
            return Err(self.ambiguous(member, why));
        }
        let before = self.seen.revision();
        let mut body = self.send(member, path, request, self.pace.timeout())?;
        let answer = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let answer = answer.map_err(|error| self.ambiguous(member, &error.to_string()))?;
        let answer: T = serde_json::from_slice(&answer)
            .map_err(|error| self.ambiguous(member, &format!("its answer makes no sense: {error}")))?;
        if let Some(header) = answer.header() {
            self.check_cluster(member, header)?;
            // Leases are answered for by whichever member, however far that is.
            if [RANGE, TXN].contains(&path) {
                self.seen.note(before, header.revision.0).map_err(|why| {
                    tracing::error!("{}: {why}", self.address);
                    self.ambiguous(member, &why)
                })?;
            }
        }
        Ok(answer)
    }

    /// Sends a request, with a token if etcd wants one of this client.
    fn send(&self, member: usize, path: &str, request: &impl Serialize, timeout: Duration) -> Result<Body, CallError> {
        let Some(login) = &self.login else { return self.post(member, path, request, timeout, None) };
        let token = match login.token() {
            Some(token) => token,
            None => self.log_in(login, member)?,
        };
        match self.post(member, path, request, timeout, Some(&token)) {
            // It has done nothing.
            Err(CallError::Refused(problem)) if problem.is_about_the_token() => {
                login.forget(&token);
                let token = self.log_in(login, member)?;
                self.post(member, path, request, timeout, Some(&token))
            }
            answer => answer,
        }
    }

    /// Gets a token that no member forgets soon, if there is a user and it has none.
    pub fn renew_token(&self) -> Result<(), StoreError> {
        let Some(login) = self.login.as_ref().filter(|login| !login.is_fresh()) else { return Ok(()) };
        let member = self.preferred.load(Ordering::Relaxed);
        match self.log_in(login, member) {
            Ok(_) => Ok(()),
            Err(CallError::Refused(problem)) => Err(self.explain(&problem)),
            Err(CallError::Ambiguous(why)) => {
                self.turn_from(member);
                Err(self.unreachable(&why))
            }
        }
    }

    /// Gets a token, from one member for all. Where etcd knows no users it is empty.
    fn log_in(&self, login: &Login, member: usize) -> Result<String, CallError> {
        let token = match self.post(member, AUTHENTICATE, &login.request(), self.pace.timeout(), None) {
            Ok(mut body) => {
                let answer = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
                let answer = answer.map_err(|error| self.ambiguous(member, &error.to_string()))?;
                let answer: AuthenticateResponse = serde_json::from_slice(&answer)
                    .map_err(|error| self.ambiguous(member, &format!("its answer makes no sense: {error}")))?;
                answer.token
            }
            Err(CallError::Refused(problem)) if problem.says_that_there_are_no_users() => String::new(),
            Err(error) => return Err(error),
        };
        login.take(token.clone());
        Ok(token)
    }

    /// Forgets the token, as a member does not take it.
    pub fn forget_token(&self) {
        if let Some(login) = &self.login
            && let Some(token) = login.token()
        {
            login.forget(&token);
        }
    }

    fn post(
        &self,
        member: usize,
        path: &str,
        request: &impl Serialize,
        timeout: Duration,
        token: Option<&str>,
    ) -> Result<Body, CallError> {
        let body = serde_json::to_vec(request).map_err(|error| self.ambiguous(member, &error.to_string()))?;
        let url = format!("{}://{}{path}", self.scheme, self.member(member));
        let mut post = self.agent.post(&url);
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            post = post.header("Authorization", token);
        }
        let (asked, answer_timeout) = (Instant::now(), self.pace.timeout());
        let response = post
            .config()
            .timeout_connect(Some(answer_timeout))
            .timeout_recv_response(Some(answer_timeout))
            .timeout_global(Some(timeout))
            .build()
            .header("Content-Type", "application/json")
            // A member without a leader says so rather than letting a watch wait.
            .header("Grpc-Metadata-hasleader", "true")
            .send(&body[..]);
        match &response {
            Ok(_) => self.pace.answered(asked.elapsed()),
            Err(ureq::Error::Timeout(_)) => self.pace.silent(),
            Err(_) => {}
        }
        let mut response = response.map_err(|error| self.ambiguous(member, &self.broken_off(&error)))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
        match serde_json::from_slice::<Problem>(&answer) {
            Ok(problem) if problem.is_final() => Err(CallError::Refused(problem)),
            Ok(problem) => Err(self.ambiguous(member, problem.text())),
            Err(_) => Err(self.ambiguous(member, &format!("it answers {status}"))),
        }
    }

    /// Why a member could not be asked, in words.
    fn broken_off(&self, error: &ureq::Error) -> String {
        let text = error.to_string();
        match self.validity.as_ref().and_then(Validity::problem) {
            Some(problem) => format!("{problem} ({text})"),
            // Said as "Expired" or as "certificate expired", by what rustls knows of it.
            None if text.contains("invalid peer certificate") && text.to_ascii_lowercase().contains("expired") => {
                format!("{text}; renew the certificate of that member")
            }
            None => text,
        }
    }

    fn member(&self, number: usize) -> &str {
        let members = &self.address.members;
        members.get(number % members.len().max(1)).map_or("", String::as_str)
    }

    fn ambiguous(&self, member: usize, why: &str) -> CallError {
        CallError::Ambiguous(format!("{}: {why}", self.member(member)))
    }

    /// What it means that nobody answers.
    pub fn unreachable(&self, why: &str) -> StoreError {
        StoreError::Unreachable(format!(
            "{}: no member has answered within {} s, the last one asked: {why}",
            self.address,
            CALL_TIMEOUT.as_secs()
        ))
    }

    /// What a refusal means to an administrator.
    pub fn explain(&self, problem: &Problem) -> StoreError {
        let (address, text) = (&self.address, problem.text());
        match problem.code {
            codes::NOT_FOUND if text.contains("lease") => StoreError::LeaseEnded,
            codes::RESOURCE_EXHAUSTED => StoreError::Unreachable(format!(
                "{address}: {text}; compact and defragment etcd, then disarm its alarm (see etcd's `--quota-backend-bytes`)"
            )),
            codes::PERMISSION_DENIED | codes::UNAUTHENTICATED => StoreError::Unreachable(format!(
                "{address}: {text}; see `twinvm cluster etcd --help` for the rights of a host's user"
            )),
            _ => StoreError::Refused(format!("{address}: {text}")),
        }
    }
}

/// Counts how often each member has been asked.
pub struct Patience {
    asked: usize,
    members: usize,
    until: Instant,
}

impl Patience {
    /// Whether it may be asked again; waits a little when each member has been asked.
    pub fn is_left(&mut self) -> bool {
        self.asked += 1;
        if self.asked.is_multiple_of(self.members.max(1)) {
            thread::sleep(PAUSE);
        }
        Instant::now() < self.until
    }
}

/// Messages of a stream, until it ends.
pub struct Messages {
    lines: BufReader<Box<dyn Read + Send>>,
    /// The member that tells them.
    pub member: usize,
}

impl Messages {
    /// The next one.
    pub fn next<T: Answered>(&mut self) -> Option<Streamed<T>> {
        let mut line = Vec::new();
        match (&mut self.lines).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(length) if length > 0 => serde_json::from_slice(&line).ok(),
            _ => None,
        }
    }
}

/// Codes of gRPC.
mod codes {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const NOT_FOUND: i32 = 5;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNAUTHENTICATED: i32 = 16;
}

impl Problem {
    /// In words, not too many.
    pub fn text(&self) -> &str {
        let text = if self.message.is_empty() { &self.error } else { &self.message };
        let length = (0..=TEXT_BYTES_MAX).rev().find(|&length| text.is_char_boundary(length));
        length.and_then(|length| text.get(..length)).filter(|_| text.len() > TEXT_BYTES_MAX).unwrap_or(text)
    }

    /// Whether etcd says by this that nothing was done and nothing will be. Time-outs and lost leaders say nothing of the kind; nor does a member
    /// that has too much to do, which may have passed the request on.
    fn is_final(&self) -> bool {
        match self.code {
            codes::RESOURCE_EXHAUSTED => self.text().contains("database space exceeded"),
            code => [
                codes::INVALID_ARGUMENT,
                codes::NOT_FOUND,
                codes::PERMISSION_DENIED,
                codes::FAILED_PRECONDITION,
                codes::OUT_OF_RANGE,
                codes::UNAUTHENTICATED,
            ]
            .contains(&code),
        }
    }
}

fn tls(keys: &EtcdKeys, chain: &[Certificate<'static>]) -> Result<TlsConfig, StoreError> {
    let authorities: Vec<Certificate<'static>> = certificates(&keys.ca)?;
    let key = PrivateKey::from_pem(&read(&keys.key)?).map_err(|error| unusable(&keys.key, &error.to_string()))?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&authorities))
        .client_cert(Some(ClientCert::new_with_certs(chain, key)))
        .build())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, StoreError> {
    let text = read(path)?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(path, &error.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(unusable(path, "there is no certificate in it")) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| unusable(path, &error.to_string()))
}

fn unusable(path: &Path, why: &str) -> StoreError {
    StoreError::Unreachable(format!("the keys for etcd cannot be used: {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It goes on from here to replicas, in messages that have an end.
    #[test]
    fn not_all_is_told_of_a_long_text() {
        let problem = |message: String| Problem { message, error: "other".to_owned(), code: 0 };
        assert_eq!(problem(String::new()).text(), "other");
        for (letter, told) in [("x", 1024), ("\u{e4}", 1024), ("\u{20ac}", 1023)] {
            assert_eq!(problem(letter.repeat(100_000)).text(), letter.repeat(told / letter.len()));
        }
        assert_eq!(problem("x".repeat(1024)).text().len(), 1024);
    }
}
