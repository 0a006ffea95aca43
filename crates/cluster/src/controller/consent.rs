//! What a host may do with its replica of a VM when somebody asks for it. The claim is decided first: nothing is ended, and nothing is deleted,
//! that may be the newest of the VM. And whether what was decided a moment ago is still to be done ([`Scene`]).

use protocol::{Claim, Generation};
use spec::{HostName, ReplicaId};

use super::Action;
use crate::records::{Operation, Power, VmRecord};

/// What is known of a VM right before something is done about it on a host: what the controller has decided from may be out of date by then.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What is wanted of the VM.
    pub record: &'a VmRecord,
    /// Which replicas may run it.
    pub claim: &'a Claim,
    /// The host.
    pub host: &'a HostName,
    /// Whether a replica of the VM is there.
    pub has_replica: bool,
}

impl Scene<'_> {
    /// Whether an action is still to be carried out.
    pub fn wants(&self, action: &Action) -> bool {
        let (record, is_home) = (self.record, self.is_home());
        match action {
            Action::Protect { .. } => is_home && self.has_replica && record.wants_secondary(self.claim),
            Action::Unprotect => is_home && self.has_replica && !record.wants_secondary(self.claim),
            Action::Move { .. } => is_home && self.has_replica && record.pending().is_none(),
            Action::AskForStart => is_home && !self.has_replica && record.autostart && record.pending().is_none(),
            Action::Restart { at_home, .. } => {
                let is_lost = record.power == Power::On && self.claim.secondary.is_none() && !self.has_replica;
                // What somebody has asked for at home is carried out there.
                let is_free = !at_home || record.pending().is_none();
                record.ha.enabled && is_lost && is_home == *at_home && is_free
            }
            Action::SettleClaim => is_home && !self.has_replica && !record.ft.enabled && self.claim.secondary.is_some(),
            Action::NotePowerOff => !self.has_replica,
            Action::Step { operation, .. } => record.pending_as(*operation).is_some(),
            Action::Replace | Action::EndReplica | Action::EndSecondary | Action::ShutDown { .. } => self.has_replica,
            Action::ReleaseReservation | Action::NoteResult { .. } => true,
        }
    }

    /// Whether the end of the guest here is to be noted in the record: at home, and only once.
    pub fn notes_power_off(&self) -> bool {
        self.is_home() && !self.has_replica && self.record.power == Power::On
    }

    /// Whether copies of the VM's disks on other hosts are of no use any more: those here are the newest, and nobody is to have others.
    pub fn may_remove_copies(&self) -> bool {
        let is_wanted = self.record.wants_secondary(self.claim) || self.record.ft.enabled;
        self.is_home() && !is_wanted && self.claim.secondary.is_none()
    }

    /// Whether the primary here, which is protected or not, is handed over or ended for an operation that is about its generation: it must not end what came of that.
    pub fn may_go_over(&self, operation: &Operation, is_protected: bool) -> bool {
        is_protected && self.claim.generation == operation.generation
    }

    fn is_home(&self) -> bool {
        self.host.is(&self.claim.primary)
    }
}

/// Whether the primary of a VM that moves to host `to` hands it over: only to that host, which has to survive for it.
pub fn may_hand_over(is_protected: bool, secondary: Option<&str>, to: &HostName) -> bool {
    is_protected && secondary == Some(to.as_str())
}

/// The replica of a VM that runs on the host that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// None.
    Nothing,
    /// A secondary that no primary has come to.
    Waiting,
    /// A secondary that has, or had, a primary: it may be about to take over.
    Following,
    /// A primary, or one that does not say what it is.
    Primary,
}

/// Why a VM is not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// Another host ran it last, whose disks are the newest.
    NotAtHome,
    /// It runs here already.
    Runs,
    /// The replica here takes over by itself when the primary is lost.
    Follows,
    /// The claim names the replica here as secondary, and it does not say that it follows: it may be about to take over.
    Undecided,
}

/// Why a host prepares no secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPrepared {
    /// The VM is at home here.
    IsPrimary,
    /// Another host is the primary's by now, or another generation the VM's.
    Changed,
    /// The claim names this host's replica: whether that takes over is not decided.
    Undecided,
}

/// Why a secondary is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDropped {
    /// The VM is at home here.
    IsPrimary,
    /// The claim names this host's replica as secondary.
    IsSecondary,
    /// Whoever asks is not the VM's home.
    NotForAsker,
}

/// What becomes of a secondary that the primary was told to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// The claim names it still: it may be about to take over, with the newest disks.
    Wait,
    /// Another host has taken the VM over.
    TakenOver,
    /// It is dropped.
    Drop,
}

fn names(claim: &Claim, host: &HostName) -> bool {
    claim.secondary.as_ref().is_some_and(|secondary| host.is(secondary))
}

/// Whether the VM is started on `host`, in place of what runs here. `is_forced`: somebody knows that it does not run any more on a host that does not
/// answer, and does without what was written there since.
///
/// # Errors
/// [`NotStarted`].
pub fn may_start(claim: &Claim, host: &HostName, here: Here, is_forced: bool) -> Result<(), NotStarted> {
    let is_home = host.is(&claim.primary);
    match here {
        _ if !is_home && !is_forced => Err(NotStarted::NotAtHome),
        // Also one that says nothing yet, or is just taking over: what it said last may be out of date, the claim is not.
        Here::Waiting | Here::Following | Here::Primary if is_home => Err(NotStarted::Runs),
        Here::Following => Err(NotStarted::Follows),
        // One that says nothing, or not yet that its primary has come: the newest of the VM may be in it.
        Here::Waiting | Here::Primary if names(claim, host) => Err(NotStarted::Undecided),
        // A secondary that nobody needs, or a primary that has been succeeded.
        Here::Nothing | Here::Waiting | Here::Primary => Ok(()),
    }
}

/// Whether `host` prepares a secondary, in place of what runs and what copy of the disks is here, for a primary on host `primary` that acts in `generation`.
///
/// # Errors
/// [`NotPrepared`].
pub fn may_prepare(
    claim: &Claim,
    host: &HostName,
    primary: &ReplicaId,
    generation: Generation,
) -> Result<(), NotPrepared> {
    if host.is(&claim.primary) {
        return Err(NotPrepared::IsPrimary);
    }
    if (&claim.primary, claim.generation) != (primary, generation) {
        return Err(NotPrepared::Changed);
    }
    // A primary that has lost it asks for the next generation; until that is won, either may go on. That holds for one that is gone as well: what it has
    // asked the store for may yet be carried out, and then the disks here are the VM's.
    if names(claim, host) {
        return Err(NotPrepared::Undecided);
    }
    Ok(())
}

/// Whether `host` ends its secondary, and removes its disks if that is asked for too, for the host `asker`.
///
/// # Errors
/// [`NotDropped`].
pub fn may_drop(claim: &Claim, host: &HostName, asker: Option<&str>) -> Result<(), NotDropped> {
    if host.is(&claim.primary) {
        return Err(NotDropped::IsPrimary);
    }
    // A claim that does not name a replica never does so again without its host being asked to prepare one.
    if names(claim, host) {
        return Err(NotDropped::IsSecondary);
    }
    if asker != Some(claim.primary.as_str()) {
        return Err(NotDropped::NotForAsker);
    }
    Ok(())
}

/// What becomes of the secondary that the primary on `host` was told to let go.
pub fn let_go(claim: &Claim, host: &HostName) -> LetGo {
    if !host.is(&claim.primary) {
        LetGo::TakenOver
    } else if claim.secondary.is_some() {
        LetGo::Wait
    } else {
        LetGo::Drop
    }
}

/// Whether the replica on `host`, which acts in `generation`, has no place any more, and is ended: a secondary that still no primary has come to, or a
/// primary that was succeeded without its knowledge.
pub fn is_displaced(claim: &Claim, host: &HostName, here: Here, generation: Generation) -> bool {
    match here {
        Here::Nothing | Here::Following => false,
        Here::Waiting => true,
        Here::Primary => !host.is(&claim.primary) && generation < claim.generation,
    }
}
