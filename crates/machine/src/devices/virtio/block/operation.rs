//! What is done to a disk's image, with everything that it takes: nothing of the guest's is needed meanwhile.

use std::io;

use super::backend::BlockBackend;
use super::checked::ByteRange;

/// An operation that a request asks for.
pub(super) struct Operation {
    pub kind: OperationKind,
    /// Flush when it is done.
    pub then_flush: bool,
}

pub(super) enum OperationKind {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8> },
    Flush,
    Discard(Vec<ByteRange>),
    WriteZeroes(Vec<ByteRange>),
}

impl Operation {
    /// Blocks until it is done; returns the data of a read.
    pub fn perform(self, backend: &dyn BlockBackend) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        match self.kind {
            OperationKind::Read { offset, len } => {
                read = vec![0; len];
                backend.read_at(offset, &mut read)?;
            }
            OperationKind::Write { offset, data } => backend.write_at(offset, &data)?,
            OperationKind::Flush => backend.flush()?,
            OperationKind::Discard(ranges) => {
                for ByteRange { offset, len, .. } in ranges {
                    backend.discard(offset, len)?;
                }
            }
            OperationKind::WriteZeroes(ranges) => {
                for ByteRange { offset, len, may_unmap } in ranges {
                    backend.write_zeroes(offset, len, may_unmap)?;
                }
            }
        }
        if self.then_flush {
            backend.flush()?;
        }
        Ok(read)
    }
}
