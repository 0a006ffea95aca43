//! Which processes belong to no terminal and to no parent.

use super::Command;

/// Takes a process that outlives whoever has started it, or ends in its own way after that, out of the session of that one. Then neither Ctrl-C nor the end of
/// a terminal reaches it, nor the SIGHUP that Linux sends to a process group where somebody stands still when its last parent in the session ends, as a daemon
/// does that is killed.
///
/// The process does it itself: whoever starts it could give it only a process group, and the leader of one can found no session. What reaches the parent's
/// process group reaches it up to here, so this comes first. Whoever presses Ctrl-C in that moment ends the parent as well, and what has not begun is begun
/// again by the next.
pub fn leave_for(command: &Command) {
    // A replica's broker is of its replica's session, with which it starts and ends.
    let leaves = matches!(command, Command::Replica(_) | Command::NetEnd(_) | Command::RunBroker(_) | Command::DiskJob);
    if leaves {
        // It fails for the leader of a process group alone. An interactive shell makes one of what is typed there, and is the one to end it.
        let _ = rustix::process::setsid();
    }
}
