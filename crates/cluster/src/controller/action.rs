//! What is to be done, and why.

use std::collections::BTreeMap;
use std::fmt;

use spec::{FtMode, HostName, ReplicaId, SnapshotName, VmName};

use super::{Idle, Waiting};
use crate::records::OperationResult;

/// What one host is to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Actions, in order of the VMs' names: for each VM at most one for its protection, one for the operation that somebody asked for, and one for the end of
    /// its replica with its host.
    pub actions: Vec<Planned>,
    /// Why nothing is done about the other VMs with a replica on the host, and about those without one about which something will be.
    pub idle: BTreeMap<VmName, Idle>,
    /// What operations wait for with which this host has to go on.
    pub waiting: BTreeMap<VmName, Waiting>,
}

/// What is to be done about one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The VM.
    pub vm: VmName,
    /// What to do. Its [`Outcome`] is to be told to the controller, which plans no other of its kind for the VM meanwhile.
    pub action: Action,
    /// Why the action is taken, for logs and events.
    pub why: Why,
}

/// What is to be done about a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reserve what a secondary needs on this host, let it prepare one, and tell the primary of it.
    Protect {
        /// The host.
        secondary: HostName,
    },
    /// Tell the primary to let its secondary go, and end the secondary.
    Unprotect,
    /// Tell the primary to let its secondary go, and end the secondary: another host is to hold the next one.
    Replace,
    /// Ask for the VM's migration, unless something else has been asked of it.
    Move {
        /// The host that it is to run on.
        to: HostName,
    },
    /// Ask for the VM's start, unless something else has been asked of it.
    AskForStart,
    /// Start the VM here under the host's run lease, as it is to run and does not, unless it does by then.
    Restart {
        /// This host.
        on: HostName,
        /// Whether it is at home here, and no other host's.
        at_home: bool,
    },
    /// End the replica that the report was about.
    EndReplica,
    /// Give up what is reserved for a first copy.
    ReleaseReservation,
    /// Note in the VM's record that it is off.
    NotePowerOff,
    /// Have the claim name this host alone, so that no secondary takes the VM over any more, and end that secondary, if another host has not won the claim
    /// before.
    SettleClaim,
    /// End the secondary, unless it has become the primary meanwhile.
    EndSecondary,
    /// Press the power button of the VM that runs here, or pull its plug, whatever the store says of it.
    ShutDown {
        /// Pull the plug.
        force: bool,
    },
    /// Carry out a step of an operation.
    Step {
        /// The operation's number.
        operation: u64,
        /// The step.
        step: Step,
        /// Whether the operation has ended when this is done. If it fails, it has in any case.
        is_last: bool,
    },
    /// Note in the VM's record how an operation has ended.
    NoteResult {
        /// The operation's number.
        operation: u64,
        /// How it has ended.
        result: OperationResult,
    },
}

/// A step of an operation. Each may be done twice, as by the daemon after one that was killed before it could say that it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start the VM on this host.
    Start {
        /// From the copy of the disks that is here, though another host's is newer or may be.
        from_stale_disks: bool,
        /// From a snapshot instead of the disks.
        snapshot: Option<SnapshotName>,
    },
    /// Press its power button.
    PressPowerButton,
    /// Pull its plug.
    PullPlug,
    /// Have the primary hand the VM over.
    SwitchOver,
    /// Kill the primary's process.
    KillPrimary,
    /// Have the primary let its secondary go, so that another one is made.
    RestartSecondary,
    /// Have the primary replicate in another mode, if the VM runs, and note that mode in its record.
    ChangeMode {
        /// The mode.
        mode: FtMode,
    },
    /// Have other hosts remove what they have of the VM's disks, which are here now.
    RemoveCopies,
}

/// Why something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The VM is to have a secondary and has none.
    NeedsSecondary,
    /// It is to be moved to another host.
    Migrates {
        /// That host.
        to: HostName,
    },
    /// A host with a replica of it is in maintenance.
    Maintenance {
        /// That host.
        host: HostName,
    },
    /// It is to be started with the machine, which has booted.
    MachineBooted,
    /// The replica here has ended, and nobody has asked for that.
    ReplicaGone,
    /// Its host has lost its run lease.
    HostLost {
        /// That host.
        host: ReplicaId,
    },
    /// Its host has tried, and left it to others.
    GivenUp {
        /// That host.
        host: ReplicaId,
    },
    /// One fault may take both of its replicas, and another host would be safe from that.
    SharesDomain {
        /// The host of its secondary.
        host: HostName,
    },
    /// Its protection is off.
    ProtectionOff,
    /// Its protection is suspended.
    ProtectionSuspended,
    /// The store says that another replica was started or has taken over.
    Superseded {
        /// The primary now.
        by: ReplicaId,
    },
    /// No primary has come to this secondary.
    NoPrimaryCame,
    /// The first copy is complete: from now on the claim reserves what the secondary needs.
    CopyComplete,
    /// There is no first copy under way.
    NoCopyUnderWay,
    /// The guest was powered off, which the record does not say yet.
    PoweredOff,
    /// The host is being stopped with its VMs.
    HostStopping,
    /// Somebody asked for it.
    Asked,
    /// What somebody asked for has come about, or cannot.
    Over,
}

/// How an action has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was not done, as what is wanted has changed meanwhile.
    NotWanted,
    /// It failed.
    Failed(String),
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.vm, self.action, self.why)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect { secondary } => write!(f, "protect by host {secondary}"),
            Self::Unprotect => f.pad("let the secondary go"),
            Self::Replace => f.pad("let the secondary go for one on another host"),
            Self::Move { to } => write!(f, "ask for its migration to host {to}"),
            Self::AskForStart => f.pad("ask for its start"),
            Self::Restart { .. } => f.pad("restart it here"),
            Self::EndReplica => f.pad("end the replica"),
            Self::ReleaseReservation => f.pad("release the reservation"),
            Self::NotePowerOff => f.pad("note that it is off"),
            Self::SettleClaim => f.pad("claim it for this host alone, and let the secondary go"),
            Self::EndSecondary => f.pad("end the secondary"),
            Self::ShutDown { force: false } => f.pad("press the power button"),
            Self::ShutDown { force: true } => f.pad("pull the plug"),
            Self::Step { step, .. } => step.fmt(f),
            Self::NoteResult { operation, result: OperationResult::Done } => {
                write!(f, "note that operation {operation} is done")
            }
            Self::NoteResult { operation, result: OperationResult::Failed { why } } => {
                write!(f, "note that operation {operation} has failed: {why}")
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { snapshot: Some(snapshot), .. } => write!(f, "start it from snapshot {snapshot}"),
            Self::Start { from_stale_disks: true, .. } => f.pad("start it from what is here"),
            Self::Start { .. } => f.pad("start it"),
            Self::PressPowerButton => f.pad("press the power button"),
            Self::PullPlug => f.pad("pull the plug"),
            Self::SwitchOver => f.pad("hand it over"),
            Self::KillPrimary => f.pad("kill the primary"),
            Self::RestartSecondary => f.pad("let the secondary go for another one"),
            Self::ChangeMode { mode } => write!(f, "protect it in mode {mode}"),
            Self::RemoveCopies => f.pad("have its copies on other hosts removed"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsSecondary => f.pad("it has no secondary"),
            Self::Migrates { to } => write!(f, "it is to move to host {to}"),
            Self::Maintenance { host } => write!(f, "host {host} is in maintenance"),
            Self::MachineBooted => f.pad("the machine has booted"),
            Self::ReplicaGone => f.pad("it has ended, and nobody has asked for that"),
            Self::HostLost { host } => write!(f, "host {host} is lost"),
            Self::GivenUp { host } => write!(f, "host {host} cannot start it"),
            Self::SharesDomain { host } => write!(f, "one fault may take host {host} and the primary's"),
            Self::ProtectionOff => f.pad("protection is off"),
            Self::ProtectionSuspended => f.pad("protection is suspended"),
            Self::Superseded { by } => write!(f, "host {by} runs the VM now"),
            Self::NoPrimaryCame => f.pad("no primary came to it"),
            Self::CopyComplete => f.pad("the first copy is complete"),
            Self::NoCopyUnderWay => f.pad("no first copy is under way"),
            Self::PoweredOff => f.pad("the guest was powered off"),
            Self::HostStopping => f.pad("the host is being stopped with its VMs"),
            Self::Asked => f.pad("somebody asked for it"),
            Self::Over => f.pad("there is nothing more to do for it"),
        }
    }
}
