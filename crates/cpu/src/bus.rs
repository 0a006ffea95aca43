//! What lies outside the processor and RAM.

/// Devices as the processor sees them. Calls come synchronously from within an instruction; `tsc` is the time-stamp
/// counter at that instruction, so that a device's view of time is exact.
pub trait Bus {
    /// Reads 1 to 8 bytes of device memory at a guest-physical address.
    fn mmio_read(&mut self, tsc: u64, address: u64, data: &mut [u8]);
    /// Writes 1 to 8 bytes of device memory.
    fn mmio_write(&mut self, tsc: u64, address: u64, data: &[u8]);
    /// Reads 1, 2 or 4 bytes from a port.
    fn port_read(&mut self, tsc: u64, port: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes to a port.
    fn port_write(&mut self, tsc: u64, port: u16, data: &[u8]);
    /// A level-triggered interrupt with this vector was acknowledged by some local APIC (for the I/O APIC).
    fn end_of_interrupt(&mut self, vector: u8);
    /// Whether the processors shall stop before the next instruction, because an access changed something that the owner must
    /// see to: an interrupt pin, a reset. Asked after every access.
    fn wants_stop(&mut self) -> bool;
}
