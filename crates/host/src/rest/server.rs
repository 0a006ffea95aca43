//! Serving the API.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use replication::channel::Peer;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: u32 = 256;
/// How long the TLS handshake, and then the head of a request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system could not accept a connection, for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub use super::routes::router;

/// Connections at a time of those who have no certificate; further ones are closed.
const STRANGERS_MAX: usize = 8;
/// How long such a connection may last.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(20);

/// The connections that are served, each in one of so many places. Clones are the same.
#[derive(Clone)]
pub struct Connections {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Default for Connections {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { all: places(CONNECTIONS_MAX as usize), strangers: places(STRANGERS_MAX) }
    }
}

impl Connections {
    /// Waits until none is left, but not for longer than `patience`.
    pub async fn finish(&self, patience: Duration) {
        // Those that are left are cut off.
        let _ = tokio::time::timeout(patience, self.all.acquire_many(CONNECTIONS_MAX)).await;
    }
}

/// Serves `router` on `listener` to clients that have a certificate of the cluster, and to a few at a time that have none. Does not end by itself.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, connections: Connections) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let Ok(place) = connections.all.clone().acquire_owned().await else { return };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (acceptor, router, strangers) = (acceptor.clone(), router.clone(), connections.strangers.clone());
        tokio::spawn(async move {
            let _place = place;
            serve_connection(connection, acceptor, router, strangers).await;
        });
    }
}

async fn serve_connection(connection: TcpStream, acceptor: TlsAcceptor, router: Router, strangers: Arc<Semaphore>) {
    let peer = connection.peer_addr();
    // Without it answers are slower, nothing else.
    let _ = connection.set_nodelay(true);
    let tls = match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(connection)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!("{peer:?}: no TLS connection: {error}"),
        Err(_) => return tracing::debug!("{peer:?}: no TLS connection in time"),
    };
    // The authority vouches for the certificate; whom it names says what may be asked.
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(certificate) = certificate else {
        let Ok(_place) = strangers.try_acquire() else {
            return tracing::debug!("{peer:?}: too many connections without a certificate");
        };
        return match tokio::time::timeout(STRANGER_TIMEOUT, serve_requests(tls, router)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("{peer:?}: {error}"),
            Err(_) => tracing::debug!("{peer:?}: without a certificate, for too long"),
        };
    };
    let Some(client) = Peer::of(certificate) else {
        return tracing::debug!("{peer:?}: its certificate names nobody");
    };
    if let Err(error) = serve_requests(tls, router.layer(Extension(client))).await {
        tracing::debug!("{peer:?}: {error}");
    }
}

async fn serve_requests(tls: TlsStream<TcpStream>, router: Router) -> Result<(), hyper::Error> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(router))
        .with_upgrades()
        .await
}
