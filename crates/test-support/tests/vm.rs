//! The rig boots an image, shows what the guest prints and notices how it ends.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;
use test_support::{
    lab::{self, Missing},
    vm::{BootOptions, VmRig, Vmm},
};

/// An image that has a busybox and the given script as its init.
fn image(script: &str) -> Result<(TempDir, PathBuf), Missing> {
    let mkfs = lab::program("mkfs.ext4", "e2fsprogs")?;
    let busybox = lab::program("busybox", "busybox-static")?;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    for name in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), script).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let image = directory.path().join("image.ext4");
    let made = Command::new(mkfs)
        .args(["-q", "-d"])
        .arg(&root)
        .arg(&image)
        .arg("16M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok((directory, image))
}

fn rig_and_image(script: &str) -> Option<(VmRig, TempDir, PathBuf)> {
    let both = VmRig::find().and_then(|rig| Ok((rig, image(script)?)));
    both.map(|(rig, (directory, image))| (rig, directory, image))
        .map_err(lab::skip)
        .ok()
}

fn options() -> BootOptions {
    BootOptions {
        init: "/init".into(),
        ..BootOptions::default()
    }
}

#[test]
fn both_machines_boot_an_image_and_end_by_themselves() {
    let script = "#!/bin/busybox sh\necho \"said $1 and $2\"\n/bin/busybox reboot -f\n";
    let Some((rig, _directory, image)) = rig_and_image(script) else {
        return;
    };
    let options = BootOptions {
        command: vec!["hello".into(), "world".into()],
        ..options()
    };
    for vmm in [Vmm::QemuQ35, Vmm::QemuMicrovm] {
        let boot = rig.clone().with_vmm(vmm).boot(&image, &options).unwrap();
        assert!(
            boot.serial.contains("said hello and world"),
            "{vmm:?}: {}",
            boot.serial
        );
        assert!(boot.ended_by_itself, "{vmm:?}: {}", boot.serial);
    }
}

#[test]
fn a_kernel_panic_is_no_clean_end() {
    let Some((rig, _directory, image)) = rig_and_image("#!/bin/busybox sh\necho leaving\n") else {
        return;
    };
    let boot = rig.boot(&image, &options()).unwrap();
    assert!(boot.serial.contains("leaving"), "{}", boot.serial);
    assert!(
        !boot.ended_by_itself,
        "an init that ends is a panic: {}",
        boot.serial
    );
}

#[test]
fn a_guest_that_never_ends_is_killed_in_time() {
    let script = "#!/bin/busybox sh\necho waiting\nwhile true; do /bin/busybox sleep 1000; done\n";
    let Some((rig, _directory, image)) = rig_and_image(script) else {
        return;
    };
    let vm = rig
        .start(
            &image,
            &BootOptions {
                limit: Duration::from_secs(30),
                ..options()
            },
        )
        .unwrap();
    assert!(vm.wait_for("waiting"), "{}", vm.serial());
    let boot = vm.wait().unwrap();
    assert!(!boot.ended_by_itself);
}

#[test]
fn ctrl_alt_delete_reaches_the_guest() {
    // The kernel hands the keys to process 1 as SIGINT once it was told to.
    let script = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo 0 > /proc/sys/kernel/ctrl-alt-del
trap 'echo stopping; /bin/busybox reboot -f' INT
echo ready
while true; do /bin/busybox sleep 1 & wait $!; done
";
    let Some((rig, _directory, image)) = rig_and_image(script) else {
        return;
    };
    let vm = rig.start(&image, &options()).unwrap();
    assert!(vm.wait_for("ready"), "{}", vm.serial());
    vm.send_ctrl_alt_delete().unwrap();
    let boot = vm.wait().unwrap();
    assert!(boot.serial.contains("stopping"), "{}", boot.serial);
    assert!(boot.ended_by_itself, "{}", boot.serial);
}

#[test]
fn what_a_guest_writes_is_kept_only_when_asked() {
    let script = "#!/bin/busybox sh\necho new > /file\n/bin/busybox sync\n/bin/busybox reboot -f\n";
    let Some((rig, _directory, image)) = rig_and_image(script) else {
        return;
    };
    let before = fs::read(&image).unwrap();
    for (keep_writes, same) in [(false, true), (true, false)] {
        let boot = rig
            .boot(
                &image,
                &BootOptions {
                    keep_writes,
                    ..options()
                },
            )
            .unwrap();
        assert!(boot.ended_by_itself, "{}", boot.serial);
        assert_eq!(
            fs::read(&image).unwrap() == before,
            same,
            "keep_writes: {keep_writes}"
        );
    }
}
