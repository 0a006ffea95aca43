//! Guest RAM: the only owner of raw guest pointers.
//!
//! A VM's RAM is one contiguous, shared mapping of a memfd ([`GuestRam`]), so that another process can map the same
//! pages and so that an offset into RAM is all a translator or a checkpoint ever needs. Guest-physical addresses map to
//! offsets by [`Layout`].
//!
//! Four writers touch guest memory: vCPUs, device DMA, the loader and replica apply. Every one of them is tracked by
//! the [`Tracker`] of that RAM:
//!
//! * a soft vCPU marks a page when it fills a TLB entry that permits stores ([`GuestRam::mark_dirty_page`]); a KVM vCPU
//!   is tracked by the kernel, whose log is merged with [`GuestRam::merge_dirty_words`] or [`GuestRam::mark_logged_page`];
//! * devices and the loader write through the `vm-memory` view ([`GuestRam::dma`]) or through
//!   [`GuestRam::write_bytes`], which mark as they write;
//! * replica apply ([`encoding::apply`]) marks each page that it changes.
//!
//! [`GuestRam::harvest`] takes the set of dirty pages as a value that gives its bits back unless it is acknowledged, so
//! that a checkpoint that failed to reach the secondary loses nothing. [`encoding`] makes the bytes of it that travel.
//! Their contents are copied while the VM stands still, or shortly before ([`encoding::CapturedPages`]), or, if all writers are in this
//! process, page by page while it goes on ([`GuestRam::freeze`]; all of memory, for a snapshot: [`GuestRam::freeze_all`]).

pub mod encoding;
mod frozen;
mod frozen_all;
mod harvest;
mod layout;
mod mapping;
mod ram;
mod tracker;
#[cfg(target_arch = "x86_64")]
mod vector;

pub use frozen::FrozenPages;
pub use frozen_all::{FrozenMemory, PageStore};
pub use harvest::Harvest;
pub use layout::{HIGH_START, LOW_END, Layout, PAGE_BYTES, PAGE_SHIFT, Slot};
pub use ram::{DmaMemory, GuestRam, MemoryError, Scalar, announce_write};
pub use tracker::{RegionBitmap, RegionBitmapSlice, Tracker};
