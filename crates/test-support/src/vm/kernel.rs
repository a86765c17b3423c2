//! A kernel with the modules that it needs to see a virtio disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::BootOptions;
use crate::lab::{self, Missing};

/// Modules by path below `kernel/`, in the order in which they can be loaded. One that a kernel has built in is left
/// out.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/block/virtio_blk.ko",
];

/// The same for a network card.
const NETWORK_MODULES: [&str; 3] = [
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// The same for dm-verity.
const VERITY_MODULES: [&str; 6] = [
    "crypto/sha256_generic.ko",
    "lib/reed_solomon/reed_solomon.ko",
    "drivers/dax/dax.ko",
    "drivers/md/dm-mod.ko",
    "drivers/md/dm-bufio.ko",
    "drivers/md/dm-verity.ko",
];

/// A kernel image and where its modules are.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    drivers: PathBuf,
}

impl Kernel {
    /// The kernel that `cargo xtask lab` unpacked, else one of this host's own.
    pub(super) fn find() -> Result<Self, Missing> {
        let roots = [lab::directory().join("kernel"), PathBuf::from("/")];
        roots.iter().find_map(|root| Self::below(root)).ok_or_else(|| {
            Missing::new("there is no kernel for a virtual machine: cargo xtask lab fetches one")
        })
    }

    /// The newest usable kernel below `ROOT/boot` and `ROOT/lib/modules`.
    fn below(root: &Path) -> Option<Self> {
        let mut images: Vec<PathBuf> = fs::read_dir(root.join("boot"))
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        images.sort();
        images.into_iter().rev().find_map(|image| {
            let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
            let drivers = root.join("lib/modules").join(version).join("kernel");
            // Compressed modules (.ko.xz) are more than a busybox can load.
            let has_disk = drivers.join("drivers/block/virtio_blk.ko").is_file();
            (has_disk && fs::File::open(&image).is_ok()).then_some(Self { image, drivers })
        })
    }

    /// The modules that a machine needs, in the order in which they can be loaded.
    pub(super) fn modules(&self, options: &BootOptions) -> Vec<PathBuf> {
        let network = options.forward_to.iter().flat_map(|_| NETWORK_MODULES);
        let verity = options.verity_table.iter().flat_map(|_| VERITY_MODULES);
        let names = MODULES.into_iter().chain(network).chain(verity);
        names
            .map(|module| self.drivers.join(module))
            .filter(|module| module.is_file())
            .collect()
    }
}
