//! Who may release output, and who takes over: a pure state machine.

mod arbiter;
mod claim;
mod command;
mod event;
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
pub use replica::Replica;
pub use replica_id::ReplicaId;
pub use status::{Protection, Reason, Role, Status};
