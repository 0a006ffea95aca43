//! What a checkpoint costs on each engine, by phase. Run with
//! `cargo test --release -p machine --test engines checkpoint_cost -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use machine::devices::virtio::net::NetConfig;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::vm::{Boot, Vm, VmConfig};
use memory::encoding::{CapturedPages, PageEncoder};
use spec::EngineKind;

use crate::engines;
use crate::guest::{Console, PROGRAM, parts};

const MEMORY_BYTES: u64 = 256 << 20;
const DATA: u64 = 0x100_0000;
/// Bytes from one page that the guest writes to the next: all over its memory.
const STRIDE: u64 = 0x3000;
/// Cache of the encoder, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Adds 1 to a word of each of RSI pages, over and over.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut again).unwrap();
    a.mov(rdi, DATA).unwrap();
    a.mov(rcx, rsi).unwrap();
    a.set_label(&mut next).unwrap();
    a.inc(qword_ptr(rdi)).unwrap();
    a.add(rdi, STRIDE as i32).unwrap();
    a.dec(rcx).unwrap();
    a.jnz(next).unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn start(engine: EngineKind, pages: u64) -> Vm {
    let config = VmConfig {
        name: "cost".into(),
        cpus: 1,
        memory_bytes: MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    };
    let (card, _) = network::pair().unwrap();
    let mut parts = parts(&Console::default());
    parts.cards.push((NetConfig { mac: spec::MacAddr::for_vm("cost", 0), mtu: 1500 }, Box::new(card)));
    let boot = Boot::Flat { program: &program(), address: PROGRAM, rsi: pages };
    Vm::boot(config, &boot, parts, engine, InputMode::Live).unwrap()
}

/// Runs until each of the pages was written. Returns when the pause was asked for.
fn run_over(vm: &mut Vm, pages: u64) -> Instant {
    let (control, ram) = (vm.control(), vm.platform().ram().clone());
    let last_page = DATA + (pages - 1) * STRIDE;
    let written = move || -> u64 { ram.load(last_page).unwrap() };
    // The second write of the last page comes after the first of all others.
    let end = written() + 2;
    let watcher = std::thread::spawn(move || {
        while written() < end {
            std::thread::sleep(Duration::from_micros(50));
        }
        let asked = Instant::now();
        control.pause();
        asked
    });
    assert_eq!(vm.run(None).unwrap(), RunEnd::Paused);
    watcher.join().unwrap()
}

/// Phases of a checkpoint. Without the first and the last two they are the pause.
const PHASES: [&str; 6] = ["stop", "harvest", "capture", "save", "encode", "empty run"];

fn checkpoint(vm: &mut Vm, pages: u64, captured: &mut CapturedPages, encode: &mut Encode) -> [Duration; PHASES.len()] {
    let ram = vm.platform().ram().clone();
    let mut phases = [Duration::ZERO; PHASES.len()];
    let mut last = run_over(vm, pages);
    let mut ended = |phase: usize| {
        let now = Instant::now();
        phases[phase] = now - std::mem::replace(&mut last, now);
    };
    ended(0);
    let harvest = vm.harvest().unwrap();
    ended(1);
    captured.capture(&ram, harvest.pages());
    ended(2);
    let state = vm.save().unwrap();
    ended(3);
    encode.records.clear();
    for (page, content) in captured.iter() {
        encode.encoder.encode(page, content, &mut encode.records);
    }
    ended(4);
    drop(state);
    harvest.acknowledge();
    vm.control().pause();
    last = Instant::now();
    assert_eq!(vm.run(None).unwrap(), RunEnd::Paused);
    phases[5] = last.elapsed();
    phases
}

struct Encode {
    encoder: PageEncoder,
    records: Vec<u8>,
}

#[test]
#[ignore = "measures rather than tests"]
fn checkpoint_cost() {
    for engine in engines() {
        for pages in [100, 1_000, 10_000] {
            let mut vm = start(engine, pages);
            let mut encode = Encode { encoder: PageEncoder::new(CACHE_BYTES), records: Vec::new() };
            let mut captured = CapturedPages::new();
            captured.reserve(pages as usize + 10);
            let checkpoints = if engine == EngineKind::Soft { 400 } else { 60 };
            for _ in 0..5 {
                checkpoint(&mut vm, pages, &mut captured, &mut encode);
            }
            let all: Vec<_> =
                (0..checkpoints).map(|_| checkpoint(&mut vm, pages, &mut captured, &mut encode)).collect();
            println!("{engine}: {} dirty pages, {} bytes to send", captured.len(), encode.records.len());
            let percentiles = |mut times: Vec<Duration>| {
                times.sort();
                (times[times.len() / 2], times[times.len() * 99 / 100])
            };
            for (phase, name) in PHASES.iter().enumerate() {
                let (p50, p99) = percentiles(all.iter().map(|phases| phases[phase]).collect());
                println!("  {name:10} p50 {p50:?}, p99 {p99:?}");
            }
            let (p50, p99) = percentiles(all.iter().map(|phases| phases[1..4].iter().sum()).collect());
            println!("  {:10} p50 {p50:?}, p99 {p99:?}", "pause");
        }
    }
}
