//! The simulation can fail: every mistake made on purpose is found soon, and for what it is.

use sim::{Mutation, Soak, Violation};

/// Schedules within which a mistake has to be found.
const SCHEDULES: u64 = 20_000;

/// Whether it is what one expects of the mistake.
fn gives_away(violation: &Violation, mutation: Mutation) -> bool {
    use Violation as V;
    match mutation {
        // Output that nobody holds: somebody goes on without it, or it leaves where nobody goes on.
        Mutation::ReleaseOnCapture | Mutation::DoNotHold => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::TwoRelease(_))
        }
        // What it is taken to hold may be a flush.
        Mutation::AcknowledgeAfterLoss => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::TwoRelease(_) | V::FlushLost(_))
        }
        // Output passes while the guest stands still for a hand-over.
        Mutation::OpenBeforeArbitration | Mutation::DoNotStop => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::TwoRelease(_) | V::StandsStill(_))
        }
        // The disk has not been written either.
        Mutation::AcknowledgeUnheld => matches!(
            violation,
            V::Fork(_) | V::OutputUndone(_) | V::TwoRelease(_) | V::TookOverOtherDisk(_) | V::TornCopy(_)
        ),
        Mutation::AcceptStaleAcks | Mutation::SuspectEarly | Mutation::CountOnLongest => {
            matches!(violation, V::TwoRelease(_))
        }
        // Two go on.
        Mutation::TakeOverWithoutArbitration | Mutation::UnentitledTakesOver | Mutation::LoserGoesOn => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::TwoRelease(_) | V::NoConsent(..))
        }
        // Two go on; or nobody does, since the generation that the secondary was told is not the one that names it.
        Mutation::EntitleBeforeFirstAck => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::Abandoned(_))
        }
        // Nobody goes on, though there was somebody who could.
        Mutation::ClaimUnready | Mutation::GiveUpUnready => matches!(violation, V::Abandoned(_)),
        Mutation::StayCutOff => matches!(violation, V::StaysCutOff(_)),
        Mutation::MissDiskFailure => matches!(violation, V::StaysOnBrokenDisks(_)),
        Mutation::AnswerFailedRequests => matches!(violation, V::SawDiskError(_)),
        Mutation::RunOnBrokenDisk => matches!(violation, V::TookWithBrokenDisks(_)),
        Mutation::UnreachableGoesOn => matches!(violation, V::NoConsent(..) | V::NotNamed(..)),
        Mutation::EntitleBeforeSwap => matches!(violation, V::NotNamed(..)),
        Mutation::DoNotRetry => matches!(violation, V::Stuck(_)),
        Mutation::DoNotResume => matches!(violation, V::StandsStill(_)),
        // The secondary goes on from less than it has acknowledged, or from something else.
        Mutation::DoNotRunOut | Mutation::DivergedGoesOn => {
            matches!(violation, V::Fork(_) | V::OutputUndone(_) | V::OutputLost(_))
        }
        Mutation::MirrorTooEarly | Mutation::LoseSegment => {
            matches!(violation, V::Differs(_) | V::Fork(_) | V::OutputUndone(_) | V::Undone(..))
        }
        Mutation::DoNotWait => matches!(violation, V::TooFarAhead(_)),
        Mutation::TakePartsForCopy | Mutation::NoteUnflushedCopy | Mutation::MergeFlushes => {
            matches!(violation, V::TornCopy(_))
        }
        Mutation::DoNotLogCopy => matches!(violation, V::TookOverOtherDisk(_) | V::TornCopy(_)),
        Mutation::PrepareUndecided => matches!(violation, V::EndedNeeded(_)),
        Mutation::DropUndecided => matches!(violation, V::EndedNeeded(_) | V::DeletedNewest(_)),
        Mutation::TakeOverEnded => matches!(violation, V::PowerOffUndone(_)),
        // It runs, and is never protected.
        Mutation::NoteUndecidedPowerOff => matches!(violation, V::Stuck(_)),
        Mutation::StartFromParts => matches!(violation, V::StartedFromParts(_) | V::FlushLost(_)),
        Mutation::AskBeforeFlush => matches!(violation, V::FlushLost(_) | V::TornCopy(_)),
        // Too many wait by then, each time.
        Mutation::SendWritesAfterRound => matches!(violation, V::Stuck(_) | V::LogOverflows(_)),
        Mutation::CopyForEver => matches!(violation, V::Stuck(_)),
        Mutation::FinishAtOnce => matches!(violation, V::LongPause(_)),
        Mutation::KeepHopelessCopy => matches!(violation, V::LogOverflows(_)),
        Mutation::NoteStartEarly | Mutation::RememberReboot => matches!(violation, V::Forgotten(..)),
        Mutation::GiveUpBeforeHandOver => matches!(violation, V::DeletedNewest(_)),
        Mutation::RebootAgain => matches!(violation, V::RebootedTwice(_)),
        Mutation::DoNotSendAgain | Mutation::TellUnleftReleased => matches!(violation, V::OutputLost(_)),
        Mutation::DoNotForward | Mutation::ForwardWithCheckpoint | Mutation::DoNotFeed | Mutation::ForgetPosition => {
            matches!(violation, V::InputLost(_))
        }
        // What was consumed comes again; or what comes next does not follow it.
        Mutation::FeedConsumed => matches!(violation, V::InputTwice(_) | V::InputLost(_)),
        Mutation::DeliverOldInput => matches!(violation, V::StaleInput(_)),
        Mutation::AdmitAnyone => matches!(violation, V::FollowsStranger(_)),
        Mutation::GreetAll => matches!(violation, V::TooManyCallers(_)),
        Mutation::TurnNewcomersAway => matches!(violation, V::PrimaryKeptOut(_)),
        Mutation::ServeTwice => matches!(violation, V::ServedTwice(_)),
        // Hosts that live count as lost, so that there is none for a secondary.
        Mutation::CompareClocks => matches!(violation, V::Stuck(_)),
        Mutation::EndWithoutAsking => matches!(violation, V::EndedNeeded(_)),
        Mutation::IgnoreMaintenance => matches!(violation, V::PlacedInMaintenance(..)),
        Mutation::ForgetDomains => matches!(violation, V::SharesDomain(..)),
        Mutation::CopyAllAtOnce => matches!(violation, V::TooManyCopies(_)),
        Mutation::NoteHandOverLate => matches!(violation, V::NeverAsked(_)),
    }
}

#[test]
fn every_mistake_is_found_for_what_it_is() {
    let mut wrong = Vec::new();
    for mutation in Mutation::ALL {
        let report = Soak { first_seed: 0, schedules: SCHEDULES, mutation: Some(mutation) }.run();
        match report.failure {
            None => wrong.push(format!("{mutation:?} was not found in {SCHEDULES} schedules")),
            Some(failure) => {
                println!("{mutation:?}: schedule {}: {}", failure.seed, failure.violation);
                if !gives_away(&failure.violation, mutation) {
                    wrong.push(format!(
                        "{mutation:?} was found as {:?}, in schedule {}",
                        failure.violation, failure.seed
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
