//! What a VM is to be, as plain data that every floor speaks: the VM spec with its disks and network cards, names, units, engine, processor, FT mode, how far the maintenance
//! of a host goes, and what is kept free for restarts.
//!
//! Nothing here opens a device, a socket or a disk; the one file that is read is a spec ([`VmSpec::load`]).

mod admission;
mod byte_size;
mod cpu_level;
mod disk_format;
mod engine;
mod failure_domain;
mod forward;
mod ft_mode;
mod mac;
mod maintenance;
mod memory_backing;
mod name;
mod network;
mod priority;
pub mod processor;
mod protection;
mod replica_id;
mod vm;
mod vm_id;

pub use admission::{AdmissionPolicy, AdmissionPolicyError};
pub use byte_size::ByteSize;
pub use cpu_level::CpuLevel;
pub use disk_format::DiskFormat;
pub use engine::{EngineChoice, EngineKind, Translator};
pub use failure_domain::{FailureDomain, FailureDomainError};
pub use forward::{ForwardError, PortForward, Protocol};
pub use ft_mode::{FtMode, UnknownMode};
pub use mac::{MacAddr, MacError};
pub use maintenance::Maintenance;
pub use memory_backing::{HugePages, MemoryBacking};
pub use name::{DatastoreName, HostName, NameError, SnapshotName, VmName};
pub use network::{BridgeSpec, Ipv4Subnet, NetworkError, NetworkSpec, UserSpec, check_interface_name};
pub use priority::{Priority, UnknownPriority};
pub use processor::{CpuOffer, CpuProfile};
pub use protection::{Protection, UnknownProtection};
pub use replica_id::ReplicaId;
pub use vm::{DEVICES_MAX, DiskSpec, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, SpecError, VCPUS_MAX, VmSpec, to_toml};
pub use vm_id::{VmId, VmIdError};
