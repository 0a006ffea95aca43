//! Handlers of requests about datastores, and about what is kept free for restarts.

use api::admission::AskWhatIf;
use api::datastores::AddDatastore;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use spec::AdmissionPolicy;

use super::handling::{Shared, blocking, malformed};

pub async fn admission(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.admission_policy()).await
}

pub async fn set_admission(
    State(daemon): Shared,
    body: Result<Json<AdmissionPolicy>, JsonRejection>,
) -> impl IntoResponse {
    let Json(policy) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.set_admission_policy(&policy)).await
}

pub async fn what_if(State(daemon): Shared, body: Result<Json<AskWhatIf>, JsonRejection>) -> impl IntoResponse {
    let Json(ask) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.what_if(&ask)).await
}

pub async fn datastores(State(daemon): Shared) -> impl IntoResponse {
    blocking(daemon, |daemon| daemon.datastores()).await
}

pub async fn add_datastore(
    State(daemon): Shared,
    body: Result<Json<AddDatastore>, JsonRejection>,
) -> impl IntoResponse {
    let Json(add) = body.map_err(malformed)?;
    blocking(daemon, move |daemon| daemon.add_datastore(&add)).await
}

pub async fn remove_datastore(State(daemon): Shared, Path(datastore): Path<String>) -> impl IntoResponse {
    blocking(daemon, move |daemon| daemon.remove_datastore(&datastore)).await
}
