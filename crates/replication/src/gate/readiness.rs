//! When the run loop should look at a card.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that is readable when the backend behind it is, when that has room again, when the gate has, or when the backend has come
/// or gone.
///
/// A card's own descriptor would not do: it is writable while the gate is full, and a run loop that waits for it to be
/// would not sleep. An epoll instance can be polled itself, and what it watches may change.
#[derive(Debug)]
pub(super) struct Readiness {
    epoll: OwnedFd,
    room: OwnedFd,
    change: OwnedFd,
}

impl Readiness {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (room, change) = (eventfd(0, flags)?, eventfd(0, flags)?);
        epoll::add(&epoll, &room, EventData::new_u64(1), EventFlags::IN)?;
        epoll::add(&epoll, &change, EventData::new_u64(2), EventFlags::IN)?;
        Ok(Self { epoll, room, change })
    }

    /// Takes a backend's descriptor in.
    pub fn watch(&self, backend: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, backend, EventData::new_u64(0), EventFlags::IN)?)
    }

    /// Takes it out.
    pub fn forget(&self, backend: BorrowedFd<'_>) {
        if let Err(error) = epoll::delete(&self.epoll, backend) {
            tracing::warn!(%error, "a network backend is watched further on");
        }
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
        signal(&self.room);
    }

    /// Wakes the run loop: the backend has come or gone.
    pub fn signal_change(&self) {
        signal(&self.change);
    }

    /// Forgets [`Self::signal_room`].
    pub fn acknowledge_room(&self) {
        acknowledge(&self.room);
    }

    /// Forgets [`Self::signal_change`].
    pub fn acknowledge_change(&self) {
        acknowledge(&self.change);
    }
}

fn signal(event: &OwnedFd) {
    // A full counter is readable as well.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

fn acknowledge(event: &OwnedFd) {
    // An error means that there was nothing to forget.
    let _ = rustix::io::read(event, &mut [0; 8]);
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
