//! A replica's cards and their network ends: connecting to them, and looking after them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use machine::engine::soft::InputMode;
use machine::vm::{Vm, VmConfig, VmState};
use memory::GuestRam;
use network::FrameBackend;
use protocol::Generation;
use replication::disk::DiskSet;
use replication::driver::{Primary, SecondaryHandle};
use replication::gate::OutputGate;
use spec::MacAddr;

use super::{Acting, Process};

/// How often a primary looks for network ends that its cards lack.
const PLUG_INTERVAL: Duration = Duration::from_millis(50);
/// How often a secondary looks whether its network ends answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How often a primary looks whether those that its cards have still answer.
const SILENCE_INTERVAL: Duration = Duration::from_secs(1);
/// A secondary that has not reached a network end for so long makes room for another one.
const WITHOUT_NETWORK_MAX: Duration = Duration::from_secs(15);

/// Whose network ends are looked after.
enum Watched {
    Nothing,
    Primary(Primary),
    Secondary(SecondaryHandle),
}

impl Process {
    /// The cards of a VM that is booted: their MTUs, and what they are connected to. After a reset, a network end may be gone; it is connected to
    /// when it is back.
    pub(super) fn connected_cards(
        &self,
        gate: &OutputGate,
        generation: Generation,
    ) -> Result<Vec<(u16, Box<dyn FrameBackend>)>> {
        let mut cards = Vec::new();
        for card in 0..self.spec.networks.len() {
            cards.push(match (self.ends.connect(card, generation, None), self.ends.mtu(card)) {
                (Ok(link), _) => (link.mtu(), gate.wrap(card, Box::new(link))?),
                (Err(_), Some(mtu)) => (mtu, gate.await_end(card)?),
                (Err(error), _) => return Err(error),
            });
        }
        Ok(cards)
    }

    /// The addresses of the cards.
    pub(super) fn macs(&self) -> Vec<MacAddr> {
        let cards = self.spec.networks.iter().zip(0..);
        cards
            .map(|(network, number)| network.mac().unwrap_or_else(|| MacAddr::for_vm(&self.spec.name, number)))
            .collect()
    }

    /// Looks after the network ends, as long as the process lives.
    pub(super) fn watch_ends(&self) {
        let mut reached_at = Instant::now();
        loop {
            let acting = match &self.shared().acting {
                Acting::Primary(primary, _) => Watched::Primary(primary.clone()),
                Acting::Secondary(secondary) => Watched::Secondary(secondary.clone()),
                Acting::Starting | Acting::Restarting => Watched::Nothing,
            };
            match acting {
                Watched::Primary(primary) => {
                    self.ends.plug(primary.gate(), primary.generation());
                    primary.look_at_network();
                }
                Watched::Secondary(secondary) => {
                    let probed = self.ends.probe();
                    secondary.set_reaches_network(probed.is_ok());
                    match probed {
                        Ok(_) => reached_at = Instant::now(),
                        Err(why) if reached_at.elapsed() > WITHOUT_NETWORK_MAX => self.end_without_network(&why),
                        Err(_) => {}
                    }
                    thread::sleep(PROBE_INTERVAL);
                }
                Watched::Nothing => {}
            }
            thread::sleep(PLUG_INTERVAL);
        }
    }

    /// Lets go of network ends of a primary that are there and do not answer, so that their VM is looked after as one whose network end is gone.
    pub(super) fn watch_for_silent_ends(&self) {
        loop {
            thread::sleep(SILENCE_INTERVAL);
            let primary = match &self.shared().acting {
                Acting::Primary(primary, _) => Some(primary.clone()),
                _ => None,
            };
            let Some(primary) = primary else { continue };
            for card in self.ends.silent() {
                tracing::warn!(card, "the network end does not answer");
                primary.gate().unplug(card);
            }
        }
    }

    /// Makes the VM of what this secondary holds, but for its connections to the network ends: those are for whoever has won. That there are ends to
    /// connect to is found out here.
    pub(super) fn make_vm(
        &self,
        config: &VmConfig,
        ram: &GuestRam,
        state: VmState,
        gate: &OutputGate,
        disks: &DiskSet,
    ) -> Result<Vm> {
        let mtus = self.ends.probe().map_err(anyhow::Error::msg)?;
        let cards = mtus.into_iter().enumerate().map(|(card, mtu)| Ok((mtu, gate.await_end(card)?)));
        let parts = self.parts(disks, cards.collect::<Result<_>>()?)?;
        Ok(Vm::restore(config.clone(), ram, state, parts, self.config.engine, InputMode::Live)?)
    }
}
