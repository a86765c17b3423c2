//! What one node has for all builds together.

use crate::limits::Limits;

/// What a node can give to the builds that run on it, and how many may wait.
///
/// Memory and disk are never promised twice. CPU is a share: builds that ask for more than there is get less each, so a
/// build's cores are only cut to those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Builds that run at the same time, of all tenants.
    pub concurrent_builds: u32,
    /// Bytes of memory for all builds; `None` for no bound.
    pub memory_bytes: Option<u64>,
    /// Bytes of disk for all builds; `None` for no bound.
    pub disk_bytes: Option<u64>,
    /// Cores of the node; `None` for no bound.
    pub cpu_cores: Option<u32>,
    /// Builds that may wait, of all tenants; those that find a free place at once do not count.
    pub queued_builds: u32,
    /// Builds of one tenant that may wait: less than all, so that one tenant cannot keep the others out.
    pub queued_builds_of_tenant: u32,
}

/// What a build has for itself while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Cores.
    pub cpu_cores: u32,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

impl NodeCapacity {
    /// So many builds at the same time, and no other bound.
    #[must_use]
    pub const fn builds(concurrent_builds: u32) -> Self {
        Self {
            concurrent_builds,
            memory_bytes: None,
            disk_bytes: None,
            cpu_cores: None,
            queued_builds: u32::MAX,
            queued_builds_of_tenant: u32::MAX,
        }
    }

    /// What a build with these limits reserves: its figures, cut to the node's own size.
    #[must_use]
    pub fn reserved(&self, limits: &Limits) -> Reserved {
        Reserved {
            memory_bytes: limits.memory_bytes.min(self.memory_bytes.unwrap_or(u64::MAX)),
            cpu_cores: limits.cpu_cores.min(self.cpu_cores.unwrap_or(u32::MAX)),
            disk_bytes: limits.disk_bytes.min(self.disk_bytes.unwrap_or(u64::MAX)),
        }
    }
}
