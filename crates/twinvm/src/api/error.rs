//! What a request that fails is answered with.

use std::fmt;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// The body of every answer other than 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// A [`Problem`] and its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub problem: Problem,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), hint: None } }
    }

    /// What was asked makes no sense.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// What was asked about can be asked otherwise only.
    pub fn method_not_allowed(error: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, error)
    }

    /// What was asked about is not there.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// It cannot be done in this state.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// Another host or the cluster store does not answer.
    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// What to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }
}

impl std::error::Error for ApiError {}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

/// Everything unforeseen is the server's fault; what was foreseen keeps its status through `?` and `context`.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref::<Self>() {
            Some(known) => Self { problem: Problem { error: format!("{error:#}"), hint: None }, ..known.clone() }
                .keep_hint_of(known),
            None => Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
        }
    }
}

impl ApiError {
    /// The message of `self` may end in that of `known` with its hint: the hint goes back to its own field.
    fn keep_hint_of(mut self, known: &Self) -> Self {
        if let Some(hint) = &known.problem.hint {
            let ending = format!("; {hint}");
            if let Some(error) = self.problem.error.strip_suffix(&ending) {
                self.problem.error = error.to_owned();
            }
            self.problem.hint = Some(hint.clone());
        }
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_foreseen_error_keeps_its_status_and_hint_under_context() {
        let error = Err::<(), _>(ApiError::not_found("no VM named x").hint("see `twinvm vm list`")).context("start");
        let error = ApiError::from(error.unwrap_err());
        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert_eq!(error.problem.error, "start: no VM named x");
        assert_eq!(error.problem.hint.as_deref(), Some("see `twinvm vm list`"));
        let other = ApiError::from(anyhow::anyhow!("disk on fire"));
        assert_eq!((other.status, other.to_string().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "disk on fire"));
    }
}
