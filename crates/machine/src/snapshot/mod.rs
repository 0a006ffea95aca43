//! Saving a whole VM to a file, and back: the file format, and how memory and disk files are laid out in it. What goes
//! in is decided by [`crate::vm`].

pub mod disk;
pub(crate) mod file;
pub mod format;
pub(crate) mod memory;
