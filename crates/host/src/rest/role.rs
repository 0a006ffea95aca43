//! [`Role`]: for whom a route is.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use replication::channel::Peer;

use super::refusal::Refusal;

/// For whom a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What hosts need of each other.
    Hosts,
    /// What administrators do.
    Operators,
    /// For whoever has a certificate of the cluster.
    Both,
    /// Also for whoever has none.
    Anybody,
}

impl Role {
    /// Whether it admits a client.
    pub fn admits(self, client: Option<&Peer>) -> bool {
        match (self, client) {
            (Self::Anybody, _)
            | (Self::Both, Some(_))
            | (Self::Hosts, Some(Peer::Host(_)))
            | (Self::Operators, Some(Peer::Operator(_))) => true,
            (Self::Hosts, Some(Peer::Operator(_)) | None)
            | (Self::Operators, Some(Peer::Host(_)) | None)
            | (Self::Both, None) => false,
        }
    }
}

/// Middleware of each route.
pub async fn authorize(State(role): State<Role>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Peer>() {
        client if role.admits(client) => next.run(request).await,
        client => refuse(role, client).into_response(),
    }
}

fn refuse(role: Role, client: Option<&Peer>) -> Refusal {
    let client = client.map_or_else(|| "nobody".to_owned(), ToString::to_string);
    let (whose, hint) = match role {
        Role::Hosts => ("a host's", "hosts ask for it of each other"),
        Role::Operators | Role::Both | Role::Anybody => (
            "an operator's",
            "issue an operator's on the host that has made the cluster, with `twinvm operator issue`, and name its file with --operator",
        ),
    };
    let mut refusal = Refusal::new(
        StatusCode::FORBIDDEN,
        format!("this needs {whose} certificate, and the client's is that of {client}"),
    );
    refusal.problem.hint = Some(hint.to_owned());
    refusal
}
