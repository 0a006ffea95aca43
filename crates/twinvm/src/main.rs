//! The twinvm binary.
fn main() {}
