//! [`Mutation`]: deliberate mistakes, to see whether the simulation finds them.

/// A mistake in what a replica does with the protocol's commands, or tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Output leaves when its epoch is captured.
    ReleaseOnCapture,
    /// Output does not wait once the first copy is over.
    DoNotHold,
    /// Every ack counts as fresh.
    AcceptStaleAcks,
    /// The secondary suspects the primary after half of the time that it has promised.
    SuspectEarly,
    /// A primary takes it that its secondary waits for the longest suspicion time, whatever that has promised.
    CountOnLongest,
    /// The secondary acknowledges a checkpoint that it then loses now and then.
    AcknowledgeUnheld,
    /// A secondary takes over without asking the store.
    TakeOverWithoutArbitration,
    /// A secondary asks for the next generation though the store does not name it.
    UnentitledTakesOver,
    /// A secondary is told that it is entitled when its first checkpoint is sent, and not again.
    EntitleBeforeFirstAck,
    /// A secondary is told that it is entitled when the store is asked to name it.
    EntitleBeforeSwap,
    /// A primary that has lost its secondary lets output pass before the store has answered.
    OpenBeforeArbitration,
    /// Whoever lost the compare-and-swap believes that it has won.
    LoserGoesOn,
    /// Whoever could not reach the store believes that it has won.
    UnreachableGoesOn,
    /// A replica that is to stop does not.
    DoNotStop,
    /// Nobody asks the store again.
    DoNotRetry,
    /// A guest that was paused for a hand-over stands still for ever.
    DoNotResume,
    /// A secondary that has lost its primary goes on acknowledging what comes.
    AcknowledgeAfterLoss,
    /// A secondary that could not run the VM asks the store for it all the same.
    ClaimUnready,
    /// A primary whose network is gone stays where it is.
    StayCutOff,
    /// A primary does not notice that its disks are broken.
    MissDiskFailure,
    /// A guest is answered that its host's disk has failed.
    AnswerFailedRequests,
    /// A secondary whose disks are broken asks the store for the VM all the same.
    RunOnBrokenDisk,
    /// A secondary that could not run the VM when it lost its primary never tries again.
    GiveUpUnready,
    /// A secondary that has lost its primary does not run out the log that it has received.
    DoNotRunOut,
    /// A secondary goes back to checkpoints without executing the log to its end.
    MirrorTooEarly,
    /// A secondary acknowledges a segment of the log that it then loses now and then.
    LoseSegment,
    /// A secondary that has found that its state differs goes on as if it had lost its primary.
    DivergedGoesOn,
    /// The guest does not wait for a secondary that is behind.
    DoNotWait,
    /// A secondary does not note that its disk is incomplete while a first copy goes on.
    TakePartsForCopy,
    /// A secondary notes that its copy is whole before it is on stable storage.
    NoteUnflushedCopy,
    /// Of the flushes that the guest asked for, a secondary carries out only the last.
    MergeFlushes,
    /// What the guest writes to its disk during a first copy is not sent.
    DoNotLogCopy,
    /// A host makes room for a new secondary though it is not decided whether the one that it has takes over.
    PrepareUndecided,
    /// A secondary is let go before the claim is decided.
    DropUndecided,
    /// A secondary goes on with a guest that was powered off.
    TakeOverEnded,
    /// A VM is noted to be off before it is decided whether its secondary takes over.
    NoteUndecidedPowerOff,
    /// A VM is started from a copy that is noted to be incomplete.
    StartFromParts,
    /// A secondary asks for the VM before its disk is flushed as its guest wants it.
    AskBeforeFlush,
    /// What the guest writes to its disk is sent when a round of copying memory is over.
    SendWritesAfterRound,
    /// A first copy goes on for ever.
    CopyForEver,
    /// A first copy ends after its first round, whatever is left.
    FinishAtOnce,
    /// A guest that is too fast for its first copy is not slowed down, and the copy goes on.
    KeepHopelessCopy,
    /// A start is noted to be done before the replica runs.
    NoteStartEarly,
    /// A reboot is noted to be done when the guest is told to shut down: that it is to be started is only remembered.
    RememberReboot,
    /// A VM is started for a reboot, and it is not noted that it need not be shut down any more.
    RebootAgain,
    /// A VM's disks are removed where it leaves before the claim says that it has left.
    GiveUpBeforeHandOver,
    /// The secondary forgets output of which it does not know that it has left.
    DoNotSendAgain,
    /// A primary says that output has left which has found no room in its network end.
    TellUnleftReleased,
    /// Frames for the guest are not passed on to the secondary.
    DoNotForward,
    /// Frames for the guest are passed on when the next checkpoint is taken.
    ForwardWithCheckpoint,
    /// At a takeover the guest is fed frames that the last commit has consumed.
    FeedConsumed,
    /// At a takeover the guest is not fed what the last commit has not consumed.
    DoNotFeed,
    /// A replica that takes over does not say to its network end how far its guest has taken frames.
    ForgetPosition,
    /// A network end on a bridge delivers frames that have waited there for long.
    DeliverOldInput,
    /// A secondary follows any host of the cluster that connects.
    AdmitAnyone,
    /// A secondary greets all that connect, however many.
    GreetAll,
    /// A secondary that greets as many as it may turns newcomers away.
    TurnNewcomersAway,
    /// A second daemon of one identity serves it too.
    ServeTwice,
    /// A host compares what the clock of another one said with its own.
    CompareClocks,
    /// A host that is stopped ends what it has seen to be a secondary, whatever that is by now.
    EndWithoutAsking,
    /// A host does not know what hosts fail together with.
    ForgetDomains,
    /// A host does not know that others are in maintenance.
    IgnoreMaintenance,
    /// A host begins all first copies at once.
    CopyAllAtOnce,
    /// The driver notes a hand-over only after what ends the last epoch was acknowledged.
    NoteHandOverLate,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 64] = [
        Self::TellUnleftReleased,
        Self::DoNotForward,
        Self::ForwardWithCheckpoint,
        Self::FeedConsumed,
        Self::DoNotFeed,
        Self::ForgetPosition,
        Self::DeliverOldInput,
        Self::AdmitAnyone,
        Self::GreetAll,
        Self::TurnNewcomersAway,
        Self::ServeTwice,
        Self::CompareClocks,
        Self::EndWithoutAsking,
        Self::ForgetDomains,
        Self::IgnoreMaintenance,
        Self::CopyAllAtOnce,
        Self::NoteHandOverLate,
        Self::MissDiskFailure,
        Self::AnswerFailedRequests,
        Self::RunOnBrokenDisk,
        Self::ClaimUnready,
        Self::GiveUpUnready,
        Self::StayCutOff,
        Self::DoNotRunOut,
        Self::MirrorTooEarly,
        Self::LoseSegment,
        Self::DivergedGoesOn,
        Self::DoNotWait,
        Self::ReleaseOnCapture,
        Self::DoNotHold,
        Self::AcceptStaleAcks,
        Self::SuspectEarly,
        Self::CountOnLongest,
        Self::AcknowledgeUnheld,
        Self::TakeOverWithoutArbitration,
        Self::UnentitledTakesOver,
        Self::EntitleBeforeFirstAck,
        Self::EntitleBeforeSwap,
        Self::OpenBeforeArbitration,
        Self::LoserGoesOn,
        Self::UnreachableGoesOn,
        Self::DoNotStop,
        Self::DoNotRetry,
        Self::DoNotResume,
        Self::AcknowledgeAfterLoss,
        Self::DoNotSendAgain,
        Self::TakePartsForCopy,
        Self::NoteUnflushedCopy,
        Self::MergeFlushes,
        Self::DoNotLogCopy,
        Self::PrepareUndecided,
        Self::DropUndecided,
        Self::StartFromParts,
        Self::TakeOverEnded,
        Self::NoteUndecidedPowerOff,
        Self::AskBeforeFlush,
        Self::SendWritesAfterRound,
        Self::CopyForEver,
        Self::FinishAtOnce,
        Self::KeepHopelessCopy,
        Self::NoteStartEarly,
        Self::RememberReboot,
        Self::RebootAgain,
        Self::GiveUpBeforeHandOver,
    ];
}
