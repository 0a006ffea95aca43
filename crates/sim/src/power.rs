//! Power: a guest that powers off or asks for a reset, with what `replication::driver` and the replica's process do then; a host that loses power, and has it again.

use protocol::{Claim, Epoch, Event, Farewell, FarewellStep, LossReason, Replica};

use crate::coverage::Occurrence;
use crate::mutation::Mutation;
use crate::network::Message;
use crate::process::{Body, GuestEnd, Leaving, Parting, Runner, Timer};
use crate::world::{Death, World};

impl World {
    /// The guest on a host ends.
    pub fn guest_ends(&mut self, host: usize, end: GuestEnd) {
        let Some(runner) = self.runner(host).filter(|runner| runner.leaving.is_none()) else { return };
        runner.leaving = Some(Leaving { end, farewell: Farewell::default() });
        self.tell(|world| format!("{}: the guest ends: {end:?}", world.name(host)));
    }

    /// Parts from the secondary, and ends. One that does not hear goes on from the last checkpoint.
    pub fn leaves(&mut self, host: usize, mut leaving: Leaving) {
        let now = self.clock(host);
        let Some(process) = &mut self.hosts[host].process else { return };
        let Body::Running(runner) = &mut process.body else { return };
        let has_begun = runner.session.as_ref().is_some_and(|session| session.epochs.has_begun());
        let connection = runner.session.as_ref().map(|session| session.connection);
        let parting = leaving.farewell.next(!has_begun && runner.is_held, connection.is_some(), now);
        runner.leaving = Some(leaving);
        match (parting, connection) {
            (FarewellStep::Tell, Some(connection)) => {
                self.send(connection, crate::network::Side::Primary, Message::Ended);
            }
            (FarewellStep::Wait | FarewellStep::Tell, _) => {}
            (FarewellStep::Leave, _) => self.has_left(host, leaving.end),
        }
    }

    fn has_left(&mut self, host: usize, end: GuestEnd) {
        self.hosts[host].disks.flush();
        if end == GuestEnd::PowerOff {
            self.coverage.note(Occurrence::PoweredOff);
            self.hosts[host].is_powered_off = true;
            return self.end_process(host, Death::Ended, true);
        }
        // The VM is this replica's alone, if it still is, and boots again.
        let is_home = self.host_name(host).is(&self.claim().primary);
        if !is_home || !self.reaches_store(host) {
            let death = if is_home { Death::Crashed } else { Death::Stopped };
            return self.end_process(host, death, true);
        }
        self.coverage.note(Occurrence::Rebooted);
        self.end_process(host, Death::Ended, true);
        let id = self.next_process();
        let claim: Claim = self.claim_alone(host, id);
        let state = self.history.boots(self.hosts[host].disks.blocks);
        let replica = Replica::primary(self.hosts[host].name.clone(), claim);
        self.start_process(host, replica, Body::Running(Box::new(Runner::new(state, Epoch::NONE))));
        self.start_timer(host, 0, Timer::Guest);
    }

    /// The primary says that the guest is off: there is nothing to take over.
    pub fn guest_has_ended(&mut self, host: usize) {
        if self.mutation == Some(Mutation::TakeOverEnded) {
            return self.part(host, Parting::Ended, Event::PeerLost { reason: LossReason::Closed });
        }
        self.end_process(host, Death::Ended, true);
    }

    /// All that runs on a host ends at once, and what its disk had not on stable storage may be lost.
    pub fn lose_power(&mut self, host: usize) {
        self.hosts[host].is_up = false;
        self.end_process(host, Death::Crashed, false);
        if self.plan.is_bridged {
            self.end_is_gone(host);
        }
        self.hosts[host].disks.lose_power(&mut self.random);
        self.check_copy(host);
    }

    /// A host has power again.
    pub fn power_up(&mut self, host: usize) {
        if !self.hosts[host].is_up {
            self.tell(|world| format!("{}: has power again", world.name(host)));
            (self.hosts[host].is_up, self.hosts[host].is_autostart_due) = (true, true);
            self.daemon_starts(host);
        }
    }
}
