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

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: u32 = 256;
/// How long the TLS handshake, and then the head of a request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system could not accept a connection, for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub use super::routes::router;

/// The connections that are served, each in one of so many places. Clones are the same.
#[derive(Clone)]
pub struct Connections(Arc<Semaphore>);

impl Default for Connections {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)))
    }
}

impl Connections {
    /// Waits until none is left, but not for longer than `patience`.
    pub async fn finish(&self, patience: Duration) {
        // Those that are left are cut off.
        let _ = tokio::time::timeout(patience, self.0.acquire_many(CONNECTIONS_MAX)).await;
    }
}

/// Serves `router` on `listener` to clients that have a certificate of the cluster. Does not end by itself.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, connections: Connections) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let Ok(place) = connections.0.clone().acquire_owned().await else { return };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            serve_connection(connection, acceptor, router).await;
        });
    }
}

async fn serve_connection(connection: TcpStream, acceptor: TlsAcceptor, router: Router) {
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
    let Some(client) = certificate.and_then(Peer::of) else {
        return tracing::debug!("{peer:?}: its certificate names nobody");
    };
    let router = router.layer(Extension(client));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(router))
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("{peer:?}: {error}");
    }
}
