use spec::{CpuProfile, HostName, Maintenance};

use super::{Basis, NoPlace, place_secondary};
use crate::records::{Power, VmState};

/// What becomes of a VM on a host that is in maintenance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It runs there, and moves.
    Moves {
        /// The host that it moves to.
        to: HostName,
        /// Its memory and disks have to be copied first; else that host holds its secondary.
        copies: bool,
    },
    /// Its secondary is there, and another host makes the next one.
    SecondaryMoves {
        /// That host.
        to: HostName,
    },
    /// It runs there, is not protected yet, and moves when it is.
    Waits {
        /// The host of its secondary then.
        to: HostName,
    },
    /// It could leave, and no host could protect it then.
    LosesProtection {
        /// The host that it would run on, if it is not the one that it runs on already.
        to: Option<HostName>,
        /// Why there is no host for its next secondary.
        why: String,
    },
    /// It stays.
    Stays {
        /// Why no other host takes the VM.
        why: String,
    },
}

/// What becomes of a VM with a replica or its disks on `host`, which is in maintenance. `processor` is what the guest was told that its processors are, if
/// that is known.
pub fn leaving(vm: &VmState, host: &HostName, processor: Option<&CpuProfile>, basis: &Basis<'_>) -> Leaving {
    let stays = |why: String| Leaving::Stays { why };
    let place = |vm: &VmState| place_secondary(vm, processor, basis);
    let claim = &vm.claim.claim;
    let secondary = claim.secondary.as_ref().and_then(|id| basis.state.host_of(id));
    if !host.is(&claim.primary) {
        return match place(vm) {
            Ok(to) => Leaving::SecondaryMoves { to },
            Err(error) => Leaving::LosesProtection { to: None, why: others(error, vm, host) },
        };
    }
    if vm.record.power == Power::Off {
        return stays("its disks are there".to_owned());
    }
    if !vm.record.ft.is_wanted() {
        return match place(vm) {
            Ok(to) => Leaving::Moves { to, copies: true },
            Err(error) => stays(others(error, vm, host)),
        };
    }
    let Some(next) = secondary else {
        return match place(vm) {
            Ok(to) => Leaving::Waits { to },
            Err(error) => stays(others(error, vm, host)),
        };
    };
    if next.maintenance != Maintenance::Off {
        return stays(format!("host {}, which holds its secondary, is in maintenance too", next.name));
    }
    let mut after = vm.clone();
    (after.claim.claim.primary, after.claim.claim.secondary) = (next.name.replica(), None);
    match place(&after) {
        Ok(_) => Leaving::Moves { to: next.name.clone(), copies: false },
        Err(error) => Leaving::LosesProtection { to: Some(next.name.clone()), why: others(error, &after, host) },
    }
}

/// Why there is no place on other hosts than the primary's, and than the one that is in maintenance, of which both is known.
fn others(error: NoPlace, vm: &VmState, left: &HostName) -> String {
    let NoPlace::Hosts(refusals) = error else { return error.to_string() };
    let others = refusals.iter().filter(|(host, _)| !host.is(&vm.claim.claim.primary) && host != left);
    let words: Vec<String> = others.map(|(host, why)| format!("host {host} {why}")).collect();
    if words.is_empty() { "there is no other host".to_owned() } else { words.join("; ") }
}
