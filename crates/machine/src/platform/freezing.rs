//! Disks of a VM that a snapshot is taken of.

use std::io;
use std::sync::Arc;

use storage::disk::{FrozenDisk, Spill};

use super::Platform;
use crate::bus::lock;

impl Platform {
    /// Freezes the content of some disks of a paused VM, by their numbers.
    ///
    /// # Errors
    /// Those of [`crate::devices::virtio::block::Block::freeze`]: none is frozen then.
    pub fn freeze_disks(
        &self,
        numbers: impl Iterator<Item = usize>,
        spill: &Arc<Spill>,
    ) -> io::Result<Vec<FrozenDisk>> {
        let disk = |number: usize| self.disks.get(number).ok_or(io::ErrorKind::NotFound);
        numbers.map(|number| lock(disk(number)?).device().freeze(spill)).collect()
    }
}
