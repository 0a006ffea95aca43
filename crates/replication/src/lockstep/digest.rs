//! Digests of a running VM's state, by which two replicas find out whether they are still the same.

use machine::vm::{Vm, VmError, VmState};
use memory::{PAGE_BYTES, PAGE_SHIFT};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Instructions between two digests.
pub const DIGEST_INSTRUCTIONS: u64 = 10_000_000;

/// The count at which a digest is due next, strictly after `instructions`.
pub fn next_digest_at(instructions: u64) -> u64 {
    (instructions / DIGEST_INSTRUCTIONS).saturating_add(1).saturating_mul(DIGEST_INSTRUCTIONS)
}

/// What a paused VM was: everything but memory that has not been touched since the digest before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDigest {
    /// Instructions retired since power-on.
    pub instructions: u64,
    /// vCPUs, interrupt controllers and devices, without what depends on the host.
    pub state: VmState,
    /// Numbers of the pages touched since the digest before, each with XXH3-64 of its content.
    pub pages: Vec<(u64, u64)>,
    /// XXH3-128 of all that.
    pub digest: u128,
}

impl StateDigest {
    /// Digests a paused VM, and begins the next round of tracking pages. Both replicas have to do it at the same instruction counts: what is
    /// tracked anew has an effect on what the processors cache.
    ///
    /// # Errors
    /// [`VmError`] if the VM cannot be saved.
    pub fn take(vm: &mut Vm) -> Result<Self, VmError> {
        let harvest = vm.harvest()?;
        let instructions = vm.instructions().unwrap_or_default();
        let mut state = vm.save()?;
        for card in &mut state.platform.cards {
            // Frames that wait for room in the host's network: no part of the guest.
            card.device.waiting_tx.clear();
        }
        let ram = vm.platform().ram();
        let mut content = [0; PAGE_BYTES as usize];
        let pages: Vec<(u64, u64)> = harvest
            .pages()
            .map(|page| {
                ram.read_offset(page << PAGE_SHIFT, &mut content);
                (page, xxh3_64(&content))
            })
            .collect();
        harvest.acknowledge();
        let mut hasher = Xxh3::new();
        hasher.update(&postcard::to_stdvec(&state).map_err(|error| VmError::Io(std::io::Error::other(error)))?);
        for (page, hash) in &pages {
            hasher.update(&page.to_le_bytes());
            hasher.update(&hash.to_le_bytes());
        }
        Ok(Self { instructions, state, pages, digest: hasher.digest128() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_due_at_multiples() {
        assert_eq!(next_digest_at(0), DIGEST_INSTRUCTIONS);
        assert_eq!(next_digest_at(DIGEST_INSTRUCTIONS - 1), DIGEST_INSTRUCTIONS);
        assert_eq!(next_digest_at(DIGEST_INSTRUCTIONS), 2 * DIGEST_INSTRUCTIONS);
        assert_eq!(next_digest_at(u64::MAX), u64::MAX);
    }
}
