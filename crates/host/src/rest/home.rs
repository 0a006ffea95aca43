//! Sending a client on to the host that runs the VM it asks about.
//!
//! A host does not pass requests on: it would do so with its own certificate, and the other host could not tell what an operator has asked
//! for from what a host makes up. The client itself goes there, with its own certificate.

use std::sync::Arc;

use api::Problem;
use api::client::{HOME_HEADER, SENT_ON_HEADER, Target};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::refusal::Refusal;
use crate::Daemon;
use crate::error::HostError;

/// Middleware of what the home of a VM answers: if that is another host, the client is told which. One that was sent on is answered here.
pub async fn at_home(State(daemon): State<Arc<Daemon>>, request: Request, next: Next) -> Response {
    let vm = request.uri().path().strip_prefix("/v1/vms/").and_then(|rest| rest.split('/').next());
    let vm = vm.unwrap_or_default().to_owned();
    answer_or_send_on(request, next, "the VM is at home", move || daemon.home_elsewhere(&vm)).await
}

/// Middleware of what the host with the cluster's authority answers, in the same way.
pub async fn at_authority(State(daemon): State<Arc<Daemon>>, request: Request, next: Next) -> Response {
    answer_or_send_on(request, next, "the cluster's authority is", move || daemon.authority_elsewhere()).await
}

/// Middleware of what each host answers for itself, in the same way: the path begins with `/v1/hosts/{host}`.
pub async fn at_host(State(daemon): State<Arc<Daemon>>, request: Request, next: Next) -> Response {
    let host = request.uri().path().strip_prefix("/v1/hosts/").and_then(|rest| rest.split('/').next());
    let host = host.unwrap_or_default().to_owned();
    answer_or_send_on(request, next, "that is answered", move || daemon.other_host(&host)).await
}

/// Answers a request here, unless `elsewhere` finds another host that has to.
async fn answer_or_send_on(
    request: Request,
    next: Next,
    why: &str,
    elsewhere: impl FnOnce() -> Result<Option<Target>, HostError> + Send + 'static,
) -> Response {
    if request.headers().contains_key(SENT_ON_HEADER) {
        return next.run(request).await;
    }
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    match tokio::task::spawn_blocking(elsewhere).await {
        Ok(Ok(None)) => {
            let response = next.run(request).await;
            // It may have moved just now, and whoever answers knows best.
            match response.extensions().get::<Target>() {
                Some(other) => send_on(other, &path, why),
                None => response,
            }
        }
        Ok(Ok(Some(other))) => send_on(&other, &path, why),
        Ok(Err(error)) => Refusal::from(error).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn send_on(to: &Target, path: &str, why: &str) -> Response {
    let Target { host, address } = to;
    let problem = Problem { error: format!("{why} on host {host}, which answers at {address}"), hint: None };
    let mut response = (StatusCode::TEMPORARY_REDIRECT, Json(problem)).into_response();
    let location = HeaderValue::try_from(format!("https://{address}{path}"));
    if let (Ok(location), Ok(host)) = (location, HeaderValue::try_from(host)) {
        response.headers_mut().insert(header::LOCATION, location);
        response.headers_mut().insert(HOME_HEADER, host);
    }
    response
}
