//! The other sides of a virtio device, for tests: a guest's driver, a disk in memory, a network that remembers, and
//! hostile guests.
//!
//! Part of the library, though hidden, because the fuzz targets live in a crate of their own. Nothing here is for use
//! outside of tests: what goes wrong panics.

mod backends;
mod driver;
pub mod fuzz;
mod script;
pub mod seeds;

pub use backends::{HeldDisk, MemoryDisk, MemoryNetwork};
pub use driver::{Buffer, GuestDriver, Posted};
