//! Joining a cluster with a token: the new host's side.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use api::client::{CallError, Client};
use api::joining::{JoinCluster, Joined};
use axum::http::Method;
use replication::channel::{KeyRequest, pinned_client};

use super::bundle::Bundle;
use super::token::Token;

/// How long the host that signs may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is asked if its answer does not arrive. For the same keys it gives the same answer.
const ATTEMPTS: u32 = 3;

/// Has keys of a host certified: makes them here, and asks the host that the token names. The private key goes nowhere.
///
/// # Errors
/// If that host does not answer, is not of the cluster whose authority the token names, or does not admit the host.
pub fn join(token: &Token, name: &str) -> Result<Bundle> {
    let keys = KeyRequest::new(name)?;
    let join = JoinCluster { secret: token.secret.clone(), host: name.to_owned(), request: keys.request().to_owned() };
    let client = Client::new(pinned_client(token.authority)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let mut attempt = 1;
    let joined: Joined = loop {
        let answer = client.call(&token.target, Method::POST, "/v1/join", Some(&join), TIMEOUT);
        match runtime.block_on(answer) {
            Ok(joined) => break joined,
            Err(CallError::Unreachable { .. }) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(anyhow!(error.to_string())),
        }
    };
    let store = joined.store.parse().map_err(|error: String| anyhow!(error))?;
    Ok(Bundle::of_keys(name, &store, &keys.certified(joined.authority, joined.certificate), joined.etcd.as_ref()))
}
