//! [`Violation`]: a promise of the protocol that was broken.

use protocol::Generation;

/// A promise of the protocol that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two lives of the guest were seen from outside.
    #[error("replica {0} released output that does not follow from what the world has seen")]
    Fork(String),
    /// A replica went on from a state that does not contain what was seen.
    #[error("replica {0} goes on from a state before output that the world has seen")]
    OutputUndone(String),
    /// The old primary released output after a secondary had waited for the suspicion time and taken over.
    #[error("replica {0} released output though another one has taken over for its silence")]
    TwoRelease(String),
    /// Output passes at a replica that has not the store's consent.
    #[error("replica {0} goes on at generation {1}, which is not its own in the store")]
    NoConsent(String, Generation),
    /// A secondary is told that it is entitled, and is not.
    #[error("replica {0} is told that the store names it at generation {1}, which it does not")]
    NotNamed(String, Generation),
    /// A replica stopped for another one that does not exist.
    #[error("replica {0} stops for another one, but the store has given nobody else the right to go on")]
    StoppedForNobody(String),
    /// What a replica received does not continue what it has, or it goes on from what it has not executed.
    #[error("replica {0} comes to another state than its primary")]
    Differs(String),
    /// The guest ran on though its secondary was behind by more than it may be.
    #[error("replica {0} runs on though its secondary is too far behind")]
    TooFarAhead(String),
    /// Committed output that a takeover lost.
    #[error("replica {0} has taken over, and committed output never leaves")]
    OutputLost(String),
    /// A hand-over did not come about, and the guest stays paused.
    #[error("replica {0} is alone, and its guest stands still for a hand-over")]
    StandsStill(String),
    /// The driver in `replication::driver` would not carry out what the protocol commanded.
    #[error("replica {0} is commanded {1}, which is not done there")]
    Undone(String, String),
    /// A protected VM stays where its network is gone, though it could move.
    #[error("replica {0} does not reach its network, and does not hand over to a secondary that does")]
    StaysCutOff(String),
    /// A protected VM stays where its disks are broken, though it could move.
    #[error("replica {0} has broken disks, and does not ask its secondary to take over")]
    StaysOnBrokenDisks(String),
    /// A guest was told of a fault of its host.
    #[error(
        "the guest of replica {0} is told that its disk has failed, and with it the guest of its secondary, whose disk is sound"
    )]
    SawDiskError(String),
    /// A replica has taken the VM though it could have known that it cannot run it.
    #[error("replica {0} has asked for the VM, though its disks were broken before")]
    TookWithBrokenDisks(String),
    /// A frame that had been passed on was lost with the primary.
    #[error("replica {0} has taken over, and a frame for its guest that the primary had passed on is lost")]
    InputLost(String),
    /// The guest was given a frame twice.
    #[error("replica {0} feeds its guest a frame that it has had already")]
    InputTwice(String),
    /// The guest was given a frame that nobody waits for any more.
    #[error(
        "replica {0} feeds its guest a frame that was in a network end for longer than the suspicion time before it connected"
    )]
    StaleInput(String),
    /// A hand-over was given up that the secondary never heard of.
    #[error("replica {0} gives up a secondary that holds all, and that it never asked to take over")]
    NeverAsked(String),
    /// A secondary follows whoever is not its primary.
    #[error("replica {0} follows one that is not its primary")]
    FollowsStranger(String),
    /// A secondary has more connections than it may.
    #[error("replica {0} greets more of those that connect than it may")]
    TooManyCallers(String),
    /// A secondary hung up on its primary.
    #[error("replica {0} hung up on its primary, which had nothing to wait for")]
    PrimaryKeptOut(String),
    /// Two daemons have one identity.
    #[error("host {0} is served by two daemons")]
    ServedTwice(String),
    /// A host makes too many first copies.
    #[error("host {0} makes more first copies at a time than it may")]
    TooManyCopies(String),
    /// A secondary is placed where the fault that takes its primary may take it too.
    #[error("the secondary of a VM on host {0} is placed on host {1}, which is in the same failure domain")]
    SharesDomain(String, String),
    /// A secondary is placed on a host that is to be empty.
    #[error("the secondary of a VM on host {0} is placed on host {1}, which is in maintenance")]
    PlacedInMaintenance(String, String),
    /// A disk that is noted to be a copy holds parts of different times.
    #[error("the disk of host {0} is noted to be a copy, and is none")]
    TornCopy(String),
    /// A replica has taken over, and its disk is not the guest's.
    #[error("replica {0} has taken over, and its disk is not what its guest knows")]
    TookOverOtherDisk(String),
    /// A daemon has ended a replica that the VM depends on.
    #[error("the daemon of host {0} has ended a replica that the store names")]
    EndedNeeded(String),
    /// A daemon has deleted a disk that may be the newest.
    #[error("the daemon of host {0} has deleted the disk of a replica that the store names")]
    DeletedNewest(String),
    /// A replica goes on with a guest that was powered off.
    #[error("replica {0} has taken over, though its guest was powered off")]
    PowerOffUndone(String),
    /// A VM was started from a copy that is none.
    #[error("the VM is started on host {0} from parts of different times")]
    StartedFromParts(String),
    /// What the guest had flushed is not on the disk that its VM starts from.
    #[error("the VM is started on host {0}, and something that its guest had flushed is gone")]
    FlushLost(String),
    /// More was left for the end of a first copy than may be.
    #[error("replica {0} ends a first copy with more left than the secondary takes in soon")]
    LongPause(String),
    /// More disk writes wait than the log has room for.
    #[error("replica {0} lets its guest write more to its disk than a first copy keeps up with")]
    LogOverflows(String),
    /// Nobody runs the VM, or nobody protects it, long after the last fault.
    #[error("{0}")]
    Stuck(String),
    /// Nobody runs the VM, though a replica that the store names has not crashed.
    #[error("the VM is lost, though the last claim was {0}, and not all whom it names have crashed")]
    Abandoned(String),
    /// A start or a reboot that was asked for was forgotten, or is said to be done, and is not.
    #[error("the VM does not run, and nobody goes on with operation {0}: {1}")]
    Forgotten(u64, String),
    /// A VM that was started for a reboot was shut down for the same reboot once more.
    #[error("operation {0} shuts the VM down that was started for it")]
    RebootedTwice(u64),
}
