//! [`Secondary`]: the rules for the replica that can take over.

use spec::ReplicaId;

use super::primary::Primary;
use super::question::{Answer, Question};
use super::replica::State;
use super::{Claim, Command, Epoch, Event, Generation, LossReason, Protection, Reason, Role, Status, StopReason};

/// The replica that holds what it needs to go on, once it does.
#[derive(Clone, Debug)]
pub(super) struct Secondary {
    id: ReplicaId,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    /// No checkpoint is complete.
    Empty,
    /// It has not been told that the store names it.
    Following { held: Epoch },
    /// The store has named it.
    Entitled { held: Epoch, generation: Generation },
    /// The primary is lost, or wants to be relieved. Before anybody is kept from going on, this replica makes sure that it could.
    GettingReady { held: Epoch, next: Next },
    /// It could not go on now. It tries again as long as the store names it: nobody else goes on then.
    Unready { held: Epoch, next: Next, turn: Turn },
    /// The primary is lost; the store is asked whether it names this replica.
    Inquiring { held: Epoch, loss: LossReason, turn: Turn },
    /// The store is asked to name this replica as primary.
    Arbitrating { held: Epoch, why: Reason, question: Question },
}

/// What this replica asks the store once it is ready.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// To name it as primary: the store has named it as secondary at `generation`. Without a loss, the primary wants to be relieved.
    Claim { generation: Generation, loss: Option<LossReason> },
    /// Whether it names it at all.
    Inquire { loss: LossReason },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Store,
    Timer,
}

impl Secondary {
    pub fn new(id: ReplicaId) -> Self {
        Self { id, phase: Phase::Empty }
    }

    pub fn handle(&mut self, event: &Event, commands: &mut Vec<Command>) -> Option<State> {
        match event {
            Event::CheckpointHeld { epoch } => self.checkpoint_held(*epoch, commands),
            Event::Entitled { generation } => self.entitled(*generation, commands),
            Event::HandOver => self.hand_over(commands),
            Event::PeerLost { reason } => self.lost(*reason, commands),
            Event::Ready => {
                self.ready(commands);
                None
            }
            Event::NotReady => {
                self.not_ready(commands);
                None
            }
            Event::ClaimRead(claim) => self.claim_read(claim, commands),
            Event::Arbitrated(_) | Event::StoreUnreachable | Event::RetryDue => self.answered(event, commands),
            Event::SyncFinished { .. }
            | Event::Acknowledged { .. }
            | Event::DropSecondary { .. }
            | Event::SwitchOver { .. }
            | Event::SwitchOverFailed
            | Event::DisksBroken { .. }
            | Event::DisksSound => None,
        }
    }

    fn checkpoint_held(&mut self, epoch: Epoch, commands: &mut Vec<Command>) -> Option<State> {
        match &mut self.phase {
            Phase::Following { held } | Phase::Entitled { held, .. } if epoch <= *held => {
                return self.lost(LossReason::Protocol, commands);
            }
            Phase::Following { held } | Phase::Entitled { held, .. } => *held = epoch,
            Phase::Empty => self.phase = Phase::Following { held: epoch },
            Phase::GettingReady { .. }
            | Phase::Unready { .. }
            | Phase::Inquiring { .. }
            | Phase::Arbitrating { .. } => return None,
        }
        commands.push(Command::Acknowledge { epoch });
        None
    }

    fn entitled(&mut self, generation: Generation, commands: &mut Vec<Command>) -> Option<State> {
        match self.phase {
            Phase::Following { held } => {
                self.phase = Phase::Entitled { held, generation };
                None
            }
            Phase::Entitled { generation: known, .. } if known == generation => None,
            Phase::Empty | Phase::Entitled { .. } => self.lost(LossReason::Protocol, commands),
            Phase::GettingReady { .. }
            | Phase::Unready { .. }
            | Phase::Inquiring { .. }
            | Phase::Arbitrating { .. } => None,
        }
    }

    fn hand_over(&mut self, commands: &mut Vec<Command>) -> Option<State> {
        match self.phase {
            Phase::Entitled { held, generation } => {
                self.get_ready(held, Next::Claim { generation, loss: None }, commands);
                None
            }
            _ => self.lost(LossReason::Protocol, commands),
        }
    }

    fn lost(&mut self, reason: LossReason, commands: &mut Vec<Command>) -> Option<State> {
        if matches!(self.phase, Phase::Unready { .. } | Phase::Inquiring { .. } | Phase::Arbitrating { .. }) {
            return None;
        }
        if matches!(reason, LossReason::Failed | LossReason::Diverged) {
            return self.stop(StopReason::Failed, commands);
        }
        match self.phase {
            Phase::Empty => return self.stop(StopReason::NothingHeld, commands),
            Phase::Following { held } => self.get_ready(held, Next::Inquire { loss: reason }, commands),
            Phase::Entitled { held, generation } => {
                self.get_ready(held, Next::Claim { generation, loss: Some(reason) }, commands);
            }
            Phase::GettingReady { .. }
            | Phase::Unready { .. }
            | Phase::Inquiring { .. }
            | Phase::Arbitrating { .. } => {}
        }
        None
    }

    fn get_ready(&mut self, held: Epoch, next: Next, commands: &mut Vec<Command>) {
        commands.push(Command::GetReady);
        self.phase = Phase::GettingReady { held, next };
    }

    fn ready(&mut self, commands: &mut Vec<Command>) {
        let Phase::GettingReady { held, next } = self.phase else { return };
        match next {
            // The connection is closed with the answer: a primary that sees it close wants to go on, and would compete.
            Next::Claim { generation, loss: None } => self.arbitrate(held, generation, Reason::HandOver, commands),
            Next::Claim { generation, loss: Some(loss) } => {
                commands.push(Command::CloseChannel);
                self.arbitrate(held, generation, Reason::Arbitrating(loss), commands);
            }
            Next::Inquire { loss } => {
                commands.extend([Command::CloseChannel, Command::ReadClaim]);
                self.phase = Phase::Inquiring { held, loss, turn: Turn::Store };
            }
        }
    }

    fn not_ready(&mut self, commands: &mut Vec<Command>) {
        let Phase::GettingReady { held, next } = self.phase else { return };
        // A primary that wanted to be relieved goes on as soon as it hears of it.
        let next = match next {
            Next::Claim { generation, loss } => {
                Next::Claim { generation, loss: Some(loss.unwrap_or(LossReason::Closed)) }
            }
            next => next,
        };
        commands.extend([Command::CloseChannel, Command::StartRetryTimer]);
        self.phase = Phase::Unready { held, next, turn: Turn::Timer };
    }

    fn claim_read(&mut self, claim: &Claim, commands: &mut Vec<Command>) -> Option<State> {
        if let Phase::Unready { held, next, turn: Turn::Store } = self.phase {
            if claim.secondary.as_ref() == Some(&self.id) {
                self.get_ready(held, next, commands);
                return None;
            }
            let was_entitled = matches!(next, Next::Claim { .. });
            let reason = if was_entitled { StopReason::Superseded } else { StopReason::NotEntitled };
            return self.stop(reason, commands);
        }
        let Phase::Inquiring { held, loss, turn: Turn::Store } = self.phase else { return None };
        if claim.secondary.as_ref() != Some(&self.id) {
            return self.stop(StopReason::NotEntitled, commands);
        }
        self.arbitrate(held, claim.generation, Reason::Arbitrating(loss), commands);
        None
    }

    fn answered(&mut self, event: &Event, commands: &mut Vec<Command>) -> Option<State> {
        match &mut self.phase {
            Phase::Unready { turn, .. } | Phase::Inquiring { turn, .. } => match (*turn, event) {
                (Turn::Store, Event::StoreUnreachable) => {
                    *turn = Turn::Timer;
                    commands.push(Command::StartRetryTimer);
                }
                (Turn::Timer, Event::RetryDue) => {
                    *turn = Turn::Store;
                    commands.push(Command::ReadClaim);
                }
                _ => {}
            },
            Phase::Arbitrating { held, question, .. } => match question.hear(&self.id, event) {
                Answer::None => {}
                Answer::Unknown => commands.extend([Command::CloseChannel, Command::StartRetryTimer]),
                Answer::AskAgain => {
                    let (again, command) = Question::ask(question.claim().clone());
                    *question = again;
                    commands.push(command);
                }
                Answer::Ours(claim) => {
                    commands.extend([Command::CloseChannel, Command::TakeOver { from: *held }]);
                    return Some(State::Primary(Primary::alone(self.id.clone(), claim, Reason::TookOver)));
                }
                Answer::Theirs => return self.stop(StopReason::Superseded, commands),
            },
            Phase::Empty | Phase::Following { .. } | Phase::Entitled { .. } | Phase::GettingReady { .. } => {}
        }
        None
    }

    /// Asks for the generation after that which names this replica as the secondary.
    fn arbitrate(&mut self, held: Epoch, named: Generation, why: Reason, commands: &mut Vec<Command>) {
        let claim = Claim { generation: named.next(), primary: self.id.clone(), secondary: None };
        let (question, command) = Question::ask(claim);
        commands.push(command);
        self.phase = Phase::Arbitrating { held, why, question };
    }

    fn stop(&self, reason: StopReason, commands: &mut Vec<Command>) -> Option<State> {
        commands.extend([Command::CloseChannel, Command::Stop { reason }]);
        Some(State::Stopped { role: Role::Secondary, generation: self.generation(), reason })
    }

    fn generation(&self) -> Generation {
        match &self.phase {
            Phase::Empty | Phase::Following { .. } | Phase::Inquiring { .. } => Generation::NONE,
            Phase::GettingReady { next, .. } | Phase::Unready { next, .. } => match next {
                Next::Inquire { .. } => Generation::NONE,
                Next::Claim { generation, .. } => *generation,
            },
            Phase::Entitled { generation, .. } => *generation,
            Phase::Arbitrating { question, .. } => question.claim().generation.before(),
        }
    }

    pub fn is_protected(&self) -> bool {
        matches!(self.phase, Phase::Entitled { .. })
    }

    pub fn status(&self) -> Status {
        let (protection, reason) = match &self.phase {
            Phase::Empty | Phase::Following { .. } => (Protection::Starting, Some(Reason::FirstCheckpoint)),
            Phase::Entitled { .. } => (Protection::Protected, None),
            Phase::GettingReady { next, .. } => {
                let reason = match next {
                    Next::Claim { loss: None, .. } => Reason::HandOver,
                    Next::Claim { loss: Some(loss), .. } | Next::Inquire { loss } => Reason::Arbitrating(*loss),
                };
                (Protection::NeedSecondary, Some(reason))
            }
            Phase::Unready { .. } => (Protection::NeedSecondary, Some(Reason::NotReady)),
            Phase::Inquiring { turn: Turn::Timer, .. } => (Protection::NeedSecondary, Some(Reason::StoreUnreachable)),
            Phase::Inquiring { loss, .. } => (Protection::NeedSecondary, Some(Reason::Arbitrating(*loss))),
            Phase::Arbitrating { question, .. } if question.is_store_unreachable() => {
                (Protection::NeedSecondary, Some(Reason::StoreUnreachable))
            }
            Phase::Arbitrating { why, .. } => (Protection::NeedSecondary, Some(*why)),
        };
        Status { role: Role::Secondary, generation: self.generation(), secondary: None, protection, reason }
    }
}
