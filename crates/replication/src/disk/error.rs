//! What can go wrong with replicated disks.

/// Why disks cannot be replicated, or a peer's message about them is refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskSyncError {
    /// An image cannot be read or written.
    #[error("disk {disk}: {source}")]
    Image {
        /// Which disk, from 0.
        disk: u32,
        /// The image's error; it names the file.
        source: storage::disk::DiskError,
    },
    /// What the peer sent does not have the form it must have.
    #[error("malformed message about disks: {0}")]
    Malformed(&'static str),
    /// What the peer sent does not fit the disks.
    #[error("disk {disk}: {reason}")]
    Refused {
        /// Which disk, from 0.
        disk: u32,
        /// What does not fit.
        reason: &'static str,
    },
    /// The replicas' disks are not of the same kind.
    #[error("the disks differ: {0}")]
    Different(String),
    /// The primary could not say what happened to its disk, so a replica cannot follow.
    #[error("disk {disk}: its log has a gap (a write failed halfway, or too much was waiting to be sent)")]
    Lost {
        /// Which disk, from 0.
        disk: u32,
    },
    /// The log that a copy belongs to was stopped.
    #[error("the copy of the disks was abandoned")]
    Abandoned,
    /// The system gives no thread to write the disks.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// It cannot be noted what the copy of the disks is.
    #[error("cannot mark the copy of the disks: {0}")]
    Mark(#[source] std::io::Error),
    /// What is known of the disks cannot be kept.
    #[error("cannot record the digests of the disks: {0}")]
    Record(#[source] std::io::Error),
    /// The thread that writes the disks panicked: what they hold is not known.
    #[error("the thread that writes the disks has failed")]
    ThreadFailed,
}

impl DiskSyncError {
    /// Says which disk an image's error is about.
    pub(super) fn image(disk: u32) -> impl FnOnce(storage::disk::DiskError) -> Self {
        move |source| Self::Image { disk, source }
    }
}
