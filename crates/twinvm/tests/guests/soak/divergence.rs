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

/// Says in what two samples differ, and writes both to `folder`.
pub fn describe(recorded: &Sample, replayed: &Sample, digests_before: u64, folder: &Path) -> String {
    write_evidence(folder, "recorded", &recorded.state, Some(replayed.state.digest)).unwrap();
    write_evidence(folder, "replayed", &replayed.state, Some(recorded.state.digest)).unwrap();
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

#[test]
fn a_difference_is_described_and_kept() {
    use machine::engine::soft::InputMode;
    use machine::platform::Parts;
    use machine::vm::{Boot, Vm, VmConfig};
    use spec::EngineKind;

    use super::replayer::NoEntropy;
    use crate::support::guest::Console;

    const PROGRAM_AT: u64 = 0x10_0000;
    const DATA_AT: u64 = 0x20_0000;
    // next: mov rax, [rsi]; inc rax; mov [rsi], rax; jmp next
    const PROGRAM: [u8; 11] = [0x48, 0x8b, 0x06, 0x48, 0xff, 0xc0, 0x48, 0x89, 0x06, 0xeb, 0xf5];
    let sample = |change: u8| {
        let config = VmConfig {
            name: "test".into(),
            cpus: 1,
            memory_bytes: 16 << 20,
            cpu: spec::CpuLevel::Portable,
            backing: spec::MemoryBacking::default(),
            translator: spec::Translator::default(),
        };
        let parts = Parts {
            disks: Vec::new(),
            cards: Vec::new(),
            console: Box::new(Console::default()),
            entropy: Box::new(NoEntropy),
        };
        let boot = Boot::Flat { program: &PROGRAM, address: PROGRAM_AT, rsi: DATA_AT };
        let mut vm = Vm::boot(config, &boot, parts, EngineKind::Soft, InputMode::Replay(Default::default())).unwrap();
        vm.platform().ram().write_offset(DATA_AT, &[change]);
        vm.run(Some(1000)).unwrap();
        let mut state = StateDigest::take(&mut vm).unwrap();
        // The two were not switched on at the same moment.
        state.state.platform.power_on_unix_ns = 0;
        Sample::new(state, vm.platform().ram())
    };
    let folder = tempfile::tempdir().unwrap();
    let text = describe(&sample(0), &sample(1), 7, folder.path());
    assert!(text.contains("after 1000 instructions, 7 digests"), "{text}");
    assert!(text.contains("gpr: [: 250, / 251,"), "{text}");
    assert!(text.contains("page 200: 1 bytes differ, from 0 to 0"), "{text}");
    for file in ["divergence-1000-recorded.json", "divergence-1000-replayed.json", "page-200-recorded"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}
