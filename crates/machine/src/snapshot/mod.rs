//! Saving a whole VM to a file, and back: the file format, and how memory and disks are laid out in it. What goes
//! in is decided by [`crate::vm`].

pub mod disk;
pub(crate) mod file;
pub mod format;
pub(crate) mod image;
pub(crate) mod memory;
