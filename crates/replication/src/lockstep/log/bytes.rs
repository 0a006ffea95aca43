//! Integers and byte strings as they are in the log.

use super::LogError;

/// Longest varint, in bytes.
const VARINT_BYTES_MAX: usize = 10;

/// Appends a number in LEB128: seven bits a byte, the lowest first, with the top bit set in all bytes but the last.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a byte string: its length as a varint, and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads from the front of what is left of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], LogError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(LogError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], LogError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(LogError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn byte(&mut self) -> Result<u8, LogError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// A varint in its shortest form, which is the only one.
    pub fn varint(&mut self) -> Result<u64, LogError> {
        let mut value = 0;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index;
            if index == VARINT_BYTES_MAX - 1 && bits > 1 || index > 0 && byte == 0 {
                return Err(LogError::Malformed("a number is not in its shortest form, or too large"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(LogError::Malformed("a number is too large"))
    }

    /// A varint that is a length, of at most `max` bytes.
    pub fn length(&mut self, max: usize) -> Result<usize, LogError> {
        let len = self.varint()?;
        usize::try_from(len).ok().filter(|&len| len <= max).ok_or(LogError::Malformed("something is too long"))
    }

    /// A byte string of at most `max` bytes.
    pub fn string(&mut self, max: usize) -> Result<&'a [u8], LogError> {
        let len = self.length(max)?;
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_have_one_form() {
        for shift in 0..64 {
            for value in [1 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                let mut bytes = Bytes(&out);
                assert_eq!(bytes.varint(), Ok(value));
                assert!(bytes.is_empty());
            }
        }
        assert!(Bytes(&[0x80, 0]).varint().is_err(), "longer than need be");
        assert!(Bytes(&[0xff; 11]).varint().is_err(), "too large");
        assert!(Bytes(&[0x80]).varint().is_err(), "cut off");
    }
}
