//! Recovery points of VMs, and the repositories that keep them, apart from the hosts that run the VMs.
//!
//! A [`Repository`] is a folder. What is in it is split into chunks that are named by what they hold, compressed, and encrypted before they are written:
//! whoever keeps the folder learns how much there is and when it came, and nothing else. `docs/backup-format.md` describes every byte.
//!
//! - [`Backup`] writes a [`RecoveryPoint`]. The point itself is written last, after all that it needs is on stable storage: whenever a backup is cut short,
//!   it is either whole or not there.
//! - [`Repository::read_volume`] brings a disk back.
//! - [`Repository::verify`] reads everything, and names the files that are damaged and the points that have lost something.
//! - [`Retention`] says which points are kept; [`Repository::prune`] gives back the space of what no point needs, in two phases, so that it never
//!   takes away what a backup under way relies on.

mod backup;
mod chunk;
mod error;
mod index;
mod key;
mod pack;
mod point;
mod prune;
mod repository;
mod restore;
mod retention;
mod seal;
mod stream;
mod verify;

pub use backup::{Backup, PointOf};
pub use chunk::{CHUNK_BYTES, ChunkId};
pub use error::BackupError;
pub use key::RepositoryKey;
pub use pack::PackName;
pub use point::{PointId, RecoveryPoint, Volume};
pub use prune::{GRACE, Pruned, When};
pub use repository::{Damage, Listed, Repository};
pub use retention::Retention;
pub use stream::{StreamError, StreamWriter, back_up_stream};
pub use verify::{PointVerdict, Verification};
