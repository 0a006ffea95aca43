//! From what replication says of itself to what administrators read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use api::figures::Figures;
use api::status::{Fault, Protection, ProtectionState, Reason, Role, SyncPhase, SyncProgress};
use api::time::unix_ms_now;
use machine::device_meter::DeviceMetrics;
use protocol::{self, DropReason, LossReason};
use replication::disk::DiskFault;
use replication::driver::{Phase, PrimaryStatus, SecondaryStatus};
use spec::FtMode;

use super::figures;

/// What a replica says, as far as its replication knows.
pub struct Report {
    pub role: Role,
    pub generation: u64,
    /// A primary's.
    pub mode: Option<FtMode>,
    /// The other replica's host.
    pub peer: Option<String>,
    /// The first copy.
    pub sync: Option<SyncProgress>,
    pub figures: Figures,
    pub protection: Protection,
    /// Disks that are broken.
    pub faults: Vec<Fault>,
}

/// Remembers since when the state is what it is.
#[derive(Default)]
pub struct ProtectionLog(Option<Protection>);

impl ProtectionLog {
    /// The state as seen now, with the time from which on it was seen without a change.
    pub fn note(&mut self, seen: Protection) -> Protection {
        match &mut self.0 {
            Some(known) if (known.state, known.reason) == (seen.state, seen.reason) => {
                known.detail = seen.detail;
                known.clone()
            }
            known => known.insert(seen).clone(),
        }
    }
}

/// A process that is neither yet.
pub fn starting(role: Role) -> Report {
    let protection = Protection::now(ProtectionState::Starting, Some(Reason::Initializing));
    let figures = Figures::default();
    Report { role, generation: 0, mode: None, peer: None, sync: None, figures, protection, faults: Vec::new() }
}

/// A replica that runs the VM.
pub fn primary(status: &PrimaryStatus, devices: &DeviceMetrics) -> Report {
    let figures = figures::of_primary(&status.figures, &status.gate, status.watched, devices);
    let progress = status.progress.filter(|progress| progress.phase != Phase::Mirroring);
    let sync = progress.map(|progress| SyncProgress {
        phase: match progress.phase {
            Phase::Connecting | Phase::ComparingDisks => SyncPhase::Connect,
            Phase::CopyingDisks => SyncPhase::Disks,
            Phase::CopyingMemory => SyncPhase::Memory,
            Phase::CopyingChanges => SyncPhase::ChangedMemory,
            Phase::FirstCheckpoint | Phase::Mirroring => SyncPhase::Checkpoint,
        },
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
    });
    let mut seen = protection(&status.protocol);
    let is_first_copy = match seen.state {
        ProtectionState::NeedSecondary => true,
        // Of the one before, whose claim is being decided, the protocol knows.
        ProtectionState::Disabled => status.protocol.secondary.is_none(),
        _ => false,
    };
    if status.secondary.is_some() && is_first_copy {
        // The protocol hears of a secondary when its first copy is done.
        seen = Protection::now(ProtectionState::Starting, Some(Reason::Initializing));
        let slowed = status.progress.and_then(|progress| progress.slowed).map(|slowed| slowed.to_string());
        let slow_link = status.progress.and_then(|progress| progress.slow_link).map(|link| link.to_string());
        let details: Vec<_> = slowed.into_iter().chain(slow_link).collect();
        seen.detail = (!details.is_empty()).then(|| details.join("; "));
    } else if seen.state == ProtectionState::NeedSecondary && status.failure.is_some() {
        seen.detail.clone_from(&status.failure);
    }
    Report {
        role: Role::Primary,
        generation: status.protocol.generation.number(),
        mode: Some(status.mode),
        peer: status.secondary.clone(),
        sync,
        figures,
        protection: seen,
        faults: disk_faults(status),
    }
}

/// The disks of a primary that are broken.
fn disk_faults(status: &PrimaryStatus) -> Vec<Fault> {
    let fault = |fault: &DiskFault| Fault {
        part: format!("disk {}", fault.disk),
        detail: fault.problem.to_string(),
        since_unix_ms: unix_ms_now().saturating_sub(fault.lasting.as_millis() as u64),
    };
    status.disk_faults.iter().map(fault).collect()
}

/// A replica that holds the VM.
pub fn secondary(status: &SecondaryStatus) -> Report {
    let figures = figures::of_secondary(status.epoch, status.watched);
    let mut protection = protection(&status.protocol);
    if let (Some(detail), Some(obstacle)) = (&mut protection.detail, &status.obstacle) {
        detail.push_str(": ");
        detail.push_str(obstacle);
    }
    Report {
        role: Role::Secondary,
        generation: status.protocol.generation.number(),
        mode: None,
        peer: status.primary.clone(),
        sync: None,
        figures,
        protection,
        faults: Vec::new(),
    }
}

/// What the protocol says where administrators read this state.
pub fn protection_of(state: ProtectionState) -> protocol::Protection {
    match state {
        ProtectionState::Protected => protocol::Protection::Protected,
        ProtectionState::Starting => protocol::Protection::Starting,
        ProtectionState::NeedSecondary => protocol::Protection::NeedSecondary,
        ProtectionState::Disabled => protocol::Protection::Disabled,
        ProtectionState::NotRunning => protocol::Protection::NotRunning,
    }
}

/// One of the reasons of the protocol's for which administrators read this one: which of them, nobody has to tell apart.
pub fn reason_of(reason: Reason) -> protocol::Reason {
    match reason {
        Reason::Initializing => protocol::Reason::NoSecondaryYet,
        Reason::LostConnection => protocol::Reason::Lost(LossReason::Silent),
        Reason::Divergence => protocol::Reason::Lost(LossReason::Diverged),
        Reason::HardwareFailure => protocol::Reason::Lost(LossReason::Failed),
        Reason::CheckpointError => protocol::Reason::Lost(LossReason::Protocol),
        Reason::SecondaryTooSlow => protocol::Reason::Dropped(DropReason::TooSlow),
        // A replica does not say that there is no host.
        Reason::UserAction | Reason::NoHost => protocol::Reason::Dropped(DropReason::Off),
    }
}

fn protection(status: &protocol::Status) -> Protection {
    let state = match status.protection {
        protocol::Protection::Protected => ProtectionState::Protected,
        protocol::Protection::Starting => ProtectionState::Starting,
        protocol::Protection::NeedSecondary => ProtectionState::NeedSecondary,
        protocol::Protection::Disabled => ProtectionState::Disabled,
        protocol::Protection::NotRunning => ProtectionState::NotRunning,
    };
    let lost = |loss| match loss {
        LossReason::Closed | LossReason::Silent => Reason::LostConnection,
        LossReason::Protocol => Reason::CheckpointError,
        LossReason::Failed => Reason::HardwareFailure,
        LossReason::Diverged => Reason::Divergence,
    };
    let reason = status.reason.map(|reason| match reason {
        protocol::Reason::NoSecondaryYet | protocol::Reason::FirstCheckpoint | protocol::Reason::Entitling => {
            Reason::Initializing
        }
        protocol::Reason::TookOver | protocol::Reason::StoreUnreachable => Reason::LostConnection,
        protocol::Reason::NotReady => Reason::HardwareFailure,
        protocol::Reason::Arbitrating(loss) | protocol::Reason::Lost(loss) => lost(loss),
        protocol::Reason::Dropped(DropReason::TooSlow) => Reason::SecondaryTooSlow,
        protocol::Reason::Dropped(DropReason::Off | DropReason::Suspend | DropReason::Restart)
        | protocol::Reason::HandOver
        | protocol::Reason::Stopped(_) => Reason::UserAction,
    });
    Protection { detail: status.reason.map(|reason| reason.to_string()), ..Protection::now(state, reason) }
}

/// Resident memory of a process, in bytes, from its `statm`.
pub fn resident_bytes(statm: &File) -> u64 {
    let mut text = [0; 256];
    let len = statm.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default()).into_owned();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use cluster::controller::LossCause;
    use protocol::{Generation, Pace, SlowLink, Slowed};
    use replication::driver::{self, Progress};
    use replication::gate::GateStatus;

    use super::*;

    fn status(reason: protocol::Reason) -> PrimaryStatus {
        PrimaryStatus {
            protocol: protocol::Status {
                role: protocol::Role::Primary,
                generation: Generation::new(1),
                secondary: None,
                protection: protocol::Protection::NeedSecondary,
                reason: Some(reason),
            },
            mode: FtMode::Mirror,
            secondary: None,
            progress: None,
            watched: None,
            secondary_reaches_network: true,
            failure: None,
            disk_faults: Vec::new(),
            figures: driver::Figures::default(),
            gate: GateStatus::default(),
        }
    }

    /// The controller judges a host by what its replicas say, which comes to it by way of what administrators read.
    #[test]
    fn a_loss_is_of_the_same_kind_after_it_was_put_for_administrators() {
        use protocol::{Reason as Said, StopReason};
        let losses =
            [LossReason::Closed, LossReason::Silent, LossReason::Protocol, LossReason::Failed, LossReason::Diverged];
        let drops = [DropReason::Off, DropReason::Suspend, DropReason::Restart, DropReason::TooSlow];
        let others = [
            Said::NoSecondaryYet,
            Said::TookOver,
            Said::FirstCheckpoint,
            Said::Entitling,
            Said::StoreUnreachable,
            Said::NotReady,
            Said::HandOver,
            Said::Stopped(StopReason::Superseded),
        ];
        let said = losses.iter().flat_map(|&loss| [Said::Lost(loss), Said::Arbitrating(loss)]);
        for reason in said.chain(drops.map(Said::Dropped)).chain(others) {
            let seen = protection(&status(reason).protocol);
            let again = seen.reason.map(reason_of).map(LossCause::of);
            assert_eq!(again, Some(LossCause::of(reason)), "{reason:?}");
        }
        for state in ProtectionState::ALL {
            let mut said = status(Said::NoSecondaryYet).protocol;
            said.protection = protection_of(state);
            assert_eq!(protection(&said).state, state);
        }
    }

    #[test]
    fn a_guest_that_is_too_fast_for_its_first_copy_is_told_with_the_rates() {
        let pace = Pace { changed_bytes_per_s: 80_000_000, taken_in_bytes_per_s: 60_000_000 };
        let slowed = Some(Slowed { percent: 25, pace });
        let progress = Some(Progress { phase: Phase::CopyingChanges, slowed, ..Progress::default() });
        let alone = status(protocol::Reason::NoSecondaryYet);
        let text =
            primary(&PrimaryStatus { secondary: Some("b".to_owned()), progress, ..alone }, &DeviceMetrics::default())
                .protection
                .to_string();
        let expected = "Not protected: starting (initializing: the guest is slowed down by 25 % for the first copy: ";
        assert!(text.starts_with(expected) && text.contains(&pace.to_string()), "{text}");
        let dropped = status(protocol::Reason::Dropped(DropReason::Off));
        let disabled = protocol::Status { protection: protocol::Protection::Disabled, ..dropped.protocol };
        let again = PrimaryStatus { protocol: disabled, secondary: Some("b".to_owned()), ..dropped };
        let text = primary(&again, &DeviceMetrics::default()).protection.to_string();
        assert!(text.starts_with("Not protected: starting (initializing)"), "protection was turned off and on: {text}");
        let alone = status(protocol::Reason::NoSecondaryYet);
        let slow_link = Some(SlowLink { bits_per_s: 700_000 });
        let progress = Some(Progress { phase: Phase::CopyingMemory, slowed, slow_link, ..Progress::default() });
        let text =
            primary(&PrimaryStatus { secondary: Some("b".to_owned()), progress, ..alone }, &DeviceMetrics::default())
                .protection
                .to_string();
        assert!(
            text.contains("25 %") && text.contains("0.70 Mbit/s, and protection needs a link of 2 Mbit/s"),
            "{text}"
        );
        let dropped = status(protocol::Reason::Dropped(DropReason::TooSlow));
        let text = primary(&PrimaryStatus { failure: Some(pace.to_string()), ..dropped }, &DeviceMetrics::default())
            .protection
            .to_string();
        let expected = format!("Not protected: need secondary (secondary too slow: {pace}), since ");
        assert!(text.starts_with(&expected), "{text}");
    }
}
