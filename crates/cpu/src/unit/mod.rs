//! What the units of a processor hold, each by itself: data, and what can be said of it without the rest of the processor.

pub(crate) mod control;
pub(crate) mod flags;
mod mode;
mod msrs;
pub(crate) mod segment;
mod sse;
mod system;
pub(crate) mod x87;

pub(crate) use flags::{LazyFlags, bit};
pub(crate) use mode::Mode;
pub(crate) use msrs::Msrs;
pub(crate) use segment::{Segment, attribute, number};
pub(crate) use sse::Sse;
pub(crate) use system::System;
pub(crate) use x87::{Register80, X87};
