//! [`Context`]: what translated code needs of its surroundings, within reach of its pointer to the processor.

/// What translated code needs of its surroundings. Addresses are of this process, and mean something only while translated code runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context {
    /// The instruction count at which to leave.
    pub(crate) limit: u64,
    /// Of the TLB's table for the current privilege.
    pub(crate) tlb_table: u64,
    /// Of RAM's first byte.
    pub(crate) ram: u64,
    /// Of the `&mut dyn Bus` that handlers are given.
    pub(crate) bus: u64,
    /// Of the cache of blocks that says where code goes on.
    pub(crate) cache: u64,
    /// Of the op that did not end with the next one.
    pub(crate) op: u64,
    /// Offset in code memory of the jump through which a block was left.
    pub(crate) jump: u64,
    /// A value that an instruction keeps while its temporary registers are in use.
    pub(crate) kept: u64,
}
