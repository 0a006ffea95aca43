//! What the replicas of the VM say, put together.

use std::path::PathBuf;
use std::time::Duration;

use api::status::{ProtectionState, ReplicaStatus, Role, SyncProgress};
use host::replica::config::socket;
use host::replica::control::{self, Request};
use spec::FtMode;

/// How long a replica may take to answer: one that is busy is left out this time.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// The replicas that answered.
#[derive(Clone, Debug, Default)]
pub struct View(Vec<ReplicaStatus>);

impl View {
    /// Asks the replicas in these VM folders.
    pub fn of(folders: impl Iterator<Item = PathBuf>) -> Self {
        Self(
            folders
                .filter_map(|folder| {
                    Some(control::ask(&socket(&folder), &Request::Status, STATUS_TIMEOUT).ok()?.status)
                })
                .collect(),
        )
    }

    /// The replica that runs the VM: of two that say so, the one of the higher generation.
    pub fn primary(&self) -> Option<&ReplicaStatus> {
        self.0.iter().filter(|replica| replica.role == Role::Primary).max_by_key(|replica| replica.generation)
    }

    /// The replica that can take over, or is being prepared for it.
    pub fn secondary(&self) -> Option<&ReplicaStatus> {
        let host = self.primary()?.peer.as_deref()?;
        self.0.iter().find(|replica| replica.role == Role::Secondary && replica.host == host)
    }

    /// Whether the VM survives the loss of the primary's host now.
    pub fn is_protected(&self) -> bool {
        self.state() == ProtectionState::Protected && self.secondary().is_some()
    }

    /// Whether it does, and the secondary follows in this mode: first copies end with a checkpoint whatever the mode.
    pub fn follows(&self, mode: FtMode) -> bool {
        let executes = self.primary().is_some_and(|primary| primary.figures.lockstep.is_some());
        self.is_protected() && executes == (mode == FtMode::Lockstep)
    }

    /// The VM's protection.
    pub fn state(&self) -> ProtectionState {
        self.primary().map_or(ProtectionState::NotRunning, |primary| primary.protection.state)
    }

    /// The first sync, while there is one.
    pub fn sync(&self) -> Option<SyncProgress> {
        self.primary()?.sync
    }
}

#[cfg(test)]
mod tests {
    use spec::EngineKind;

    use super::*;
    use api::figures::Figures;
    use api::status::Protection;

    fn replica(host: &str, role: Role, generation: u64, state: ProtectionState, peer: Option<&str>) -> ReplicaStatus {
        ReplicaStatus {
            vm: "v".to_owned(),
            host: host.to_owned(),
            pid: 1,
            role,
            engine: EngineKind::Soft,
            mode: None,
            generation,
            running_s: 0,
            protection: Protection::now(state, None),
            peer: peer.map(str::to_owned),
            sync: None,
            listen: None,
            faults: Vec::new(),
            figures: Figures::default(),
        }
    }

    #[test]
    fn the_primary_of_the_highest_generation_counts() {
        use ProtectionState::{NeedSecondary, Protected};
        let old = replica("a", Role::Primary, 2, Protected, Some("b"));
        let new = replica("b", Role::Primary, 3, NeedSecondary, None);
        let view = View(vec![old.clone(), new]);
        assert_eq!(view.primary().unwrap().host, "b");
        assert!(!view.is_protected() && view.secondary().is_none());

        let secondary = replica("b", Role::Secondary, 2, Protected, Some("a"));
        let view = View(vec![old.clone(), secondary]);
        assert!(view.is_protected());
        assert!(view.follows(FtMode::Mirror) && !view.follows(FtMode::Lockstep));
        assert_eq!(view.secondary().unwrap().host, "b");
        assert!(!View(vec![old]).is_protected(), "a secondary that does not answer protects nobody");
        assert_eq!(View::default().state(), ProtectionState::NotRunning);
    }
}
