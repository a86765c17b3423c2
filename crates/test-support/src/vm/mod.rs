//! A virtual machine that boots an image, with its serial console as evidence.
//!
//! ```no_run
//! use test_support::vm::{BootOptions, VmRig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rig = VmRig::find()?;
//! let boot = rig.boot("rootfs.ext4".as_ref(), &BootOptions::default())?;
//! assert!(boot.ended_by_itself, "{}", boot.serial);
//! # Ok(())
//! # }
//! ```
//!
//! QEMU runs without KVM, which is slow (about six seconds a boot) but works everywhere. The kernel is Debian's for
//! clouds: `cargo xtask lab` fetches it. It has its virtio drivers as modules, so a small initial file system loads
//! them, mounts the image and hands over to the image's init, with the kernel command line that Firecracker would
//! give it.

mod initrd;
mod kernel;
mod qemu;

pub use qemu::RunningVm;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::lab::{self, Missing};
use kernel::Kernel;

/// The machine that a boot runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Vmm {
    /// QEMU's q35: a PC with PCI and a keyboard controller.
    #[default]
    QemuQ35,
    /// QEMU's microvm: virtio over MMIO, as Firecracker has it. Without PCI and ACPI.
    QemuMicrovm,
}

/// Everything that is needed to boot an image.
#[derive(Clone, Debug)]
pub struct VmRig {
    vmm: Vmm,
    program: PathBuf,
    busybox: PathBuf,
    kernel: Kernel,
}

/// How to boot an image.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// Path of the init in the image, for the kernel argument `init=`.
    pub init: String,
    /// More kernel arguments, each without spaces (`env.NAME=value`).
    pub kernel_arguments: Vec<String>,
    /// Words after `--`, which the kernel hands to the init.
    pub command: Vec<String>,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// The guest mounts the image read-only.
    pub read_only: bool,
    /// What the guest writes goes into the image; otherwise it is thrown away at the end.
    pub keep_writes: bool,
    /// A network card on a network of QEMU's own, from which nothing outside is reached. A port of this host's loopback
    /// leads to this TCP port of the guest, which has to be [`GUEST_ADDRESS`]; see [`RunningVm::forwarded_port`].
    pub forward_to: Option<u16>,
    /// The table of a device that the initial file system sets up and mounts instead of the disk
    /// (`Documentation/admin-guide/device-mapper/verity.rst`); the disk is `/dev/vda`.
    pub verity_table: Option<String>,
    /// The machine is killed when it takes longer.
    pub limit: Duration,
}

/// The address that QEMU's network expects of its only guest.
pub const GUEST_ADDRESS: &str = "10.0.2.15";

/// What to tell the guest's kernel of that network.
pub const GUEST_NETWORK: &str = "ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3";

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            init: "/usr/bin/metald-init".into(),
            kernel_arguments: Vec::new(),
            command: Vec::new(),
            memory_mib: 512,
            read_only: false,
            keep_writes: false,
            forward_to: None,
            verity_table: None,
            limit: Duration::from_secs(120),
        }
    }
}

/// How a boot went.
#[derive(Clone, Debug)]
pub struct BootLog {
    /// Everything on the serial console, without carriage returns.
    pub serial: String,
    /// The guest ended the machine (with a reboot, which `-no-reboot` makes an end), within the time, without a kernel
    /// panic.
    pub ended_by_itself: bool,
    /// From the start of the machine to its end.
    pub duration: Duration,
}

impl VmRig {
    /// The rig with the default machine.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn find() -> Result<Self, Missing> {
        Ok(Self {
            vmm: Vmm::default(),
            program: lab::program("qemu-system-x86_64", "qemu-system-x86")?,
            busybox: lab::program("busybox", "busybox-static")?,
            kernel: Kernel::find()?,
        })
    }

    /// The same rig with another machine.
    #[must_use]
    pub const fn with_vmm(mut self, vmm: Vmm) -> Self {
        self.vmm = vmm;
        self
    }

    /// Boots an image and waits for the end of the machine.
    ///
    /// # Errors
    /// When the machine cannot be started. A guest that fails is no error but seen in the log.
    pub fn boot(&self, image: &Path, options: &BootOptions) -> io::Result<BootLog> {
        self.start(image, options)?.wait()
    }

    /// Boots an image and returns while it runs.
    ///
    /// # Errors
    /// When the machine cannot be started.
    pub fn start(&self, image: &Path, options: &BootOptions) -> io::Result<RunningVm> {
        let directory = tempfile::Builder::new().prefix("vm-").tempdir()?;
        let initrd = directory.path().join("initrd.gz");
        std::fs::write(&initrd, initrd::pack(&self.busybox, &self.kernel, options)?)?;
        RunningVm::start(self, image, &initrd, options, directory)
    }
}
