//! Where a case's code and data lie: at the same addresses natively and in the guest.

/// The addresses of one test thread.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    base: u64,
}

/// Bytes that instructions may use as memory operands. The middle is a page boundary.
pub const SCRATCH_LEN: usize = 1024;
/// First address used.
const FIRST: u64 = 0x1000_0000;
const STRIDE: u64 = 0x10_0000;
/// Number of test threads that can run at a time.
pub const PLACES: u64 = 64;
/// Every place lies below.
pub const END: u64 = FIRST + PLACES * STRIDE;

impl Place {
    pub fn new(number: u64) -> Self {
        assert!(number < PLACES, "more test threads than places");
        Self { base: FIRST + number * STRIDE }
    }

    /// A page that holds the case's code.
    pub fn code(self) -> u64 {
        self.base
    }

    /// Two pages with the scratch bytes in their middle.
    pub fn data(self) -> u64 {
        self.base + 0x2000
    }

    /// The scratch bytes.
    pub fn scratch(self) -> u64 {
        self.data() + 0x1000 - SCRATCH_LEN as u64 / 2
    }

    /// A page with the code that enters and leaves a case natively.
    pub fn trampoline(self) -> u64 {
        self.base + 0x5000
    }

    /// A page with the registers before and after.
    pub fn context(self) -> u64 {
        self.base + 0x6000
    }
}
