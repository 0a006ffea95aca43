//! The client of the REST API, for commands and for daemons among themselves.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Problem;

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a host may take to connect a client to a console.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The name of the protocol that a console's connection is upgraded to.
pub const CONSOLE_PROTOCOL: &str = "twinvm-console";
/// With a console's connection: the place of the first byte that it shows.
pub const CONSOLE_PLACE_HEADER: &str = "x-twinvm-console-place";
/// With it too: how many bytes the guest's console has taken from this client before, where that is known.
pub const CONSOLE_TAKEN_HEADER: &str = "x-twinvm-console-taken";
/// With a redirection (307): the name of the host to ask, which its certificate must bear.
pub const HOME_HEADER: &str = "x-twinvm-host";
/// Marks a request that a host has sent on to another one, which answers it itself.
pub const SENT_ON_HEADER: &str = "x-twinvm-sent-on";

/// A connection to a console: what comes is what the guest writes, what goes is typed.
pub type ConsoleStream = TokioIo<Upgraded>;

/// A client's connection to a console.
pub struct Console {
    /// The connection.
    pub stream: ConsoleStream,
    /// The place of the first byte that it shows.
    pub place: String,
    /// How many bytes of the client's were taken before, where that is known.
    pub taken: Option<u64>,
}

/// A daemon to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host's name, which its certificate must bear.
    pub host: String,
    /// Where its API listens.
    pub address: SocketAddr,
}

/// Why a call did not do what it should.
#[derive(Debug, Error)]
pub enum CallError {
    /// There is no daemon that answers, or not the right one.
    #[error("host {host} does not answer at {address}: {reason}")]
    Unreachable {
        /// The host.
        host: String,
        /// Where it should be.
        address: SocketAddr,
        /// Why the host was not reached.
        reason: String,
    },
    /// The daemon says no.
    #[error("{problem}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// Why the request was refused, and what to do.
        problem: Problem,
    },
    /// Something on this side.
    #[error("{0}")]
    Local(String),
}

/// A client with a certificate of the cluster. Each call has a connection of its own.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client with this TLS configuration, which holds its certificate.
    pub fn new(config: Arc<ClientConfig>) -> Self {
        Self { config }
    }

    /// Sends a request with a body of JSON, if any, and returns the answer's JSON.
    pub async fn call<T: DeserializeOwned>(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| CallError::Local(error.to_string()))?;
        let question = Question { method, path, body: body.map(Bytes::from), upgrade: None };
        let bytes = self.exchange(target, &question, ANSWER_BYTES_MAX, timeout).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| unreachable(target, format!("its answer makes no sense: {error}")))
    }

    /// Fetches a file of at most `bytes_max` bytes.
    pub async fn download(
        &self,
        target: &Target,
        path: &str,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let question = Question { method: Method::GET, path, body: None, upgrade: None };
        self.exchange(target, &question, bytes_max, timeout).await
    }

    /// Asks a host, or the one to which it sends the client on, and returns the body of the answer.
    async fn exchange(
        &self,
        target: &Target,
        question: &Question<'_>,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let (target, response) = self.ask(target, question, timeout).await?;
        in_time(&target, accepted(&target, response, bytes_max), timeout).await
    }

    /// Asks a host, or the one to which it sends the client on; which it was, and its answer, whose body is still to come.
    async fn ask(
        &self,
        target: &Target,
        question: &Question<'_>,
        timeout: Duration,
    ) -> Result<(Target, Response<Incoming>), CallError> {
        let response = in_time(target, self.send(target, question.to(target, false)?), timeout).await?;
        let Some(home) = sent_on(target, &response)? else { return Ok((target.clone(), response)) };
        let response = in_time(&home, self.send(&home, question.to(&home, true)?), timeout).await?;
        Ok((home, response))
    }

    /// Connects to the console of a VM; what was `seen` of it before, as an earlier connection named the place, is not shown again if that
    /// place is still known. Also gives the place of the first byte that the connection shows: `RUN.BYTES`, where `RUN` is another number each time
    /// that the VM is started, and `BYTES` is how many bytes its guest had written. What a `typist` types, a number of the client's own choice, is counted; the
    /// connection says how much of it was taken before, if that is known.
    pub async fn console(
        &self,
        target: &Target,
        vm: &str,
        seen: Option<&str>,
        typist: Option<u64>,
    ) -> Result<Console, CallError> {
        let seen = seen.map(|place| format!("seen={place}"));
        let typist = typist.map(|number| format!("typist={number}"));
        let query: Vec<String> = seen.into_iter().chain(typist).collect();
        let path = format!("/v1/vms/{vm}/console?{}", query.join("&"));
        let question = Question { method: Method::GET, path: &path, body: None, upgrade: Some(CONSOLE_PROTOCOL) };
        let (target, response) = self.ask(target, &question, CONSOLE_TIMEOUT).await?;
        let target = &target;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            accepted(target, response, ANSWER_BYTES_MAX).await?;
            return Err(unreachable(target, "it does not know consoles"));
        }
        let place = response.headers().get(CONSOLE_PLACE_HEADER).and_then(|place| place.to_str().ok());
        let place = place.map(str::to_owned).ok_or_else(|| unreachable(target, "it does not say what it shows"))?;
        let taken = response.headers().get(CONSOLE_TAKEN_HEADER).and_then(|taken| taken.to_str().ok()?.parse().ok());
        let stream = hyper::upgrade::on(response).await.map_err(|error| unreachable(target, error))?;
        Ok(Console { stream: TokioIo::new(stream), place, taken })
    }

    /// Sends a request on a new connection; the answer's body is still to come.
    async fn send(&self, target: &Target, request: Request<Body>) -> Result<Response<Incoming>, CallError> {
        let connected = async {
            let tcp = TcpStream::connect(target.address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
            TlsConnector::from(self.config.clone()).connect(name, tcp).await
        };
        let tls = tokio::time::timeout(CONNECT_TIMEOUT, connected)
            .await
            .map_err(|_| unreachable(target, "no connection in time"))?
            .map_err(|error| unreachable(target, error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(tls)).await.map_err(|error| unreachable(target, error))?;
        // Ends when the answer's body, or what it was upgraded to, does.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|error| unreachable(target, describe(&error)))
    }
}

/// What is asked, of whichever host.
struct Question<'a> {
    method: Method,
    path: &'a str,
    /// JSON.
    body: Option<Bytes>,
    /// The protocol that the connection is to be upgraded to.
    upgrade: Option<&'static str>,
}

impl Question<'_> {
    /// The request, for one host.
    fn to(&self, target: &Target, is_sent_on: bool) -> Result<Request<Body>, CallError> {
        let mut request =
            Request::builder().method(self.method.clone()).uri(self.path).header(header::HOST, &target.host);
        if is_sent_on {
            request = request.header(SENT_ON_HEADER, "1");
        }
        if let Some(protocol) = self.upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, protocol);
        }
        let body = match &self.body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.clone())
            }
            None => Body::empty(),
        };
        request.body(body).map_err(|error| CallError::Local(error.to_string()))
    }
}

/// The host to which an answer sends the client on. Whoever it names has to prove that it is that host: a host that lies gains nothing.
fn sent_on(target: &Target, response: &Response<Incoming>) -> Result<Option<Target>, CallError> {
    if response.status() != StatusCode::TEMPORARY_REDIRECT {
        return Ok(None);
    }
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let address = text("location")
        .and_then(|location| location.strip_prefix("https://")?.split('/').next())
        .and_then(|address| address.parse().ok());
    match (text(HOME_HEADER), address) {
        (Some(host), Some(address)) => Ok(Some(Target { host: host.to_owned(), address })),
        _ => Err(unreachable(target, "it sends the client on and does not say where to")),
    }
}

/// What a call to a host that may hang comes to.
async fn in_time<T>(
    target: &Target,
    call: impl Future<Output = Result<T, CallError>>,
    timeout: Duration,
) -> Result<T, CallError> {
    tokio::time::timeout(timeout, call)
        .await
        .map_err(|_| unreachable(target, format!("no answer within {} s", timeout.as_secs_f64())))?
}

fn unreachable(target: &Target, reason: impl ToString) -> CallError {
    CallError::Unreachable { host: target.host.clone(), address: target.address, reason: reason.to_string() }
}

/// An error with its causes: hyper's own messages say little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The body of an answer that is not a [`Problem`].
async fn accepted(target: &Target, response: Response<Incoming>, bytes_max: usize) -> Result<Bytes, CallError> {
    let status = response.status();
    let bytes = to_bytes(Body::new(response.into_body()), bytes_max)
        .await
        .map_err(|error| unreachable(target, describe(&error)))?;
    if status.is_success() {
        return Ok(bytes);
    }
    let problem = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Problem { error: format!("host {} answers {status}", target.host), hint: None });
    Err(CallError::Refused { status, problem })
}
