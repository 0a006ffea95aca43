//! When the run loop should look at a card.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that is readable when the backend behind it is, when that has room again, or when the gate has.
///
/// A card's own descriptor would not do: it is writable while the gate is full, and a run loop that waits for it to be
/// would not sleep. An epoll instance can be polled itself, and what it watches may change.
#[derive(Debug)]
pub(super) struct Readiness {
    epoll: OwnedFd,
    room: OwnedFd,
}

impl Readiness {
    pub fn new(backend: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let room = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, backend, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&epoll, &room, EventData::new_u64(1), EventFlags::IN)?;
        Ok(Self { epoll, room })
    }

    /// Whether room in the backend is waited for.
    pub fn watch_room_of(&self, backend: BorrowedFd<'_>, wanted: bool) {
        let flags = if wanted { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        // It can fail only if the backend changed its descriptor; then the next input tries again.
        if let Err(error) = epoll::modify(&self.epoll, backend, EventData::new_u64(0), flags) {
            tracing::warn!(%error, "cannot watch a network backend");
        }
    }

    /// Wakes the run loop: the gate has room again.
    pub fn signal_room(&self) {
        // A full counter is readable as well.
        let _ = rustix::io::write(&self.room, &1u64.to_ne_bytes());
    }

    /// Forgets [`Self::signal_room`].
    pub fn acknowledge_room(&self) {
        // An error means that there was nothing to forget.
        let _ = rustix::io::read(&self.room, &mut [0; 8]);
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
