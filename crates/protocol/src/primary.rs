//! [`Primary`]: the rules for the replica that runs the guest.

use spec::ReplicaId;

use std::mem;

use super::question::{Answer, Question};
use super::replica::State;
use super::{Claim, Command, DropReason, Epoch, Event, LossReason, Protection, Reason, Role, Status, StopReason};

/// The replica that runs the guest.
#[derive(Clone, Debug)]
pub(super) struct Primary {
    id: ReplicaId,
    /// The last claim of which this replica knows that it is, or was, the store's. It names this replica as primary.
    claim: Claim,
    phase: Phase,
    /// Its disks are broken: it could not run the VM, and does not compete for it.
    has_broken_disks: bool,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Output passes, and the store names nobody as secondary.
    Alone { reason: Reason },
    /// Output waits. The secondary is to acknowledge its first checkpoint; the store has not been asked to name it.
    Joining { secondary: ReplicaId },
    /// Output leaves as it is acknowledged. The store is asked to name the secondary.
    Entitling { secondary: ReplicaId, question: Question },
    /// Output leaves as it is acknowledged. The store names the secondary. It is asked to take over once it holds epoch `last`, if there
    /// is one: the guest stands still then.
    Protected { secondary: ReplicaId, last: Option<Epoch> },
    /// Output leaves as it is acknowledged. The store is asked to name nobody.
    Dropping { secondary: ReplicaId, reason: DropReason, question: Question },
    /// Output waits, acks count no more. The store is asked to name nobody.
    Arbitrating { why: Why, question: Question },
    /// Output waits, acks count no more. The store would be asked to name nobody, but not while the disks are broken: the secondary may yet
    /// go on. It is looked whether it does.
    Withheld { why: Why, turn: Turn },
    /// Output waits, and the guest stands still. The secondary has been asked to take over.
    HandingOver { secondary: ReplicaId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Store,
    Timer,
}

/// Why there is no secondary any more.
#[derive(Clone, Copy, Debug)]
enum Why {
    Lost(LossReason),
    Dropped(DropReason),
    /// It was asked to take over.
    HandOver,
}

impl Primary {
    pub fn alone(id: ReplicaId, claim: Claim, reason: Reason) -> Self {
        Self { id, claim, phase: Phase::Alone { reason }, has_broken_disks: false }
    }

    pub fn handle(&mut self, event: &Event, commands: &mut Vec<Command>) -> Option<State> {
        match event {
            Event::SyncFinished { secondary } => self.sync_finished(secondary, commands),
            Event::Acknowledged { epoch } => self.acknowledged(*epoch, commands),
            Event::DropSecondary { reason } => self.drop_secondary(*reason, commands),
            Event::SwitchOver { last } => self.switch_over(Some(*last), commands),
            Event::SwitchOverFailed => self.switch_over(None, commands),
            Event::DisksBroken { could_move } => self.disks_broken(*could_move, commands),
            // What was withheld is asked for with the next look at the claim.
            Event::DisksSound => self.has_broken_disks = false,
            Event::PeerLost { reason } => self.lost(*reason, commands),
            Event::Arbitrated(_) | Event::ClaimRead(_) | Event::StoreUnreachable | Event::RetryDue => {
                return self.answered(event, commands);
            }
            Event::CheckpointHeld { .. }
            | Event::Entitled { .. }
            | Event::HandOver
            | Event::Ready
            | Event::NotReady => {}
        }
        None
    }

    fn sync_finished(&mut self, secondary: &ReplicaId, commands: &mut Vec<Command>) {
        if matches!(self.phase, Phase::Alone { .. }) && *secondary != self.id {
            commands.push(Command::HoldOutput);
            self.phase = Phase::Joining { secondary: secondary.clone() };
        } else {
            // Whose acks would be whose?
            self.lost(LossReason::Protocol, commands);
        }
    }

    fn acknowledged(&mut self, epoch: Epoch, commands: &mut Vec<Command>) {
        match &self.phase {
            Phase::Joining { secondary } => {
                commands.push(Command::Release { through: epoch });
                let secondary = secondary.clone();
                let question = self.ask(Some(secondary.clone()), commands);
                self.phase = Phase::Entitling { secondary, question };
            }
            Phase::Protected { secondary, last: Some(last) } if epoch >= *last => {
                commands.extend([Command::Release { through: epoch }, Command::AskToTakeOver]);
                self.phase = Phase::HandingOver { secondary: secondary.clone() };
            }
            Phase::Entitling { .. } | Phase::Protected { .. } | Phase::Dropping { .. } => {
                commands.push(Command::Release { through: epoch });
            }
            Phase::Alone { .. } | Phase::Arbitrating { .. } | Phase::Withheld { .. } | Phase::HandingOver { .. } => {}
        }
    }

    fn drop_secondary(&mut self, reason: DropReason, commands: &mut Vec<Command>) {
        let why = Why::Dropped(reason);
        self.phase = match self.take_phase() {
            // A first copy may be under way; nothing depends on it.
            Phase::Alone { .. } => {
                commands.push(Command::CloseChannel);
                Phase::Alone { reason: why.into() }
            }
            Phase::Joining { .. } => {
                commands.push(Command::CloseChannel);
                go_on_alone(why, commands)
            }
            Phase::Entitling { secondary, question } | Phase::Dropping { secondary, question, .. } => {
                Phase::Dropping { secondary, reason, question }
            }
            // The connection stays open until the store has taken note: a secondary that sees it close would compete.
            Phase::Protected { secondary, last } => {
                if last.is_some() {
                    commands.push(Command::Resume);
                }
                let question = self.ask(None, commands);
                Phase::Dropping { secondary, reason, question }
            }
            Phase::Arbitrating { question, .. } => {
                commands.push(Command::CloseChannel);
                Phase::Arbitrating { why, question }
            }
            Phase::Withheld { turn, .. } => {
                commands.push(Command::CloseChannel);
                Phase::Withheld { why, turn }
            }
            Phase::HandingOver { .. } => self.arbitrate(why, commands),
        };
    }

    fn switch_over(&mut self, epoch: Option<Epoch>, commands: &mut Vec<Command>) {
        match &mut self.phase {
            Phase::Protected { last, .. } => {
                *last = epoch;
                if epoch.is_none() {
                    commands.push(Command::Resume);
                }
            }
            // The guest stands still already, and goes on if the secondary does not take over.
            Phase::HandingOver { .. } => {}
            // There is nobody to take over, or not any more.
            Phase::Alone { .. }
            | Phase::Joining { .. }
            | Phase::Entitling { .. }
            | Phase::Dropping { .. }
            | Phase::Arbitrating { .. }
            | Phase::Withheld { .. } => commands.push(Command::Resume),
        }
    }

    /// The secondary goes on from what it holds. Nothing of what the guest did since has left, nor will it: acks count no more.
    fn disks_broken(&mut self, could_move: bool, commands: &mut Vec<Command>) {
        self.has_broken_disks = true;
        // What is open now is a first copy, which must not be made of them.
        if matches!(self.phase, Phase::Alone { .. } | Phase::Arbitrating { .. } | Phase::Withheld { .. }) {
            commands.push(Command::CloseChannel);
        }
        if !could_move {
            return;
        }
        match &self.phase {
            Phase::Protected { secondary, .. } => {
                commands.push(Command::AskToTakeOver);
                self.phase = Phase::HandingOver { secondary: secondary.clone() };
            }
            Phase::HandingOver { .. } => {}
            Phase::Alone { .. }
            | Phase::Joining { .. }
            | Phase::Entitling { .. }
            | Phase::Dropping { .. }
            | Phase::Arbitrating { .. }
            | Phase::Withheld { .. } => commands.push(Command::Resume),
        }
    }

    fn lost(&mut self, reason: LossReason, commands: &mut Vec<Command>) {
        let why = Why::Lost(reason);
        self.phase = match self.take_phase() {
            // A connection that is open now is that of a first copy. While it is not decided who goes on, a copy must not become a
            // secondary: the claim may still name its host, for what ran there before.
            phase @ (Phase::Alone { .. } | Phase::Arbitrating { .. } | Phase::Withheld { .. }) => {
                commands.push(Command::CloseChannel);
                phase
            }
            // The store does not name it, and was not asked to: there is nothing to arbitrate.
            Phase::Joining { .. } => {
                commands.push(Command::CloseChannel);
                go_on_alone(why, commands)
            }
            // What was asked for may have come about, or may yet: the answer is awaited before the next question.
            Phase::Entitling { question, .. } => {
                commands.push(Command::CloseChannel);
                Phase::Arbitrating { why, question }
            }
            Phase::Dropping { reason, question, .. } => {
                commands.push(Command::CloseChannel);
                Phase::Arbitrating { why: Why::Dropped(reason), question }
            }
            Phase::Protected { .. } => self.arbitrate(why, commands),
            Phase::HandingOver { .. } => self.arbitrate(Why::HandOver, commands),
        };
    }

    /// What the store says while it is not asked for anything but the claim.
    fn looked(&mut self, event: &Event, commands: &mut Vec<Command>) -> Option<State> {
        let Phase::Withheld { why, turn } = self.phase else { return None };
        match (turn, event) {
            (Turn::Store, Event::ClaimRead(claim)) if claim.primary != self.id => {
                return Some(self.stop(why, commands));
            }
            (Turn::Store, Event::ClaimRead(_) | Event::StoreUnreachable) if self.has_broken_disks => {
                commands.push(Command::StartRetryTimer);
                self.phase = Phase::Withheld { why, turn: Turn::Timer };
            }
            (Turn::Store, Event::ClaimRead(_) | Event::StoreUnreachable) => self.phase = self.compete(why, commands),
            (Turn::Timer, Event::RetryDue) => self.phase = self.compete(why, commands),
            _ => {}
        }
        None
    }

    fn answered(&mut self, event: &Event, commands: &mut Vec<Command>) -> Option<State> {
        if let Phase::Withheld { .. } = self.phase {
            return self.looked(event, commands);
        }
        let (Phase::Entitling { question, .. }
        | Phase::Dropping { question, .. }
        | Phase::Arbitrating { question, .. }) = &mut self.phase
        else {
            return None;
        };
        match question.hear(&self.id, event) {
            Answer::None => {}
            Answer::Unknown => commands.push(Command::StartRetryTimer),
            Answer::Ours(claim) => {
                self.claim = claim;
                self.claimed(commands);
            }
            Answer::AskAgain => self.ask_again(commands),
            Answer::Theirs => {
                let why = match self.phase {
                    Phase::Arbitrating { why, .. } => why,
                    _ => Why::Lost(LossReason::Closed),
                };
                return Some(self.stop(why, commands));
            }
        }
        None
    }

    /// Another replica goes on.
    fn stop(&self, why: Why, commands: &mut Vec<Command>) -> State {
        let reason = if matches!(why, Why::HandOver) { StopReason::HandedOver } else { StopReason::Superseded };
        commands.extend([Command::CloseChannel, Command::Stop { reason }]);
        State::Stopped { role: Role::Primary, generation: self.claim.generation, reason }
    }

    /// The store has answered: the claim is this replica's. Is it what is wanted by now?
    fn claimed(&mut self, commands: &mut Vec<Command>) {
        let names_nobody = self.claim.secondary.is_none();
        self.phase = match self.take_phase() {
            Phase::Entitling { secondary, .. } => {
                commands.push(Command::TellEntitled { generation: self.claim.generation });
                Phase::Protected { secondary, last: None }
            }
            Phase::Dropping { reason, .. } if names_nobody => {
                commands.push(Command::CloseChannel);
                go_on_alone(Why::Dropped(reason), commands)
            }
            Phase::Arbitrating { why, .. } if names_nobody => go_on_alone(why, commands),
            // The secondary was entitled, as had been asked for before.
            Phase::Dropping { secondary, reason, .. } => {
                let question = self.ask(None, commands);
                Phase::Dropping { secondary, reason, question }
            }
            Phase::Arbitrating { why, .. } => self.compete(why, commands),
            phase @ (Phase::Alone { .. }
            | Phase::Joining { .. }
            | Phase::Protected { .. }
            | Phase::Withheld { .. }
            | Phase::HandingOver { .. }) => phase,
        };
    }

    fn ask_again(&mut self, commands: &mut Vec<Command>) {
        if let Phase::Arbitrating { why, .. } = self.phase {
            self.phase = self.compete(why, commands);
            return;
        }
        let wanted = match &self.phase {
            Phase::Entitling { secondary, .. } => Some(secondary.clone()),
            _ => None,
        };
        let asked = self.ask(wanted, commands);
        if let Phase::Entitling { question, .. } | Phase::Dropping { question, .. } = &mut self.phase {
            *question = asked;
        }
    }

    fn ask(&self, secondary: Option<ReplicaId>, commands: &mut Vec<Command>) -> Question {
        let generation = self.claim.generation.next();
        let (question, command) = Question::ask(Claim { generation, primary: self.id.clone(), secondary });
        commands.push(command);
        question
    }

    /// Gives up a secondary that the store names.
    fn arbitrate(&self, why: Why, commands: &mut Vec<Command>) -> Phase {
        commands.push(Command::CloseChannel);
        self.compete(why, commands)
    }

    /// Asks for the VM, unless it could not be run here.
    fn compete(&self, why: Why, commands: &mut Vec<Command>) -> Phase {
        if self.has_broken_disks {
            commands.push(Command::ReadClaim);
            return Phase::Withheld { why, turn: Turn::Store };
        }
        let question = self.ask(None, commands);
        Phase::Arbitrating { why, question }
    }

    fn take_phase(&mut self) -> Phase {
        mem::replace(&mut self.phase, Phase::Alone { reason: Reason::NoSecondaryYet })
    }

    pub fn is_protected(&self) -> bool {
        matches!(self.phase, Phase::Protected { .. })
    }

    pub fn is_undecided(&self) -> bool {
        matches!(self.phase, Phase::Arbitrating { .. } | Phase::Withheld { .. })
    }

    pub fn status(&self) -> Status {
        let (secondary, protection, reason) = match &self.phase {
            Phase::Alone { reason } => (None, unprotected(*reason), Some(*reason)),
            Phase::Joining { secondary } => (Some(secondary), Protection::Starting, Some(Reason::FirstCheckpoint)),
            Phase::Entitling { secondary, question } => {
                let reason = if question.is_store_unreachable() { Reason::StoreUnreachable } else { Reason::Entitling };
                (Some(secondary), Protection::Starting, Some(reason))
            }
            Phase::Protected { secondary, .. } => (Some(secondary), Protection::Protected, None),
            Phase::Dropping { secondary, reason, .. } => {
                let reason = Reason::Dropped(*reason);
                (Some(secondary), unprotected(reason), Some(reason))
            }
            Phase::Arbitrating { question, .. } if question.is_store_unreachable() => {
                (None, Protection::NeedSecondary, Some(Reason::StoreUnreachable))
            }
            Phase::Arbitrating { why, .. } | Phase::Withheld { why, .. } => {
                let reason = match why {
                    Why::Lost(loss) => Reason::Arbitrating(*loss),
                    Why::Dropped(reason) => Reason::Dropped(*reason),
                    Why::HandOver => Reason::HandOver,
                };
                (None, unprotected(reason), Some(reason))
            }
            Phase::HandingOver { secondary } => (Some(secondary), Protection::NeedSecondary, Some(Reason::HandOver)),
        };
        Status {
            role: Role::Primary,
            generation: self.claim.generation,
            secondary: secondary.cloned(),
            protection,
            reason,
        }
    }
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        match why {
            Why::Lost(loss) => Self::Lost(loss),
            Why::Dropped(reason) => Self::Dropped(reason),
            Why::HandOver => Self::HandOver,
        }
    }
}

/// The store names this replica alone.
fn go_on_alone(why: Why, commands: &mut Vec<Command>) -> Phase {
    commands.extend([Command::OpenOutput, Command::Resume]);
    Phase::Alone { reason: why.into() }
}

fn unprotected(reason: Reason) -> Protection {
    match reason {
        Reason::Dropped(DropReason::Off | DropReason::Suspend) => Protection::Disabled,
        _ => Protection::NeedSecondary,
    }
}
