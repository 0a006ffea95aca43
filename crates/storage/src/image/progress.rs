//! How a build tells where it is.

/// What a build or a pull is doing. Stages come in this order; a cached image goes from [`Stage::Resolve`] straight to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for another build in the same images directory.
    Wait,
    /// Fetching the package lists.
    Update,
    /// Working out which packages are needed.
    Resolve,
    /// Fetching a disk that is pulled; counted in bytes.
    Fetch,
    /// Making a raw disk of it; counted in bytes.
    RootDiskCopy,
    /// Downloading packages; counted in bytes.
    Download,
    /// Installing packages, with their maintainer scripts; counted in steps.
    Install,
    /// Unpacking packages, or the new system; packages are counted.
    Unpack,
    /// Writing configuration, module lists and library caches.
    Configure,
    /// Writing the initial RAM disk.
    Initrd,
    /// Writing the root disk; counted in files.
    RootDisk,
    /// Computing digests; counted in bytes.
    Digest,
}

impl Stage {
    /// A few words for a progress bar.
    pub fn label(self) -> &'static str {
        match self {
            Self::Wait => "waiting for another build",
            Self::Update => "fetching package lists",
            Self::Resolve => "resolving packages",
            Self::Fetch => "fetching the disk",
            Self::RootDiskCopy => "unpacking the disk",
            Self::Download => "downloading packages",
            Self::Install => "installing packages",
            Self::Unpack => "unpacking packages",
            Self::Configure => "configuring",
            Self::Initrd => "writing initial RAM disk",
            Self::RootDisk => "writing root disk",
            Self::Digest => "computing digests",
        }
    }

    /// Whether `done` and `total` are bytes rather than a count.
    pub fn counts_bytes(self) -> bool {
        matches!(self, Self::Fetch | Self::RootDiskCopy | Self::Download | Self::Digest)
    }
}

/// Receives a build's progress, and may stop it.
pub trait Progress {
    /// `stage` has done `done` of `total`; `total` is 0 where it is not known.
    fn update(&mut self, stage: Stage, done: u64, total: u64);

    /// Asked often; once true, the build stops, cleans up and returns [`ImageError::Cancelled`](super::ImageError::Cancelled).
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Progress that nobody looks at.
pub struct NoProgress;

impl Progress for NoProgress {
    fn update(&mut self, _stage: Stage, _done: u64, _total: u64) {}
}
