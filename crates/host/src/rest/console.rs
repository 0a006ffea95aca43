//! The route to a guest's console.

use api::client::{CONSOLE_PLACE_HEADER, CONSOLE_PROTOCOL, CONSOLE_TAKEN_HEADER};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use replication::driver::ConsolePlace;
use tokio::net::UnixStream;

use super::handling::Shared;
use super::refusal::Refusal;
use crate::error::HostError;
use crate::replica::control::{ConsoleConnection, ConsoleVisit};

/// What a client has seen of a console.
#[derive(serde::Deserialize)]
pub(super) struct Seen {
    /// As a console's connection names places.
    seen: Option<String>,
    /// A number by which it is known again.
    typist: Option<u64>,
}

/// A place in a console: `RUN.BYTES`.
fn console_place(text: &str) -> Result<ConsolePlace, HostError> {
    let place = text.split_once('.').and_then(|(run, bytes)| Some((run.parse().ok()?, bytes.parse().ok()?)));
    let (run, bytes) = place.ok_or_else(|| HostError::invalid(format!("`{text}` is no place in a console")))?;
    Ok(ConsolePlace { run, bytes })
}

/// Joins the client's connection to the replica's console socket.
pub(super) async fn console(
    State(daemon): Shared,
    Path(vm): Path<String>,
    Query(Seen { seen, typist }): Query<Seen>,
    request: Request,
) -> Result<Response, Refusal> {
    let wanted = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == CONSOLE_PROTOCOL);
    if !wanted {
        return Err(HostError::invalid(format!("a console needs the header `Upgrade: {CONSOLE_PROTOCOL}`")).into());
    }
    let seen = seen.as_deref().map_or(Ok(ConsolePlace::default()), console_place)?;
    let visit = ConsoleVisit { seen, typist };
    let connected = tokio::task::spawn_blocking(move || daemon.console(&vm, visit)).await;
    let ConsoleConnection { stream, early, start } =
        connected.unwrap_or_else(|error| Err(HostError::from(anyhow::anyhow!("no console: {error}"))))?;
    stream.set_nonblocking(true).map_err(anyhow::Error::from)?;
    let mut guest = UnixStream::from_std(stream).map_err(anyhow::Error::from)?;
    tokio::spawn(async move {
        let Ok(client) = hyper::upgrade::on(request).await else { return };
        let mut client = TokioIo::new(client);
        // Either side may end the connection whenever it likes.
        if tokio::io::AsyncWriteExt::write_all(&mut client, &early).await.is_ok() {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
        }
    });
    let upgrade = [(header::CONNECTION, "upgrade"), (header::UPGRADE, CONSOLE_PROTOCOL)];
    let upgrade = upgrade.map(|(name, value)| (name, HeaderValue::from_static(value)));
    let place = [(CONSOLE_PLACE_HEADER, format!("{}.{}", start.from.run, start.from.bytes))];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, upgrade, place).into_response();
    if let Some(taken) = start.taken {
        response.headers_mut().insert(CONSOLE_TAKEN_HEADER, HeaderValue::from(taken));
    }
    Ok(response)
}
