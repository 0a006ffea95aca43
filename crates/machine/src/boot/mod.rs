//! Putting a guest into memory and saying where its first vCPU starts.
//!
//! There is no firmware: the loader does what a boot loader would. [`linux`] boots bzImage and vmlinux kernels by the
//! 64-bit entry of the Linux x86 boot protocol (`Documentation/arch/x86/boot.rst`), [`flat`] a bare-metal program.
//! Either way the first vCPU starts in 64-bit mode as [`BootState`] says.

pub mod flat;
pub mod linux;

mod bzimage;
mod early_tables;
mod elf;
mod error;
mod payload;
mod state;
mod zero_page;

pub use error::BootError;
pub use payload::{Compression, DecompressError};
pub use state::BootState;
