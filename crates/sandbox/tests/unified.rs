//! Boxes on a machine that has the unified hierarchy alone: a guest, booted for it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use test_support::{
    lab,
    vm::{BootOptions, VmRig},
};

const INIT: &str = r"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
/box-check /sandbox-helper /escape-probe
g=/sys/fs/cgroup
echo '+memory +pids +cpu' > $g/cgroup.subtree_control
$b mkdir $g/user
$b chown user $g/user $g/user/cgroup.procs $g/user/cgroup.threads $g/user/cgroup.subtree_control
echo now without root: check
(echo 0 > $g/user/cgroup.procs; exec $b su -s /bin/sh user -c '/box-check /sandbox-helper /escape-probe')
$b reboot -f
";

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn limits_and_walls_hold_with_version_2_alone() {
    let (rig, busybox) = match (VmRig::find(), lab::program("busybox", "busybox-static")) {
        (Ok(rig), Ok(busybox)) => (rig, busybox),
        (Err(missing), _) | (_, Err(missing)) => {
            lab::skip(missing);
            return;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    for place in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    put(&root, "bin/busybox", &fs::read(busybox).unwrap());
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    put(
        &root,
        "etc/passwd",
        b"root::0:0::/:/bin/sh\nuser::1000:1000::/:/bin/sh\n",
    );
    put(&root, "init", INIT.as_bytes());
    for name in ["box-check", "sandbox-helper", "escape-probe"] {
        put(&root, name, &common::static_programs::program(name));
    }
    let image = directory.path().join("guest.ext4");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &image])
        .arg("64M")
        .env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()),
        )
        .status();
    if !made.is_ok_and(|status| status.success()) {
        lab::skip("there is no mke2fs (Debian package e2fsprogs)");
        return;
    }
    let options = BootOptions {
        init: "/init".to_owned(),
        limit: std::time::Duration::from_secs(400),
        ..BootOptions::default()
    };
    let boot = rig.boot(&image, &options).unwrap();
    let verdicts: Vec<_> = boot
        .serial
        .lines()
        // The firmware may leave its control sequences before the first of them.
        .filter_map(|line| line.find("check").map(|start| &line[start..]))
        .collect();
    assert!(boot.ended_by_itself, "{}", boot.serial);
    // As root, and then as a user to whom a group was delegated.
    assert_eq!(verdicts.len(), 10 + 1 + 10, "{}", boot.serial);
    for (index, expected) in [(9, "checked v2"), (10, "check"), (20, "checked v2")] {
        assert_eq!(verdicts[index], expected, "{}", boot.serial);
    }
    assert!(!boot.serial.contains("FAILED"), "{}", boot.serial);
}
