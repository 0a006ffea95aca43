//! Requests done while the vCPU that asks for them waits.

use memory::DmaMemory;

use super::checked::{ByteRange, CheckedRequest, Geometry};
use super::recorded::RecordedDisk;
use super::request::{HEADER_LEN, RequestError};
use crate::devices::virtio::chain::Chain;

/// Bytes moved between guest and backend at a time.
const COPY_BYTES: usize = 128 << 10;

/// Does requests at once.
pub(super) struct Synchronous {
    pub backend: RecordedDisk,
    /// [`COPY_BYTES`] bytes.
    copy: Box<[u8]>,
}

impl Synchronous {
    pub fn new(backend: RecordedDisk) -> Self {
        Self { backend, copy: vec![0; COPY_BYTES].into() }
    }

    /// Does a request; returns how many bytes of data it wrote to the guest.
    pub fn perform(
        &mut self,
        request: &CheckedRequest,
        geometry: &Geometry,
        chain: &Chain,
        memory: &DmaMemory,
        write_through: bool,
    ) -> Result<u64, RequestError> {
        let mut written = 0;
        match request {
            CheckedRequest::Read { offset, len } => {
                self.read(chain, memory, *offset, *len)?;
                written = *len;
            }
            CheckedRequest::Write { offset, len } => self.write(chain, memory, *offset, *len)?,
            CheckedRequest::Flush => self.backend.flush().map_err(RequestError::Backend)?,
            CheckedRequest::GetId { len } => {
                geometry.write_id(chain, memory, *len)?;
                written = *len;
            }
            CheckedRequest::Discard(ranges) => {
                for ByteRange { offset, len, .. } in ranges {
                    self.backend.discard(*offset, *len).map_err(RequestError::Backend)?;
                }
            }
            CheckedRequest::WriteZeroes(ranges) => {
                for ByteRange { offset, len, may_unmap } in ranges {
                    self.backend.write_zeroes(*offset, *len, *may_unmap).map_err(RequestError::Backend)?;
                }
            }
        }
        if write_through && request.is_written_through() {
            self.backend.flush().map_err(RequestError::Backend)?;
        }
        Ok(written)
    }

    fn read(&mut self, chain: &Chain, memory: &DmaMemory, start: u64, len: u64) -> Result<(), RequestError> {
        let mut done = 0;
        while done < len {
            let piece = piece(&mut self.copy, len - done);
            self.backend.read_at(start + done, piece).map_err(RequestError::Backend)?;
            chain.write(memory, done, piece).map_err(|_| RequestError::Refused)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, chain: &Chain, memory: &DmaMemory, start: u64, len: u64) -> Result<(), RequestError> {
        let mut done = 0;
        while done < len {
            let piece = piece(&mut self.copy, len - done);
            chain.read(memory, HEADER_LEN as u64 + done, piece).map_err(|_| RequestError::Refused)?;
            self.backend.write_at(start + done, piece).map_err(RequestError::Backend)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

/// As much of the buffer as `len` bytes need.
fn piece(buffer: &mut [u8], len: u64) -> &mut [u8] {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..len]
}
