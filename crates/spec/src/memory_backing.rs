//! [`MemoryBacking`]: what a host makes a VM's RAM of.

use serde::{Deserialize, Serialize};

/// Which pages of the host back a VM's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Pages of 2 MiB where the host's kernel finds some, pages of 4 KiB otherwise: the host's `shmem_enabled` must be `advise`, `within_size` or
    /// `always` (Linux, Documentation/admin-guide/mm/transhuge.rst).
    Transparent,
    /// Pages of the host's default huge page size, from the pool that its administrator has reserved (`vm.nr_hugepages`). Memory that the
    /// pool does not have is refused when the VM is made.
    Hugetlbfs,
    /// Pages of 4 KiB, allocated one by one when they are touched.
    #[default]
    Off,
}

/// What a host makes a VM's RAM of. It changes nothing that a guest can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBacking {
    /// Which pages of the host's back the memory.
    pub huge_pages: HugePages,
    /// The NUMA node whose memory is used, and no other's; any if not given.
    pub numa_node: Option<u32>,
}
