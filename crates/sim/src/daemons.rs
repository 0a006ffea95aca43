//! What is around the replicas: faults, the user, the host daemons, and how all should end.

use cluster::records::{OperationKind, OperationResult};
use protocol::{DiskAdvice, Event};
use spec::Maintenance;

use crate::coverage::Occurrence;
use crate::faults::{Fault, Moment, Target};
use crate::mutation::Mutation;
use crate::network::Side;
use crate::process::{Body, DISK_PATIENCE, ProcessId, UPLINK_PATIENCE};
use crate::store::NOBODY;
use crate::time::{MILLISECOND, Nanoseconds, nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

/// How long all has to be well in the end.
const WELL_FOR: Nanoseconds = 40 * MILLISECOND;

impl World {
    fn target(&mut self, target: Target) -> Option<usize> {
        let primary = self.primary_host();
        match target {
            Target::Primary => primary,
            Target::Secondary => {
                let primary = primary?;
                self.session(primary).map(|session| session.secondary)
            }
            Target::Host(host) => Some(host),
        }
    }

    /// How long until a fault that lasts so long is over; none lasts beyond the end of all.
    pub fn until(&self, duration: Nanoseconds) -> Nanoseconds {
        (self.now + duration).min(self.plan.faults_end)
    }

    pub fn fault(&mut self, index: usize) {
        if self.is_calm {
            return;
        }
        let fault = self.plan.faults[index].fault;
        self.tell(|_| format!("fault: {fault:?}"));
        match fault {
            Fault::Kill(target) => {
                if let Some(host) = self.target(target).filter(|&host| self.process_id(host).is_some()) {
                    self.coverage.note(Occurrence::Kill);
                    self.end_process(host, Death::Crashed, true);
                }
            }
            Fault::PowerLoss(target, duration) => {
                if let Some(host) = self.target(target).filter(|&host| self.hosts[host].is_up) {
                    self.coverage.note(Occurrence::PowerLoss);
                    self.lose_power(host);
                    let delay = self.until(duration) - self.now;
                    self.power_up_after(host, delay);
                }
            }
            Fault::Pause(target, duration) => self.pause(target, duration),
            Fault::Partition { from, one_way, duration } => self.partition(from, one_way, duration),
            Fault::Cut { primary_learns, secondary_learns } => self.cut(primary_learns, secondary_learns),
            Fault::SlowLink { extra, duration } => {
                self.coverage.note(Occurrence::SlowLink);
                self.slow_link_until = self.until(duration);
                self.slow_link_extra = extra;
            }
            Fault::SlowSender { extra, duration } => {
                self.coverage.note(Occurrence::SlowSender);
                self.slow_sender_until = self.until(duration);
                self.slow_sender_extra = extra;
            }
            Fault::StoreDown(duration) => {
                self.coverage.note(Occurrence::StoreDown);
                let until = self.until(duration);
                for host in &mut self.hosts {
                    host.store_unreachable_until = until;
                }
            }
            Fault::StoreOutOfReach(target, duration) => {
                if let Some(host) = self.target(target) {
                    self.coverage.note(Occurrence::StoreOutOfReach);
                    self.hosts[host].store_unreachable_until = self.until(duration);
                }
            }
            Fault::SecondaryFails => {
                if let Some(host) = self.target(Target::Secondary).filter(|&host| !self.is_paused(host)) {
                    self.secondary_fails(host);
                }
            }
            Fault::Unready(target, duration) => {
                if let Some(host) = self.target(target) {
                    self.hosts[host].unready_until = self.until(duration);
                }
            }
            Fault::DisksBreak { target, hang, duration } => {
                if let Some(host) = self.target(target) {
                    let broken_until = self.until(duration);
                    let disks = &mut self.hosts[host].disks;
                    (disks.broken_since, disks.broken_until, disks.hang) = (self.now, broken_until, hang);
                }
            }
            Fault::EndDies(target, duration) => {
                if let Some(host) = self.target(target) {
                    self.end_dies(host, duration);
                }
            }
            Fault::EndStalls(target, duration) => {
                if let Some(host) = self.target(target) {
                    self.end(host).stalled_until = self.until(duration);
                }
            }
            Fault::SecondDaemon(target) => {
                if let Some(host) = self.target(target) {
                    self.second_daemon_starts(host);
                }
            }
            Fault::Drop(reason) => self.user_drops(reason),
            Fault::ChangeMode => self.asks_to_change_mode(),
            Fault::SlowExecution(duration) => self.slow_execution_until = self.now + duration,
            Fault::GuestEnds(end) => {
                if let Some(host) = self.primary_host().filter(|&host| !self.is_paused(host)) {
                    self.guest_ends(host, end);
                }
            }
            Fault::DaemonKilled(target, duration) => {
                // While nobody runs the VM, its home's is who sees to it.
                let host = self.target(target).or_else(|| self.home_of_vm());
                if let Some(host) = host.filter(|&host| self.has_daemon(host)) {
                    self.coverage.note(Occurrence::DaemonKilled);
                    let duration = self.until(duration) - self.now;
                    self.daemon_is_killed(host, duration);
                }
            }
            Fault::HostStops(target, duration) => {
                if let Some(host) = self.target(target).filter(|&host| self.has_daemon(host)) {
                    let duration = self.until(duration) - self.now;
                    self.host_stops(host, duration);
                }
            }
            Fault::Start { target, is_forced } => {
                if let Some(host) = self.target(target).filter(|&host| self.has_daemon(host)) {
                    self.asks_to_start(host, is_forced);
                }
            }
            Fault::Stop { force, is_reboot } => self.asks_to_stop(force, is_reboot),
            Fault::SwitchOver => self.asks_to_switch_over(),
            Fault::Maintenance { target, is_forced, duration } => {
                if let Some(host) = self.target(target) {
                    self.coverage.note(Occurrence::Maintenance);
                    self.set_maintenance(host, if is_forced { Maintenance::Forced } else { Maintenance::On });
                    let duration = self.until(duration) - self.now;
                    self.maintenance_ends_after(host, duration);
                }
            }
            Fault::Migrate(target) => {
                if let Some(host) = self.target(target) {
                    self.asks_to_migrate(host);
                }
            }
        }
    }

    pub fn is_paused(&self, host: usize) -> bool {
        self.hosts[host].process.as_ref().is_some_and(|process| process.is_paused)
    }

    fn pause(&mut self, target: Target, duration: Nanoseconds) {
        let Some(host) = self.target(target) else { return };
        let Some(process) = &mut self.hosts[host].process else { return };
        process.is_paused = true;
        let id = process.id;
        self.coverage.note(Occurrence::Pause);
        let delay = self.until(duration) - self.now;
        self.wake_after(id, delay);
    }

    fn partition(&mut self, from: Target, one_way: bool, duration: Nanoseconds) {
        let Some(from) = self.target(from) else { return };
        self.coverage.note(if one_way { Occurrence::OneWayPartition } else { Occurrence::Partition });
        let until = self.until(duration);
        for to in 0..self.hosts.len() {
            self.hosts[from].blocked_until[to] = until;
            if !one_way {
                self.hosts[to].blocked_until[from] = until;
            }
        }
    }

    fn cut(&mut self, primary_learns: bool, secondary_learns: bool) {
        let Some(primary) = self.primary_host() else { return };
        let Some(connection) = self.session(primary).map(|session| session.connection) else { return };
        self.coverage.note(match (primary_learns, secondary_learns) {
            (true, true) => Occurrence::Reset,
            (false, false) => Occurrence::Mute,
            _ => Occurrence::HalfOpen,
        });
        for (side, learns) in [(Side::Primary, primary_learns), (Side::Secondary, secondary_learns)] {
            self.lose_sent(connection, side.other());
            if learns {
                self.reset(connection, side);
            }
            self.network.end(connection, side).is_deaf = true;
        }
    }

    /// From now on nothing goes wrong. What went wrong before may still have its consequences.
    pub fn faults_end(&mut self) {
        self.tell(|_| "no more faults".to_owned());
        self.is_calm = true;
        self.want_ft(true, false);
        (0..self.hosts.len()).for_each(|host| self.set_maintenance(host, Maintenance::Off));
        let vm = self.vm.clone();
        for host in &mut self.hosts {
            host.daemon.controller.hurry(&vm);
            host.daemon.is_settled = false;
        }
    }

    /// Sees that the VM is protected, and whether it is.
    pub fn daemons(&mut self) {
        self.client_sends(false);
        self.client_sends(true);
        for host in 0..self.hosts.len() {
            self.look_at_identity(host);
            self.look_at_ends(host);
            self.look_at_network(host);
            self.look_at_disks(host);
        }
        for host in 0..self.hosts.len() {
            self.daemon_looks(host);
        }
        if !self.is_calm {
            return;
        }
        if self.is_nobody_left() {
            self.check_lost();
            self.check_forgotten();
            self.start_at_home();
        } else if let Some(primary) = self.protected_primary() {
            let since = *self.well_since.get_or_insert(self.now);
            let flows = self.last_release.is_some_and(|(by, at)| by == primary && at > since);
            if flows && self.now - since >= WELL_FOR {
                self.coverage.note(Occurrence::EndedProtected);
                self.is_over = true;
            }
        } else {
            self.well_since = None;
        }
    }

    /// Whether the VM could go on at the secondary, by what its primary knows.
    fn could_move(&self, host: usize) -> bool {
        let Some(process) = &self.hosts[host].process else { return false };
        let Body::Running(runner) = &process.body else { return false };
        runner.session.as_ref().is_some_and(|session| process.replica.could_move(session.reaches_network))
    }

    /// A primary looks whether it reaches its network: where the VM cannot be run, that is gone.
    fn look_at_network(&mut self, host: usize) {
        if self.session(host).is_none() || self.is_paused(host) {
            return;
        }
        let (now, clock, stays) = (self.now, self.clock(host), self.mutation == Some(Mutation::StayCutOff));
        let (is_whole, could_move) = (self.reaches_network(host), self.could_move(host));
        let Some(runner) = self.runner(host) else { return };
        if runner.uplink.look(is_whole, could_move, clock) && !stays {
            runner.has_moved = true;
            self.coverage.note(Occurrence::MovedToNetwork);
            return self.switch_over(host);
        }
        runner.has_moved &= !is_whole;
        let is_cut_off = !is_whole && could_move && !runner.is_handing_over && !runner.has_moved;
        let since = runner.cut_off_since.take().filter(|_| is_cut_off).unwrap_or(now);
        runner.cut_off_since = is_cut_off.then_some(since);
        if now - since > 3 * nanoseconds(UPLINK_PATIENCE) {
            self.broken(Violation::StaysCutOff(self.name(host)));
        }
    }

    /// A primary looks whether its disks are broken.
    fn look_at_disks(&mut self, host: usize) {
        if self.is_paused(host) || self.runner(host).is_none() {
            return;
        }
        let (now, health, could_move) = (self.now, self.hosts[host].disks.health(self.now), self.could_move(host));
        let misses = self.mutation == Some(Mutation::MissDiskFailure);
        let Some(runner) = self.runner(host) else { return };
        let advice = runner.disk_watch.look(health, could_move);
        let since = runner.halted_since.take().filter(|_| advice == DiskAdvice::GiveUp).unwrap_or(now);
        runner.halted_since = (advice == DiskAdvice::GiveUp).then_some(since);
        if now - since > 3 * nanoseconds(DISK_PATIENCE) {
            self.broken(Violation::StaysOnBrokenDisks(self.name(host)));
        }
        if misses {
            return;
        }
        let Some(runner) = self.runner(host) else { return };
        runner.has_broken_disks = advice.is_broken();
        match advice {
            DiskAdvice::Hold { .. } => self.coverage.note(Occurrence::HaltedForDisks),
            DiskAdvice::GiveUp => self.coverage.note(Occurrence::MovedFromDisks),
            DiskAdvice::GoOn | DiskAdvice::Recovered => {}
        }
        if let Some(event) = Event::of_disks(advice) {
            self.primary_event(host, None, event);
        }
        if advice == DiskAdvice::GiveUp {
            self.moment(Moment::HandOverBegun);
        }
    }

    /// Nobody holds the VM's state, or could.
    fn is_nobody_left(&self) -> bool {
        self.hosts
            .iter()
            .filter_map(|host| host.process.as_ref())
            .all(|process| matches!(&process.body, Body::Listening { .. }))
    }

    /// The only primary, if it and its secondary agree that the VM is protected.
    fn protected_primary(&mut self) -> Option<ProcessId> {
        let mut running = (0..self.hosts.len()).filter(|&host| {
            self.hosts[host].process.as_ref().is_some_and(|process| matches!(process.body, Body::Running(_)))
        });
        let (host, None) = (running.next()?, running.next()) else { return None };
        let process = self.hosts[host].process.as_ref()?;
        // It runs the guest.
        if !process.replica.is_protected() {
            return None;
        }
        let id = process.id;
        let peer = self.session(host)?.peer;
        let peer = self.home(peer)?;
        // Protection that was turned on during a move may have begun in one domain, and does not end there.
        if self.share_domain(host, peer) {
            return None;
        }
        let secondary = self.hosts[peer].process.as_ref()?;
        secondary.replica.is_protected().then_some(id)
    }

    /// Nobody runs the VM: a start that was asked for is still to come, or has failed.
    fn check_forgotten(&mut self) {
        let Some(operation) = &self.records.vms[0].record.operation else { return };
        let starts = matches!(operation.kind, OperationKind::Start { .. } | OperationKind::Reboot { .. });
        let is_launched = self.asked.is_some_and(|asked| asked.id == operation.id && asked.is_launched);
        if starts && operation.result == Some(OperationResult::Done) && !is_launched {
            let (id, text) = (operation.id, format!("{operation:?}"));
            self.broken(Violation::Forgotten(id, text));
        }
    }

    /// Nobody runs the VM: the operator starts it where its disks are the newest, unless that has been asked for.
    fn start_at_home(&mut self) {
        let pending = self.records.vms[0].record.pending();
        if pending.is_some_and(|operation| matches!(operation.kind, OperationKind::Start { .. })) {
            return;
        }
        if let Some(home) = self.home_of_vm() {
            self.asks_to_start(home, false);
        }
    }

    /// The VM is lost. That may be only if all that the store names have crashed.
    fn check_lost(&mut self) {
        let entry = self.store.current().clone();
        let death = |process: ProcessId| self.deaths.get(process.0 as usize).copied().flatten();
        // What a daemon has ended was none that anything depended on, and where a daemon has claimed the VM nobody runs it.
        let primary = entry.author == NOBODY
            || matches!(death(entry.author), Some(Death::Crashed | Death::Retired | Death::Ended));
        let secondary = entry.secondary.is_none_or(|secondary| {
            matches!(death(secondary), Some(Death::Crashed | Death::Unentitled | Death::Retired | Death::Ended))
        });
        if !primary || !secondary {
            self.broken(Violation::Abandoned(format!("{:?}", entry.claim)));
        }
    }
}
