//! What handlers of routes are made of: what they are given, where they wait, and what they answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;
use crate::Daemon;
use crate::error::HostError;

/// The daemon, which all handlers share.
pub type Shared = State<Arc<Daemon>>;
/// What a handler answers.
pub type Answer = Result<Response, Refusal>;

/// A body of JSON, whatever its media type is called; an empty one means the default.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| Refusal::new(error.status(), error.body_text()))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        Json::from_bytes(&bytes).map(|Json(value)| Self(value)).map_err(malformed)
    }
}

/// The refusal of a body that is not what it should be.
pub fn malformed(rejection: JsonRejection) -> Refusal {
    Refusal::new(rejection.status(), rejection.body_text())
}

/// What is done for a request.
type Work = Box<dyn FnOnce(&Arc<Daemon>) -> Result<Response, HostError> + Send>;

/// Runs what may wait for disks, processes or the store on a thread of its own.
pub fn blocking<T: Serialize>(
    daemon: Arc<Daemon>,
    work: impl FnOnce(&Arc<Daemon>) -> Result<T, HostError> + Send + 'static,
) -> impl Future<Output = Answer> {
    // In a box, what brings it to its thread and back is compiled once, and not for each request there is.
    apart(daemon, Box::new(|daemon| work(daemon).map(|value| Json(value).into_response())))
}

async fn apart(daemon: Arc<Daemon>, work: Work) -> Answer {
    tokio::task::spawn_blocking(move || work(&daemon))
        .await
        .unwrap_or_else(|error| Err(anyhow::anyhow!("the request was not finished: {error}").into()))
        .map_err(Refusal::from)
}
