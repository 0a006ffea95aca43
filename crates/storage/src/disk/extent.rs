//! Which parts of a disk an image itself holds.

/// Where the content of a part of a disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// It is stored in the image.
    Data,
    /// The image says that it is zeros.
    Zeros,
    /// The image says nothing: its backing image shows, or zeros where there is none.
    Absent,
}

/// A part of a disk whose content comes from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes, at least 1. What follows may have the same source.
    pub length: u64,
    /// The source.
    pub allocation: Allocation,
}
