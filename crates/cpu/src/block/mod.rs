//! Decoded blocks and where they are kept.

mod build;
mod cache;
mod crossing;

pub(crate) use build::{Built, build, build_across_pages};
pub(crate) use cache::BlockCache;
