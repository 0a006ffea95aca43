//! The API's routes. Each handler only translates: what is done is the daemon's.

use std::sync::Arc;

use api::client::CONSOLE_PROTOCOL;
use api::messages::{
    CreateVm, DropSecondary, FtAction, FtOptions, PrepareSecondary, RemoveVm, StartVm, StopHost, StopVm,
};
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router, middleware};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::forward::to_home_of_vm;
use super::refusal::Refusal;
use crate::host::Daemon;
use crate::host::error::HostError;

/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest text of a refusal by axum, in bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

type Shared = State<Arc<Daemon>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// All routes.
pub fn router(daemon: Arc<Daemon>) -> Router {
    let at_home = Router::new()
        .route("/v1/vms/{vm}", axum::routing::delete(remove_vm))
        .route("/v1/vms/{vm}/start", post(start_vm))
        .route("/v1/vms/{vm}/stop", post(stop_vm))
        .route("/v1/vms/{vm}/console", get(console))
        .route("/v1/vms/{vm}/ft/price", get(ft_price))
        .route("/v1/vms/{vm}/ft/{action}", post(ft))
        .layer(middleware::from_fn_with_state(daemon.clone(), to_home_of_vm));
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/host/stop", post(stop_host))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{host}", axum::routing::delete(remove_host))
        .route("/v1/vms", get(vms).post(create_vm))
        .route("/v1/vms/{vm}", get(vm))
        .route("/v1/vms/{vm}/boot/{file}", get(boot_file))
        .route("/v1/replicas", get(replicas))
        .route("/v1/secondaries/{vm}", put(prepare_secondary).delete(drop_secondary))
        .merge(at_home)
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(as_problem))
        .with_state(daemon)
}

/// A body of JSON, whatever its media type is called; an empty one means the default.
struct Body<T>(T);

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

/// Refusals that axum words itself, as of a path that is no UTF-8, get the body that all others have.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let error = if text.trim().is_empty() { status.to_string() } else { text.trim().to_owned() };
    Refusal::new(status, error).into_response()
}

fn malformed(rejection: JsonRejection) -> Refusal {
    Refusal::new(rejection.status(), rejection.body_text())
}

/// Runs what may wait for disks, processes or the store on a thread of its own.
async fn blocking<T: Serialize + Send + 'static>(
    daemon: Arc<Daemon>,
    work: impl FnOnce(&Arc<Daemon>) -> Result<T, HostError> + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(move || work(&daemon))
        .await
        .unwrap_or_else(|error| Err(anyhow::anyhow!("the request was not finished: {error}").into()))
        .map(Json)
        .map_err(Refusal::from)
}

/// The same, in the owner of the VM that it changes.
async fn owned<T: Serialize + Send + 'static>(
    daemon: Arc<Daemon>,
    vm: String,
    work: impl FnOnce(&Arc<Daemon>) -> Result<T, HostError> + Send + 'static,
) -> Answer<T> {
    blocking(daemon, move |daemon| daemon.owned(&vm, work)).await
}

async fn host(State(daemon): Shared) -> impl IntoResponse {
    Json(daemon.view())
}

async fn stop_host(State(daemon): Shared, body: Body<StopHost>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.stop_host(body.0)).await
}

async fn hosts(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.hosts()).await
}

async fn remove_host(State(daemon): Shared, Path(host): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.registry().remove_host(&host)).await
}

async fn vms(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.vms()).await
}

async fn vm(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.vm(&vm)).await
}

async fn create_vm(State(daemon): Shared, body: Result<Json<CreateVm>, JsonRejection>) -> impl IntoResponse {
    let Json(create) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.create(&create)).await
}

async fn remove_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<RemoveVm>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.remove(&vm, body.0)).await
}

async fn start_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<StartVm>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.start_vm(&vm, body.0)).await
}

async fn stop_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<StopVm>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.stop_vm(&vm, body.0)).await
}

async fn ft_price(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.ft_price(&vm)).await
}

async fn ft(
    State(daemon): Shared,
    Path((vm, action)): Path<(String, String)>,
    body: Body<FtOptions>,
) -> impl IntoResponse {
    let action: FtAction = serde_json::from_value(action.clone().into())
        .map_err(|_| HostError::not_found(format!("`{action}` is nothing that can be done about fault tolerance")))?;
    blocking(daemon, move |daemon| daemon.ft(&vm, action, body.0)).await
}

async fn replicas(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| Ok(daemon.local_vms())).await
}

async fn prepare_secondary(
    State(daemon): Shared,
    Path(vm): Path<String>,
    body: Result<Json<PrepareSecondary>, JsonRejection>,
) -> impl IntoResponse {
    let Json(prepare) = body.map_err(malformed)?;
    owned(daemon, vm.clone(), move |daemon| daemon.prepare_secondary(&vm, &prepare)).await
}

async fn drop_secondary(State(daemon): Shared, Path(vm): Path<String>, body: Body<DropSecondary>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.drop_secondary(&vm, body.0)).await
}

async fn boot_file(State(daemon): Shared, Path((vm, file)): Path<(String, String)>) -> Result<Vec<u8>, Refusal> {
    tokio::task::spawn_blocking(move || daemon.boot_file(&vm, &file))
        .await
        .unwrap_or_else(|error| Err(anyhow::anyhow!("the file was not read: {error}").into()))
        .map_err(Refusal::from)
}

/// Joins the client's connection to the replica's console socket.
async fn console(State(daemon): Shared, Path(vm): Path<String>, request: Request) -> Result<Response, Refusal> {
    let wanted = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == CONSOLE_PROTOCOL);
    if !wanted {
        return Err(HostError::bad_request(format!("a console needs the header `Upgrade: {CONSOLE_PROTOCOL}`")).into());
    }
    let connected = tokio::task::spawn_blocking(move || daemon.console(&vm)).await;
    let (stream, early) =
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
    Ok((StatusCode::SWITCHING_PROTOCOLS, upgrade.map(|(name, value)| (name, HeaderValue::from_static(value))))
        .into_response())
}
