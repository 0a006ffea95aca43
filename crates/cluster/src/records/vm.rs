use std::path::PathBuf;

use protocol::{Claim, Generation};
use serde::{Deserialize, Serialize};
use spec::{EngineKind, FtMode, HostName, SpecError, VmName, VmSpec};

use super::{Operation, OperationKind, OperationResult, SpecText, UnknownFields};

/// What a VM is, and what its administrator wants of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its name.
    pub name: VmName,
    /// The VM spec as TOML.
    pub spec: SpecText,
    /// The spec that it is to have from its next start on, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_spec: Option<String>,
    /// Whether its host starts it when the machine has booted.
    #[serde(default)]
    pub autostart: bool,
    /// Whether it is to run.
    pub power: Power,
    /// What executes its vCPUs, once it has been started: replicas of one VM run the same engine.
    #[serde(default)]
    pub engine: Option<EngineKind>,
    /// Fault tolerance.
    pub ft: FtSettings,
    /// High availability.
    #[serde(default)]
    pub ha: HaSettings,
    /// The socket of the network end of each card, in the order of the spec; empty before the first start.
    #[serde(default)]
    pub network_ends: Vec<PathBuf>,
    /// The host that is being given its first copy. Its resources are reserved as if it were the secondary.
    #[serde(default)]
    pub syncing_to: Option<HostName>,
    /// What was asked for last that happens once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// When it was created, in ms since 1970.
    pub created_unix_ms: u64,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl VmRecord {
    /// A VM that is off and not protected, with the suspicion and epoch times given in `ft`.
    pub fn new(name: VmName, spec: String, ft: FtSettings, created_unix_ms: u64) -> Self {
        Self {
            name,
            spec: spec.into(),
            next_spec: None,
            autostart: false,
            power: Power::Off,
            engine: None,
            ft,
            ha: HaSettings::default(),
            network_ends: Vec::new(),
            syncing_to: None,
            operation: None,
            created_unix_ms,
            unknown: UnknownFields::default(),
        }
    }

    /// The VM spec.
    ///
    /// # Errors
    /// If it is not one that this version understands.
    pub fn vm_spec(&self) -> Result<VmSpec, SpecError> {
        self.spec.read().cloned()
    }

    /// Asks for an operation, in place of the one that was asked for last, whether that has ended or not. `generation` is that of the claim now, `host` who
    /// is to carry it out, if not the VM's home. Answers its number.
    pub fn ask(&mut self, kind: OperationKind, host: Option<HostName>, generation: Generation) -> u64 {
        let id = self.operation.as_ref().map_or(1, |last| last.id.saturating_add(1));
        let unknown = UnknownFields::default();
        self.operation = Some(Operation { id, kind, host, generation, has_begun: false, result: None, unknown });
        id
    }

    /// The operation that is to be carried out, if there is one.
    pub fn pending(&self) -> Option<&Operation> {
        self.operation.as_ref().filter(|operation| operation.result.is_none())
    }

    /// The operation of this number, if it is to be carried out.
    pub fn pending_as(&self, id: u64) -> Option<&Operation> {
        self.pending().filter(|operation| operation.id == id)
    }

    /// The operation under way that keeps another one from being asked for, if there is one: a start or a stop takes the place of whatever was asked for before,
    /// but a move or another FT mode only that of its like.
    pub fn hinders(&self, kind: &OperationKind) -> Option<&Operation> {
        self.pending().filter(|pending| match kind {
            OperationKind::Migrate { .. } => !matches!(pending.kind, OperationKind::Migrate { .. }),
            OperationKind::ChangeMode { .. } => !matches!(pending.kind, OperationKind::ChangeMode { .. }),
            _ => false,
        })
    }

    /// What is wanted of fault tolerance from now on; whether that is news. What was reserved for a secondary that is let go stays reserved while protection is
    /// suspended.
    pub fn want_ft(&mut self, enabled: bool, suspended: bool, claim: &Claim) -> bool {
        if (self.ft.enabled, self.ft.suspended) == (enabled, suspended) {
            return false;
        }
        (self.ft.enabled, self.ft.suspended) = (enabled, suspended);
        let secondary = claim.secondary.as_ref().filter(|_| suspended);
        self.syncing_to = secondary.and_then(|host| HostName::try_from(host.as_str().to_owned()).ok());
        true
    }

    /// Reserves what the secondary needs on the host that is being given its first copy, or nothing any more; whether that is news. The reservation of a suspended
    /// secondary stays.
    pub fn reserve(&mut self, host: Option<&HostName>) -> bool {
        let is_news = !self.ft.suspended && self.syncing_to.as_ref() != host;
        if is_news {
            self.syncing_to = host.cloned();
        }
        is_news
    }

    /// The VM is to run: on a host that begins with it anew, and gives nobody a first copy yet.
    pub fn power_on(&mut self) {
        (self.power, self.syncing_to) = (Power::On, None);
    }

    /// The VM is off.
    pub fn power_off(&mut self) {
        (self.power, self.syncing_to) = (Power::Off, None);
    }

    /// The host that the VM is to be moved to, and has not been yet by its `claim`.
    pub fn migrates_to(&self, claim: &Claim) -> Option<&HostName> {
        match &self.pending()?.kind {
            OperationKind::Migrate { to } if !to.is(&claim.primary) => Some(to),
            _ => None,
        }
    }

    /// Whether the VM is to have a secondary now: for its protection, or to be moved there.
    pub fn wants_secondary(&self, claim: &Claim) -> bool {
        self.ft.is_wanted() || self.migrates_to(claim).is_some()
    }

    /// The start that was asked for begins, with the claim of this generation: whatever else was asked for is done with. A reboot becomes a start, so that
    /// the VM is not shut down once more.
    pub fn begin_start(&mut self, generation: Generation) {
        if let Some(operation) = self.operation.as_mut().filter(|operation| operation.result.is_none()) {
            (operation.generation, operation.has_begun) = (generation, true);
            if let OperationKind::Reboot { .. } = operation.kind {
                operation.kind = OperationKind::Start { from_stale_disks: false, snapshot: None };
            }
        }
    }

    /// Takes note of how an operation has ended, unless another one was asked for meanwhile.
    pub fn end(&mut self, id: u64, result: OperationResult) {
        if let Some(operation) = self.operation.as_mut().filter(|operation| operation.id == id) {
            operation.result.get_or_insert(result);
        }
    }
}

/// Whether a VM is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// The VM is to run.
    On,
    /// It is not.
    Off,
}

/// What becomes of a VM that is not fault tolerant when its host, or its replica's process, is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaSettings {
    /// Whether it is restarted. Its next start is the first under a lease.
    pub enabled: bool,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// How a VM is to be protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtSettings {
    /// Whether it is to have a secondary.
    pub enabled: bool,
    /// Whether it is to go without for the time being.
    pub suspended: bool,
    /// How the VM is replicated while it is protected.
    #[serde(default)]
    pub mode: FtMode,
    /// Silence of the peer after which a replica takes it for lost at the latest, in ms: 20 to 10,000.
    pub suspicion_ms: u32,
    /// The least such silence, in ms: 10 to `suspicion_ms`; three quarters of that if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion_ms_min: Option<u32>,
    /// Longest epoch, in ms: 1 to 10,000.
    pub epoch_ms_max: u32,
    /// Lockstep: how far the secondary may be behind before the guest waits for it, in ms: 10 to 10,000.
    #[serde(default = "lag_ms_max_default")]
    pub lag_ms_max: u32,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl FtSettings {
    /// No protection; by checkpoints with these times once it is enabled.
    pub fn disabled(suspicion_ms: u32, epoch_ms_max: u32) -> Self {
        Self {
            enabled: false,
            suspended: false,
            mode: FtMode::Mirror,
            suspicion_ms,
            suspicion_ms_min: None,
            epoch_ms_max,
            lag_ms_max: lag_ms_max_default(),
            unknown: UnknownFields::default(),
        }
    }

    /// Whether the VM is to be protected now.
    pub fn is_wanted(&self) -> bool {
        self.enabled && !self.suspended
    }
}

/// That of records written before there was lockstep.
fn lag_ms_max_default() -> u32 {
    100
}
