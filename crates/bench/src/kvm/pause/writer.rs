//! A bare-metal guest that writes to its pages in turn, in user mode and at a given pace.
//!
//! User mode, because that is what every KVM runs natively, also one without hardware below it.

use anyhow::{Context, Result, ensure};
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::rng::OsEntropy;
use machine::engine::soft::InputMode;
use machine::map;
use machine::platform::Parts;
use machine::vm::{Boot, Vm, VmConfig};
use memory::{GuestRam, PAGE_BYTES};
use spec::{CpuLevel, EngineKind};

const MEMORY_BYTES: u64 = 256 << 20;
const PROGRAM: u64 = map::HIGH_MEMORY;
/// The page of what the program is told; RSI points to it.
const TOLD: u64 = PROGRAM + PAGE_BYTES;
const STACK_TOP: u64 = TOLD + 2 * PAGE_BYTES;
/// The first page that is written.
const DATA: u64 = 0x100_0000;
/// Bytes from one page that is written to the next: all over the memory.
const STRIDE: u64 = 0x3000;

/// Goes to user mode, and adds 1 to a word of each page, over and over, waiting after each:
///
/// ```text
///        lgdt [rsi]
///        lea rsp, [rsi+16]
///        iretq
/// again: mov rdi, [rsi+64]
///        mov rcx, [rsi+72]
/// next:  inc qword ptr [rdi]
///        add rdi, [rsi+80]
///        mov rdx, [rsi+88]
/// wait:  dec rdx
///        jnz wait
///        dec rcx
///        jnz next
///        jmp again
/// ```
const WRITER: [u8; 40] = [
    0x0f, 0x01, 0x16, // lgdt [rsi]
    0x48, 0x8d, 0x66, 0x10, // lea rsp, [rsi+16]
    0x48, 0xcf, // iretq
    0x48, 0x8b, 0x7e, 0x40, // again: mov rdi, [rsi+64]
    0x48, 0x8b, 0x4e, 0x48, // mov rcx, [rsi+72]
    0x48, 0xff, 0x07, // next: inc qword ptr [rdi]
    0x48, 0x03, 0x7e, 0x50, // add rdi, [rsi+80]
    0x48, 0x8b, 0x56, 0x58, // mov rdx, [rsi+88]
    0x48, 0xff, 0xca, // wait: dec rdx
    0x75, 0xfb, // jnz wait
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xeb, // jnz next
    0xeb, 0xe1, // jmp again
];
/// Where in it user mode begins.
const USER_PROGRAM: u64 = PROGRAM + 9;

/// Code and data of privilege level 3 (Intel SDM volume 3, 3.4.5).
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
const USER_CODE_SELECTOR: u64 = 0x08 | 3;
const USER_DATA_SELECTOR: u64 = 0x10 | 3;
const RFLAGS: u64 = 2;
/// Permits user mode in a page-table entry (Intel SDM volume 3, 4.5).
const PAGE_USER: u64 = 4;
/// Tables of the boot's identity map: the first, the second, and a directory for each of 4 GiB.
const PAGE_TABLES: u64 = 6;

/// What the guest does.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pages that it writes in turn.
    pub pages: u64,
    /// Rounds that it waits after each, at least 1.
    pub waits: u64,
}

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _: &[u8]) {}
}

/// The hardware.
pub fn config() -> VmConfig {
    VmConfig {
        name: "writer".to_owned(),
        cpus: 1,
        memory_bytes: MEMORY_BYTES,
        cpu: CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    }
}

/// The VM before its first instruction.
pub fn start(pace: Pace) -> Result<Vm> {
    let entropy = Box::new(OsEntropy::open().context("cannot open /dev/urandom")?);
    let parts = Parts { disks: Vec::new(), cards: Vec::new(), console: Box::new(Silent), entropy };
    let boot = Boot::Flat { program: &WRITER, address: PROGRAM, rsi: TOLD };
    let vm = Vm::boot(config(), &boot, parts, EngineKind::Kvm, InputMode::Live)?;
    let ram = vm.platform().ram();
    let gdt = TOLD + 128;
    write_words(ram, gdt, &[0, USER_CODE, USER_DATA])?;
    // The operand of LGDT: 16 bits of limit, then the base.
    write_words(ram, TOLD, &[gdt << 16 | 0x17, gdt >> 48])?;
    write_words(ram, TOLD + 16, &[USER_PROGRAM, USER_CODE_SELECTOR, RFLAGS, STACK_TOP, USER_DATA_SELECTOR])?;
    write_words(ram, TOLD + 64, &[DATA, pace.pages, STRIDE, pace.waits.max(1)])?;
    for entry in (0..PAGE_TABLES * 512).map(|number| map::BOOT_PAGE_TABLES + number * 8) {
        let value = ram.load::<u64>(entry).context("the page tables lie in memory")?;
        if value != 0 {
            write_words(ram, entry, &[value | PAGE_USER])?;
        }
    }
    Ok(vm)
}

fn write_words(ram: &GuestRam, address: u64, words: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok(ram.write_bytes(address, &bytes)?)
}

/// How often the guest has written its first page.
pub fn sweeps(ram: &GuestRam) -> Result<u64> {
    ram.load(DATA).context("the pages lie in memory")
}

/// How many pages a guest of this size can write.
pub fn check(pages: u64) -> Result<()> {
    let room = (MEMORY_BYTES - DATA) / STRIDE;
    ensure!(pages <= room, "the guest has room for {room} pages, not {pages}");
    Ok(())
}
