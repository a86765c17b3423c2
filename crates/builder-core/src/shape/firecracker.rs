//! The machine configuration for Firecracker that lies beside an image.

use serde::Serialize;

use crate::build::ImageMetadata;

/// Where the kernel is expected: beside the image. No kernel comes with an image.
const KERNEL: &str = "vmlinux";

/// What every guest gets; whoever needs more changes the file.
const VCPUS: u32 = 1;
const MEMORY_MIB: u32 = 512;

/// `firecracker --config-file`, as its `docs/getting-started.md` and `swagger/firecracker.yaml` have it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Machine<'a> {
    boot_source: BootSource<'a>,
    drives: [Drive<'a>; 1],
    machine_config: MachineConfig,
}

#[derive(Serialize)]
struct BootSource<'a> {
    kernel_image_path: &'a str,
    boot_args: &'a str,
}

#[derive(Serialize)]
struct Drive<'a> {
    drive_id: &'a str,
    path_on_host: &'a str,
    /// False: Firecracker would add `root=` and `rw` or `ro`, all of which stand in the arguments.
    is_root_device: bool,
    is_read_only: bool,
}

#[derive(Serialize)]
struct MachineConfig {
    vcpu_count: u32,
    mem_size_mib: u32,
}

/// The configuration that boots the image with the file name `image`, from the directory that holds it.
pub(crate) fn machine(metadata: &ImageMetadata, image: &str) -> Vec<u8> {
    let machine = Machine {
        boot_source: BootSource {
            kernel_image_path: KERNEL,
            boot_args: &metadata.kernel_args,
        },
        drives: [Drive {
            drive_id: "rootfs",
            path_on_host: image,
            is_root_device: false,
            is_read_only: metadata.profile == "ro",
        }],
        machine_config: MachineConfig {
            vcpu_count: VCPUS,
            mem_size_mib: MEMORY_MIB,
        },
    };
    let mut text = serde_json::to_vec_pretty(&machine).expect("strings and numbers encode as JSON");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_machine_has_the_image_as_its_only_drive() {
        for (profile, is_read_only) in [("rw", false), ("ro", true)] {
            let metadata = ImageMetadata {
                profile: profile.to_owned(),
                kernel_args: "console=ttyS0 root=/dev/vda".to_owned(),
                ..ImageMetadata::default()
            };
            let machine: Value = serde_json::from_slice(&machine(&metadata, "build-1.ext4")).unwrap();
            assert_eq!(
                machine,
                json!({
                    "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0 root=/dev/vda"},
                    "drives": [{
                        "drive_id": "rootfs",
                        "path_on_host": "build-1.ext4",
                        "is_root_device": false,
                        "is_read_only": is_read_only,
                    }],
                    "machine-config": {"vcpu_count": 1, "mem_size_mib": 512},
                })
            );
        }
    }
}
