//! What is kept of two states that should have been the same.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use machine::vm::VmState;
use serde::Serialize;

use super::digest::StateDigest;

/// Digests whose states are kept until the secondary has compared them: more than are ever under way.
const KEPT_MAX: usize = 64;

/// The states that the newest digests were taken of.
#[derive(Debug, Default)]
pub struct EvidenceRing(VecDeque<StateDigest>);

impl EvidenceRing {
    /// Keeps a state.
    pub fn keep(&mut self, state: StateDigest) {
        if self.0.len() == KEPT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(state);
    }

    /// The secondary has found everything before `instructions` to be the same.
    pub fn compared_before(&mut self, instructions: u64) {
        while self.0.front().is_some_and(|state| state.instructions < instructions) {
            self.0.pop_front();
        }
    }

    /// The state at `instructions`.
    pub fn find(&self, instructions: u64) -> Option<&StateDigest> {
        self.0.iter().find(|state| state.instructions == instructions)
    }
}

/// The content of an evidence file.
#[derive(Serialize)]
struct Evidence<'a> {
    /// Who found it, or whose it is.
    replica: &'a str,
    instructions: u64,
    digest: String,
    /// What the other replica said, where it is known.
    digest_of_the_other: Option<String>,
    /// vCPUs, interrupt controllers and devices.
    state: &'a VmState,
    /// Pages touched since the digest before: number, and XXH3-64 of the content.
    pages: Vec<(u64, String)>,
}

/// Writes a state that was found to differ to a JSON file in `folder`, which is named by the instruction count and the replica.
///
/// # Errors
/// The host's.
pub fn write_evidence(
    folder: &Path,
    replica: &str,
    state: &StateDigest,
    digest_of_the_other: Option<u128>,
) -> io::Result<PathBuf> {
    let evidence = Evidence {
        replica,
        instructions: state.instructions,
        digest: format!("{:032x}", state.digest),
        digest_of_the_other: digest_of_the_other.map(|digest| format!("{digest:032x}")),
        state: &state.state,
        pages: state.pages.iter().map(|(page, hash)| (*page, format!("{hash:016x}"))).collect(),
    };
    let path = folder.join(format!("divergence-{}-{replica}.json", state.instructions));
    fs::write(&path, serde_json::to_vec_pretty(&evidence).map_err(io::Error::other)?)?;
    Ok(path)
}
