//! A disk as it was when it was frozen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::freezer::{Batch, Freezer, Stretch};
use super::{DiskError, DiskImage, ImageForm, Spill};

/// An image that others use as well, each while the others wait.
pub trait SharedImage: Send {
    /// Does something with it.
    ///
    /// # Errors
    /// That of `act`.
    fn with(&self, act: &mut dyn FnMut(&mut DiskImage) -> Result<(), DiskError>) -> Result<(), DiskError>;
}

impl SharedImage for Arc<Mutex<DiskImage>> {
    fn with(&self, act: &mut dyn FnMut(&mut DiskImage) -> Result<(), DiskError>) -> Result<(), DiskError> {
        act(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Freezes the content of an image, also while others have it.
#[derive(Clone, Debug)]
pub struct DiskFreezer(pub(super) Arc<Freezer>);

impl DiskFreezer {
    /// Freezes the content for a reader, which finds it in `image`, whose the freezer is. Takes no longer if the disk is bigger, or busy. What is written
    /// over before it was read is kept in `spill`.
    ///
    /// # Errors
    /// [`DiskError::InUse`] while it is frozen for another one.
    pub fn freeze(&self, image: impl SharedImage + 'static, spill: &Arc<Spill>) -> Result<FrozenDisk, DiskError> {
        let number = self.0.freeze(spill.clone())?;
        Ok(FrozenDisk {
            freezer: self.0.clone(),
            number,
            image: Box::new(image),
            batch: Batch::default(),
            has_settled: false,
        })
    }
}

/// What a disk held when it was frozen, to be read once, in order. Dropping it thaws the disk.
pub struct FrozenDisk {
    freezer: Arc<Freezer>,
    number: u64,
    image: Box<dyn SharedImage>,
    batch: Batch,
    /// Changes that had begun before have ended.
    has_settled: bool,
}

impl FrozenDisk {
    /// What the image is besides its content.
    ///
    /// # Errors
    /// None but those of whoever shares the image.
    pub fn form(&self) -> Result<ImageForm, DiskError> {
        let mut form = None;
        self.image.with(&mut |image| {
            form = Some(image.form());
            Ok(())
        })?;
        form.ok_or_else(|| DiskError::Spill(std::io::ErrorKind::NotFound.into()))
    }

    /// The next part, with its bytes if it is data; `None` after the last. `is_cancelled` is asked while it waits for others.
    ///
    /// # Errors
    /// Those of reading the image, and of keeping what was written over: [`DiskError::Spill`]. Nothing more can be read then.
    pub fn read_next(&mut self, is_cancelled: &AtomicBool) -> Result<Option<(Stretch, &[u8])>, DiskError> {
        let Self { freezer, number, image, batch, has_settled } = self;
        if !*has_settled {
            freezer.wait_for_earlier(*number, || is_cancelled.load(Ordering::Relaxed));
            if is_cancelled.load(Ordering::Relaxed) {
                return Err(DiskError::Spill(std::io::ErrorKind::Interrupted.into()));
            }
            *has_settled = true;
        }
        if batch.stretches.is_empty() {
            image.with(&mut |image| freezer.read(*number, image, batch))?;
        }
        let Some(stretch) = batch.stretches.pop_front() else { return Ok(None) };
        let place = (stretch.offset - batch.start) as usize;
        let data = match stretch.allocation {
            super::Allocation::Data => batch.data.get(place..place + stretch.length as usize).unwrap_or_default(),
            _ => &[],
        };
        Ok(Some((stretch, data)))
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        self.freezer.thaw();
    }
}
