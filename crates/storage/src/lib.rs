//! Storage of virtual machines: disk images and the building of bootable guests.
//!
//! - [`disk`] opens and makes the raw and qcow2 images that virtual disks are backed by.
//! - [`image`] builds bootable Debian guests (kernel, initial RAM disk, root disk) from Debian's own packages.

pub mod disk;
pub mod durable;
mod file_lock;
pub mod image;
pub mod plain_file;
