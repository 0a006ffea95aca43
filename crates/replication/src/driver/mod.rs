//! What carries out the decisions of the crate `protocol`, in both FT modes: threads, sockets and buffers.
//!
//! In mirror mode the primary runs the guest in epochs. An epoch ends when output waits, when its time is up, or when too much was written; the guest
//! is paused, what the epoch changed is captured, and the guest runs on while the capture is encoded and sent. The secondary
//! acknowledges a checkpoint when all of it lies checked in its memory; that is the commit which opens the gate for the epoch's output.
//!
//! | thread of the primary | does |
//! | --- | --- |
//! | the VM's ([`Primary::run`]) | runs the guest, captures |
//! | `mirror-send` | encodes and sends; heartbeats |
//! | `mirror-acks` | receives acks, releases output |
//! | `first-copy` | brings a new secondary to the first checkpoint |
//! | `disk-watch` | looks whether the disks are broken |
//! | `mirror-early` | on an engine that logs dirty pages, copies most of them before the guest is paused |

mod capture;
mod clock;
mod console;
mod early;
mod figures;
mod first_copy;
mod follower;
mod intake;
mod message;
mod options;
mod outbox;
mod pause_queue;
mod primary;
mod progress;
mod reception;
mod secondary;
mod sender;
mod session;
mod staging;
mod trigger;

pub use console::{ConsoleHistory, ConsoleInput, ConsolePiece, ConsolePlace};
pub use figures::{Encodings, Figures, PauseClass, PauseParts, Quantiles};
pub use first_copy::ProtectError;
pub use options::MirrorOptions;
pub use pause_queue::VmStopped;
pub use primary::{NotPaused, Primary, PrimaryEnd, PrimaryParts, PrimaryStatus, SetModeError, SwitchOverError};
pub use progress::{Phase, Progress};
pub use secondary::{
    MakeVm, Secondary, SecondaryEnd, SecondaryError, SecondaryHandle, SecondaryParts, SecondaryStatus, TakenOver,
};
pub use trigger::Trigger;
