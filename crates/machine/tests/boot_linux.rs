//! Kernels of every supported form, loaded, and what is then in memory.

use machine::boot::linux::{LinuxBoot, load};
use machine::boot::{BootError, BootState};
use machine::map;
use memory::{GuestRam, PAGE_BYTES};

const VMLINUX: &[u8] = include_bytes!("fixtures/kernel/vmlinux");
const PAYLOADS: [(&str, &[u8]); 6] = [
    ("none", VMLINUX),
    ("gzip", include_bytes!("fixtures/kernel/payload.gz")),
    ("lzma", include_bytes!("fixtures/kernel/payload.lzma")),
    ("xz", include_bytes!("fixtures/kernel/payload.xz")),
    ("lz4", include_bytes!("fixtures/kernel/payload.lz4")),
    ("zstd", include_bytes!("fixtures/kernel/payload.zst")),
];
/// Offset of the payload in the protected-mode part of [`bzimage`].
const PAYLOAD_OFFSET: usize = 0x2c0;

/// A bzImage with the header of a Debian 6.1 kernel.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400 + PAYLOAD_OFFSET];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21, 0x7f, 0]); // relocatable_kernel, min_alignment, xloadflags
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x40_0000_u32.to_le_bytes()); // init_size
    file.extend(payload);
    // What follows the payload: the end of the decompressor, a signature.
    file.extend([0xcc; 300]);
    file
}

fn boot(kernel: &[u8]) -> LinuxBoot<'_> {
    LinuxBoot { kernel, initrd: None, command_line: "console=ttyS0", rsdp: map::ACPI_TABLES }
}

fn ram_mib(mib: u64) -> GuestRam {
    GuestRam::new(mib << 20).unwrap()
}

fn bytes<const N: usize>(ram: &GuestRam, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read_bytes(address, &mut bytes).unwrap();
    bytes
}

fn assert_kernel_is_loaded(ram: &GuestRam, state: &BootState) {
    assert_eq!(state.rip, 0x100_0008);
    assert_eq!(state.rsi, map::BOOT_PARAMS);
    assert_eq!(bytes::<4096>(ram, 0x100_0000), VMLINUX[0x1000..0x2000]);
    assert_eq!(bytes::<1024>(ram, 0x120_0000), VMLINUX[0x2000..0x2400]);
    assert_eq!(bytes::<{ 0x41000 - 1024 }>(ram, 0x120_0400), [0; 0x41000 - 1024], "BSS");
}

#[test]
fn kernels_of_every_compression_are_entered_uncompressed() {
    for (name, payload) in PAYLOADS {
        let ram = ram_mib(32);
        ram.write_bytes(0x120_0000, &[0xee; 0x4_0000]).unwrap();
        let state = load(&ram, &boot(&bzimage(payload))).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_kernel_is_loaded(&ram, &state);
        // boot_params has the header of the file, with what the loader adds.
        assert_eq!(bytes::<13>(&ram, map::BOOT_PARAMS + 0x1f9)[1..9], *b"\xff\xff\0\0\x55\xaa\xeb\x6a");
        assert_eq!(ram.load::<u16>(map::BOOT_PARAMS + 0x236), Some(0x7f));
        assert_eq!(ram.load::<u16>(map::BOOT_PARAMS + 0x210), Some(0x01ff));
        assert_eq!(ram.load::<u64>(map::BOOT_PARAMS + 0x070), Some(map::ACPI_TABLES));
        assert_eq!(ram.load::<u32>(map::BOOT_PARAMS + 0x228), Some(map::COMMAND_LINE as u32));
        assert_eq!(bytes::<14>(&ram, map::COMMAND_LINE), *b"console=ttyS0\0");
    }
}

#[test]
fn a_vmlinux_boots_without_a_bzimage_around_it() {
    let ram = ram_mib(32);
    let state = load(&ram, &boot(VMLINUX)).unwrap();
    assert_kernel_is_loaded(&ram, &state);
    assert_eq!(bytes::<4>(&ram, map::BOOT_PARAMS + 0x202), *b"HdrS");
}

#[test]
fn unknown_compression_runs_the_kernels_own_decompressor() {
    let ram = ram_mib(32);
    let file = bzimage(b"BZh9 and so on");
    let state = load(&ram, &boot(&file)).unwrap();
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(bytes::<512>(&ram, 0x100_01d0), file[0x5d0..0x7d0]);
    assert_eq!(ram.load::<u32>(map::BOOT_PARAMS + 0x214), Some(0x100_0000));
}

#[test]
fn the_initrd_lies_as_high_as_it_may() {
    let initrd: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    for (ram_mib_count, end) in [(32, 32 << 20), (5 << 10, 0x8000_0000)] {
        let ram = ram_mib(ram_mib_count);
        load(&ram, &LinuxBoot { initrd: Some(&initrd), ..boot(&bzimage(VMLINUX)) }).unwrap();
        let at = u64::from(ram.load::<u32>(map::BOOT_PARAMS + 0x218).unwrap());
        assert_eq!(ram.load::<u32>(map::BOOT_PARAMS + 0x21c), Some(5000));
        assert_eq!(at, end - 2 * PAGE_BYTES);
        assert_eq!(bytes::<5000>(&ram, at), initrd[..]);
    }
}

#[test]
fn the_memory_map_covers_all_ram_but_the_legacy_hole() {
    for (mib, expected) in [
        (
            32,
            vec![
                (0, 0x9fc00, 1),
                (0x9fc00, 0xa_0000, 2),
                (0xe_0000, 0xf_e000, 3),
                (0xf_e000, 1 << 20, 2),
                (1 << 20, 32 << 20, 1),
            ],
        ),
        (
            4096,
            vec![
                (0, 0x9fc00, 1),
                (0x9fc00, 0xa_0000, 2),
                (0xe_0000, 0xf_e000, 3),
                (0xf_e000, 1 << 20, 2),
                (1 << 20, 3 << 30, 1),
                (4 << 30, 5 << 30, 1),
            ],
        ),
    ] {
        let ram = ram_mib(mib);
        load(&ram, &boot(VMLINUX)).unwrap();
        let entries = ram.load::<u8>(map::BOOT_PARAMS + 0x1e8).unwrap();
        let found: Vec<(u64, u64, u32)> = (0..u64::from(entries))
            .map(|index| map::BOOT_PARAMS + 0x2d0 + 20 * index)
            .map(|at| {
                let (start, len) = (ram.load::<u64>(at).unwrap(), ram.load::<u64>(at + 8).unwrap());
                (start, start + len, ram.load(at + 16).unwrap())
            })
            .collect();
        assert_eq!(found, expected);
    }
}

fn error(ram: &GuestRam, boot: &LinuxBoot) -> String {
    load(ram, boot).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let kernel = bzimage(PAYLOADS[4].1);
    assert_eq!(
        error(&ram_mib(16), &boot(&kernel)),
        "the kernel needs 19 MiB of memory below 3 GiB, the VM has 16 MiB there"
    );
    assert_eq!(
        error(&ram_mib(16), &boot(&bzimage(b"LZO?"))),
        "the kernel needs 20 MiB of memory below 3 GiB, the VM has 16 MiB there"
    );
    assert_eq!(
        error(&ram_mib(32), &LinuxBoot { initrd: Some(&vec![1; 14 << 20]), ..boot(&kernel) }),
        "the initrd needs 14 MiB and the kernel 19 MiB of memory, but only 32 MiB are there for both"
    );
    assert!(matches!(
        load(&ram_mib(32), &LinuxBoot { initrd: Some(&[]), ..boot(&kernel) }),
        Err(BootError::InitrdEmpty)
    ));
    assert_eq!(
        error(&ram_mib(32), &LinuxBoot { command_line: &"x".repeat(2048), ..boot(&kernel) }),
        "the kernel command line has 2048 bytes; the kernel takes 2047"
    );
    load(&ram_mib(32), &LinuxBoot { command_line: &"x".repeat(2047), ..boot(&kernel) }).unwrap();
    assert!(matches!(
        load(&ram_mib(32), &LinuxBoot { command_line: "a\0b", ..boot(&kernel) }),
        Err(BootError::CommandLineNul)
    ));
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let ram = ram_mib(32);
    for file in [&b""[..], b"\x1f\x8b", b"MZ", &[0; 4096]] {
        assert!(matches!(load(&ram, &boot(file)), Err(BootError::NotAKernel)));
    }
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = bzimage(VMLINUX);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        error(&ram, &boot(&file))
    };
    assert!(patched(0x206, &[0x0b, 0x02]).contains("2.11, which is older"));
    assert!(patched(0x236, &[0]).contains("not a 64-bit kernel"));
    assert!(patched(0x24c, &[0xff; 4]).contains("payload lies beyond the end"));
    assert!(patched(0x400 + PAYLOAD_OFFSET + 4, &[1]).contains("not a 64-bit kernel"));
    assert!(patched(0x400 + PAYLOAD_OFFSET + 0x18, &[0; 8]).contains("entry point lies in no segment"));
    assert!(patched(0x400 + PAYLOAD_OFFSET + 64 + 24, &[0; 8]).contains("impossible address"));
    let mut huge = PAYLOADS[4].1.to_vec();
    huge.truncate(huge.len() - 4);
    huge.extend(u32::MAX.to_le_bytes());
    assert!(error(&ram, &boot(&bzimage(&huge))).contains("more than the 33554432 possible"));
}

/// Damages kernels in every way; the loader gives an error or loads something, and comes back.
#[test]
fn no_damage_makes_the_loader_panic() {
    let ram = ram_mib(32);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % limit
    };
    let rounds = std::env::var("TWINVM_MUTATIONS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2000);
    let (mut loaded, mut refused) = (0, 0);
    for (_, payload) in PAYLOADS {
        let good = bzimage(payload);
        for round in 0..rounds {
            let mut file = good.clone();
            // Mostly the places that matter: the header, and the first and last bytes of the payload.
            let payload_at = 0x400 + PAYLOAD_OFFSET;
            let (first, len) = match round % 4 {
                0 => (0x1f1, 0x80),
                1 => (payload_at, 64),
                2 => (payload_at + payload.len() - 32, 32),
                _ => (payload_at, payload.len()),
            };
            for _ in 0..=below(4) {
                file[first + below(len)] = [0, 0xff, 0x80, below(256) as u8][below(4)];
            }
            if below(8) == 0 {
                file.truncate(below(file.len()));
            }
            match load(&ram, &boot(&file)) {
                Ok(_) => loaded += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}

/// Loads real kernels: `TWINVM_KERNELS=/boot/vmlinuz-a:/boot/vmlinuz-b cargo test -- --ignored`.
#[test]
#[ignore = "needs kernel files in TWINVM_KERNELS"]
fn distribution_kernels_are_entered_uncompressed() {
    for path in std::env::var("TWINVM_KERNELS").unwrap().split(':') {
        let file = std::fs::read(path).unwrap();
        let ram = ram_mib(256);
        let start = std::time::Instant::now();
        let state = load(&ram, &boot(&file)).unwrap_or_else(|error| panic!("{path}: {error}"));
        eprintln!("{path}: {:x?} in {} ms: {state:x?}", bytes::<16>(&ram, state.rip), start.elapsed().as_millis());
        assert!((0x100_0000..0x120_0000).contains(&state.rip), "startup_64 lies in the first page of 2 MiB");
        assert_ne!(bytes::<16>(&ram, state.rip), [0; 16]);
    }
}
