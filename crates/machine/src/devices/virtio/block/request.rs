//! The form of requests (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// The unit of all positions and lengths.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Length of `struct virtio_blk_req` up to its data.
pub(super) const HEADER_LEN: usize = 16;
/// Length of the status byte that ends a request.
pub(super) const STATUS_LEN: u64 = 1;
/// Length of `struct virtio_blk_discard_write_zeroes`.
pub(super) const RANGE_LEN: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { sector: u64 },
    Write { sector: u64 },
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Unknown,
}

impl Request {
    pub fn parse(header: [u8; HEADER_LEN]) -> Self {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Self::Read { sector },
            VIRTIO_BLK_T_OUT => Self::Write { sector },
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::GetId,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }
}

/// A range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SectorRange {
    pub sector: u64,
    pub sectors: u32,
    /// The sectors may be deallocated.
    pub unmap: bool,
    /// Flags are set that nobody has defined.
    pub unknown_flags: bool,
}

impl SectorRange {
    pub fn parse(bytes: [u8; RANGE_LEN]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let flags = u32::from_le_bytes(flags);
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            unknown_flags: flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        }
    }
}

/// How a request ended that did not succeed.
#[derive(Debug)]
pub(super) enum RequestError {
    /// It makes no sense, or reaches beyond the disk.
    Refused,
    /// It is of a kind that this disk does not know.
    Unsupported,
    /// The backend failed.
    Backend(std::io::Error),
}

/// The status byte.
pub(super) fn status_byte<T>(result: &Result<T, RequestError>) -> u8 {
    let status = match result {
        Ok(_) => VIRTIO_BLK_S_OK,
        Err(RequestError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(RequestError::Refused | RequestError::Backend(_)) => VIRTIO_BLK_S_IOERR,
    };
    status as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_layout_of_the_specification() {
        let bytes = [1, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 4, 1, 0, 0, 0];
        let range = SectorRange { sector: 2 << 56 | 1, sectors: 4 << 24 | 3, unmap: true, unknown_flags: false };
        assert_eq!(SectorRange::parse(bytes), range);
        let mut odd = bytes;
        odd[12] = 2;
        assert_eq!(SectorRange::parse(odd), SectorRange { unmap: false, unknown_flags: true, ..range });
    }
}
