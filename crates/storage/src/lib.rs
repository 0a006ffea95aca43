//! Storage of virtual machines: disk images and the building of bootable guests.
//!
//! - [`image`] builds bootable Debian guests (kernel, initial RAM disk, root disk) from Debian's own packages.

pub mod image;
