//! [`Coverage`]: what came up in schedules.

use std::fmt;

macro_rules! occurrences {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Something that a schedule can contain.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Occurrence {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Occurrence {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

occurrences! {
    /// A replica's process was killed.
    Kill,
    /// A host lost its power.
    PowerLoss,
    /// A process stood still for a while.
    Pause,
    /// A primary stood still between seeing that an ack was fresh and acting on it.
    Stall,
    /// Nothing passed between two hosts for a while.
    Partition,
    /// The same, in one direction.
    OneWayPartition,
    /// A connection ended, and both ends learned it.
    Reset,
    /// A connection ended, and only one end learned it.
    HalfOpen,
    /// A connection ended, and no end learned it.
    Mute,
    /// Messages took long.
    SlowLink,
    /// Checkpoints took long to send.
    SlowSender,
    /// No host reached the store for a while.
    StoreDown,
    /// One host did not.
    StoreOutOfReach,
    /// A compare-and-swap was carried out, and its answer got lost.
    AnswerLost,
    /// A compare-and-swap was carried out after whoever asked had given up.
    SwapLate,
    /// The secondary could not write its disks.
    SecondaryFailed,
    /// A secondary that was to take over found that it could not run the VM.
    Unready,
    /// A primary handed over since it did not reach its network.
    MovedToNetwork,
    /// A primary's disks broke, and its secondary was asked to take over.
    MovedFromDisks,
    /// A primary's disks broke, and there was nowhere to go.
    HaltedForDisks,
    /// A primary did not compete for its VM, as its disks were broken.
    WithheldForDisks,
    /// A network end died, and its host started another one.
    EndDied,
    /// A network end took nothing for a while, and output that might have left waited.
    ReleasedLate,
    /// At a takeover the guest was fed frames that the primary had passed on.
    InputFed,
    /// Strangers connected to a secondary that waited for its primary.
    Strangers,
    /// A second daemon of one identity was refused.
    SecondRefused,
    /// A daemon found that another one of its identity had come in its place, as its lease had ended.
    Succeeded,
    /// Another VM's first copy had to wait for one that was under way.
    CopyQueued,
    /// The user turned protection off.
    Off,
    /// The user suspended protection.
    Suspend,
    /// The user asked for a new secondary.
    Restart,
    /// The user asked for a planned takeover.
    SwitchOver,
    /// A secondary that kept the guest waiting was dropped.
    TooSlow,
    /// A secondary that was asked to take over, and lives, did not for long, and was dropped.
    HandOverTooSlow,
    /// An ack was too old to count, and nothing came of it.
    StaleAck,
    /// An old primary released committed output after a takeover: that was not for silence, or the primary had stood still with a fresh ack.
    LateRelease,
    /// A secondary took over since its connection was closed.
    TakeOverClosed,
    /// A secondary took over since its primary was silent.
    TakeOverSilent,
    /// A secondary suspected its primary before the longest suspicion time, as their link had been quick.
    SuspectedSooner,
    /// A secondary took over as asked.
    TakeOverHandOver,
    /// A secondary that had not been told of it found out that it was entitled, and took over.
    TakeOverInquired,
    /// A primary went on alone after it had won the compare-and-swap.
    PrimaryWins,
    /// A primary lost the compare-and-swap.
    PrimaryLoses,
    /// A secondary lost the compare-and-swap.
    SecondaryLoses,
    /// A hand-over did not come about, and the guest went on.
    HandOverUndone,
    /// A secondary stopped since it was not entitled.
    NotEntitled,
    /// A secondary stopped before its first checkpoint.
    NothingHeld,
    /// A compare-and-swap was not answered, for whatever reason.
    Unanswered,
    /// A secondary took over that had followed the log.
    TakeOverExecuted,
    /// A secondary had some of the log to execute when it lost its primary.
    RanOut,
    /// The log began after checkpoints.
    LogBegan,
    /// Checkpoints followed the log.
    LogEnded,
    /// The guest waited for the execution of the log.
    LagWaited,
    /// A secondary's execution came to another state, and it found out.
    Diverged,
    /// A first copy took another round.
    CopyRound,
    /// The guest was slowed down for its first copy.
    CopySlowed,
    /// A first copy was given up, as the guest was too fast for it.
    CopyGivenUp,
    /// A first copy broke off that had written to the disk.
    CopyTorn,
    /// A VM that had been protected got protected again.
    Reprotected,
    /// A first copy ended while it was not decided yet who goes on.
    JoinedUndecided,
    /// The guest powered off.
    PoweredOff,
    /// That was written down.
    PowerOffNoted,
    /// Before that the claim was decided, as a secondary might not have heard of it.
    PowerOffDecided,
    /// The guest was reset, and booted again.
    Rebooted,
    /// A daemon was killed.
    DaemonKilled,
    /// A host was stopped with the VM that ran there.
    HostStopped,
    /// A host was stopped with the secondary that was there.
    HostStoppedSecondary,
    /// A daemon was killed in the midst of a task.
    TaskLost,
    /// A daemon ended a replica that had no place any more.
    Retired,
    /// A primary was ended that did not know that its VM had been started elsewhere.
    DisplacedEnded,
    /// Such a one let something out before.
    ReleasedDisplaced,
    /// A host prepared no secondary, as the claim had changed.
    NotPrepared,
    /// Nor one in place of another one that might have been about to take over.
    NotPreparedUndecided,
    /// A host did not drop its secondary.
    NotDropped,
    /// The user's restart of the secondary met a takeover.
    TakenOverMeanwhile,
    /// The user turned protection off while it was not decided whether the secondary takes over.
    OffUndecided,
    /// A secondary did not follow whoever had connected.
    NotAdmitted,
    /// The VM was started where its disks are the newest.
    Started,
    /// The VM was started elsewhere, by force.
    StartedByForce,
    /// A start was refused, as the VM ran or was at home elsewhere.
    StartRefused,
    /// A start was refused, as the copy of the disk is incomplete.
    StartRefusedIncomplete,
    /// Somebody asked for a reboot.
    RebootAsked,
    /// A VM was started again for a reboot.
    RebootDone,
    /// Somebody pressed the VM's power button, or pulled its plug.
    StopAsked,
    /// Somebody asked for the other FT mode.
    ModeAsked,
    /// A primary was told of it.
    ModeChanged,
    /// A VM was to be started as its host has power again.
    Autostart,
    /// Somebody moved the VM to another host.
    MigrationAsked,
    /// Somebody emptied a host.
    Maintenance,
    /// A host in maintenance asked for the move of the VM that it runs.
    EvacuationAsked,
    /// The VM was where it was to go.
    MigrationDone,
    /// It stayed where it was.
    MigrationFailed,
    /// After the move of a VM that is not protected, copies of its disks on other hosts were removed.
    CopiesRemoved,
    /// What one run of a daemon was asked for was done by another.
    Inherited,
    /// What was asked for failed.
    OperationFailed,
    /// The schedule ended with a protected VM.
    EndedProtected,
}

/// How often each [`Occurrence`] came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage([u64; Occurrence::ALL.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; Occurrence::ALL.len()])
    }
}

impl Coverage {
    /// How often it came up.
    pub fn count(&self, occurrence: Occurrence) -> u64 {
        self.0[occurrence as usize]
    }

    pub(crate) fn note(&mut self, occurrence: Occurrence) {
        self.0[occurrence as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &occurrence in Occurrence::ALL {
            writeln!(f, "{:>10}  {occurrence:?}", self.count(occurrence))?;
        }
        Ok(())
    }
}
