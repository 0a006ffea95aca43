//! An image whose failures are recorded, or happen as recorded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::{io, mem};

use super::backend::BlockBackend;
use crate::input::{FAILED_CONTENT_BYTES_MAX, FailedContent, TakenSignal};

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFailure {
    /// Which operation of the guest's on the image, from 0 since recording or replaying began.
    pub request: u64,
    /// What its range holds now.
    pub content: FailedContent,
}

/// What a guest's requests are carried out by: the image, and while a run is recorded or replayed, a look at how each ended.
///
/// How long the host takes for a request has no influence on the guest, as nothing happens to it meanwhile. What it is answered has. All that is
/// not determined by what was written before is whether the host fails, so this alone is recorded: operations are counted, and
/// in a replay those fail which did when it was recorded, and no others.
pub(super) struct RecordedDisk {
    backend: Arc<dyn BlockBackend>,
    follower: Option<Box<Follower>>,
}

/// Counts operations, for a recorder, after one, or both.
struct Follower {
    requests: u64,
    record: Option<Record>,
    replay: Option<Replay>,
}

struct Record {
    signal: TakenSignal,
    failures: Vec<DiskFailure>,
}

#[derive(Default)]
struct Replay {
    expected: VecDeque<DiskFailure>,
    divergence: Option<String>,
}

impl RecordedDisk {
    pub fn new(backend: Arc<dyn BlockBackend>) -> Self {
        Self { backend, follower: None }
    }

    /// The image itself, for what is not the guest's doing.
    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.backend
    }

    /// Begins to record for whoever `record` belongs to, and to replay; or ends what is not asked for. The count starts anew.
    pub fn follow(&mut self, record: Option<TakenSignal>, is_replay: bool) {
        let record = record.map(|signal| Record { signal, failures: Vec::new() });
        let replay = is_replay.then(Replay::default);
        let is_needed = record.is_some() || replay.is_some();
        self.follower = is_needed.then(|| Box::new(Follower { requests: 0, record, replay }));
    }

    /// Failures recorded since the last call, in order.
    pub fn take_failures(&mut self) -> Vec<DiskFailure> {
        let record = self.follower.as_mut().and_then(|follower| follower.record.as_mut());
        record.map(|record| mem::take(&mut record.failures)).unwrap_or_default()
    }

    /// Says what fails next, in a replay.
    pub fn expect(&mut self, failure: DiskFailure) {
        if let Some(replay) = self.follower.as_mut().and_then(|follower| follower.replay.as_mut()) {
            replay.expected.push_back(failure);
        }
    }

    /// Why this replay is not what was recorded, if it is not. Then nothing is done to the image any more.
    pub fn divergence(&self) -> Option<&str> {
        self.follower.as_ref()?.replay.as_ref()?.divergence.as_deref()
    }

    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.perform(None, |backend| backend.read_at(offset, buf))
    }

    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.perform(Some((offset, data.len() as u64)), |backend| backend.write_at(offset, data))
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.perform(None, |backend| backend.flush())
    }

    pub fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.perform(Some((offset, len)), |backend| backend.discard(offset, len))
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.perform(Some((offset, len)), |backend| backend.write_zeroes(offset, len, may_unmap))
    }

    /// Carries out an operation that changes `changed` (offset and length) if it does anything.
    #[inline]
    fn perform(
        &mut self,
        changed: Option<(u64, u64)>,
        operation: impl FnOnce(&dyn BlockBackend) -> io::Result<()>,
    ) -> io::Result<()> {
        match &mut self.follower {
            None => operation(&*self.backend),
            Some(follower) => follower.perform(&*self.backend, changed, operation),
        }
    }
}

impl Follower {
    fn perform(
        &mut self,
        backend: &dyn BlockBackend,
        changed: Option<(u64, u64)>,
        operation: impl FnOnce(&dyn BlockBackend) -> io::Result<()>,
    ) -> io::Result<()> {
        let request = self.requests;
        self.requests += 1;
        let (error, content) = match &mut self.replay {
            Some(replay) => match replay.next(request)? {
                Some(content) => {
                    let reproduced = reproduce(backend, changed, &content);
                    reproduced.map_err(|reason| replay.diverge(request, &reason))?;
                    (io::Error::other("failed when it was recorded"), content)
                }
                None => {
                    return operation(backend).map_err(|error| {
                        replay.diverge(request, &format!("failed, and had not when it was recorded: {error}"))
                    });
                }
            },
            None => match operation(backend) {
                Ok(()) => return Ok(()),
                Err(error) => (error, content_after_failure(backend, changed)),
            },
        };
        if let Some(record) = &mut self.record {
            record.failures.push(DiskFailure { request, content });
            record.signal.raise();
        }
        Err(error)
    }
}

impl Replay {
    /// How this operation is to fail, or `None` if it is not.
    fn next(&mut self, request: u64) -> io::Result<Option<FailedContent>> {
        if let Some(reason) = &self.divergence {
            return Err(io::Error::other(reason.clone()));
        }
        match self.expected.front() {
            Some(failure) if failure.request < request => {
                let late = failure.request;
                Err(self.diverge(
                    request,
                    &format!("comes after operation {late}, which should have failed and was not asked for"),
                ))
            }
            Some(failure) if failure.request == request => Ok(self.expected.pop_front().map(|failure| failure.content)),
            Some(_) | None => Ok(None),
        }
    }

    fn diverge(&mut self, request: u64, reason: &str) -> io::Error {
        let reason = self.divergence.get_or_insert_with(|| format!("operation {request} {reason}"));
        io::Error::other(reason.clone())
    }
}

/// What an operation left that failed. It may have been done in part.
fn content_after_failure(backend: &dyn BlockBackend, changed: Option<(u64, u64)>) -> FailedContent {
    let Some((offset, len)) = changed else { return FailedContent::Unchanged };
    match usize::try_from(len) {
        Ok(len) if len <= FAILED_CONTENT_BYTES_MAX => {
            let mut bytes = vec![0; len];
            match backend.read_at(offset, &mut bytes) {
                Ok(()) => FailedContent::Bytes(bytes),
                Err(_) => FailedContent::Unknown,
            }
        }
        _ => FailedContent::Unknown,
    }
}

/// Makes the range hold what it held where the operation failed; or says why that cannot be done.
fn reproduce(backend: &dyn BlockBackend, changed: Option<(u64, u64)>, content: &FailedContent) -> Result<(), String> {
    match (content, changed) {
        (FailedContent::Unchanged, None) => Ok(()),
        (FailedContent::Bytes(bytes), Some((offset, len))) if bytes.len() as u64 == len => backend
            .write_at(offset, bytes)
            .map_err(|error| format!("failed when it was recorded, and what it left cannot be written: {error}")),
        (FailedContent::Unknown, _) => Err("failed when it was recorded, and nobody knows what it left".to_owned()),
        _ => Err("is not the one that failed when it was recorded".to_owned()),
    }
}

#[cfg(test)]
mod tests;
