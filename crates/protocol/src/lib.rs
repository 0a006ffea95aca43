//! Every decision of replication, as pure state machines: events and the time go in, commands come out. There is no I/O here, no clock and
//! no thread; `replication` carries the commands out, and `sim` runs the very same machines under faults.
//!
//! | type | decides |
//! | --- | --- |
//! | [`Replica`] | who may release output, and who takes over |

mod arbiter;
mod claim;
mod command;
mod event;
mod mode;
mod primary;
mod question;
mod replica;
mod replica_id;
mod secondary;
mod status;
#[cfg(test)]
mod tests;

pub use arbiter::{Arbiter, Unreachable, Verdict};
pub use claim::{Claim, Epoch, Generation};
pub use command::{Command, StopReason};
pub use event::{DropReason, Event, LossReason};
pub use mode::{FtMode, UnknownMode};
pub use replica::Replica;
pub use replica_id::ReplicaId;
pub use status::{Protection, Reason, Role, Status};
