//! Linux, entered by its 64-bit entry point.

use memory::{GuestRam, PAGE_BYTES};

use super::bzimage::{BzImage, ENTRY_64_OFFSET};
use super::elf::Vmlinux;
use super::error::{BootError, mib};
use super::payload::Compression;
use super::zero_page::BootParams;
use super::{BootState, early_tables};
use crate::map;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The kernel file: bzImage or x86-64 vmlinux.
    pub kernel: &'a [u8],
    /// The initial RAM disk, if any.
    pub initrd: Option<&'a [u8]>,
    /// The kernel command line.
    pub command_line: &'a str,
    /// Guest-physical address of the RSDP (from [`crate::acpi::write_tables`]).
    pub rsdp: u64,
}

/// A kernel in memory.
struct Loaded<'a> {
    /// 64-bit entry point.
    entry: u64,
    /// First address after what the kernel occupies before it reads the memory map.
    end: u64,
    /// Highest address that the initrd may touch.
    initrd_addr_max: u64,
    /// Most bytes of the command line, without its NUL.
    command_line_bytes_max: u64,
    setup_header: Option<&'a [u8]>,
    code32_start: u32,
}

/// Highest address for an initrd where no header says otherwise; what x86-64 kernels' headers say.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;

/// What there is of a BIOS: real-mode code that asks the reset control register for a reset. Linux 6.1 on hardware-reduced ACPI
/// trusts EFI alone with resets (`efi_reboot_required()`), and without EFI turns to the BIOS.
///
/// ```text
///        mov al, 6
///        mov dx, 0xcf9
///        out dx, al
///        hlt
///        jmp $-1
/// ```
const RESET_STUB: [u8; 9] = [0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4, 0xeb, 0xfd];

/// Loads a kernel, its initrd, command line and boot parameters, and the tables of [`BootState`].
///
/// The payload of a bzImage is decompressed here, and the vmlinux inside is entered directly. If its compression is
/// unknown, the bzImage's own decompressor runs in the guest. Memory is written as the loader (so it is dirty
/// afterwards); nothing is written before the kernel's headers were found good.
pub fn load(ram: &GuestRam, boot: &LinuxBoot) -> Result<BootState, BootError> {
    let loaded = if BzImage::is_one(boot.kernel) {
        load_bzimage(ram, boot.kernel)?
    } else if Vmlinux::is_one(boot.kernel) {
        load_vmlinux(ram, boot.kernel)?
    } else {
        return Err(BootError::NotAKernel);
    };
    let initrd = boot.initrd.map(|initrd| load_initrd(ram, initrd, &loaded)).transpose()?;
    load_command_line(ram, boot.command_line, loaded.command_line_bytes_max)?;
    let params =
        BootParams { setup_header: loaded.setup_header, code32_start: loaded.code32_start, initrd, rsdp: boot.rsdp };
    ram.write_bytes(map::BOOT_PARAMS, &params.bytes(ram))?;
    ram.write_bytes(map::RESET_VECTOR, &RESET_STUB)?;
    early_tables::write(ram)?;
    Ok(BootState::at(loaded.entry, map::BOOT_PARAMS))
}

fn load_vmlinux<'a>(ram: &GuestRam, file: &[u8]) -> Result<Loaded<'a>, BootError> {
    let vmlinux = Vmlinux::parse(file)?;
    Ok(Loaded {
        entry: vmlinux.load(ram)?,
        end: vmlinux.end(),
        initrd_addr_max: INITRD_ADDR_MAX,
        command_line_bytes_max: map::COMMAND_LINE_BYTES_MAX - 1,
        setup_header: None,
        code32_start: 0,
    })
}

fn load_bzimage<'a>(ram: &GuestRam, file: &'a [u8]) -> Result<Loaded<'a>, BootError> {
    let image = BzImage::parse(file)?;
    let loaded = match Compression::detect(image.payload) {
        Some(compression) => load_vmlinux(ram, &compression.decompress(image.payload, ram.layout().low_bytes())?)?,
        None => load_decompressor(ram, &image)?,
    };
    Ok(Loaded {
        initrd_addr_max: image.initrd_addr_max,
        command_line_bytes_max: image.cmdline_size.min(map::COMMAND_LINE_BYTES_MAX - 1),
        setup_header: Some(image.setup_header),
        ..loaded
    })
}

/// Loads the protected-mode part of a bzImage, which will decompress the kernel in the guest.
fn load_decompressor<'a>(ram: &GuestRam, image: &BzImage) -> Result<Loaded<'a>, BootError> {
    let low_bytes = ram.layout().low_bytes();
    let start = image.pref_address;
    let Some(code32_start) = u32::try_from(start).ok().filter(|_| start >= map::HIGH_MEMORY) else {
        return Err(BootError::BadElf("its preferred address is impossible"));
    };
    // Both fit in 33 bits, so the sum cannot overflow.
    let end = start + image.init_size.max(image.protected_mode.len() as u64);
    if end > low_bytes {
        return Err(BootError::KernelTooBig { needs_mib: mib(end), has_mib: low_bytes >> 20 });
    }
    ram.write_bytes(start, image.protected_mode)?;
    Ok(Loaded {
        entry: start + ENTRY_64_OFFSET,
        end,
        initrd_addr_max: INITRD_ADDR_MAX,
        command_line_bytes_max: 0,
        setup_header: None,
        code32_start,
    })
}

/// Puts the initrd as high as the kernel and RAM below 3 GiB allow, so that the kernel has room to grow from below.
fn load_initrd(ram: &GuestRam, initrd: &[u8], kernel: &Loaded) -> Result<(u32, u32), BootError> {
    let len = initrd.len() as u64;
    if len == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let top = ram.layout().low_bytes().min(kernel.initrd_addr_max.saturating_add(1));
    let at = top.checked_sub(len).map(|at| at & !(PAGE_BYTES - 1)).filter(|at| *at >= kernel.end);
    let Some(at) = at else {
        let (initrd_mib, kernel_mib) = (mib(len), mib(kernel.end));
        return Err(BootError::InitrdTooBig { initrd_mib, kernel_mib, usable_mib: top >> 20 });
    };
    ram.write_bytes(at, initrd)?;
    // `at + len` is at most 3 GiB, so both fit.
    Ok((at as u32, len as u32))
}

fn load_command_line(ram: &GuestRam, command_line: &str, len_max: u64) -> Result<(), BootError> {
    let len = command_line.len();
    if len as u64 > len_max {
        return Err(BootError::CommandLineTooLong { len, len_max: len_max as usize });
    }
    if command_line.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    Ok(ram.write_bytes(map::COMMAND_LINE, &bytes)?)
}
