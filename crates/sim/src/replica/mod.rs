//! The hands of a replica: what carries out the commands of [`protocol::Replica`], and measures for it, in a world whose time is simulated.
//!
//! Nothing is decided here. What ends an epoch, what an ack says, what is sent next for a first copy, what comes first while a guest stands still, what a
//! secondary does before it asks for its VM, and what becomes of broken disks: all of it is said by `protocol`, here as in `replication::driver`. What a
//! [`Mutation`](crate::Mutation) gets wrong on purpose, it gets wrong here.
//!
//! | module | holds |
//! | --- | --- |
//! | `primary_commands`, `secondary_commands` | the commands of each role, carried out |
//! | `primary_session`, `secondary_session` | the connection of the two, from either side |
//! | `guest` | the guest on the primary, and the checkpoints that are taken of it |
//! | `event_log` | the log that takes the place of checkpoints in lockstep, and its execution |
//! | `first_copy` | parts of a first copy, sent and taken in |
//! | `readiness` | a secondary that gets ready to take over |
//! | `input`, `output` | frames for the guest, and those that it sends |

mod event_log;
mod first_copy;
mod guest;
mod input;
mod output;
mod primary_commands;
mod primary_session;
mod readiness;
mod secondary_commands;
mod secondary_session;
