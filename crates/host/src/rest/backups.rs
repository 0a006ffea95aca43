//! Handlers of requests about backups.

use api::backups::{BackUpVm, ForgetPoints, PruneRepository, RestorePoint};
use axum::extract::{Path, State};
use axum::response::IntoResponse;

use super::handling::{Body, Shared, blocking};

pub async fn back_up(State(daemon): Shared, Path(vm): Path<String>, body: Body<BackUpVm>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.back_up(&vm, &body.0)).await
}

pub async fn progress(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| Ok(daemon.backup_progress(&vm))).await
}

pub async fn cancel(State(daemon): Shared, Path(vm): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.cancel_backup(&vm)).await
}

pub async fn backup_repositories(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.backup_repositories()).await
}

pub async fn recovery_points(State(daemon): Shared, Path(repository): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.recovery_points(&repository)).await
}

pub async fn forget_point(
    State(daemon): Shared,
    Path((repository, point)): Path<(String, String)>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.forget_point(&repository, &point)).await
}

pub async fn restore_point(
    State(daemon): Shared,
    Path((repository, point)): Path<(String, String)>,
    body: Body<RestorePoint>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.restore_point(&repository, &point, &body.0)).await
}

pub async fn forget_points(
    State(daemon): Shared,
    Path(repository): Path<String>,
    body: Body<ForgetPoints>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.forget_points(&repository, &body.0)).await
}

pub async fn verify_repository(State(daemon): Shared, Path(repository): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.verify_repository(&repository)).await
}

pub async fn prune_repository(
    State(daemon): Shared,
    Path(repository): Path<String>,
    body: Body<PruneRepository>,
) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.prune_repository(&repository, body.0)).await
}
