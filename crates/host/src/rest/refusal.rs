//! [`Refusal`]: an answer other than 2xx.

use api::Problem;
use api::client::Target;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::error::{HostError, Kind};

/// An answer other than 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub problem: Problem,
    /// The host that does what was asked for, if that is another one. It goes with the response as an extension, for whoever can send the client on.
    pub home: Option<Target>,
}

impl Refusal {
    /// Says `error` with this status.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), hint: None }, home: None }
    }
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        let status = match error.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::NotEntitled => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Refused => StatusCode::CONFLICT,
            Kind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unforeseen => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, problem: error.problem, home: error.home }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        HostError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        if let Some(home) = self.home {
            response.extensions_mut().insert(home);
        }
        response
    }
}
