//! Dirty pages by either method, with a guest that writes them in user mode while they are asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cpu::VcpuState;
use cpu::state::SegmentState;
use memory::{GuestRam, Harvest, PAGE_BYTES};

use super::super::*;
use super::has_hardware_virtualization;
use crate::devices::ioapic::IoApicState;

const HUNG: Duration = Duration::from_secs(60);
const MEMORY_BYTES: u64 = 16 << 20;
const PROGRAM: u64 = 0x1000;
/// Where the guest writes: RSI pages from here on.
const DATA: u64 = 0x10_0000;

/// Adds 1 to the first word of each of ECX pages from EBX on, over and over, in 32-bit protected mode without paging:
///
/// ```text
/// again: mov edi, ebx
///        mov edx, ecx
/// next:  inc dword ptr [edi]
///        add edi, 4096
///        dec edx
///        jnz next
///        jmp again
/// ```
const WRITER: [u8; 17] = [
    0x89, 0xdf, // mov edi, ebx
    0x89, 0xca, // mov edx, ecx
    0xff, 0x07, // inc dword ptr [edi]
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
    0x4a, // dec edx
    0x75, 0xf5, // jnz next
    0xeb, 0xef, // jmp again
];

fn platform(memory_bytes: u64) -> Arc<Platform> {
    let ram = GuestRam::new(memory_bytes).unwrap();
    ram.write_bytes(PROGRAM, &WRITER).unwrap();
    tests::platform(&ram)
}

/// A vCPU that is about to write `pages` pages from `first` on.
fn writer(number: u32, first: u64, pages: u64) -> VcpuState {
    let segment = |attributes| SegmentState { selector: 8, base: 0, limit: u32::MAX, attributes, unusable: false };
    let mut state = VcpuState::reset(number);
    state.segments = [segment(0xc093); 6];
    state.segments[1] = segment(0xc09b);
    state.cr0 = 0x11;
    (state.gpr[3], state.gpr[1], state.rip) = (first, pages, PROGRAM);
    state.run_state = cpu::state::RunState::Running;
    state
}

fn has_kvm() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// What this host gets, and what others get.
fn methods() -> [fn(&Kvm, &VmFd, u64) -> DirtyMethod; 3] {
    [DirtyMethod::set_up, |_, vm, _| DirtyMethod::set_up_bitmap(vm), |_, _, _| DirtyMethod::Bitmap { clears: false }]
}

fn engine(platform: &Arc<Platform>, vcpus: Vec<VcpuState>, method: fn(&Kvm, &VmFd, u64) -> DirtyMethod) -> KvmEngine {
    let mut processors = ProcessorsState::from_vcpus_at(vcpus, 0);
    processors.profile = cpu_profile(CpuLevel::Portable).unwrap();
    // The host's rate.
    processors.tsc_hz = 0;
    let state = EngineState { processors, ioapic: IoApicState::default() };
    KvmEngine::with_dirty_method(platform, &state, method).unwrap()
}

/// Copies what was written while the vCPUs write, as a primary does, and others look at how much that is; compares when the vCPUs stand still.
#[test]
fn pages_copied_while_vcpus_run_are_complete_once_they_stand_still() {
    const PAGES: u64 = 300;
    const ROUNDS: u32 = 20;
    if !has_kvm() {
        return;
    }
    for method in methods() {
        let platform = platform(MEMORY_BYTES);
        let (ram, copy) = (platform.ram().clone(), GuestRam::new(MEMORY_BYTES).unwrap());
        let vcpus = vec![writer(0, DATA, PAGES), writer(1, DATA + PAGES / 2 * PAGE_BYTES, PAGES)];
        let mut engine = engine(&platform, vcpus, method);
        let log = engine.dirty_log().unwrap();
        // All pages count as written.
        log.harvest().unwrap().give_back();
        let control = Control::new().unwrap();
        let take = |harvest: Harvest, copied: &mut u64| {
            let mut content = [0; PAGE_BYTES as usize];
            for page in harvest.pages() {
                ram.read_offset(page * PAGE_BYTES, &mut content);
                copy.write_offset(page * PAGE_BYTES, &content);
            }
            *copied += harvest.len();
            harvest.acknowledge();
        };
        let mut copied = 0;
        for _ in 0..ROUNDS {
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // As those do who want to know whether an epoch is long enough.
                scope.spawn(|| {
                    while !is_over.load(Ordering::Acquire) {
                        log.observe().unwrap();
                        assert!(ram.dirty_pages_estimate() <= ram.pages());
                    }
                });
                scope.spawn(|| {
                    let since = Instant::now();
                    let before = copied;
                    while copied < before + 3 * PAGES && since.elapsed() < HUNG {
                        take(log.harvest().unwrap(), &mut copied);
                    }
                    is_over.store(true, Ordering::Release);
                    control.pause();
                });
                assert_eq!(engine.run(&control, None).unwrap(), RunEnd::Paused);
            });
            take(engine.harvest().unwrap(), &mut copied);
            for page in 0..ram.pages() {
                let word = |ram: &GuestRam| ram.load::<u64>(page * PAGE_BYTES).unwrap();
                assert_eq!(word(&ram), word(&copy), "page {page} was written and not copied in its last state");
            }
        }
        assert!(copied >= ram.pages() + (3 * u64::from(ROUNDS) - 3) * PAGES);
    }
}

#[test]
fn the_estimate_counts_what_vcpus_write_while_they_run() {
    const PAGES: u64 = 1500;
    if !has_kvm() {
        return;
    }
    for method in methods() {
        let platform = platform(MEMORY_BYTES);
        let ram = platform.ram().clone();
        let mut engine = engine(&platform, vec![writer(0, DATA, PAGES)], method);
        let log = engine.dirty_log().unwrap();
        log.harvest().unwrap().acknowledge();
        let control = Control::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let since = Instant::now();
                while ram.dirty_pages_estimate() < PAGES && since.elapsed() < HUNG {
                    log.observe().unwrap();
                }
                control.pause();
            });
            assert_eq!(engine.run(&control, None).unwrap(), RunEnd::Paused);
        });
        assert_eq!(ram.dirty_pages_estimate(), PAGES);
    }
}

/// Far more writes than a ring has entries, and nobody asks for them.
#[test]
fn a_full_ring_loses_nothing() {
    const PAGES: u64 = 9000;
    if !has_kvm() || !has_hardware_virtualization() {
        eprintln!("not tested: dirty rings need hardware virtualization");
        return;
    }
    let smallest = |kvm: &Kvm, vm: &VmFd, _: u64| DirtyMethod::set_up_rings(kvm, vm, 1).unwrap();
    let platform = platform(64 << 20);
    let ram = platform.ram().clone();
    let last_page = DATA + (PAGES - 1) * PAGE_BYTES;
    let mut engine = engine(&platform, vec![writer(0, DATA, PAGES)], smallest);
    engine.harvest().unwrap().acknowledge();
    let control = Control::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let since = Instant::now();
            while ram.load::<u32>(last_page).unwrap() < 2 && since.elapsed() < HUNG {
                std::thread::sleep(Duration::from_millis(1));
            }
            control.pause();
        });
        assert_eq!(engine.run(&control, None).unwrap(), RunEnd::Paused);
    });
    let harvest = engine.harvest().unwrap();
    assert_eq!(harvest.pages().filter(|page| (DATA >> 12..=last_page >> 12).contains(page)).count() as u64, PAGES);
    harvest.give_back();
}

#[test]
fn a_log_that_was_stopped_counts_all_pages_when_it_begins_again() {
    if !has_kvm() {
        return;
    }
    for method in methods() {
        let platform = platform(MEMORY_BYTES);
        let ram = platform.ram().clone();
        let engine = engine(&platform, vec![writer(0, DATA, 1)], method);
        let log = engine.dirty_log().unwrap();
        for begins_with_harvest in [true, false] {
            ram.harvest().acknowledge();
            if begins_with_harvest {
                log.harvest().unwrap().give_back();
            } else {
                log.observe().unwrap();
            }
            assert_eq!(ram.dirty_pages_estimate(), ram.pages());
            log.stop().unwrap();
        }
    }
}

/// RAM that nobody has touched costs nothing: what is written at the end of 64 GiB is found as fast as anywhere.
#[test]
fn a_guest_of_64_gib_is_tracked_up_to_its_last_page() {
    const PAGES: u64 = 20;
    if !has_kvm() {
        return;
    }
    let platform = platform(64 << 30);
    let ram = platform.ram().clone();
    // Below the device window: 32-bit code reaches no further.
    let first = memory::LOW_END - PAGES * PAGE_BYTES;
    let mut engine = engine(&platform, vec![writer(0, first, PAGES)], DirtyMethod::set_up);
    engine.harvest().unwrap().acknowledge();
    let control = Control::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let since = Instant::now();
            while ram.load::<u32>(memory::LOW_END - PAGE_BYTES).unwrap() < 1 && since.elapsed() < HUNG {
                std::thread::sleep(Duration::from_millis(1));
            }
            control.pause();
        });
        assert_eq!(engine.run(&control, None).unwrap(), RunEnd::Paused);
    });
    let harvest = engine.harvest().unwrap();
    assert_eq!(harvest.pages().collect::<Vec<_>>(), (first >> 12..memory::LOW_END >> 12).collect::<Vec<_>>());
    harvest.acknowledge();
}
