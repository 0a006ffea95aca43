//! [`BootError`].

use memory::MemoryError;

use super::payload::DecompressError;

/// Why a guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither of the two kernel formats.
    #[error("not a Linux kernel: neither a bzImage nor an x86-64 vmlinux (ELF)")]
    NotAKernel,
    /// The file ends before the part that its header announces.
    #[error("the kernel file is cut short: its {0} lies beyond the end of the file")]
    CutShort(&'static str),
    /// The boot protocol is older than the fields the loader needs.
    #[error(
        "the kernel speaks boot protocol {}.{}, which is older than 2.12 (Linux 3.8)", .0 >> 8, .0 & 0xff
    )]
    TooOld(u16),
    /// No 64-bit entry point.
    #[error("the kernel is not a 64-bit kernel")]
    Not64Bit,
    /// The payload of a bzImage is damaged.
    #[error("the kernel is damaged: {0}")]
    Damaged(#[from] DecompressError),
    /// An ELF file that cannot be a kernel for this machine.
    #[error("the kernel is damaged: {0}")]
    BadElf(&'static str),
    /// The kernel does not fit into memory.
    #[error("the kernel needs {needs_mib} MiB of memory below 3 GiB, the VM has {has_mib} MiB there")]
    KernelTooBig {
        /// MiB that the kernel occupies from address 0 on, rounded up.
        needs_mib: u64,
        /// MiB of memory below 3 GiB.
        has_mib: u64,
    },
    /// The initial RAM disk does not fit above the kernel.
    #[error(
        "the initrd needs {initrd_mib} MiB and the kernel {kernel_mib} MiB of memory, but only {usable_mib} MiB are \
         there for both"
    )]
    InitrdTooBig {
        /// MiB of the initrd, rounded up.
        initrd_mib: u64,
        /// MiB that the kernel occupies from address 0 on, rounded up.
        kernel_mib: u64,
        /// MiB from address 0 to the highest address that the kernel allows and the VM has.
        usable_mib: u64,
    },
    /// The initial RAM disk is empty.
    #[error("the initrd is empty")]
    InitrdEmpty,
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes; the kernel takes {len_max}")]
    CommandLineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes that the kernel takes.
        len_max: usize,
    },
    /// A NUL byte would end the command line early.
    #[error("the kernel command line contains a NUL byte")]
    CommandLineNul,
    /// A bare-metal program that is empty or would lie where the loader's tables are or there is no RAM.
    #[error("a program of {len} bytes at {address:#x} does not lie in free RAM between 0x10000 and {end:#x}")]
    FlatRange {
        /// First address.
        address: u64,
        /// Bytes.
        len: u64,
        /// End of RAM below 3 GiB.
        end: u64,
    },
    /// Too little memory for anything.
    #[error("the VM has no memory where the loader needs some: {0}")]
    Memory(#[from] MemoryError),
}

/// Bytes in MiB, rounded up.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
