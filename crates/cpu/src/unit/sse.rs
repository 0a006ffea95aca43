//! [`Sse`]: the registers of the SSE unit.

/// XMM registers and MXCSR.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Sse {
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

impl Sse {
    /// Bits of MXCSR that may be set (FXSAVE's MXCSR_MASK).
    pub(crate) const MXCSR_MASK: u32 = 0xffff;

    /// As after reset.
    pub(crate) fn new() -> Self {
        Self { xmm: [0; 16], mxcsr: 0x1f80 }
    }
}
