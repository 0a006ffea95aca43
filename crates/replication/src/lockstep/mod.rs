//! Lockstep: the secondary executes the same instructions with the same inputs.
//!
//! What a checkpoint is to mirror mode, a *segment* of the event log is here: the inputs of a stretch of instructions. The secondary
//! acknowledges that it has received one; it executes it later, on its own, up to the instruction count that the segment reaches.
//!
//! | module | holds |
//! | --- | --- |
//! | [`log`] | the event log's format |
//! | `recorder` | [`LogRecorder`]: writes the log while the guest runs |
//! | `progress` | [`LogProgress`]: how far the secondary is behind |
//! | `execution` | [`Execution`]: executes the log, step by step |
//! | `executor` | [`Executor`]: executes the log on the secondary, as it comes |
//! | [`mod@file`] | the log as a file, which can be replayed later |
//! | `digest` | [`StateDigest`]: by which the two find out whether they are still the same |
//! | `evidence` | what is kept when they are not |

mod digest;
mod evidence;
mod execution;
mod executor;
mod figures;
pub mod file;
pub mod log;
mod progress;
mod recorder;
mod sink;

pub use digest::{DIGEST_INSTRUCTIONS, StateDigest, next_digest_at};
pub use evidence::{EvidenceRing, write_evidence};
pub use execution::{Divergence, Execution, ExecutorError, ExecutorProgress};
pub use executor::{Executed, Executor};
pub use figures::LockstepFigures;
pub use progress::LogProgress;
pub use recorder::{ClosedSegment, LogRecorder, OnClosed};
