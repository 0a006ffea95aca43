//! What the guest's clients do: one kind of work after the other, all at once, nothing.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use machine::control::Control;
use redis::Commands;

use super::service::{POSTGRESQL, REDIS, psql_client, work};
use crate::support::HUNG;
use crate::support::guest::{Guest, Network};

/// Longest phase.
const PHASE_MAX: Duration = Duration::from_secs(20);
const PIPELINED: usize = 50;
/// Keys that Redis comes to hold, with values of up to 3,000 bytes: a part of the guest's memory.
const KEYS: usize = 2000;
const RECONNECTS_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Redis,
    Postgresql,
    Compile,
    All,
    Idle,
}

const PHASES: [Phase; 5] = [Phase::Redis, Phase::Postgresql, Phase::Compile, Phase::All, Phase::Idle];

/// Which phases come, for how long each.
pub struct Schedule {
    phases: Vec<Phase>,
    each: Duration,
}

impl Schedule {
    /// Whole rounds of all phases, in `total`.
    pub fn new(total: Duration) -> Self {
        let count = u32::try_from(PHASES.len()).unwrap();
        let rounds = total.div_duration_f64(PHASE_MAX * count).ceil().max(1.0) as u32;
        let phases = PHASES.repeat(rounds as usize);
        Self { each: total / (rounds * count), phases }
    }
}

/// Runs the whole schedule; whatever the guest answers is checked.
pub fn run(guest: &Guest, control: &Control, network: &Network, schedule: &Schedule) {
    let begin = Instant::now();
    let mut redis = RedisLoad::new(network);
    let postgresql = PostgresqlLoad { network, transactions: Cell::new(0) };
    let mut compile = CompileLoad { guest, control, seed: 0 };
    for (end, phase) in (1..).map(|number| begin + schedule.each * number).zip(&schedule.phases) {
        match phase {
            Phase::Redis => redis.run(end),
            Phase::Postgresql => postgresql.run(end),
            Phase::Compile => compile.run(end),
            Phase::All => thread::scope(|scope| {
                scope.spawn(|| redis.run(end));
                scope.spawn(|| compile.run(end));
                postgresql.run(end);
            }),
            Phase::Idle => thread::sleep(end.saturating_duration_since(Instant::now())),
        }
    }
    postgresql.check();
}

/// Increments, alone and pipelined, and now and then a dump to the disk.
struct RedisLoad<'a> {
    network: &'a Network,
    connection: redis::Connection,
    counter: usize,
    reconnected: usize,
}

impl<'a> RedisLoad<'a> {
    fn new(network: &'a Network) -> Self {
        Self { network, connection: network.redis(REDIS).unwrap(), counter: 0, reconnected: 0 }
    }

    fn run(&mut self, end: Instant) {
        while Instant::now() < end {
            if let Err(error) = self.round() {
                self.reconnect(&error);
            }
        }
        if let Err(error) = redis::cmd("SAVE").query::<String>(&mut self.connection) {
            self.reconnect(&error);
        }
    }

    fn round(&mut self) -> redis::RedisResult<()> {
        for _ in 0..PIPELINED {
            let counter: usize = self.connection.incr("counter", 1)?;
            self.counter += 1;
            assert_eq!(counter, self.counter);
        }
        let mut pipeline = redis::pipe();
        let value = "x".repeat(self.counter % 3000);
        for number in 0..PIPELINED {
            pipeline.set(format!("key {}", (self.counter + number) % KEYS), &value).ignore();
        }
        pipeline.get(format!("key {}", self.counter % KEYS));
        assert_eq!(pipeline.query::<Vec<String>>(&mut self.connection)?, [value]);
        Ok(())
    }

    /// A host that is suspended for a while interrupts reads that have a timeout. At most one increment was under way.
    fn reconnect(&mut self, error: &redis::RedisError) {
        self.reconnected += 1;
        assert!(error.is_io_error() && self.reconnected <= RECONNECTS_MAX, "{error}");
        eprintln!("Redis's client connects again: {error}");
        self.connection = self.network.redis(REDIS).unwrap();
        let counter: Option<usize> = self.connection.get("counter").unwrap();
        let counter = counter.unwrap_or(0);
        assert!(counter == self.counter || counter == self.counter + 1, "{counter}, not {}", self.counter);
        self.counter = counter;
    }
}

/// Banking transactions on two connections.
struct PostgresqlLoad<'a> {
    network: &'a Network,
    transactions: Cell<u64>,
}

impl PostgresqlLoad<'_> {
    fn run(&self, end: Instant) {
        let seconds = end.saturating_duration_since(Instant::now()).as_secs().max(1).to_string();
        let report = psql_client(self.network, "pgbench", &["-n", "-c", "2", "-T", &seconds, "postgres"]);
        let done = report.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        let done: u64 = done.unwrap_or_else(|| panic!("{report}")).parse().unwrap();
        self.transactions.set(self.transactions.get() + done);
    }

    /// Each transaction that was reported is there.
    fn check(&self) {
        let count = psql_client(self.network, "psql", &["-tAc", "select count(*) from pgbench_history", "postgres"]);
        assert_eq!(count.trim().parse(), Ok(self.transactions.get()), "port {}", self.network.port(POSTGRESQL));
    }
}

/// Compiles and runs a program on the guest's console.
struct CompileLoad<'a> {
    guest: &'a Guest,
    control: &'a Control,
    seed: u64,
}

impl CompileLoad<'_> {
    fn run(&mut self, end: Instant) {
        while Instant::now() < end {
            self.seed += 1;
            let result = format!("compiled {}: {}.", self.seed, work(self.seed));
            self.control.type_on_console(format!("compile {}\n", self.seed).as_bytes());
            let begin = Instant::now();
            while !self.guest.console().contains(&result) {
                assert!(begin.elapsed() < HUNG, "{result:?} does not come:\n{}", self.guest.console());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
