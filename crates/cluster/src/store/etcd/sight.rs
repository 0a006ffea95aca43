//! How far an etcd has come, as its clients have seen it: one that went back was restored from an older copy, and does not know what was decided since.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How far an etcd has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Which etcd cluster it is. One that is restored from a snapshot is another one.
    pub cluster_id: u64,
    /// The highest revision that was seen.
    pub revision: u64,
}

/// What one client has seen of its etcd.
#[derive(Default)]
pub struct Seen {
    cluster_id: OnceLock<u64>,
    revision: AtomicU64,
    /// That it has gone back, and how far.
    gone_back: OnceLock<String>,
    /// Whether a call came to nothing since the last one that was answered.
    in_doubt: AtomicBool,
}

impl Seen {
    /// What was seen before.
    pub fn from(sight: Option<Sight>) -> Self {
        let seen = Self::default();
        if let Some(sight) = sight {
            let _ = seen.cluster_id.set(sight.cluster_id);
            seen.revision.store(sight.revision, Ordering::Relaxed);
        }
        seen
    }

    /// What is known now; none before the first answer.
    pub fn sight(&self) -> Option<Sight> {
        let cluster_id = *self.cluster_id.get()?;
        Some(Sight { cluster_id, revision: self.revision() })
    }

    /// The etcd cluster that has answered first; `answers` has, if none did before.
    pub fn cluster_id(&self, answers: u64) -> u64 {
        *self.cluster_id.get_or_init(|| answers)
    }

    /// The highest revision so far. Whoever is asked after this was read, and answers as of now, knows of it.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Notes the revision of an answer to what was asked when `before` was the highest. If it is lower, why nothing of this etcd is believed any more.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn note(&self, before: u64, revision: u64) -> Result<(), String> {
        if revision >= before {
            self.revision.fetch_max(revision, Ordering::AcqRel);
            self.in_doubt.store(false, Ordering::Release);
            return Ok(());
        }
        let why = format!(
            "it has gone back from revision {before} to {revision}: it was restored from an older copy, which does not know what was decided since. Nothing \
             is asked of it until an administrator takes it as it is, with `twinvm cluster accept-store` on each host"
        );
        Err(self.gone_back.get_or_init(|| why).clone())
    }

    /// That it has gone back, if it has.
    pub fn gone_back(&self) -> Option<&str> {
        self.gone_back.get().map(String::as_str)
    }

    /// Notes that a call came to nothing: whoever answers next may be another etcd.
    pub fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Release);
    }

    /// Whether it has to be looked at before anything is changed in it.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_back_stays_so_though_it_goes_on() {
        let seen = Seen::from(Some(Sight { cluster_id: 7, revision: 10 }));
        assert_eq!(seen.cluster_id(8), 7);
        assert!(seen.note(seen.revision(), 10).is_ok() && seen.note(seen.revision(), 12).is_ok());
        // Asked before the last answer came.
        assert!(seen.note(10, 11).is_ok());
        assert_eq!(seen.sight(), Some(Sight { cluster_id: 7, revision: 12 }));
        assert!(seen.gone_back().is_none());
        assert!(seen.note(seen.revision(), 11).unwrap_err().contains("from revision 12 to 11"));
        assert!(seen.note(seen.revision(), 13).is_ok());
        assert!(seen.gone_back().is_some_and(|why| why.contains("accept-store")));
        assert_eq!(Seen::from(None).sight(), None);
    }
}
