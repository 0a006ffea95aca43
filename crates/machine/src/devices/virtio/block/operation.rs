//! What is done to a disk's image, with everything that it takes: nothing of the guest's is needed meanwhile.

use std::io;

use super::backend::BlockBackend;
use super::checked::ByteRange;

/// An operation that a request asks for.
pub(super) struct Operation {
    pub kind: OperationKind,
    /// What is written, or where what is read goes: as long as that is.
    pub data: Vec<u8>,
    /// Flush when it is done.
    pub then_flush: bool,
}

pub(super) enum OperationKind {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    Discard(Vec<ByteRange>),
    WriteZeroes(Vec<ByteRange>),
}

impl Operation {
    /// Blocks until it is done.
    pub fn perform(&mut self, backend: &dyn BlockBackend) -> io::Result<()> {
        match &self.kind {
            OperationKind::Read { offset } => backend.read_at(*offset, &mut self.data)?,
            OperationKind::Write { offset } => backend.write_at(*offset, &self.data)?,
            OperationKind::Flush => backend.flush()?,
            OperationKind::Discard(ranges) => {
                for ByteRange { offset, len, .. } in ranges {
                    backend.discard(*offset, *len)?;
                }
            }
            OperationKind::WriteZeroes(ranges) => {
                for ByteRange { offset, len, may_unmap } in ranges {
                    backend.write_zeroes(*offset, *len, *may_unmap)?;
                }
            }
        }
        if self.then_flush {
            backend.flush()?;
        }
        Ok(())
    }
}
