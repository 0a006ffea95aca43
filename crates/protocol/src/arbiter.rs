//! [`Arbiter`]: where a claim is kept, and changed by compare-and-swap.

use super::{Claim, Generation};

/// The claim of one VM in the cluster store. Reads and swaps are linearizable.
///
/// Whoever drives a [`super::Replica`] calls it; the state machine does not.
pub trait Arbiter: Send + Sync {
    /// The claim as it is now.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn read(&self) -> Result<Claim, Unreachable>;

    /// Replaces the claim by `new` if its generation is `expected`; that of `new` is `expected + 1`.
    ///
    /// # Errors
    /// [`Unreachable`]: nobody knows whether the claim was replaced, or will be.
    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable>;
}

/// What came of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claim is what was asked for.
    Won,
    /// The claim had another generation. This is what it is: perhaps just what was asked for, by an earlier attempt whose answer
    /// was lost.
    Lost(Claim),
}

/// The cluster store did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster store cannot be reached: {0}")]
pub struct Unreachable(pub String);
