//! One kill, and what becomes of it.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::figures::Takeover;
use serde::Serialize;

use super::stage::Stage;
use crate::load::{Counter, Load};

/// The client runs undisturbed for a random time of this range before a kill.
const CALM_MS: std::ops::Range<u64> = 300..1000;
/// How long a takeover may take before it counts as failed.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(35);
/// Replies after which the client counts as served again.
const REPLIES: u64 = 10;
/// For so long after that, a longer gap still belongs to the kill.
const AFTERMATH: Duration = Duration::from_millis(200);

/// How a host is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its processes are killed: connections close at once.
    Kill,
    /// Its processes stand still, and nothing says so. They are killed when that was survived.
    Silence,
}

/// What became of one kill.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    /// The host that was killed.
    pub from: String,
    /// The host that took over.
    pub to: Option<String>,
    /// Whether the client was served again on its connection.
    pub survived: bool,
    /// The longest gap between two replies around the kill.
    pub blackout_ms: f64,
    /// What the new primary says of its takeover.
    pub takeover: Option<Takeover>,
    /// From the kill until the VM was protected again.
    pub protected_again_s: Option<f64>,
}

/// Kills the host of a protected VM's primary after a while, and starts its daemon again. Returns when the VM is protected
/// again, or the kill was not survived.
pub fn survive_a_kill(stage: &mut Stage, client: &Load<Counter>, label: &str) -> Result<Failover> {
    survive(stage, client, Loss::Kill, label)
}

/// The same for any way to lose a host.
pub fn survive(stage: &mut Stage, client: &Load<Counter>, loss: Loss, label: &str) -> Result<Failover> {
    stage.pass(calm(), Some(client))?;
    let view = stage.ready(Some(client))?;
    let (from, generation) =
        view.primary().map(|primary| (primary.host.clone(), primary.generation)).context("no primary")?;
    client.take_longest_gap();
    let killed = Instant::now();
    let signal = match loss {
        Loss::Kill => {
            stage.hosts.kill(&from)?;
            "SIGKILL"
        }
        Loss::Silence => {
            stage.hosts.stop(&from)?;
            "SIGSTOP"
        }
    };
    stage.screen.event(&format!("{label}: {signal} to all processes of host {from}"));

    let mut taken = None;
    let mut served_at = u64::MAX;
    // What hangs shows in what the client saw.
    let waited = stage.wait("a takeover", TAKEOVER_TIMEOUT, Some(client), |view| {
        let seen = client.snapshot();
        if seen.broken.is_some() {
            return true;
        }
        let primary = view.primary().filter(|primary| primary.host != from && primary.generation > generation);
        if let (Some(primary), None) = (primary, &taken) {
            taken = Some(primary.clone());
            served_at = seen.acknowledged.saturating_add(REPLIES);
        }
        seen.acknowledged >= served_at
    });
    if terminal::interrupt::is_requested() {
        waited?;
    }
    stage.pass(AFTERMATH, Some(client))?;
    let seen = client.snapshot();
    let survived = taken.is_some() && seen.acknowledged >= served_at && seen.broken.is_none();
    let blackout_ms = client.take_longest_gap().as_secs_f64() * 1e3;
    // The figures of the takeover may come a moment after the role.
    let to = taken.map(|primary| stage.hosts.view().primary().cloned().unwrap_or(primary));
    let takeover = to.as_ref().and_then(|primary| primary.figures.last_takeover);
    let mut failover = Failover {
        from: from.clone(),
        to: to.map(|primary| primary.host),
        survived,
        blackout_ms,
        takeover,
        protected_again_s: None,
    };
    stage.screen.event(&describe(&failover, seen.broken.as_deref()));
    if survived {
        if loss == Loss::Silence {
            stage.hosts.kill(&from)?;
        }
        stage.hosts.restart(&from)?;
        stage.screen.event(&format!("host {from} is back"));
        stage.wait_protected(Some(client))?;
        failover.protected_again_s = Some(killed.elapsed().as_secs_f64());
    }
    Ok(failover)
}

fn describe(failover: &Failover, broken: Option<&str>) -> String {
    let Some(to) = &failover.to else {
        return format!("nobody took over{}", broken.map(|why| format!("; {why}")).unwrap_or_default());
    };
    let parts = failover.takeover.map(|takeover| {
        format!(
            " (detected {:.1} ms, arbitrated {:.1} ms, restored {:.1} ms)",
            takeover.detected_ms, takeover.arbitration_ms, takeover.restore_ms
        )
    });
    match (failover.survived, broken) {
        (true, _) => format!("{to} took over: blackout {:.1} ms{}", failover.blackout_ms, parts.unwrap_or_default()),
        (false, Some(why)) => format!("{to} took over, but the client's connection is broken: {why}"),
        (false, None) => format!("{to} took over, but the client is not served"),
    }
}

/// A random time.
fn calm() -> Duration {
    let random = RandomState::new().hash_one(());
    Duration::from_millis(CALM_MS.start + random % (CALM_MS.end - CALM_MS.start))
}
