//! Virtio devices (virtio 1.2, "modern" only) behind the memory-mapped transport.
//!
//! | folder | holds |
//! | --- | --- |
//! | [`mmio`] | the transport: registers, device status, queues, interrupt |
//! | [`block`], [`net`], [`rng`] | one device each: a disk, a network card, a source of entropy |
//! | `testing` | the guest's side for tests, and each device driven as a hostile guest would |
//!
//! A queue notification is processed in the thread of the vCPU that wrote it, before the write returns; input from
//! outside enters only where the machine's run loop calls a method such as [`MmioTransport::deliver`]. So with a
//! deterministic engine the devices are deterministic too, and between two accesses there is nothing in flight that a
//! saved state would have to hold. For another engine a device can be *detached* ([`NotifiedDevice`]): notifications are then kept
//! until somebody looks at the queues, and registers are shown in memory.
//!
//! The guest is not trusted. A request that makes no sense gets an error status where the device type has one; a queue
//! that makes no sense stops its device with `DEVICE_NEEDS_RESET` (virtio 1.2, 2.1.2). The work done for one
//! notification is bounded ([`Progress`]).

pub mod block;
mod chain;
mod device;
pub mod mmio;
pub mod net;
mod queue;
pub mod rng;
#[doc(hidden)]
pub mod testing;

pub use chain::{CHAIN_DESCRIPTORS_MAX, Chain, ChainState};
pub use device::{Progress, VirtioDevice};
pub use mmio::{Interrupt, MmioState, MmioTransport, NotifiedDevice, RegisterPages, RestoreError, TransportState};
pub use queue::{QueueError, QueueSetup, QueueState, RingPositions, Used, VirtQueue};
