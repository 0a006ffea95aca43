//! [`World`]: hosts, network, store, and what happens next.

use cluster::records::ClusterState;
use protocol::{Claim, Epoch, Generation, MonotonicTime, Replica};
use spec::{HostName, Maintenance, ReplicaId, VmName};

use crate::agenda::Agenda;
use crate::coverage::{Coverage, Occurrence};
use crate::daemon::{Asked, BootClock, Daemon, FIRST_COPIES_MAX, FIRST_RUN, OtherVm, SecondDaemon, Task, records};
use crate::disks::Disks;
use crate::ends::{Frame, NetworkEnd};
use crate::faults::{Moment, Plan, Trigger};
use crate::history::{FIRST_STATE, History};
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Network, Side};
use crate::process::{Body, Input, Process, ProcessId, Runner, Timer};
use crate::random::Random;
use crate::store::{Pending, Request, Store};
use crate::time::{Clock, MICROSECOND, MILLISECOND, Nanoseconds, RATE_ERROR_PPM_MAX};
use crate::violation::Violation;

/// How long after the last fault the VM may take to be protected again, at most. A swap may be carried out late until then, the longest chain of
/// time-outs has a few of a second's fraction each, and a VM that moves needs three first copies in turn, of more than a second each where it has much memory.
const RECOVERY_MAX: Nanoseconds = 10_000 * MILLISECOND;
/// What happens in a schedule without end.
const HAPPENINGS_MAX: u64 = 1_000_000;
/// How often the host daemons look whether something is to be done.
pub(crate) const DAEMON_INTERVAL: Nanoseconds = 40 * MILLISECOND;
/// What a replica's host is called.
const HOST_NAMES: [&str; 3] = ["a", "b", "c"];

/// What happens at a time.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Noticed {
        process: ProcessId,
        input: Input,
    },
    Arriving {
        connection: ConnectionId,
        side: Side,
    },
    StoreReached(Box<Pending>),
    Fault(usize),
    FaultsEnd,
    Wake(ProcessId),
    PowerUp(usize),
    DaemonUp(usize),
    /// The daemon that has stopped its host ends, unless it has ended before.
    Stopped {
        host: usize,
        run: u32,
    },
    MaintenanceEnds(usize),
    Task(Box<Task>),
    Daemons,
}

pub(crate) struct Host {
    pub name: ReplicaId,
    pub clock: Clock,
    pub boot_clock: BootClock,
    pub is_up: bool,
    pub process: Option<Process>,
    pub store_unreachable_until: Nanoseconds,
    /// The VM could not be run here.
    pub unready_until: Nanoseconds,
    /// Its copy of the VM's disk.
    pub disks: Disks,
    pub daemon: Daemon,
    /// The last replica here ended because its guest was powered off.
    pub is_powered_off: bool,
    /// VMs are still to be started, since it had power again.
    pub is_autostart_due: bool,
    /// A second daemon of its identity, which waits to serve it.
    pub second: Option<SecondDaemon>,
    /// The way to each host.
    pub blocked_until: [Nanoseconds; HOST_NAMES.len()],
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    Crashed,
    /// It stopped, and was not entitled to go on.
    Unentitled,
    Stopped,
    /// A daemon ended it.
    Retired,
    /// Its guest has ended.
    Ended,
}

pub(crate) struct World {
    pub now: Nanoseconds,
    agenda: Agenda<Happening>,
    pub random: Random,
    pub plan: Plan,
    pub hosts: Vec<Host>,
    /// By process, which host it is or was on.
    pub homes: Vec<usize>,
    /// By process, how it ended.
    pub deaths: Vec<Option<Death>>,
    pub network: Network,
    /// The hosts' network ends, or the one that they share.
    pub ends: Vec<NetworkEnd>,
    /// The identity that the last one got.
    pub next_end: u64,
    /// All frames that were sent to the guest.
    pub frames: Vec<Frame>,
    /// Where the network has seen the guest last.
    pub located: usize,
    pub store: Store,
    pub history: History,
    pub slow_link_until: Nanoseconds,
    pub slow_link_extra: Nanoseconds,
    pub slow_sender_until: Nanoseconds,
    pub slow_sender_extra: Nanoseconds,
    pub slow_execution_until: Nanoseconds,
    /// The FT mode that the primary was told last.
    pub wants_log: bool,
    /// The cluster's records, with the VM's claim.
    pub records: ClusterState,
    pub vm: VmName,
    /// What was asked for last.
    pub asked: Option<Asked>,
    /// The other VMs of the first host.
    pub others: Vec<OtherVm>,
    /// Since the VM was started by force: the process.
    pub forced_since: Option<ProcessId>,
    pub is_calm: bool,
    /// What happens now was decided before the process stood still.
    pub is_behind: bool,
    /// Who released output last, and when.
    pub last_release: Option<(ProcessId, Nanoseconds)>,
    pub coverage: Coverage,
    pub mutation: Option<Mutation>,
    pub violation: Option<Violation>,
    /// Since when all is as it should be in the end.
    pub well_since: Option<Nanoseconds>,
    pub is_over: bool,
    trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let names: Vec<HostName> = HOST_NAMES[..plan.hosts].iter().filter_map(|name| name.parse().ok()).collect();
        let vm: VmName = VmName::try_from("v".to_owned()).unwrap_or_else(|error| unreachable!("{error}"));
        let boot_clocks = BootClock::of_hosts(seed, plan.hosts);
        let hosts: Vec<Host> = HOST_NAMES[..plan.hosts]
            .iter()
            .enumerate()
            .map(|(number, &name)| {
                let error = random.between(0, 2 * RATE_ERROR_PPM_MAX as u64 + 1) as i64 - RATE_ERROR_PPM_MAX;
                Host {
                    daemon: Daemon::new(&names[number], FIRST_RUN, first_copies_max(mutation)),
                    is_powered_off: false,
                    is_autostart_due: false,
                    second: None,
                    name: ReplicaId::new(name),
                    clock: Clock { rate_error_ppm: error },
                    boot_clock: boot_clocks[number],
                    is_up: true,
                    process: None,
                    store_unreachable_until: 0,
                    unready_until: 0,
                    disks: if number == 0 { Disks::whole(FIRST_STATE) } else { Disks::empty() },
                    blocked_until: [0; HOST_NAMES.len()],
                }
            })
            .collect();
        let ends = (1..=if plan.is_bridged { plan.hosts as u64 } else { 1 }).map(NetworkEnd::new).collect();
        let claim = Claim { generation: Generation::new(1), primary: hosts[0].name.clone(), secondary: None };
        let (mut records, others) = records(&names, seed, &claim, &vm, plan.others);
        records.vms[0].record.autostart = seed.is_multiple_of(2);
        let mut world = Self {
            now: 0,
            agenda: Agenda::default(),
            random,
            plan,
            hosts,
            homes: Vec::new(),
            deaths: Vec::new(),
            network: Network::default(),
            ends,
            next_end: HOST_NAMES.len() as u64,
            frames: Vec::new(),
            located: 0,
            store: Store::new(claim.clone(), ProcessId(0)),
            history: History::new(),
            slow_link_until: 0,
            slow_link_extra: 0,
            slow_sender_until: 0,
            slow_sender_extra: 0,
            slow_execution_until: 0,
            wants_log: false,
            records,
            others,
            vm,
            asked: None,
            forced_since: None,
            is_calm: false,
            is_behind: false,
            last_release: None,
            coverage: Coverage::default(),
            mutation,
            violation: None,
            well_since: None,
            is_over: false,
            trace: is_traced.then(Vec::new),
        };
        world.wants_log = world.plan.is_lockstep;
        let replica = Replica::primary(world.hosts[0].name.clone(), claim);
        world.start_process(0, replica, Body::Running(Box::new(Runner::new(FIRST_STATE, Epoch::NONE))));
        world.start_timer(0, 0, Timer::Guest);
        world.schedule(0, Happening::Daemons);
        world.schedule(world.plan.faults_end, Happening::FaultsEnd);
        for (index, planned) in world.plan.faults.clone().iter().enumerate() {
            if let Trigger::At(at) = planned.trigger {
                world.schedule(at, Happening::Fault(index));
            }
        }
        world
    }

    /// Lets happen what will, until it is over or a promise is broken.
    pub fn run(&mut self) {
        while !self.is_over && self.violation.is_none() {
            let Some((at, happening)) = self.agenda.pop() else { return };
            self.now = at;
            if at > self.plan.faults_end + RECOVERY_MAX || self.agenda.scheduled() > HAPPENINGS_MAX {
                self.violation = Some(Violation::Stuck(self.describe()));
                return;
            }
            match happening {
                Happening::Noticed { process, input } => self.notice(process, input),
                Happening::Arriving { connection, side } => self.arriving(connection, side),
                Happening::StoreReached(pending) => self.store_reached(&pending),
                Happening::Fault(index) => self.fault(index),
                Happening::FaultsEnd => self.faults_end(),
                Happening::Wake(process) => self.wake(process),
                Happening::PowerUp(host) => self.power_up(host),
                Happening::DaemonUp(host) => self.daemon_starts(host),
                Happening::Stopped { host, run } => self.has_stopped(host, run),
                Happening::MaintenanceEnds(host) => self.set_maintenance(host, Maintenance::Off),
                Happening::Task(task) => self.task(*task),
                Happening::Daemons => {
                    self.daemons();
                    self.schedule(DAEMON_INTERVAL, Happening::Daemons);
                }
            }
        }
    }

    pub fn into_parts(self) -> (Option<Violation>, Coverage, Vec<String>) {
        (self.violation, self.coverage, self.trace.unwrap_or_default())
    }

    /// A line of the trace, if there is one.
    pub fn tell(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{:>12.6} s  {}", self.now as f64 / 1e9, text(self));
            if let Some(trace) = &mut self.trace {
                trace.push(line);
            }
        }
    }

    pub fn broken(&mut self, violation: Violation) {
        self.tell(|_| format!("VIOLATION: {violation}"));
        self.violation.get_or_insert(violation);
    }

    pub fn name(&self, host: usize) -> String {
        self.hosts[host].name.to_string()
    }

    pub fn schedule(&mut self, delay: Nanoseconds, happening: Happening) {
        self.agenda.push(self.now + delay, happening);
    }

    /// What the clock of `host` says.
    pub fn clock(&self, host: usize) -> MonotonicTime {
        self.hosts[host].clock.reads(self.now)
    }

    pub fn start_timer(&mut self, host: usize, duration: Nanoseconds, timer: Timer) {
        if let Some(process) = self.hosts[host].process.as_ref().map(|process| process.id) {
            let delay = self.hosts[host].clock.waits(duration);
            self.schedule(delay, Happening::Noticed { process, input: Input::Timer(timer) });
        }
    }

    /// What planned faults wait for has come about.
    pub fn moment(&mut self, moment: Moment) {
        if self.is_calm {
            return;
        }
        for index in 0..self.plan.faults.len() {
            if let Trigger::After { moment: of, times, delay } = &mut self.plan.faults[index].trigger
                && *of == moment
                && *times > 0
            {
                *times -= 1;
                if *times == 0 {
                    let delay = *delay;
                    self.schedule(delay, Happening::Fault(index));
                }
            }
        }
    }

    // Processes.
    pub fn start_process(&mut self, host: usize, replica: Replica, body: Body) {
        let id = ProcessId(self.homes.len() as u32);
        self.homes.push(host);
        self.deaths.push(None);
        self.hosts[host].is_powered_off = false;
        let is_running = matches!(body, Body::Running(_));
        self.hosts[host].process = Some(Process { id, replica, body, is_paused: false, pile: Vec::new() });
        if is_running {
            self.located = host;
            self.plug(host, None);
        } else {
            self.strangers_call(host);
        }
    }

    /// The id of the process that is started next.
    pub fn next_process(&self) -> ProcessId {
        ProcessId(self.homes.len() as u32)
    }

    /// Where the process is, if it still is.
    pub fn home(&self, process: ProcessId) -> Option<usize> {
        let host = *self.homes.get(process.0 as usize)?;
        self.hosts[host].process.as_ref().is_some_and(|current| current.id == process).then_some(host)
    }

    pub fn process_id(&self, host: usize) -> Option<ProcessId> {
        self.hosts[host].process.as_ref().map(|process| process.id)
    }

    /// The process is gone; its connections are closed unless the power is off. The daemon starts a secondary in its place.
    pub fn end_process(&mut self, host: usize, death: Death, has_power: bool) {
        let Some(process) = self.hosts[host].process.take() else { return };
        self.deaths[process.id.0 as usize] = Some(death);
        for (connection, side) in self.network.open_ends(process.id) {
            if has_power {
                self.close(connection, side);
            } else {
                self.network.end(connection, side).is_open = false;
            }
        }
        if has_power {
            self.check_copy(host);
        }
    }

    pub fn maintenance_ends_after(&mut self, host: usize, delay: Nanoseconds) {
        self.schedule(delay, Happening::MaintenanceEnds(host));
    }

    pub fn power_up_after(&mut self, host: usize, delay: Nanoseconds) {
        self.schedule(delay, Happening::PowerUp(host));
    }

    /// The daemon ends, and whatever it had under way stays as it is.
    pub fn daemon_is_killed(&mut self, host: usize, duration: Nanoseconds) {
        self.hosts[host].daemon.is_up = false;
        self.schedule(duration, Happening::DaemonUp(host));
    }

    /// A new one remembers nothing.
    pub fn daemon_starts(&mut self, host: usize) {
        let run = self.hosts[host].daemon.run + 1;
        let daemon = Daemon::new(&self.host_name(host), run, first_copies_max(self.mutation));
        self.records.hosts[host].instance.clone_from(&daemon.instance);
        self.hosts[host].daemon = daemon;
    }

    pub fn task_after(&mut self, delay: Nanoseconds, task: Task) {
        self.schedule(delay, Happening::Task(Box::new(task)));
    }

    /// The records say who may run the VM.
    pub fn note_claim(&mut self) {
        let claim = self.store.current().claim.clone();
        let record = &mut self.records.vms[0].claim;
        if record.claim != claim {
            *record = record.succeeded_by(claim);
            self.records.revision += 1;
        }
    }

    pub fn wake_after(&mut self, process: ProcessId, delay: Nanoseconds) {
        self.schedule(delay, Happening::Wake(process));
    }

    fn notice(&mut self, id: ProcessId, input: Input) {
        let Some(host) = self.home(id) else { return };
        let Some(process) = &mut self.hosts[host].process else { return };
        if process.is_paused {
            process.pile.push(input);
        } else {
            self.input(host, input);
        }
    }

    /// A process that was paused notices all that came meanwhile. Its threads race: what came of one kind keeps its order only.
    fn wake(&mut self, id: ProcessId) {
        let Some(host) = self.home(id) else { return };
        let Some(process) = &mut self.hosts[host].process else { return };
        if !process.is_paused {
            return;
        }
        process.is_paused = false;
        let mut pile = std::mem::take(&mut process.pile);
        self.tell(|world| format!("{}: wakes up and finds {} things to do", world.name(host), pile.len()));
        match self.random.below(3) {
            0 => {}
            1 => pile.sort_by_key(|input| !matches!(input, Input::Arrived { .. })),
            _ => pile.sort_by_key(|input| matches!(input, Input::Arrived { .. })),
        }
        for input in pile {
            if self.home(id).is_some() && self.violation.is_none() {
                self.input(host, input);
            }
        }
    }

    fn input(&mut self, host: usize, input: Input) {
        let Some(process) = &self.hosts[host].process else { return };
        match (&process.body, input) {
            (Body::Running(_), Input::Arrived { connection, arrival }) => {
                self.primary_receives(host, connection, arrival)
            }
            (Body::Running(_), Input::StoreAnswered(event)) => self.primary_event(host, None, *event),
            (Body::Running(_), Input::Timer(timer)) => self.primary_timer(host, timer),
            (_, Input::Arrived { connection, arrival }) => self.secondary_receives(host, connection, arrival),
            (_, Input::StoreAnswered(event)) => self.secondary_event(host, *event),
            (_, Input::Timer(timer)) => self.secondary_timer(host, timer),
        }
    }

    // The network.

    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.hosts[from].blocked_until[to] > self.now
    }

    /// Sends from the end `side`; whoever has closed it sends nothing.
    pub fn send(&mut self, connection: ConnectionId, side: Side, message: Message) {
        if self.network.end(connection, side).is_open {
            self.transmit(connection, side, Arrival::Message(message));
        }
    }

    fn transmit(&mut self, connection: ConnectionId, side: Side, arrival: Arrival) {
        let latency = self.latency();
        let now = self.now;
        if side == Side::Primary && arrival != Arrival::Closed {
            self.network.note_sent(connection);
        }
        let end = self.network.end(connection, side.other());
        if end.is_deaf {
            return;
        }
        end.incoming.push_back(arrival);
        end.last_arrival = end.last_arrival.max(now + latency);
        let delay = end.last_arrival - now;
        self.schedule(delay, Happening::Arriving { connection, side: side.other() });
    }

    fn latency(&mut self) -> Nanoseconds {
        let mut latency = self.random.between(50, 400) * MICROSECOND;
        if self.slow_link_until > self.now {
            latency += self.random.between(0, self.slow_link_extra);
        }
        latency
    }

    /// Closes the end `side`. What was sent may be lost with that if something came that was not read.
    pub fn close(&mut self, connection: ConnectionId, side: Side) {
        let end = self.network.end(connection, side);
        if !end.is_open {
            return;
        }
        end.is_open = false;
        let has_unread = !end.incoming.is_empty();
        if has_unread && self.random.chance(50) {
            self.lose_sent(connection, side);
        }
        self.transmit(connection, side, Arrival::Closed);
    }

    /// Of what is under way from the end `side`, only a beginning arrives.
    pub fn lose_sent(&mut self, connection: ConnectionId, side: Side) {
        let count = self.network.end(connection, side.other()).incoming.len();
        let kept = self.random.below(count + 1);
        self.network.end(connection, side.other()).incoming.truncate(kept);
    }

    /// The end `side` learns that its connection is of no use.
    pub fn reset(&mut self, connection: ConnectionId, side: Side) {
        self.transmit(connection, side.other(), Arrival::Closed);
    }

    fn arriving(&mut self, connection: ConnectionId, side: Side) {
        let from = self.homes[self.network.end(connection, side.other()).process.0 as usize];
        let process = self.network.end(connection, side).process;
        let to = self.homes[process.0 as usize];
        if self.is_blocked(from, to) {
            // Sent again until it passes.
            let delay = self.hosts[from].blocked_until[to] - self.now + self.random.between(0, 5) * MILLISECOND;
            self.schedule(delay, Happening::Arriving { connection, side });
            return;
        }
        let end = self.network.end(connection, side);
        let Some(arrival) = end.incoming.pop_front() else { return };
        if end.is_open {
            self.notice(process, Input::Arrived { connection, arrival });
        } else if arrival != Arrival::Closed
            && self.hosts[to].is_up
            && self.network.end(connection, side.other()).is_open
        {
            self.transmit(connection, side, Arrival::Closed);
        }
    }

    // The store.

    pub fn ask_store(&mut self, host: usize, request: Request) {
        let Some(from) = self.process_id(host) else { return };
        let is_swap = matches!(request, Request::CompareAndSwap { .. });
        if is_swap {
            self.moment(Moment::SwapAsked);
        }
        let timeout = self.random.between(50, 300) * MILLISECOND;
        let unanswered = |world: &mut Self| {
            if is_swap {
                world.coverage.note(Occurrence::Unanswered);
            }
            let input = Input::StoreAnswered(Box::new(protocol::Event::StoreUnreachable));
            world.schedule(timeout, Happening::Noticed { process: from, input });
        };
        if self.hosts[host].store_unreachable_until > self.now {
            return unanswered(self);
        }
        let delay = self.random.between(100, 1500) * MICROSECOND;
        let mut pending = Pending { from, request, is_answered: true };
        if !self.is_calm && self.random.chance(self.plan.answers_lost) {
            self.coverage.note(Occurrence::AnswerLost);
            pending.is_answered = false;
            self.schedule(delay, Happening::StoreReached(Box::new(pending)));
            unanswered(self);
        } else if !self.is_calm && is_swap && self.random.chance(self.plan.swaps_late) {
            self.coverage.note(Occurrence::SwapLate);
            pending.is_answered = false;
            let late = timeout + self.random.between(0, 500) * MILLISECOND;
            self.schedule(late, Happening::StoreReached(Box::new(pending)));
            unanswered(self);
        } else {
            self.schedule(delay, Happening::StoreReached(Box::new(pending)));
        }
    }

    fn store_reached(&mut self, pending: &Pending) {
        let answer = self.store.carry_out(pending);
        self.note_claim();
        let name = self.name(self.homes[pending.from.0 as usize]);
        self.tell(|_| format!("store: {:?} of {name}: {answer:?}", pending.request));
        if matches!(pending.request, Request::CompareAndSwap { .. }) {
            self.moment(Moment::SwapCarriedOut);
        }
        if pending.is_answered {
            let delay = self.random.between(100, 1500) * MICROSECOND;
            let input = Input::StoreAnswered(Box::new(answer));
            self.schedule(delay, Happening::Noticed { process: pending.from, input });
        }
    }

    fn describe(&self) -> String {
        let mut text = "the VM is not protected long after the last fault:".to_owned();
        for host in &self.hosts {
            let state = host.process.as_ref().map(|process| process.replica.status());
            match state {
                Some(status) => text.push_str(&format!(" {} is {status:?};", host.name)),
                None => text.push_str(&format!(" {} is down;", host.name)),
            }
        }
        text
    }
}

fn first_copies_max(mutation: Option<Mutation>) -> usize {
    if mutation == Some(Mutation::CopyAllAtOnce) { usize::MAX } else { FIRST_COPIES_MAX }
}
