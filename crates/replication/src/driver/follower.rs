//! Following a primary: receive, check, acknowledge, apply; and taking over when it is lost.

mod disks;
#[cfg(test)]
mod tests;
mod voice;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use machine::input::Input;
use machine::vm::{Vm, VmState};
use memory::encoding;
use network::{FrameOffload, InputPosition};
use protocol::{
    Command, CopyNotes, DiskWatch, Epoch, Event, ForwardedFrames, Generation, GuestClock, Kept, Look, LossReason,
    MonotonicTime, RETRY_INTERVAL, Readiness, ReadyStep, Silence, StepEnd, StopReason, Suspicion, UnreleasedOutput,
    heartbeat_interval,
};
use spec::FtMode;

use self::voice::Voice;
use super::clock;
use super::console::ConsoleInput;
use super::message::{Heartbeat, Hello, Inbound, Kind};
use super::secondary::{Secondary, SecondaryEnd, SecondaryParts, TakenOver};
use super::staging::{Complete, Staging, StagingError};
use crate::channel::{ChannelError, Closer, Frame, Receiver, Sender};
use crate::disk::{DiskDescription, decode_writes};
use crate::gate::{GatedFrame, InboundFrame, bytes_of};
use crate::lockstep::log::SegmentReader;
use crate::lockstep::{Divergence, Executor, ExecutorError, write_evidence};

/// How the connection to the primary ended.
enum Parting {
    Lost(LossReason, String),
    /// What the primary says cannot be, and the protocol has drawn its conclusions.
    Contradicted(Vec<Command>),
    /// The primary asked to be relieved.
    HandOver,
    /// The guest is off.
    Ended,
}

impl Parting {
    fn protocol(why: impl ToString) -> Self {
        Self::Lost(LossReason::Protocol, why.to_string())
    }
}

impl From<StagingError> for Parting {
    fn from(error: StagingError) -> Self {
        Self::protocol(error)
    }
}

/// What there is to take over from.
struct Held {
    epoch: Epoch,
    content: Content,
    /// Since when it is here.
    since: MonotonicTime,
}

enum Content {
    /// The last checkpoint that is complete, and how far the machine had taken inbound frames then.
    Checkpoint { state: Box<VmState>, inputs: Vec<InputPosition> },
    /// The log since a checkpoint, which is being executed.
    Log { executor: Executor, reader: SegmentReader },
}

pub(super) struct Follower {
    secondary: Secondary,
    suspicion: Suspicion,
    voice: Arc<Voice>,
    primary_disks: Vec<DiskDescription>,
    closer: Closer,
    /// What is noted of the copy of the disks.
    notes: CopyNotes,
    staging: Option<Staging>,
    held: Option<Held>,
    /// What the primary has said last of the guest's clock, by this host's.
    guest_clock: Option<GuestClock>,
    /// The VM, made of what is held, and how long that took; once this replica is ready to run it.
    made: Option<(Vm, Duration)>,
    /// Output of committed epochs that the primary has not said to have left.
    unreleased: UnreleasedOutput<Vec<GatedFrame>>,
    inbound: ForwardedFrames<InboundFrame>,
    /// What was typed on the console, as the primary has handed it over.
    typed: Option<ConsoleInput>,
    silence: Silence,
}

impl Follower {
    pub fn new(secondary: Secondary, hello: &Hello, sender: Sender, closer: Closer) -> Self {
        let voice = Voice::new(sender, secondary.handle());
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let suspicion = Suspicion::between(ms(hello.suspicion_ms_min), ms(hello.suspicion_ms));
        Self {
            secondary,
            suspicion,
            voice: Arc::new(voice),
            primary_disks: hello.disks.clone(),
            closer,
            notes: CopyNotes::new(hello.generation),
            staging: None,
            held: None,
            guest_clock: None,
            made: None,
            unreleased: UnreleasedOutput::default(),
            inbound: ForwardedFrames::default(),
            typed: None,
            silence: Silence::new(suspicion, clock::now()),
        }
    }

    /// Follows until there is nothing to follow any more.
    pub fn follow(mut self, mut receiver: Receiver) -> SecondaryEnd {
        let (pulse, summary) = (self.voice.clone(), self.voice.clone());
        let interval = heartbeat_interval(self.suspicion);
        let (copies, closer) = (self.secondary.parts.disks.clone(), self.closer.clone());
        let (watched, watch) = (copies.clone(), DiskWatch::new(self.secondary.parts.options.disk_patience));
        thread::spawn(move || pulse.beat(interval, &watched, watch));
        let primary_disks = self.primary_disks.clone();
        thread::spawn(move || {
            if let Err(error) = disks::send_summary(&copies, &primary_disks, &summary) {
                tracing::error!(%error, "the disks cannot be compared");
                let _ = summary.send(Kind::Failed, error.to_string().as_bytes());
                closer.close();
            }
        });
        let parting = self.listen(&mut receiver);
        let lost_at = clock::now();
        // A primary that hands over goes on hearing from this replica, and waits.
        if !matches!(parting, Parting::HandOver) {
            self.voice.falls_silent();
        }
        let (commands, loss, why) = match parting {
            Parting::Ended => {
                self.closer.close();
                return SecondaryEnd::Ended;
            }
            Parting::Lost(reason, why) => {
                (self.secondary.parts.replica.handle(Event::PeerLost { reason }), reason, why)
            }
            Parting::Contradicted(commands) => {
                (commands, LossReason::Protocol, "it contradicts what it said before".to_owned())
            }
            Parting::HandOver => {
                let commands = self.secondary.parts.replica.handle(Event::HandOver);
                (commands, LossReason::Closed, "the primary hands over".to_owned())
            }
        };
        tracing::warn!(%why, "the primary is lost");
        self.arbitrate(commands, loss, why, lost_at)
    }

    fn listen(&mut self, receiver: &mut Receiver) -> Parting {
        loop {
            if let Some(error) = self.secondary.applier.error() {
                return self.fail(format!("the disks cannot be written: {error}"));
            }
            if matches!(&self.held, Some(Held { content: Content::Log { executor, .. }, .. }) if executor.has_failed())
            {
                // It says why.
                if let Err(parting) = self.run_out() {
                    return parting;
                }
            }
            let look = self.silence.look(clock::now());
            match receiver.recv(Some(look.wait())) {
                Ok(Some(frame)) => {
                    self.silence.heard(clock::now());
                    if let Err(parting) = self.hear(&frame) {
                        return parting;
                    }
                }
                Ok(None) => {
                    if receiver.take_has_read() {
                        self.silence.heard(clock::now());
                    } else if look == Look::Last {
                        return Parting::Lost(LossReason::Silent, "it is silent".to_owned());
                    }
                }
                Err(ChannelError::Closed) => {
                    return Parting::Lost(LossReason::Closed, "its connection is closed".to_owned());
                }
                Err(error) => return Parting::protocol(error),
            }
        }
    }

    /// Gives up, and tells the primary why.
    fn fail(&self, why: String) -> Parting {
        // A primary that does not hear it finds the connection closed.
        let _ = self.voice.send(Kind::Failed, why.as_bytes());
        Parting::Lost(LossReason::Failed, why)
    }

    fn hear(&mut self, frame: &Frame<'_>) -> Result<(), Parting> {
        let payload = frame.payload;
        let has_log = matches!(&self.held, Some(Held { content: Content::Log { .. }, .. }));
        let Secondary { parts, ram, .. } = &mut self.secondary;
        match (Kind::of(frame).map_err(Parting::protocol)?, &mut self.staging) {
            (Kind::Heartbeat, _) => {
                let Heartbeat { number, guest_clock } = postcard::from_bytes(payload).map_err(Parting::protocol)?;
                self.voice.has_heard(number, &self.silence);
                self.guest_clock = guest_clock.or(self.guest_clock);
                let watched = self.silence.watched(clock::now());
                self.secondary.status.update(|status| status.watched = Some(watched));
            }
            (Kind::Console, _) => {
                let piece = postcard::from_bytes(payload).map_err(Parting::protocol)?;
                parts.options.console.iter().for_each(|console| console.go_on_with(&piece));
            }
            (Kind::Inbound, _) => {
                let Inbound { card, frame } = postcard::from_bytes(payload).map_err(Parting::protocol)?;
                let (position, len) = (frame.position, frame.bytes.len());
                self.inbound.push(Kept { card: card as usize, position, len, frame });
            }
            (Kind::Released, _) => {
                let epoch = Epoch::new(number(payload)?);
                self.unreleased.released(epoch);
                if let Some(Held { content: Content::Log { executor, .. }, .. }) = &self.held {
                    executor.released(epoch);
                }
            }
            (Kind::Entitled, _) => {
                let generation = Generation::new(number(payload)?);
                let commands = parts.replica.handle(Event::Entitled { generation });
                if !commands.is_empty() {
                    return Err(Parting::Contradicted(commands));
                }
                let protocol = parts.replica.status();
                self.secondary.status.update(|status| status.protocol = protocol);
                let copy = self.notes.after_entitled(generation);
                self.note_copy(copy);
            }
            // A primary whose disks are broken does not wait for the end of a checkpoint, and nothing of that was applied.
            (Kind::HandOver, _) => {
                // Who has handed over nothing of it, or what makes no sense, keeps nobody from taking over.
                self.typed = postcard::from_bytes(payload).ok();
                return Err(Parting::HandOver);
            }
            (Kind::Ended, _) => return Err(Parting::Ended),
            (Kind::Log, None) if has_log => self.hear_segment(payload)?,
            (Kind::Mirror, None) if has_log => self.run_out()?,
            (Kind::Begin, None) if !has_log => self.staging = Some(Staging::new(Epoch::new(number(payload)?))),
            // The first copy: once there is something to take over from, it may only be replaced as a whole.
            (Kind::DiskWrites, None) if self.held.is_none() => {
                let writes = decode_writes(payload, &parts.disks).map_err(StagingError::from)?;
                self.copy_disks(&writes)?;
            }
            (Kind::Pages, None) if self.held.is_none() => {
                encoding::check(payload, ram.pages()).map_err(StagingError::from)?;
                encoding::apply(payload, ram).map_err(StagingError::from)?;
            }
            (Kind::DiskWrites, Some(staging)) => staging.writes(payload, &parts.disks)?,
            (Kind::Pages, Some(staging)) => staging.pages(payload, ram)?,
            (Kind::State, Some(staging)) => staging.state(payload)?,
            (Kind::Output, Some(staging)) => staging.output(payload)?,
            (Kind::Checkpoint, Some(_)) => {
                let end = postcard::from_bytes(payload).map_err(Parting::protocol)?;
                if let Some(staging) = self.staging.take() {
                    self.hold(staging.finish(end)?)?;
                }
            }
            (kind, staging) => {
                let place = if staging.is_some() { "within a checkpoint" } else { "outside of a checkpoint" };
                return Err(Parting::protocol(format!("a message of kind {kind:?} {place}")));
            }
        }
        Ok(())
    }

    /// A checkpoint is complete and checked: acknowledge it, and apply it.
    fn hold(&mut self, complete: Complete) -> Result<(), Parting> {
        let Complete { end, records, writes, state, output } = complete;
        let (epoch, since) = (end.epoch, clock::now());
        if self.held.as_ref().is_some_and(|held| held.epoch >= epoch) || epoch == Epoch::NONE {
            return Err(Parting::protocol("a checkpoint that is not newer than the last one"));
        }
        let commands = self.secondary.parts.replica.handle(Event::CheckpointHeld { epoch });
        if !matches!(commands[..], [Command::Acknowledge { .. }]) {
            return Err(Parting::Contradicted(commands));
        }
        self.inbound.consumed(&end.inputs);
        let (frames, bytes) = (output.len(), bytes_of(&output));
        self.unreleased.push(epoch, output, frames, bytes);
        self.guest_clock = end.guest_clock.or(self.guest_clock);
        self.voice.has_heard(end.heartbeat, &self.silence);
        self.voice.holds(epoch);
        // A primary that does not take it any more is found out by the next `recv`.
        let _ = self.voice.ack();
        for records in &records {
            encoding::apply(records, &self.secondary.ram).map_err(StagingError::from)?;
        }
        self.secondary.applier.push(writes);
        if let Some(copy) = self.notes.after_checkpoint() {
            self.note_copy(copy);
        }
        let content = match end.then {
            FtMode::Mirror => Content::Checkpoint { state: Box::new(state), inputs: end.inputs },
            FtMode::Lockstep => self.execute(epoch, state, end.inputs)?,
        };
        self.held = Some(Held { epoch, content, since });
        let (protocol, unreleased_epochs) = (self.secondary.parts.replica.status(), self.unreleased.epochs());
        self.secondary.status.update(|status| {
            status.protocol = protocol;
            status.epoch = Some(epoch);
            status.unreleased_epochs = unreleased_epochs;
        });
        Ok(())
    }

    /// Begins to execute what the guest does from a checkpoint on.
    fn execute(&self, epoch: Epoch, state: VmState, inputs: Vec<InputPosition>) -> Result<Content, Parting> {
        if let Err(error) = self.secondary.applier.drain() {
            return Err(self.fail(format!("the disks cannot be written: {error}")));
        }
        let SecondaryParts { config, disks, .. } = &self.secondary.parts;
        let reader = SegmentReader::new(epoch, state.engine.processors.instructions, &inputs);
        let progress = self.voice.executed().clone();
        match Executor::start(config.clone(), &self.secondary.ram, state, disks, inputs, progress) {
            Ok(executor) => Ok(Content::Log { executor, reader }),
            Err(error) => Err(self.fail(format!("the VM cannot be executed here: {error}"))),
        }
    }

    /// A segment of the log: acknowledges it, and has it executed.
    fn hear_segment(&mut self, payload: &[u8]) -> Result<(), Parting> {
        let Some(Held { epoch, content: Content::Log { executor, reader }, since }) = &mut self.held else {
            return Ok(());
        };
        let segment = reader.read(payload).map_err(Parting::protocol)?;
        let has_output = segment.has_output;
        (*epoch, *since) = (segment.epoch, clock::now());
        let epoch = *epoch;
        // First: whatever is acknowledged, also by the thread that beats, is executed before a takeover.
        executor.push(segment).map_err(Parting::protocol)?;
        let commands = self.secondary.parts.replica.handle(Event::CheckpointHeld { epoch });
        if !matches!(commands[..], [Command::Acknowledge { .. }]) {
            return Err(Parting::Contradicted(commands));
        }
        self.voice.holds(epoch);
        let unreleased_epochs = self.unreleased.epochs() + executor.unreleased_epochs();
        if has_output {
            // A primary that does not take it any more is found out by the next `recv`.
            let _ = self.voice.ack();
        }
        self.secondary.status.update(|status| {
            status.epoch = Some(epoch);
            status.unreleased_epochs = unreleased_epochs;
        });
        Ok(())
    }

    /// Executes the log received to its end, if there is one: what is held is a checkpoint then.
    fn run_out(&mut self) -> Result<(), Parting> {
        let held = match self.held.take() {
            Some(Held { epoch, content: Content::Log { executor, .. }, since }) => {
                let inputs = executor.positions().to_vec();
                let executed = executor.finish().map_err(|error| self.execution_failed(&error))?;
                if executed.has_ended {
                    return Err(Parting::Ended);
                }
                self.unreleased.append(executed.unreleased);
                self.inbound.consumed(&inputs);
                let content = Content::Checkpoint { state: Box::new(executed.state), inputs };
                Some(Held { epoch, content, since })
            }
            held => held,
        };
        self.held = held;
        Ok(())
    }

    /// Gives up, and tells the primary why.
    fn execution_failed(&self, error: &ExecutorError) -> Parting {
        let ExecutorError::Diverged(divergence) = error else { return self.fail(error.to_string()) };
        let Divergence { state, expected } = &**divergence;
        // A primary that does not hear it finds the connection closed.
        let _ = self.voice.send(Kind::Diverged, &state.instructions.to_le_bytes());
        if let Some(folder) = &self.secondary.parts.options.evidence_folder {
            match write_evidence(folder, "secondary", state, Some(*expected)) {
                Ok(path) => tracing::error!(path = %path.display(), "the state here is kept"),
                Err(error) => tracing::error!(%error, "the state here cannot be kept"),
            }
        }
        Parting::Lost(LossReason::Diverged, format!("divergence: {error}"))
    }

    /// Gets ready to run the VM from what is held. Answers what the protocol is to hear; nothing if the guest turns out to be off.
    fn get_ready(&mut self, why: &mut String) -> Option<Event> {
        let mut step = ReadyStep::FIRST;
        loop {
            match step.after(self.get_ready_by(step, why)) {
                Readiness::Next(next) => step = next,
                Readiness::Over(event) => return Some(event),
                Readiness::GuestOff => return None,
            }
        }
    }

    fn get_ready_by(&mut self, step: ReadyStep, why: &mut String) -> StepEnd {
        let done = match step {
            ReadyStep::WriteDisks => {
                let drained = self.secondary.applier.drain();
                drained.map_err(|error| self.fail(format!("the disks cannot be written: {error}")))
            }
            ReadyStep::ExecuteLog => self.run_out(),
            ReadyStep::MakeVm => return self.try_to_make_vm(why),
        };
        match done {
            Ok(()) => StepEnd::Done,
            Err(Parting::Ended) => StepEnd::GuestOff,
            Err(Parting::Lost(reason, failure)) => {
                *why = failure;
                StepEnd::Failed(reason)
            }
            // Said by a primary, which is not heard any more.
            Err(Parting::Contradicted(_) | Parting::HandOver) => StepEnd::Failed(LossReason::Failed),
        }
    }

    fn try_to_make_vm(&mut self, why: &mut String) -> StepEnd {
        match self.make_vm() {
            Ok(()) => {
                self.voice.falls_silent();
                self.secondary.status.update(|status| status.obstacle = None);
                StepEnd::Done
            }
            Err(obstacle) => {
                tracing::error!(%obstacle, "this secondary could not run the VM");
                let _ = self.voice.send(Kind::Failed, obstacle.as_bytes());
                self.secondary.status.update(|status| status.obstacle = Some(obstacle.clone()));
                *why = obstacle;
                StepEnd::NotNow
            }
        }
    }

    /// Makes the VM of what is held; why it could not be run here now.
    fn make_vm(&mut self) -> Result<(), String> {
        let Some(Held { content: Content::Checkpoint { state, .. }, since, .. }) = &self.held else {
            return Err("there is no checkpoint to take over from".to_owned());
        };
        let begun = Instant::now();
        let mut state = VmState::clone(state);
        // From here on the VM's clock goes with this host's.
        let held = GuestClock { shows: Duration::from_nanos(state.platform.clock_ns), at: *since };
        let reading = clock::reading(GuestClock::at_takeover(held, self.guest_clock, clock::now()));
        state.advance_clock(reading.now_ns().saturating_sub(state.platform.clock_ns));
        let mut vm = (self.secondary.parts.make_vm)(&self.secondary.ram, state)?;
        vm.go_on_from(reading).map_err(|error| error.to_string())?;
        self.made = Some((vm, begun.elapsed()));
        Ok(())
    }

    /// Finds out who goes on.
    fn arbitrate(
        mut self,
        mut commands: Vec<Command>,
        loss: LossReason,
        mut why: String,
        lost_at: MonotonicTime,
    ) -> SecondaryEnd {
        let detection = lost_at.since(self.silence.last_heard());
        let mut asked_at = Instant::now();
        let mut events = VecDeque::new();
        loop {
            for command in std::mem::take(&mut commands) {
                match command {
                    Command::CloseChannel => self.closer.close(),
                    Command::GetReady => match self.get_ready(&mut why) {
                        Some(event) => {
                            events.push_back(event);
                            asked_at = Instant::now();
                        }
                        None => {
                            self.closer.close();
                            return SecondaryEnd::Ended;
                        }
                    },
                    Command::CompareAndSwap { claim } => {
                        let expected = claim.generation.before();
                        events.push_back(match self.secondary.parts.arbiter.compare_and_swap(expected, &claim) {
                            Ok(verdict) => Event::Arbitrated(verdict),
                            Err(error) => {
                                tracing::warn!(%error, "the cluster store cannot be reached");
                                Event::StoreUnreachable
                            }
                        });
                    }
                    Command::ReadClaim => {
                        events.push_back(match self.secondary.parts.arbiter.read() {
                            Ok(claim) => Event::ClaimRead(claim),
                            Err(error) => {
                                tracing::warn!(%error, "the cluster store cannot be reached");
                                Event::StoreUnreachable
                            }
                        });
                    }
                    Command::StartRetryTimer => {
                        thread::sleep(RETRY_INTERVAL);
                        events.push_back(Event::RetryDue);
                    }
                    Command::TakeOver { .. } => return self.take_over(loss, detection, asked_at.elapsed()),
                    Command::Stop { reason } => return SecondaryEnd::Stopped { reason, why },
                    // Those of a primary follow once it is one.
                    command => tracing::debug!(?command, "not for a secondary"),
                }
            }
            let protocol = self.secondary.parts.replica.status();
            self.secondary.status.update(|status| status.protocol = protocol);
            match events.pop_front() {
                Some(event) => commands = self.secondary.parts.replica.handle(event),
                None => return SecondaryEnd::Stopped { reason: StopReason::Superseded, why },
            }
        }
    }

    fn take_over(mut self, loss: LossReason, detection: Duration, arbitration: Duration) -> SecondaryEnd {
        // The log was executed to its end, and the VM made, before anybody was asked.
        let (Some(Held { epoch, content: Content::Checkpoint { inputs: mut positions, .. }, .. }), Some((vm, restore))) =
            (self.held, self.made)
        else {
            return SecondaryEnd::Stopped {
                reason: StopReason::NothingHeld,
                why: "there is no checkpoint to take over from".to_owned(),
            };
        };
        if let (Some(console), Some(typed)) = (&self.secondary.parts.options.console, self.typed.take()) {
            console.take_over(typed);
        }
        let inputs = self.inbound.take_following(&mut positions);
        let inputs = inputs
            .into_iter()
            .filter_map(|Kept { card, frame, .. }| {
                let offload = FrameOffload::from_header(&frame.header).ok()?;
                Some(Input::Frame { card, frame: frame.bytes, offload, position: frame.position })
            })
            .collect();
        SecondaryEnd::TakenOver(Box::new(TakenOver {
            replica: self.secondary.parts.replica,
            epoch,
            vm,
            output: self.unreleased.into_outputs().flatten().collect(),
            inputs,
            positions,
            loss,
            detection,
            arbitration,
            restore,
        }))
    }
}

fn number(payload: &[u8]) -> Result<u64, Parting> {
    let bytes = payload.try_into().map_err(|_| Parting::protocol("a number of another length"))?;
    Ok(u64::from_le_bytes(bytes))
}
