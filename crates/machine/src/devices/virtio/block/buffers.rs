//! Buffers for the data of requests, kept: a large one would be new memory for each request, which the host clears and maps page by page.

/// Bytes kept.
const BYTES_MAX: usize = 8 << 20;
/// Buffers kept.
const COUNT_MAX: usize = 64;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    /// A buffer of this length, with any content: what a guest reads is put there before it is told.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        if len == 0 {
            return Vec::new();
        }
        let mut buffer = self.free.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer.resize(len, 0);
        buffer
    }

    /// Takes one back.
    pub fn give(&mut self, buffer: Vec<u8>) {
        let bytes = self.bytes.saturating_add(buffer.capacity());
        if buffer.capacity() > 0 && bytes <= BYTES_MAX && self.free.len() < COUNT_MAX {
            self.bytes = bytes;
            self.free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_in_any_length_and_no_more_of_them_than_are_to_be_kept() {
        let mut buffers = Buffers::default();
        for len in [4096, 512, 262_144, 0, 4096] {
            let buffer = buffers.take(len);
            assert_eq!(buffer.len(), len);
            buffers.give(buffer);
            assert_eq!(buffers.bytes, buffers.free.iter().map(Vec::capacity).sum::<usize>());
        }
        assert_eq!(buffers.free.len(), 1, "it was used each time");
        for len in [4096, 1 << 20] {
            let many: Vec<_> = (0..100).map(|_| buffers.take(len)).collect();
            many.into_iter().for_each(|buffer| buffers.give(buffer));
            assert!(buffers.bytes <= BYTES_MAX && buffers.free.len() <= COUNT_MAX);
        }
        assert_eq!(buffers.free.len(), BYTES_MAX >> 20);
    }
}
