//! What replica and broker say to each other.

use std::net::SocketAddr;

use protocol::{Claim, Generation};
use serde::{Deserialize, Serialize};

/// What is asked about the claim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// Which claim the store has now.
    Read,
    /// That the claim is replaced, if nobody else has replaced it before.
    Swap {
        /// The generation that the claim has to have until then.
        expected: Generation,
        /// The claim that takes its place.
        new: Claim,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The claim was replaced.
    Won,
    /// The claim, as it is.
    Claim {
        /// The claim that the store holds.
        claim: Claim,
    },
    /// The store does not answer.
    Unreachable {
        /// How the store failed.
        message: String,
    },
}

/// Where a connection is wanted to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum Wanted {
    /// The network end of a card.
    End {
        /// The card's number, in the order of the spec.
        number: usize,
    },
    /// A secondary.
    Secondary {
        /// Where it listens.
        address: SocketAddr,
    },
}
