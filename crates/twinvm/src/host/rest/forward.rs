//! Passing a request on to the host that runs the VM it is about.

use std::sync::Arc;
use std::time::Duration;

use api::client::{CallError, Target, in_time};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;

use super::refusal::Refusal;
use crate::host::Daemon;

/// How long the other host may take. Commands wait a little longer, so that they learn which host does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(170);
/// Marks a request that was passed on once; it is not passed on again.
const PASSED_ON: &str = "x-twinvm-passed-on";

/// Middleware of everything under `/v1/vms/{vm}/`: answers here if the VM is at home here, otherwise by its host's answer.
pub async fn to_home_of_vm(State(daemon): State<Arc<Daemon>>, request: Request, next: Next) -> Response {
    let vm = request.uri().path().strip_prefix("/v1/vms/").and_then(|rest| rest.split('/').next());
    let vm = vm.unwrap_or_default().to_owned();
    if request.headers().contains_key(PASSED_ON) {
        return next.run(request).await;
    }
    let home = tokio::task::spawn_blocking({
        let daemon = daemon.clone();
        move || daemon.home_elsewhere(&vm)
    });
    match home.await {
        Ok(Ok(None)) => next.run(request).await,
        Ok(Ok(Some(target))) => match in_time(&target, pass_on(&daemon, &target, request), ANSWER_TIMEOUT).await {
            Ok(response) => response,
            Err(error) => Refusal::of_call(&target, error).into_response(),
        },
        Ok(Err(error)) => Refusal::from(error).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn pass_on(daemon: &Daemon, target: &Target, mut request: Request) -> Result<Response, CallError> {
    request.headers_mut().insert(PASSED_ON, HeaderValue::from_static("1"));
    let (mut here, body) = request.into_parts();
    let upgrade = here.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let passed = axum::http::Request::from_parts(clone_head(&here), body);
    let mut response = daemon.client().send(target, passed).await?;
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) = (response.status(), upgrade) {
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(server)) = (client.await, server.await) {
                // Either side may end the connection whenever it likes.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
            }
        });
    }
    Ok(response.map(Body::new))
}

/// What of a request's head is passed on: extensions belong to the connection.
fn clone_head(head: &axum::http::request::Parts) -> axum::http::request::Parts {
    let (mut passed, ()) = axum::http::Request::new(()).into_parts();
    passed.method = head.method.clone();
    passed.uri = head.uri.clone();
    passed.headers = head.headers.clone();
    passed
}
