//! Lockstep: the secondary executes the same instructions with the same inputs.
//!
//! What a checkpoint is to mirror mode, a *segment* of the event log is here: the inputs of a stretch of instructions. The secondary
//! acknowledges that it has received one; it executes it later, on its own, up to the instruction count that the segment reaches.
//!
//! | module | holds |
//! | --- | --- |
//! | [`log`] | the event log's format |
//! | [`LockstepFigures`] | what it costs |

mod figures;
pub mod log;

pub use figures::LockstepFigures;
