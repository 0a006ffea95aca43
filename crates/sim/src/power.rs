//! Power: a guest that powers off or asks for a reset, with what `replication::driver` and the replica's process do then; a host that loses power, and has it again.

use protocol::{Claim, Epoch, Event, Farewell, FarewellStep, LossReason, Replica};

use crate::coverage::Occurrence;
use crate::daemon::BootClock;
use crate::mutation::Mutation;
use crate::network::Message;
use crate::process::{Body, GuestEnd, Leaving, Parting, Runner, Timer};
use crate::time::Nanoseconds;
use crate::world::{DAEMON_INTERVAL, Death, Happening, World};

impl World {
    /// The guest on a host ends.
    pub fn guest_ends(&mut self, host: usize, end: GuestEnd) {
        let Some(runner) = self.runner(host).filter(|runner| runner.leaving.is_none()) else { return };
        runner.leaving = Some(Leaving { end, farewell: Farewell::default() });
        self.tell(|world| format!("{}: the guest ends: {end:?}", world.name(host)));
    }

    /// Parts from the secondary, and ends. One that does not hear goes on from the last checkpoint.
    pub fn leaves(&mut self, host: usize) {
        let now = self.clock(host);
        let Some(process) = &mut self.hosts[host].process else { return };
        let is_undecided = process.replica.is_undecided();
        let Body::Running(runner) = &mut process.body else { return };
        let Some(leaving) = &mut runner.leaving else { return };
        let connection = runner.session.as_ref().map(|session| session.connection);
        let parting = leaving.farewell.next(is_undecided, connection.is_some(), now);
        let end = leaving.end;
        match (parting, connection) {
            (FarewellStep::Tell, Some(connection)) => {
                self.send(connection, crate::network::Side::Primary, Message::Ended);
            }
            (FarewellStep::Wait | FarewellStep::Tell, _) => {}
            (FarewellStep::Leave, _) => self.has_left(host, end),
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
            self.hosts[host].boot_clock = BootClock::new(self.now);
            self.daemon_starts(host);
        }
    }

    /// Somebody stops the host with its VMs, for which that takes so long.
    pub fn host_stops(&mut self, host: usize, duration: Nanoseconds) {
        let daemon = &mut self.hosts[host].daemon;
        (daemon.report.is_stopping, daemon.report.stops_vms, daemon.is_settled) = (true, true, false);
        let run = daemon.run;
        self.schedule(duration, Happening::Stopped { host, run });
    }

    /// The daemon that was to stop its host has, and is started again soon. Not if it was killed meanwhile.
    pub fn has_stopped(&mut self, host: usize, run: u32) {
        if self.hosts[host].daemon.is_up && self.hosts[host].daemon.run == run {
            self.daemon_is_killed(host, DAEMON_INTERVAL);
        }
    }
}
