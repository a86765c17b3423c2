//! The published machine configuration, run by Firecracker itself where that is possible.
//!
//! Firecracker needs KVM and a kernel without modules, neither of which the tests can get for themselves: it is not
//! required, and its absence is said.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use builderd_e2e::parts;
use test_support::{image::Image, lab};

use crate::{build, busybox};

/// Names an uncompressed kernel with ext4, virtio over MMIO and a serial console built in.
const KERNEL: &str = "BUILDERD_FIRECRACKER_KERNEL";

/// The program and a kernel for it.
fn needed() -> Result<(PathBuf, PathBuf), String> {
    // No package has it.
    let program =
        lab::program("firecracker", "").map_err(|_| "there is no firecracker in PATH".to_owned())?;
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Err("Firecracker needs /dev/kvm".to_owned());
    }
    let kernel = env::var_os(KERNEL)
        .map(PathBuf::from)
        .filter(|kernel| kernel.is_file());
    Ok((
        program,
        kernel.ok_or_else(|| format!("{KERNEL} names no kernel"))?,
    ))
}

#[test]
fn the_published_configuration_boots_in_firecracker() {
    let (program, kernel) = match needed() {
        Ok(needed) => needed,
        Err(reason) => return lab::skip_optional(reason),
    };
    let layer = match parts::builderd().and_then(|_| busybox()) {
        Ok(layer) => layer,
        Err(missing) => return lab::skip(missing),
    };
    let image = Image::new()
        .layer(&layer)
        .cmd(&["sh", "-c", "echo started by process $PPID; exit 7"]);
    for profile in ["rw", "ro"] {
        let built = build(&image, &["--profile", profile]);
        let directory = built.image.parent().unwrap();
        // As docs/guest.md has it: the kernel is expected beside the image, and nothing else is needed.
        symlink(&kernel, directory.join("vmlinux")).unwrap();
        let configuration = built.image.with_extension("firecracker.json");
        let output = Command::new("timeout")
            .arg("120")
            .arg(&program)
            .args(["--no-api", "--config-file"])
            .arg(Path::new(configuration.file_name().unwrap()))
            .current_dir(directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let serial = String::from_utf8_lossy(&output.stdout);
        assert!(serial.contains("started by process 1"), "{profile}: {serial}");
        assert!(
            serial.contains("guest-init: command exited with code 7"),
            "{profile}: {serial}"
        );
        assert!(!serial.contains("Kernel panic"), "{profile}: {serial}");
        assert!(output.status.success(), "{profile}: {}", output.status);
    }
}
