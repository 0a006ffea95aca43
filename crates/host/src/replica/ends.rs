//! The network ends of a replica's cards: whether they can be reached, and connecting to them, again if need be.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::status::Fault;
use api::time::unix_ms_now;
use machine::bus::lock;
use network::end::ControlError;
use network::{Attach, InputPosition, Link, LinkError, end};
use protocol::Generation;
use replication::gate::OutputGate;
use spec::NetworkSpec;
use terminal::error_text::error_text;

use super::broker::Broker;

/// How long an end that has refused a connection is left alone: it belongs to a replica that succeeded this one.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The network ends of a replica, by card.
pub struct Ends {
    cards: Vec<CardEnd>,
    /// Makes the connections.
    broker: Arc<Broker>,
}

struct CardEnd {
    socket: PathBuf,
    /// Frames that have waited for longer are not for the guest.
    max_age: Option<Duration>,
    seen: Mutex<Seen>,
}

/// What was last seen of an end.
#[derive(Default)]
struct Seen {
    mtu: Option<u16>,
    fault: Option<Fault>,
    refused_at: Option<Instant>,
}

impl Ends {
    /// The ends that listen at these sockets, of cards on these networks. `suspicion` is the VM's suspicion time.
    pub fn new(sockets: &[PathBuf], networks: &[NetworkSpec], suspicion: Duration, broker: Arc<Broker>) -> Self {
        let cards = sockets.iter().zip(networks);
        Self { cards: cards.map(|(socket, network)| CardEnd::new(socket, network, suspicion)).collect(), broker }
    }

    /// Connects a card to its end, which goes on at `resume`.
    pub fn connect(&self, card: usize, generation: Generation, resume: Option<InputPosition>) -> Result<Link> {
        let end = self.cards.get(card).context("there is no such card")?;
        let attach = end.attach(generation, resume);
        let dialed = self.broker.end(card);
        let connected = dialed.and_then(|connection| Ok(Link::over(connection, &end.socket, &attach)?));
        let mut seen = lock(&end.seen);
        match &connected {
            Ok(link) => *seen = Seen { mtu: Some(link.mtu()), ..Seen::default() },
            Err(error) => {
                let is_refused = matches!(error.downcast_ref(), Some(LinkError::Refused { .. }));
                seen.refused_at = is_refused.then(Instant::now);
                seen.note(card, error_text(error));
            }
        }
        connected
    }

    /// The MTU of a card's network, if its end has ever been reached.
    pub fn mtu(&self, card: usize) -> Option<u16> {
        lock(&self.cards.get(card)?.seen).mtu
    }

    /// Connects those cards of a VM that have no end, as far as theirs can be reached. What cannot be is tried again when this is called again.
    pub fn plug(&self, gate: &OutputGate, generation: Generation) {
        for (card, position) in gate.unplugged() {
            let refused_at = self.cards.get(card).and_then(|end| lock(&end.seen).refused_at);
            if refused_at.is_some_and(|at| at.elapsed() < REFUSED_PAUSE) {
                continue;
            }
            // What is wrong is among the faults.
            let Ok(link) = self.connect(card, generation, Some(position)) else { continue };
            match gate.plug(card, Box::new(link)) {
                Ok(()) => tracing::info!(card, "connected to the network end"),
                Err(error) => tracing::warn!(card, %error, "the network end is gone again"),
            }
        }
    }

    /// Asks all ends to stay, as a VM may yet connect to them; the MTUs of their networks, or why one cannot be reached.
    pub fn probe(&self) -> Result<Vec<u16>, String> {
        let mut mtus = Ok(Vec::new());
        for (card, end) in self.cards.iter().enumerate() {
            let answer = self.broker.end(card).and_then(|connection| Ok(end::keep_over(connection, &end.socket)?));
            let mut seen = lock(&end.seen);
            match answer {
                Ok(status) => {
                    *seen = Seen { mtu: Some(status.mtu), ..Seen::default() };
                    if let Ok(mtus) = &mut mtus {
                        mtus.push(status.mtu);
                    }
                }
                Err(error) => {
                    let detail = error_text(&error);
                    mtus = mtus.and(Err(format!("network card {card}: {detail}")));
                    seen.note(card, detail);
                }
            }
        }
        mtus
    }

    /// The cards whose ends are there and do not answer, as a process that is stopped, or waits for what does not come. It takes as long as an end is given
    /// to answer.
    pub fn silent(&self) -> Vec<usize> {
        let is_silent = |(card, end): &(usize, &CardEnd)| {
            let answer = self.broker.end(*card).and_then(|connection| Ok(end::keep_over(connection, &end.socket)?));
            let Err(error) = answer else { return false };
            let is_silent = matches!(error.downcast_ref(), Some(ControlError::NoAnswer { .. }));
            if is_silent {
                // Whoever can end it need not wait until a card has tried to connect to it.
                lock(&end.seen).note(*card, error_text(&error));
            }
            is_silent
        };
        self.cards.iter().enumerate().filter(is_silent).map(|(card, _)| card).collect()
    }

    /// What is broken, and since when.
    pub fn faults(&self) -> Vec<Fault> {
        self.cards.iter().filter_map(|end| lock(&end.seen).fault.clone()).collect()
    }
}

impl CardEnd {
    fn new(socket: &Path, network: &NetworkSpec, suspicion: Duration) -> Self {
        let max_age = protocol::waiting_max(suspicion, matches!(network, NetworkSpec::Bridge(_)));
        Self { socket: socket.to_owned(), max_age, seen: Mutex::default() }
    }

    /// What the end is told by a replica that connects to it.
    fn attach(&self, generation: Generation, resume: Option<InputPosition>) -> Attach {
        Attach { generation: generation.number(), resume, max_age: self.max_age }
    }
}

impl Seen {
    fn note(&mut self, card: usize, detail: String) {
        let since_unix_ms = self.fault.as_ref().map_or_else(unix_ms_now, |fault| fault.since_unix_ms);
        self.fault = Some(Fault { part: format!("network card {card}"), detail, since_unix_ms });
    }
}

#[cfg(test)]
mod tests {
    use spec::{BridgeSpec, UserSpec};

    use super::*;

    /// Fault 8 of those that stay mended (ARCHITECTURE.md): the end drops what is older than it is told to.
    #[test]
    fn an_end_on_a_bridge_is_told_which_frames_are_too_old() {
        let suspicion = Duration::from_millis(150);
        let resume = Some(InputPosition { end: 7, frames: 3 });
        let attach = |network: &NetworkSpec| {
            CardEnd::new(Path::new("end.sock"), network, suspicion).attach(Generation::new(4), resume)
        };
        let bridge = NetworkSpec::Bridge(BridgeSpec { mac: None, bridge: "br0".to_owned(), tap: None });
        assert_eq!(attach(&bridge), Attach { generation: 4, resume, max_age: Some(suspicion) });
        let user = NetworkSpec::User(UserSpec::default());
        assert_eq!(attach(&user), Attach { generation: 4, resume, max_age: None });
    }
}
