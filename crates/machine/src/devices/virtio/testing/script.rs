//! What a hostile guest does, as bytes that a fuzzer can mutate.

/// Pages of guest RAM in a fuzz case.
pub(super) const RAM_BYTES: u64 = 64 << 10;
/// Descriptors of each queue that is set up for a case.
pub(super) const QUEUE_SIZE: u16 = 16;
/// Where buffers of a script usually lie.
const BUFFERS_AT: u16 = 0x6000;

/// The rings of queue `index` of a case: descriptor table, available ring, used ring.
pub(super) fn ring_addresses(index: u64) -> [u64; 3] {
    let base = 0x1000 + index * 0x1000;
    [base, base + 0x400, base + 0x800]
}

/// One step of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write any bytes anywhere in the device's window.
    WriteWindow { offset: u16, bytes: Vec<u8> },
    /// Read anywhere in the device's window.
    ReadWindow { offset: u16, len: u8 },
    /// Write guest memory.
    WriteRam { address: u16, bytes: Vec<u8> },
    /// Write a descriptor of a queue's table. `high` puts the address beyond RAM.
    Descriptor { queue: u8, index: u8, address: u16, high: u8, len: u32, flags: u8, next: u8 },
    /// Add a chain to a queue's available ring.
    MakeAvailable { queue: u8, head: u16 },
    /// Set the index of a queue's available ring.
    SetAvailIndex { queue: u8, index: u16 },
    /// Notify the device.
    Notify { queue: u8 },
    /// Acknowledge all interrupts.
    Acknowledge,
    /// Save the device, and go on with one restored from the state.
    SaveAndRestore,
    /// Initialise the device and its queues as a well-behaved driver does, with as many of these features as it offers.
    Initialise { features: u64 },
    /// An input from the host's side; what it means depends on the device.
    Input { bytes: Vec<u8> },
}

/// The bytes of a case, taken from the front; zeros follow their end.
pub(super) struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for byte in &mut array {
            if let Some((first, rest)) = self.0.split_first() {
                (*byte, self.0) = (*first, rest);
            }
        }
        array
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.u8()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.u8() % 11 {
            0 => Step::WriteWindow { offset: self.u16(), bytes: self.bytes() },
            1 => Step::ReadWindow { offset: self.u16(), len: self.u8() },
            2 => Step::WriteRam { address: self.u16(), bytes: self.bytes() },
            3 => Step::Descriptor {
                queue: self.u8(),
                index: self.u8(),
                address: self.u16(),
                high: self.u8(),
                len: u32::from_le_bytes(self.array()),
                flags: self.u8(),
                next: self.u8(),
            },
            4 => Step::MakeAvailable { queue: self.u8(), head: self.u16() },
            5 => Step::SetAvailIndex { queue: self.u8(), index: self.u16() },
            6 => Step::Notify { queue: self.u8() },
            7 => Step::Acknowledge,
            8 => Step::SaveAndRestore,
            9 => Step::Initialise { features: u64::from_le_bytes(self.array()) },
            _ => Step::Input { bytes: self.bytes() },
        })
    }
}

/// Writes cases: the inverse of [`Steps`].
pub(super) struct ScriptWriter {
    pub data: Vec<u8>,
    next_descriptor: [u8; 2],
    next_buffer: u16,
}

impl ScriptWriter {
    /// Steps that follow `prefix`.
    pub fn new(prefix: &[u8]) -> Self {
        Self { data: prefix.to_vec(), next_descriptor: [0; 2], next_buffer: 0 }
    }

    pub fn push(&mut self, step: &Step) {
        let with_len = |bytes: &[u8]| {
            assert!(bytes.len() < 256, "a step carries at most 255 bytes");
            [&[bytes.len() as u8], bytes].concat()
        };
        let tail = match step {
            Step::WriteWindow { offset, bytes } => [&[0], &offset.to_le_bytes()[..], &with_len(bytes)].concat(),
            Step::ReadWindow { offset, len } => [&[1], &offset.to_le_bytes()[..], &[*len]].concat(),
            Step::WriteRam { address, bytes } => [&[2], &address.to_le_bytes()[..], &with_len(bytes)].concat(),
            Step::Descriptor { queue, index, address, high, len, flags, next } => {
                [&[3, *queue, *index], &address.to_le_bytes()[..], &[*high], &len.to_le_bytes(), &[*flags, *next]]
                    .concat()
            }
            Step::MakeAvailable { queue, head } => [&[4, *queue], &head.to_le_bytes()[..]].concat(),
            Step::SetAvailIndex { queue, index } => [&[5, *queue], &index.to_le_bytes()[..]].concat(),
            Step::Notify { queue } => vec![6, *queue],
            Step::Acknowledge => vec![7],
            Step::SaveAndRestore => vec![8],
            Step::Initialise { features } => [&[9], &features.to_le_bytes()[..]].concat(),
            Step::Input { bytes } => [&[10], &with_len(bytes)[..]].concat(),
        };
        self.data.extend(tail);
    }

    /// Makes a well-formed chain available: what the device reads (at most 255 bytes each), then lengths of what it
    /// may write.
    pub fn request(&mut self, queue: u8, readable: &[&[u8]], writable: &[u32]) {
        let count = readable.len() + writable.len();
        let readable = readable.iter().map(|bytes| (Some(*bytes), bytes.len() as u32));
        let parts = readable.chain(writable.iter().map(|&len| (None, len)));
        let head = self.next_descriptor[usize::from(queue)];
        let mut index = head;
        for (n, (bytes, len)) in parts.enumerate() {
            let address = BUFFERS_AT + self.next_buffer;
            self.next_buffer = (self.next_buffer + len as u16) % 0x8000;
            if let Some(bytes) = bytes {
                self.push(&Step::WriteRam { address, bytes: bytes.to_vec() });
            }
            let next = (index + 1) % QUEUE_SIZE as u8;
            let flags = u8::from(n + 1 < count) | u8::from(bytes.is_none()) << 1;
            self.push(&Step::Descriptor { queue, index, address, high: 0, len, flags, next });
            index = next;
        }
        self.next_descriptor[usize::from(queue)] = index;
        self.push(&Step::MakeAvailable { queue, head: u16::from(head) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let steps = [
            Step::Initialise { features: u64::MAX },
            Step::WriteWindow { offset: 0x70, bytes: vec![1, 2, 3, 4] },
            Step::ReadWindow { offset: 3, len: 4 },
            Step::WriteRam { address: 77, bytes: vec![] },
            Step::Descriptor { queue: 1, index: 2, address: 3, high: 4, len: 5, flags: 6, next: 7 },
            Step::MakeAvailable { queue: 1, head: 300 },
            Step::SetAvailIndex { queue: 0, index: 400 },
            Step::Notify { queue: 1 },
            Step::Acknowledge,
            Step::SaveAndRestore,
            Step::Input { bytes: vec![9; 200] },
        ];
        let mut writer = ScriptWriter::new(&[]);
        steps.iter().for_each(|step| writer.push(step));
        assert_eq!(Steps::new(&writer.data).collect::<Vec<_>>(), steps);
    }
}
