//! Why something could not be done with a repository.

use std::io;
use std::path::{Path, PathBuf};

use super::point::PointId;

/// Why something could not be done with a repository.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// There is something else.
    #[error("{} is not a backup repository: {why}", path.display())]
    NotARepository {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A new repository is to be where something is.
    #[error("{} is not empty: a new repository needs a folder of its own", .0.display())]
    NotEmpty(PathBuf),
    /// Written by a newer version.
    #[error("{} has repository format {found}, and this twinvm reads format {known}: use the twinvm that wrote it, or a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version that it says.
        found: u32,
        /// The newest that can be read.
        known: u32,
    },
    /// The key is another repository's.
    #[error("the key is not that of the repository in {}", .0.display())]
    WrongKey(PathBuf),
    /// A text that is no key.
    #[error("this is not the key of a backup repository: {0}")]
    BadKey(&'static str),
    /// A file does not hold what was written to it.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A part of a recovery point is nowhere.
    #[error("chunk {0} is missing: a file of the repository is damaged or gone; `verify` names it")]
    MissingChunk(String),
    /// A point that is not there.
    #[error("there is no recovery point {0}")]
    NoPoint(String),
    /// Several points fit.
    #[error("{0} is the beginning of more than one recovery point: give more of it")]
    Ambiguous(String),
    /// The source says what cannot be.
    #[error("the source of the backup is damaged: {0}")]
    Source(String),
    /// Somebody has asked for that.
    #[error("it was cancelled")]
    Cancelled,
    /// Prune has removed what a backup relied on, as that took too long.
    #[error(
        "the backup took so long that the repository was pruned of what it relied on: run it again, which will be quicker"
    )]
    TookTooLong,
    /// Points that cannot be read need something that is not known.
    #[error("recovery point {0} cannot be read, so that nobody knows what it needs: forget it, and prune again")]
    UnknownNeeds(PointId),
    /// Others use the repository.
    #[error("a backup is being written to {}: what no point needs can be removed at once only when there is none", .0.display())]
    InUse(PathBuf),
    /// The host gives no random bytes.
    #[error("the host gives no random bytes")]
    Random,
    /// A thread that worked for this one has ended.
    #[error("a part of the work has failed without saying why")]
    Worker,
    /// Whoever takes what is read has failed.
    #[error("{0}")]
    Target(String),
}

impl BackupError {
    /// An error of the file system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// A damaged file.
    pub(crate) fn damaged(path: &Path, why: &'static str) -> Self {
        Self::Damaged { path: path.to_owned(), why }
    }
}
