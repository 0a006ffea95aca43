//! The API's routes. Each handler only translates: what is done is the daemon's.

use std::sync::Arc;

use api::events::EventsWanted;
use api::joining::{JoinCluster, MakeToken};
use api::maintenance::SetMaintenance;
use api::messages::{
    CloneVm, CreateSnapshot, CreateVm, DropSecondary, FtAction, FtOptions, MigrateVm, PrepareSecondary, RebootVm,
    RemoveVm, RenameVm, SetVm, StartVm, StopHost, StopVm,
};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::handler::Handler;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Extension, Json, Router, middleware};
use replication::channel::Peer;
use serde::Serialize;

use super::backups;
use super::capacity;
use super::console::console;
use super::handling::{Answer, Body, Shared, blocking, malformed};
use super::home::{at_authority, at_home, at_host};
use super::refusal::Refusal;
use super::role::{Role, authorize};
use crate::Daemon;
use crate::error::HostError;

/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The same of whoever has no certificate.
const STRANGER_BODY_BYTES_MAX: usize = 16 << 10;
/// Longest text of a refusal by axum, in bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

/// One method of one path.
struct Route {
    /// Which method, of which the handler answers no other.
    #[cfg(test)]
    method: MethodFilter,
    path: &'static str,
    role: Role,
    /// Who answers.
    place: Place,
    handler: MethodRouter<Arc<Daemon>>,
}

/// Which host answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The one that is asked.
    Here,
    /// The VM's home, which may be another host. The path begins with `/v1/vms/{vm}`.
    Home,
    /// The one that the path names, which begins with `/v1/hosts/{host}`.
    Host,
    /// The one with the cluster's authority.
    Authority,
    /// The same, where the others do not have the right in the cluster store.
    Rights,
}

impl Route {
    fn here<H, T>(method: MethodFilter, path: &'static str, role: Role, handler: H) -> Self
    where
        H: Handler<T, Arc<Daemon>>,
        T: 'static,
    {
        Self {
            #[cfg(test)]
            method,
            path,
            role,
            place: Place::Here,
            handler: on(method, handler),
        }
    }

    fn at_home<H, T>(method: MethodFilter, path: &'static str, role: Role, handler: H) -> Self
    where
        H: Handler<T, Arc<Daemon>>,
        T: 'static,
    {
        Self { place: Place::Home, ..Self::here(method, path, role, handler) }
    }

    fn at_host<H, T>(method: MethodFilter, path: &'static str, role: Role, handler: H) -> Self
    where
        H: Handler<T, Arc<Daemon>>,
        T: 'static,
    {
        Self { place: Place::Host, ..Self::here(method, path, role, handler) }
    }

    fn at_authority<H, T>(method: MethodFilter, path: &'static str, role: Role, handler: H) -> Self
    where
        H: Handler<T, Arc<Daemon>>,
        T: 'static,
    {
        Self { place: Place::Authority, ..Self::here(method, path, role, handler) }
    }
}

/// The table of all routes, and for whom each is.
fn routes() -> Vec<Route> {
    use Role::{Anybody, Both, Hosts, Operators};
    const GET: MethodFilter = MethodFilter::GET;
    const POST: MethodFilter = MethodFilter::POST;
    const PUT: MethodFilter = MethodFilter::PUT;
    const DELETE: MethodFilter = MethodFilter::DELETE;
    vec![
        Route::here(GET, "/v1/host", Both, host),
        Route::here(POST, "/v1/host/stop", Operators, stop_host),
        Route::here(POST, "/v1/host/leave", Operators, leave),
        Route::here(POST, "/v1/join", Anybody, join),
        Route::at_authority(POST, "/v1/tokens", Operators, make_token),
        Route::here(GET, "/v1/hosts", Operators, hosts),
        Route { place: Place::Rights, ..Route::here(DELETE, "/v1/hosts/{host}", Operators, remove_host) },
        Route::here(DELETE, "/v1/hosts/{host}/rights", Hosts, end_rights),
        Route::at_host(GET, "/v1/hosts/{host}/maintenance", Operators, maintenance),
        Route::at_host(POST, "/v1/hosts/{host}/maintenance", Operators, set_maintenance),
        Route::at_host(GET, "/v1/hosts/{host}/events", Operators, events),
        Route::here(GET, "/v1/cluster/admission", Operators, capacity::admission),
        Route {
            place: Place::Rights,
            ..Route::here(POST, "/v1/cluster/admission", Operators, capacity::set_admission)
        },
        Route::here(POST, "/v1/cluster/what-if", Operators, capacity::what_if),
        Route::here(GET, "/v1/datastores", Operators, capacity::datastores),
        Route::here(POST, "/v1/datastores", Operators, capacity::add_datastore),
        Route::here(DELETE, "/v1/datastores/{datastore}", Operators, capacity::remove_datastore),
        Route::here(GET, "/v1/vms", Operators, vms),
        Route::here(POST, "/v1/vms", Operators, create_vm),
        // Not below `/v1/vms`, where a VM may have any name.
        Route::here(POST, "/v1/checks/vm", Operators, check_vm),
        Route::here(GET, "/v1/unreadable/vms", Operators, unreadable_vms),
        Route::here(GET, "/v1/vms/{vm}", Operators, vm),
        Route::at_home(DELETE, "/v1/vms/{vm}", Operators, remove_vm),
        Route::at_home(POST, "/v1/vms/{vm}/set", Operators, set_vm),
        Route::at_home(POST, "/v1/vms/{vm}/clone", Operators, clone_vm),
        Route::at_home(POST, "/v1/vms/{vm}/rename", Operators, rename_vm),
        Route::at_home(POST, "/v1/vms/{vm}/start", Operators, start_vm),
        Route::at_home(POST, "/v1/vms/{vm}/stop", Operators, stop_vm),
        Route::at_home(POST, "/v1/vms/{vm}/reboot", Operators, reboot_vm),
        Route::at_home(POST, "/v1/vms/{vm}/migrate", Operators, migrate_vm),
        Route::at_home(DELETE, "/v1/vms/{vm}/migrate", Operators, cancel_migration),
        Route::at_home(GET, "/v1/vms/{vm}/console", Operators, console),
        Route::at_home(GET, "/v1/vms/{vm}/snapshots", Operators, snapshots),
        Route::at_home(POST, "/v1/vms/{vm}/snapshots", Operators, create_snapshot),
        Route::at_home(DELETE, "/v1/vms/{vm}/snapshots/{snapshot}", Operators, remove_snapshot),
        Route::at_home(POST, "/v1/vms/{vm}/snapshots/{snapshot}/restore", Operators, restore_snapshot),
        Route::at_home(POST, "/v1/vms/{vm}/backups", Operators, backups::back_up),
        Route::at_home(GET, "/v1/vms/{vm}/backups", Operators, backups::progress),
        Route::at_home(DELETE, "/v1/vms/{vm}/backups", Operators, backups::cancel),
        Route::here(GET, "/v1/backup/repositories", Operators, backups::backup_repositories),
        Route::here(GET, "/v1/backup/repositories/{repository}/points", Operators, backups::recovery_points),
        Route::here(DELETE, "/v1/backup/repositories/{repository}/points/{point}", Operators, backups::forget_point),
        Route::here(
            POST,
            "/v1/backup/repositories/{repository}/points/{point}/restore",
            Operators,
            backups::restore_point,
        ),
        Route::here(POST, "/v1/backup/repositories/{repository}/forget", Operators, backups::forget_points),
        Route::here(POST, "/v1/backup/repositories/{repository}/verify", Operators, backups::verify_repository),
        Route::here(POST, "/v1/backup/repositories/{repository}/prune", Operators, backups::prune_repository),
        Route::at_home(GET, "/v1/vms/{vm}/ft/price", Operators, ft_price),
        Route::at_home(POST, "/v1/vms/{vm}/ft/{action}", Operators, ft),
        Route::here(GET, "/v1/vms/{vm}/boot/{file}", Hosts, boot_file),
        Route::here(GET, "/v1/kept/vms/{vm}/snapshots", Hosts, kept_snapshots),
        Route::here(DELETE, "/v1/kept/vms/{vm}/snapshots/{snapshot}", Hosts, remove_kept_snapshot),
        Route::here(GET, "/v1/replicas", Both, replicas),
        Route::here(PUT, "/v1/secondaries/{vm}", Hosts, prepare_secondary),
        Route::here(DELETE, "/v1/secondaries/{vm}", Hosts, drop_secondary),
    ]
}

/// The router of all routes.
pub fn router(daemon: Arc<Daemon>) -> Router {
    let add = |router: Router<Arc<Daemon>>, route: Route| {
        let mut handler = route.handler;
        match route.place {
            Place::Here => {}
            Place::Home => handler = handler.route_layer(middleware::from_fn_with_state(daemon.clone(), at_home)),
            Place::Host => handler = handler.route_layer(middleware::from_fn_with_state(daemon.clone(), at_host)),
            Place::Rights if !daemon.has_own_rights_only() => {}
            Place::Authority | Place::Rights => {
                handler = handler.route_layer(middleware::from_fn_with_state(daemon.clone(), at_authority));
            }
        }
        if route.role == Role::Anybody {
            handler = handler.route_layer(DefaultBodyLimit::max(STRANGER_BODY_BYTES_MAX));
        }
        // The last layer is the first to see a request.
        router.route(route.path, handler.route_layer(middleware::from_fn_with_state(route.role, authorize)))
    };
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(as_problem))
        .with_state(daemon)
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

/// Runs what may wait for disks, processes or the store in the owner of the VM that it changes.
fn owned<T: Serialize + Send + 'static>(
    daemon: Arc<Daemon>,
    vm: String,
    work: impl FnOnce(&Arc<Daemon>) -> Result<T, HostError> + Send + 'static,
) -> impl Future<Output = Answer> {
    blocking(daemon, move |daemon| daemon.owned(&vm, work))
}

async fn host(State(daemon): Shared) -> impl IntoResponse {
    Json(daemon.view())
}

async fn stop_host(State(daemon): Shared, body: Body<StopHost>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.stop_host(body.0)).await
}

async fn leave(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.leave()).await
}

async fn join(State(daemon): Shared, body: Result<Json<JoinCluster>, JsonRejection>) -> impl IntoResponse {
    let Json(join) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.admit_host(&join)).await
}

async fn make_token(State(daemon): Shared, body: Result<Json<MakeToken>, JsonRejection>) -> impl IntoResponse {
    let Json(make) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.make_token(&make)).await
}

async fn hosts(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.hosts()).await
}

async fn remove_host(State(daemon): Shared, Path(host): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.remove_host(&host)).await
}

async fn end_rights(
    State(daemon): Shared,
    Extension(client): Extension<Peer>,
    Path(host): Path<String>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.end_rights(&host, &client)).await
}

async fn maintenance(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.maintenance()).await
}

async fn set_maintenance(
    State(daemon): Shared,
    body: Result<Json<SetMaintenance>, JsonRejection>,
) -> impl IntoResponse {
    let Json(set) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.set_maintenance(set)).await
}

async fn events(State(daemon): Shared, Query(wanted): Query<EventsWanted>) -> impl IntoResponse {
    Json(daemon.events.wanted(&wanted))
}

async fn vms(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.vms()).await
}

async fn unreadable_vms(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.unreadable_vms()).await
}

async fn vm(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.vm(&vm)).await
}

async fn create_vm(State(daemon): Shared, body: Result<Json<CreateVm>, JsonRejection>) -> impl IntoResponse {
    let Json(create) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.create(&create)).await
}

async fn check_vm(State(daemon): Shared, body: Result<Json<CreateVm>, JsonRejection>) -> impl IntoResponse {
    let Json(create) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.check(&create)).await
}

async fn remove_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<RemoveVm>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.remove(&vm, body.0)).await
}

async fn set_vm(
    State(daemon): Shared,
    Path(vm): Path<String>,
    body: Result<Json<SetVm>, JsonRejection>,
) -> impl IntoResponse {
    let Json(set) = body.map_err(malformed)?;
    owned(daemon, vm.clone(), move |daemon| daemon.set_vm(&vm, &set)).await
}

async fn clone_vm(
    State(daemon): Shared,
    Path(vm): Path<String>,
    body: Result<Json<CloneVm>, JsonRejection>,
) -> impl IntoResponse {
    let Json(clone) = body.map_err(malformed)?;
    owned(daemon, vm.clone(), move |daemon| daemon.clone_vm(&vm, &clone)).await
}

async fn rename_vm(
    State(daemon): Shared,
    Path(vm): Path<String>,
    body: Result<Json<RenameVm>, JsonRejection>,
) -> impl IntoResponse {
    let Json(rename) = body.map_err(malformed)?;
    owned(daemon, vm.clone(), move |daemon| daemon.rename_vm(&vm, &rename)).await
}

async fn start_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<StartVm>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.start_vm(&vm, body.0)).await
}

async fn stop_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<StopVm>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.stop_vm(&vm, body.0)).await
}

async fn reboot_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<RebootVm>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.reboot_vm(&vm, body.0)).await
}

async fn migrate_vm(State(daemon): Shared, Path(vm): Path<String>, body: Body<MigrateVm>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.migrate_vm(&vm, &body.0)).await
}

async fn cancel_migration(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.cancel_migration(&vm)).await
}

async fn snapshots(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.snapshots(&vm)).await
}

/// Not by the VM's owner, who would have time for nothing else until the file is written.
async fn create_snapshot(
    State(daemon): Shared,
    Path(vm): Path<String>,
    body: Result<Json<CreateSnapshot>, JsonRejection>,
) -> impl IntoResponse {
    let Json(create) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.create_snapshot(&vm, &create)).await
}

async fn remove_snapshot(State(daemon): Shared, Path((vm, snapshot)): Path<(String, String)>) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.remove_snapshot(&vm, &snapshot)).await
}

async fn restore_snapshot(State(daemon): Shared, Path((vm, snapshot)): Path<(String, String)>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.restore_snapshot(&vm, &snapshot)).await
}

async fn kept_snapshots(
    State(daemon): Shared,
    Extension(client): Extension<Peer>,
    Path(vm): Path<String>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.snapshots_for(&vm, &client)).await
}

async fn remove_kept_snapshot(
    State(daemon): Shared,
    Extension(client): Extension<Peer>,
    Path((vm, snapshot)): Path<(String, String)>,
) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.remove_snapshot_for(&vm, &snapshot, &client)).await
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
    Extension(client): Extension<Peer>,
    Path(vm): Path<String>,
    body: Result<Json<PrepareSecondary>, JsonRejection>,
) -> impl IntoResponse {
    let Json(prepare) = body.map_err(malformed)?;
    owned(daemon, vm.clone(), move |daemon| daemon.prepare_secondary(&vm, &client, &prepare)).await
}

async fn drop_secondary(
    State(daemon): Shared,
    Extension(client): Extension<Peer>,
    Path(vm): Path<String>,
    body: Body<DropSecondary>,
) -> impl IntoResponse {
    owned(daemon, vm.clone(), move |daemon| daemon.drop_secondary(&vm, &client, body.0)).await
}

async fn boot_file(
    State(daemon): Shared,
    Extension(client): Extension<Peer>,
    Path((vm, file)): Path<(String, String)>,
) -> Result<Vec<u8>, Refusal> {
    tokio::task::spawn_blocking(move || daemon.boot_file(&vm, &client, &file))
        .await
        .unwrap_or_else(|error| Err(anyhow::anyhow!("the file was not read: {error}").into()))
        .map_err(Refusal::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The routes that a client is admitted to, or those that it is not.
    fn paths(client: Option<&Peer>, admitted: bool) -> Vec<String> {
        let names = [
            (MethodFilter::GET, "GET"),
            (MethodFilter::POST, "POST"),
            (MethodFilter::PUT, "PUT"),
            (MethodFilter::DELETE, "DELETE"),
        ];
        let of_client = routes().into_iter().filter(|route| route.role.admits(client) == admitted);
        of_client
            .map(|route| {
                let (_, name) = names.iter().find(|(method, _)| *method == route.method).unwrap();
                format!("{name} {}", route.path)
            })
            .collect()
    }

    /// A route for hosts has to be named here as well: for whom it is is decided twice.
    #[test]
    fn hosts_may_ask_only_for_what_hosts_need_of_each_other() {
        assert_eq!(
            paths(Some(&Peer::Host("a".to_owned())), true),
            [
                "GET /v1/host",
                "POST /v1/join",
                "DELETE /v1/hosts/{host}/rights",
                "GET /v1/vms/{vm}/boot/{file}",
                "GET /v1/kept/vms/{vm}/snapshots",
                "DELETE /v1/kept/vms/{vm}/snapshots/{snapshot}",
                "GET /v1/replicas",
                "PUT /v1/secondaries/{vm}",
                "DELETE /v1/secondaries/{vm}"
            ]
        );
    }

    #[test]
    fn whoever_has_no_certificate_may_ask_for_one_and_for_nothing_else() {
        assert_eq!(paths(None, true), ["POST /v1/join"]);
    }

    #[test]
    fn operators_do_not_pass_for_hosts() {
        assert_eq!(
            paths(Some(&Peer::Operator("alice".to_owned())), false),
            [
                "DELETE /v1/hosts/{host}/rights",
                "GET /v1/vms/{vm}/boot/{file}",
                "GET /v1/kept/vms/{vm}/snapshots",
                "DELETE /v1/kept/vms/{vm}/snapshots/{snapshot}",
                "PUT /v1/secondaries/{vm}",
                "DELETE /v1/secondaries/{vm}"
            ]
        );
    }
}
