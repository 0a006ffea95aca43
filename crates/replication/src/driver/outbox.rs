//! What waits to be sent to the secondary, in two lanes: urgent messages pass everything else.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::capture::Capture;
use super::message::Kind;

/// Most bytes of urgent messages that wait; inbound frames that find no room are not passed on.
const URGENT_BYTES_MAX: usize = 8 << 20;
/// Bytes of long messages that wait before their source is to wait.
const BULK_BYTES_MAX: usize = 2 << 20;

/// A short message that must not wait behind a checkpoint.
#[derive(Debug)]
pub(super) struct Urgent {
    pub kind: Kind,
    pub payload: Vec<u8>,
}

/// Something long.
pub(super) enum Bulk {
    /// A message as it is.
    Message { kind: Kind, payload: Vec<u8> },
    /// Part of the first copy.
    Piece(Piece),
    /// A whole checkpoint.
    Checkpoint(Box<Capture>),
    /// Checkpoints follow the log.
    EndOfLog,
}

/// A part of the first copy, which the secondary applies at once.
pub(super) enum Piece {
    /// Pages to be read from memory when their turn comes, while the guest runs.
    Pages(Vec<u64>),
    /// Pieces of the log of disk writes, which hold so many bytes of the guest's.
    Writes { messages: Vec<Vec<u8>>, bytes: u64 },
}

impl Bulk {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { payload, .. } => payload.len(),
            // Read when they are sent; what waits are only their numbers.
            Self::Piece(Piece::Pages(pages)) => pages.len() * size_of::<u64>(),
            Self::Piece(Piece::Writes { messages, .. }) => messages.iter().map(Vec::len).sum(),
            Self::Checkpoint(_) | Self::EndOfLog => 0,
        }
    }
}

/// What the sender does next.
pub(super) enum Next {
    Urgent(VecDeque<Urgent>),
    Bulk(Bulk),
    /// Nothing came until the time was up.
    Idle,
    Closed,
}

#[derive(Default)]
struct Lanes {
    urgent: VecDeque<Urgent>,
    urgent_bytes: usize,
    bulk: VecDeque<Bulk>,
    bulk_bytes: usize,
    /// The sender works on something that it took from the bulk lane.
    sending: bool,
    /// The sender sleeps.
    sender_waits: bool,
    closed: bool,
}

/// The two lanes, shared by those who fill them and the thread that empties them.
#[derive(Default)]
pub(super) struct Outbox {
    lanes: Mutex<Lanes>,
    /// There is something to send; the sender alone waits for it.
    filled: Condvar,
}

impl Outbox {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the sender, which costs a system call, only if it sleeps.
    fn wake_sender(&self, mut lanes: MutexGuard<'_, Lanes>) {
        let waits = std::mem::take(&mut lanes.sender_waits);
        drop(lanes);
        if waits {
            self.filled.notify_one();
        }
    }

    /// Queues an urgent message; false if there is no room for it or the connection is closed.
    pub fn push_urgent(&self, kind: Kind, payload: Vec<u8>) -> bool {
        self.queue_urgent(kind, payload, true)
    }

    /// Queues a short message that may wait until something else is sent, a heartbeat at the latest; false as above.
    pub fn push_in_passing(&self, kind: Kind, payload: Vec<u8>) -> bool {
        self.queue_urgent(kind, payload, false)
    }

    fn queue_urgent(&self, kind: Kind, payload: Vec<u8>, wake: bool) -> bool {
        let mut lanes = self.lanes();
        if lanes.closed || lanes.urgent_bytes + payload.len() > URGENT_BYTES_MAX {
            return false;
        }
        lanes.urgent_bytes += payload.len();
        lanes.urgent.push_back(Urgent { kind, payload });
        if wake {
            self.wake_sender(lanes);
        }
        true
    }

    /// Queues something long; false if the connection is closed. Nobody waits here, as whoever queues must be free to give up a secondary
    /// that does not read: he looks first whether the lane [is full](Self::is_full).
    pub fn push_bulk(&self, bulk: Bulk) -> bool {
        let mut lanes = self.lanes();
        if lanes.closed {
            return false;
        }
        lanes.bulk_bytes += bulk.bytes();
        lanes.bulk.push_back(bulk);
        self.wake_sender(lanes);
        true
    }

    /// Whether nothing is taken any more.
    pub fn is_closed(&self) -> bool {
        self.lanes().closed
    }

    /// Whether there is no room for anything long.
    pub fn is_full(&self) -> bool {
        self.lanes().bulk_bytes > BULK_BYTES_MAX
    }

    /// Whether nothing long waits or is being sent.
    pub fn is_idle(&self) -> bool {
        let lanes = self.lanes();
        !lanes.sending && lanes.bulk.is_empty()
    }

    /// What to send next; waits until `deadline`. What was taken before counts as sent.
    pub fn next(&self, deadline: Instant) -> Next {
        let mut lanes = self.lanes();
        lanes.sending = false;
        loop {
            if lanes.closed {
                return Next::Closed;
            }
            if !lanes.urgent.is_empty() {
                lanes.urgent_bytes = 0;
                return Next::Urgent(std::mem::take(&mut lanes.urgent));
            }
            if let Some(bulk) = lanes.bulk.pop_front() {
                lanes.bulk_bytes -= bulk.bytes();
                lanes.sending = true;
                return Next::Bulk(bulk);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Next::Idle;
            }
            lanes.sender_waits = true;
            lanes = self.filled.wait_timeout(lanes, left).unwrap_or_else(PoisonError::into_inner).0;
            lanes.sender_waits = false;
        }
    }

    /// The urgent messages that came meanwhile, for a sender in the middle of something long; `None` once closed.
    pub fn take_urgent(&self) -> Option<VecDeque<Urgent>> {
        let mut lanes = self.lanes();
        if lanes.closed {
            return None;
        }
        lanes.urgent_bytes = 0;
        Some(std::mem::take(&mut lanes.urgent))
    }

    /// Ends it: nothing is taken or given any more.
    pub fn close(&self) {
        let mut lanes = self.lanes();
        lanes.closed = true;
        lanes.bulk.clear();
        lanes.urgent.clear();
        drop(lanes);
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn urgent_messages_pass_long_ones_and_keep_their_order() {
        let outbox = Outbox::default();
        assert!(outbox.push_bulk(Bulk::Piece(Piece::Pages(vec![1]))));
        assert!(outbox.push_urgent(Kind::Released, vec![]));
        assert!(outbox.push_urgent(Kind::Entitled, vec![]));
        let Next::Urgent(urgent) = outbox.next(soon()) else { panic!("urgent first") };
        assert_eq!(urgent.iter().map(|message| message.kind).collect::<Vec<_>>(), [Kind::Released, Kind::Entitled]);
        assert!(matches!(outbox.next(soon()), Next::Bulk(Bulk::Piece(Piece::Pages(_)))));
        assert!(!outbox.is_idle());
        assert!(matches!(outbox.next(Instant::now()), Next::Idle));
        assert!(outbox.is_idle() && !outbox.is_closed());
    }

    #[test]
    fn a_secondary_that_does_not_read_costs_bounded_memory() {
        let outbox = Outbox::default();
        let taken = (0..20).filter(|_| outbox.push_urgent(Kind::Inbound, vec![0; 1 << 20])).count();
        assert_eq!(taken, URGENT_BYTES_MAX >> 20);
        let message = || Bulk::Message { kind: Kind::Log, payload: vec![0; 1 << 20] };
        let taken = (0..20).take_while(|_| !outbox.is_full() && outbox.push_bulk(message())).count();
        assert_eq!(taken, 3);
        outbox.close();
        assert!(!outbox.push_bulk(Bulk::EndOfLog));
        assert!(matches!(outbox.next(soon()), Next::Closed));
        assert!(!outbox.push_urgent(Kind::Inbound, vec![]) && outbox.take_urgent().is_none() && outbox.is_closed());
    }
}
