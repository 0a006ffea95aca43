//! [`admits`]: which primary a secondary follows.

use spec::ReplicaId;

use super::{Claim, Generation};

/// Why a secondary does not follow whoever wants to be its primary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It is a host of the cluster, and not the one that runs the VM.
    #[error("{peer} is not the primary of this VM, which is {primary}")]
    NotThePrimary {
        /// The host, as its certificate says.
        peer: ReplicaId,
        /// The primary, as the store says.
        primary: ReplicaId,
    },
    /// It gives another name than its certificate does.
    #[error("{peer} says that it is {claimed}")]
    AnotherName {
        /// The host, as its certificate says.
        peer: ReplicaId,
        /// The name it gives.
        claimed: ReplicaId,
    },
    /// It was succeeded, also by itself, or is ahead of what the store says.
    #[error("it acts in generation {said}, and the VM's is {current}")]
    Generation {
        /// In which it says that it acts.
        said: Generation,
        /// The store's.
        current: Generation,
    },
}

/// Whether a secondary follows `peer`, as its certificate calls it, which says that it is `claimed` and acts in generation `said`; `claim`
/// is the store's. Any host of the cluster can connect, and only the one that the store names runs the VM.
///
/// # Errors
/// [`NotAdmitted`].
pub fn admits(claim: &Claim, peer: &ReplicaId, claimed: &ReplicaId, said: Generation) -> Result<(), NotAdmitted> {
    if peer != claimed {
        return Err(NotAdmitted::AnotherName { peer: peer.clone(), claimed: claimed.clone() });
    }
    if *peer != claim.primary {
        return Err(NotAdmitted::NotThePrimary { peer: peer.clone(), primary: claim.primary.clone() });
    }
    if said != claim.generation {
        return Err(NotAdmitted::Generation { said, current: claim.generation });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_primary_of_the_current_generation_is_followed() {
        let id = ReplicaId::new;
        let claim = Claim { generation: Generation::new(4), primary: id("a"), secondary: None };
        let admits = |peer, claimed, said| admits(&claim, &id(peer), &id(claimed), Generation::new(said));
        assert_eq!(admits("a", "a", 4), Ok(()));
        assert!(matches!(admits("c", "a", 4), Err(NotAdmitted::AnotherName { .. })));
        assert!(matches!(admits("c", "c", 4), Err(NotAdmitted::NotThePrimary { .. })));
        for said in [3, 5] {
            assert!(matches!(admits("a", "a", said), Err(NotAdmitted::Generation { .. })));
        }
    }
}
