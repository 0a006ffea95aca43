//! What is said and kept of two states that differ.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT};
use replication::lockstep::{StateDigest, write_evidence};

/// Most differences of one kind that are listed.
const LISTED_MAX: usize = 40;

/// A digest with the pages that it covers.
pub struct Sample {
    pub state: StateDigest,
    /// Their contents, in the digest's order.
    pages: Vec<u8>,
}

impl Sample {
    pub fn new(state: StateDigest, ram: &GuestRam) -> Self {
        let mut pages = vec![0; state.pages.len() << PAGE_SHIFT];
        for (content, (page, _)) in pages.chunks_exact_mut(PAGE_BYTES as usize).zip(&state.pages) {
            ram.read_offset(page << PAGE_SHIFT, content);
        }
        Self { state, pages }
    }

    fn page(&self, number: u64) -> Option<&[u8]> {
        let index = self.state.pages.iter().position(|(page, _)| *page == number)?;
        self.pages.chunks_exact(PAGE_BYTES as usize).nth(index)
    }
}

/// Where evidence goes.
pub fn evidence_folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak-divergence");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Says in what two samples differ, and writes both to the evidence folder.
pub fn describe(recorded: &Sample, replayed: &Sample, digests_before: u64) -> String {
    let folder = evidence_folder();
    write_evidence(&folder, "recorded", &recorded.state, Some(replayed.state.digest)).unwrap();
    write_evidence(&folder, "replayed", &replayed.state, Some(recorded.state.digest)).unwrap();
    let mut text = format!(
        "after {} instructions, {digests_before} digests having been the same (recorded / replayed):\n",
        recorded.state.instructions
    );
    for difference in state_differences(recorded, replayed).iter().take(LISTED_MAX) {
        writeln!(text, "  {difference}").unwrap();
    }
    let (left, right) = (&recorded.state.pages, &replayed.state.pages);
    for (pages, others, who) in [(left, right, "recorded"), (right, left, "replayed")] {
        let touched = |number: u64| others.binary_search_by_key(&number, |(page, _)| *page).is_ok();
        let only: Vec<u64> = pages.iter().map(|(page, _)| *page).filter(|&page| !touched(page)).collect();
        if !only.is_empty() {
            let listed = &only[..only.len().min(LISTED_MAX)];
            writeln!(text, "  {} pages touched in the {who} VM only: {listed:x?}", only.len()).unwrap();
        }
    }
    for &(page, _) in left {
        let (Some(left), Some(right)) = (recorded.page(page), replayed.page(page)) else { continue };
        if left != right {
            let at: Vec<usize> = (0..left.len()).filter(|&at| left[at] != right[at]).collect();
            writeln!(text, "  page {page:x}: {} bytes differ, from {:x} to {:x}", at.len(), at[0], at[at.len() - 1])
                .unwrap();
            fs::write(folder.join(format!("page-{page:x}-recorded")), left).unwrap();
            fs::write(folder.join(format!("page-{page:x}-replayed")), right).unwrap();
        }
    }
    text
}

/// The fields that differ, with the names of what they are in.
fn state_differences(recorded: &Sample, replayed: &Sample) -> Vec<String> {
    let (left, right) = (format!("{:#?}", recorded.state.state), format!("{:#?}", replayed.state.state));
    let mut place: Vec<&str> = Vec::new();
    let mut differences = Vec::new();
    for (left, right) in left.lines().zip(right.lines()) {
        let depth = (left.len() - left.trim_start().len()) / 4;
        place.truncate(depth);
        place.push(left.trim());
        if left != right {
            differences.push(format!("{}: {} / {}", place[..depth].join(" "), left.trim(), right.trim()));
        }
    }
    differences
}
