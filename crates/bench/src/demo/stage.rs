//! Hosts with a VM, and the display that shows them: what the demo and the benchmark of protection play on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::status::ProtectionState;
use spec::{EngineKind, FtMode};

use super::hosts::{COUNTER, Hosts, Setup, pause};
use super::pins::Pins;
use super::screen::Screen;
use super::view::View;
use crate::load::{Connection, Counter, Load, LoadOptions};

/// How long the guest may take to answer: a bound that only a hung guest meets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// A VM whose replica does not answer for so long has ended.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long protecting the VM may take.
const PROTECT_TIMEOUT: Duration = Duration::from_secs(180);
/// No reply for so long counts as a broken connection.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a connection to the guest, and one reply to it, may take until the guest is up.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Hosts with a VM, and the display.
pub struct Stage {
    /// The hosts.
    pub hosts: Hosts,
    /// The display.
    pub screen: Screen,
    /// How the VM is protected.
    mode: FtMode,
    /// Which processors replicas have for themselves, if they do.
    pins: Option<Pins>,
}

impl Stage {
    /// Starts hosts and the VM on one of them, and waits until its Redis answers. With `pins`, this process and those of the hosts
    /// stay on the processors that these say. Replicas suspect each other after `suspicion_ms`, or after the hosts' default.
    pub fn set(
        engine: EngineKind,
        mode: FtMode,
        mut screen: Screen,
        pins: Option<Pins>,
        suspicion_ms: Option<u32>,
    ) -> Result<Self> {
        if let Some(pins) = &pins {
            // What it starts inherits it.
            pins.pin_self()?;
        }
        let hosts = Hosts::start(Setup { count: 3, suspicion_ms })?;
        screen.event("hosts a, b and c are up: processes of this machine, each counted as a failure domain of its own");
        hosts.create_vm(engine)?;
        screen.update(&hosts.view(), None);
        let mut stage = Self { hosts, screen, mode, pins };
        let start = Instant::now();
        let redis = stage.hosts.redis();
        let mut gone_since = None;
        stage.wait("an answer from Redis in the guest", ANSWER_TIMEOUT, None, |view| {
            gone_since = if view.primary().is_some() { None } else { gone_since.or_else(|| Some(Instant::now())) };
            is_gone(gone_since) || answers(redis)
        })?;
        if is_gone(gone_since) {
            bail!("the VM has ended before its Redis answered{}", stage.hosts.log_tails());
        }
        let host = stage.hosts.view().primary().map_or_else(|| "?".to_owned(), |primary| primary.host.clone());
        let boot_s = start.elapsed().as_secs_f64();
        stage.screen.event(&format!("VM runs on host {host}, {engine} engine; Redis answers after {boot_s:.1} s"));
        Ok(stage)
    }

    /// Turns protection on and waits until it is there, in the mode that is wanted.
    pub fn protect(&mut self) -> Result<View> {
        self.hosts.protect(self.mode)?;
        self.wait_protected(None)
    }

    /// Turns protection off and waits until it is gone.
    pub fn unprotect(&mut self) -> Result<()> {
        self.hosts.unprotect()?;
        self.wait("the end of protection", PROTECT_TIMEOUT, None, |view| {
            view.state() == ProtectionState::Disabled && view.secondary().is_none()
        })?;
        self.screen.event("protection is off");
        Ok(())
    }

    /// Waits until the VM is protected in the mode that is wanted, and says so.
    pub fn wait_protected(&mut self, client: Option<&Load<Counter>>) -> Result<View> {
        let start = Instant::now();
        let view = self.ready(client)?;
        let mode = self.mode;
        if let (Some(primary), Some(secondary)) = (view.primary(), view.secondary()) {
            let waited_s = start.elapsed().as_secs_f64();
            self.screen.event(&format!(
                "Protected ({mode}): primary {}, secondary {} (after {waited_s:.1} s)",
                primary.host, secondary.host
            ));
        }
        Ok(view)
    }

    /// Waits until the VM is protected in the mode that is wanted.
    pub fn ready(&mut self, client: Option<&Load<Counter>>) -> Result<View> {
        let mode = self.mode;
        self.wait("protection", PROTECT_TIMEOUT, client, |view| view.follows(mode))
    }

    /// Waits for a condition, and shows what happens meanwhile.
    pub fn wait(
        &mut self,
        what: &str,
        timeout: Duration,
        client: Option<&Load<Counter>>,
        mut condition: impl FnMut(&View) -> bool,
    ) -> Result<View> {
        let deadline = Instant::now() + timeout;
        loop {
            let view = self.hosts.view();
            if let Some(pins) = &mut self.pins {
                pins.pin_replicas(&view)?;
            }
            self.screen.update(&view, client);
            if condition(&view) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what}; {}{}", timeout.as_secs(), view.state(), self.hosts.log_tails());
            }
            pause()?;
        }
    }

    /// Lets a while pass, and shows what happens meanwhile.
    pub fn pass(&mut self, duration: Duration, client: Option<&Load<Counter>>) -> Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            if self.screen.is_due() {
                self.screen.update(&self.hosts.view(), client);
            }
            pause()?;
        }
        Ok(())
    }

    /// A client that increments the counter, with so many requests under way at a time.
    pub fn count(&self, depth: usize) -> Result<Load<Counter>> {
        Load::count(self.hosts.redis(), COUNTER, LoadOptions { depth, silence_max: SILENCE_MAX })
            .context("the client cannot reach Redis")
    }
}

fn is_gone(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() > GONE_TIMEOUT)
}

fn answers(redis: SocketAddr) -> bool {
    Connection::open(redis, TRY_TIMEOUT).and_then(|mut connection| connection.ask(&[b"PING"], TRY_TIMEOUT)).is_ok()
}
