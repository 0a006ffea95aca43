//! What a guest has written to its console, as one replica passes it on to the other.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// A place in what a guest has written to its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsolePlace {
    /// Which run of the VM: another number each time that it is started. A takeover and a reset by the guest are within one run.
    pub run: u64,
    /// Bytes written in this run before this place.
    pub bytes: u64,
}

/// Some of what a guest has written to its console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsolePiece {
    /// Where it begins.
    pub from: ConsolePlace,
    /// What was written.
    pub bytes: Vec<u8>,
}

impl ConsolePiece {
    /// Where it ends.
    pub fn end(&self) -> ConsolePlace {
        ConsolePlace { run: self.from.run, bytes: self.from.bytes.saturating_add(self.bytes.len() as u64) }
    }
}

/// What clients have typed on a console, at a moment when its guest stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleInput {
    /// What the guest has not read yet.
    pub waiting: Vec<u8>,
    /// The clients that have typed lately, by numbers of their own, and how many bytes of each were taken, the waiting ones included.
    pub taken: Vec<(u64, u64)>,
}

/// What the guest has written last, which a primary passes on and a secondary keeps: whoever looks at the console after a takeover sees what
/// was written before. It serves the administrator and is not gated, and a secondary may lack the last of it.
pub trait ConsoleHistory: Send + Sync + Debug {
    /// What follows `place`, or the oldest that is kept if that is gone or of another run; at most `bytes_max` bytes. Empty if there is nothing.
    fn after(&self, place: ConsolePlace, bytes_max: usize) -> ConsolePiece;

    /// Adds what the primary has passed on. What does not follow on what is kept takes its place.
    fn go_on_with(&self, piece: &ConsolePiece);

    /// The guest is handed over to another replica as it stands: takes nothing from clients any more, and says what was taken. What they type from now on waits
    /// with them.
    fn hand_over(&self) -> ConsoleInput;

    /// The guest goes on here after all.
    fn keep(&self);

    /// Goes on with what another replica has handed over, when this one runs the guest.
    fn take_over(&self, input: ConsoleInput);
}
