//! Asking the cluster store which replica goes on alone.

use std::sync::Arc;
use std::thread;

use protocol::{Claim, Event, Verdict};

use super::Shared;

impl Shared {
    /// Asks for this claim to replace the one before it. The protocol hears the answer, however late it comes.
    pub(super) fn ask_the_store(self: &Arc<Self>, claim: Claim) {
        // The machine need not stay for an answer that nobody waits for.
        let (shared, arbiter) = (Arc::downgrade(self), self.arbiter.clone());
        thread::spawn(move || {
            let expected = claim.generation.before();
            let answer = arbiter.compare_and_swap(expected, &claim);
            if let Some(shared) = shared.upgrade() {
                shared.event(None, answer.clone().map_or(Event::StoreUnreachable, Event::Arbitrated));
            }
            // Afterwards: where a disk hangs, so may the log.
            match answer {
                Ok(Verdict::Won) => {}
                Ok(Verdict::Lost(Claim { generation, primary, .. })) => {
                    tracing::warn!(%generation, %primary, "another replica goes on");
                }
                Err(error) => tracing::warn!(%error, "the cluster store cannot be reached"),
            }
        });
    }

    /// Asks the store for the claim. The protocol hears the answer.
    pub(super) fn read_the_claim(self: &Arc<Self>) {
        let (shared, arbiter) = (Arc::downgrade(self), self.arbiter.clone());
        thread::spawn(move || {
            let answer = arbiter.read();
            if let Some(shared) = shared.upgrade() {
                shared.event(None, answer.map_or(Event::StoreUnreachable, Event::ClaimRead));
            }
        });
    }
}
