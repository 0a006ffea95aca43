//! [`Reception`]: how a secondary finds its primary among those who connect.

use std::ops::RangeInclusive;
use std::sync::mpsc::{self, Sender as Postbox};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use machine::vm::VmConfig;
use protocol::{Arbiter, Callers, NotAdmitted, Unreachable, admits};
use spec::{EngineKind, ReplicaId};

use super::message::{ExecutionFormat, Hello, Kind, Welcome};
use crate::channel::{Caller, ChannelError, Closer, Connection, Listener, Receiver, Sender};

/// How long a host that has connected may take to say what the VM is. It looks at its disks and at its own processor first, which takes
/// seconds where that is emulated.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
/// Suspicion times that make sense, in milliseconds.
const SUSPICION_MS: RangeInclusive<u32> = 20..=60_000;
/// And of the least, in milliseconds.
const SUSPICION_MS_LEAST: u32 = 10;
/// How often it is looked whether one of them is the primary.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long no connection is accepted after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Why a connection is not that of the primary.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("it does not begin as a primary does")]
    NotAPrimary,
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    #[error("the cluster store cannot say whether it is the primary: {0}")]
    Store(#[from] Unreachable),
    #[error("the secondary cannot hold the VM: {0}")]
    Unfit(String),
    #[error("there is a primary already")]
    Taken,
}

/// The connection of the primary.
pub(super) struct Greeted {
    pub hello: Hello,
    pub sender: Sender,
    pub receiver: Receiver,
    pub closer: Closer,
}

/// What a secondary needs to know to tell its primary from others.
pub(super) struct Reception<'a> {
    pub listener: &'a Listener,
    /// The hardware of the VM that the secondary is for.
    pub config: &'a VmConfig,
    /// What would execute the vCPUs here.
    pub engine: EngineKind,
    /// Knows who the primary is.
    pub arbiter: &'a dyn Arbiter,
}

type HangUp = Box<dyn Fn()>;

/// A connection that is being greeted.
struct Greeting<'scope> {
    number: u64,
    thread: thread::ScopedJoinHandle<'scope, ()>,
    hang_up: HangUp,
}

impl Reception<'_> {
    /// Waits for the primary. Each connection is greeted by a thread of its own, for a bounded time, so that those who say nothing keep nobody
    /// waiting. Whoever cannot prove to be the primary is turned away; the real one can still come.
    pub fn wait_for_primary(&self) -> Greeted {
        let (found, primary) = mpsc::channel();
        let callers = Mutex::default();
        thread::scope(|scope| {
            let mut greetings: Vec<Greeting<'_>> = Vec::new();
            let mut number = 0;
            loop {
                number += 1;
                let caller = self.next_caller(greetings.is_empty());
                if let Ok(greeted) = primary.try_recv() {
                    let others: Vec<u64> = lock(&callers).turn_away().collect();
                    others.into_iter().for_each(|other| hang_up_on(&greetings, other));
                    return greeted;
                }
                greetings.retain(|greeting| !greeting.thread.is_finished());
                let Some((caller, hang_up)) = caller else { continue };
                match lock(&callers).comes(number) {
                    Some(refused) if refused == number => {
                        hang_up();
                        continue;
                    }
                    Some(oldest) => hang_up_on(&greetings, oldest),
                    None => {}
                }
                let (found, callers) = (found.clone(), &callers);
                let work = move || self.receive(caller, number, callers, &found);
                match thread::Builder::new().name("greeting".to_owned()).spawn_scoped(scope, work) {
                    Ok(thread) => greetings.push(Greeting { number, thread, hang_up }),
                    Err(error) => {
                        lock(callers).leaves(number);
                        tracing::warn!(%error, "nobody can be greeted");
                    }
                }
            }
        })
    }

    /// Whoever has connected, and how to hang up. Waits for long only if nobody is being greeted.
    fn next_caller(&self, may_wait: bool) -> Option<(Caller, HangUp)> {
        let next = self.listener.next((!may_wait).then_some(LOOK_INTERVAL));
        match next.and_then(|caller| caller.map(|caller| Ok((caller.hang_up_by()?, caller))).transpose()) {
            Ok(next) => next.map(|(hang_up, caller)| (caller, Box::new(hang_up) as HangUp)),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                thread::sleep(ACCEPT_PAUSE);
                None
            }
        }
    }

    fn receive(&self, caller: Caller, number: u64, callers: &Mutex<Callers>, found: &Postbox<Greeted>) {
        let connection = caller.prove().map_err(Refusal::from);
        match connection.and_then(|connection| self.greet(connection, number, callers)) {
            // Whoever waits for it is there.
            Ok(greeted) => _ = found.send(greeted),
            Err(error) => {
                lock(callers).leaves(number);
                tracing::warn!(%error, "a connection was refused");
            }
        }
    }

    fn greet(&self, connection: Connection, number: u64, callers: &Mutex<Callers>) -> Result<Greeted, Refusal> {
        let peer = ReplicaId::new(connection.peer());
        let (mut sender, mut receiver, closer) = connection.split();
        let hello = match receiver.recv(Some(HELLO_TIMEOUT))? {
            Some(frame) if Kind::of(&frame) == Ok(Kind::Hello) => {
                postcard::from_bytes::<Hello>(frame.payload).map_err(|_| Refusal::NotAPrimary)?
            }
            _ => return Err(Refusal::NotAPrimary),
        };
        let refusal = self.refusal(&peer, &hello);
        let refusal = refusal.or_else(|| (!lock(callers).admit(number)).then_some(Refusal::Taken));
        let executes = hello.execution == ExecutionFormat::here();
        let welcome = match &refusal {
            None => Welcome::Accepted { executes },
            Some(Refusal::Unfit(reason)) => Welcome::Refused(reason.clone()),
            Some(refusal) => Welcome::Refused(refusal.to_string()),
        };
        let said = say(&mut sender, &welcome);
        match refusal {
            Some(refusal) => Err(refusal),
            None => said.map(|()| Greeted { hello, sender, receiver, closer }),
        }
    }

    fn refusal(&self, peer: &ReplicaId, hello: &Hello) -> Option<Refusal> {
        let claim = match self.arbiter.read() {
            Ok(claim) => claim,
            Err(error) => return Some(error.into()),
        };
        if let Err(error) = admits(&claim, peer, &hello.primary, hello.generation) {
            return Some(error.into());
        }
        self.unfit(hello).map(Refusal::Unfit)
    }

    fn unfit(&self, hello: &Hello) -> Option<String> {
        if !SUSPICION_MS.contains(&hello.suspicion_ms) {
            return Some(format!("a suspicion time of {} ms makes no sense", hello.suspicion_ms));
        }
        if !(SUSPICION_MS_LEAST..=hello.suspicion_ms).contains(&hello.suspicion_ms_min) {
            let Hello { suspicion_ms, suspicion_ms_min, .. } = hello;
            return Some(format!("a suspicion time of {suspicion_ms_min} to {suspicion_ms} ms makes no sense"));
        }
        if !hello.config.is_same_hardware(self.config) {
            return Some(format!("it was set up for {:?}, not for {:?}", self.config, hello.config));
        }
        if hello.engine != self.engine {
            return Some(format!("the engine is {} here and {} there", self.engine, hello.engine));
        }
        match machine::engine::cpu_offer(self.engine) {
            Ok(offer) => offer.refusal(&hello.profile),
            Err(error) => Some(error.to_string()),
        }
    }
}

fn lock(callers: &Mutex<Callers>) -> MutexGuard<'_, Callers> {
    callers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hang_up_on(greetings: &[Greeting<'_>], number: u64) {
    greetings.iter().filter(|greeting| greeting.number == number).for_each(|greeting| (greeting.hang_up)());
}

fn say(sender: &mut Sender, welcome: &Welcome) -> Result<(), Refusal> {
    let welcome = postcard::to_stdvec(welcome).map_err(|_| Refusal::NotAPrimary)?;
    sender.send(Kind::Welcome, &[&welcome])?;
    Ok(sender.flush()?)
}
