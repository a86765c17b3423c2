//! dm-verity: a guest reads what was built, or nothing.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
};

use test_support::{
    image::Image,
    lab,
    vm::{BootOptions, Vmm},
};

use crate::{Built, assert_says, build, busybox, rig};

/// A file that fills blocks of its own, and begins as nothing else does.
const MARK: &[u8] = b"begin of the file that is looked at";

/// The line of `dmsetup` from what the metadata say, by the kernel's documentation and without our own code.
fn table(built: &Built) -> String {
    let text = |name: &str| built.metadata[name].as_str().unwrap().to_owned();
    let offset = built.metadata["verity_hash_offset"].as_u64().unwrap();
    format!(
        "0 {} verity 1 /dev/vda /dev/vda 4096 4096 {} {} sha256 {} {}",
        offset / 512,
        offset / 4096,
        offset / 4096 + 1,
        text("verity_root_hash"),
        text("verity_salt")
    )
}

#[test]
fn a_changed_byte_is_refused_with_verity_and_goes_unnoticed_without() {
    let needed = rig().and_then(|rig| Ok((rig, busybox()?, lab::program("dmsetup", "dmsetup")?)));
    let (rig, layer) = match needed {
        Ok((rig, layer, _)) => (rig.with_vmm(Vmm::QemuMicrovm), layer),
        Err(missing) => return lab::skip(missing),
    };
    let mut content = MARK.to_vec();
    content.resize(64 << 10, b'.');
    let image = Image::new()
        .layer(&layer.symlink("bin/md5sum", "busybox").file("data", content))
        .cmd(&["sh", "-c", "cat /proc/mounts; md5sum /data"]);
    let built = build(&image, &["--profile", "ro"]);

    let plain = built.boot_options();
    let table = table(&built);
    let arguments = built.metadata["verity_kernel_args"].as_str().unwrap();
    assert!(
        arguments.contains(&format!(
            "dm-mod.create=\"rootfs,,,ro,{table}\" root=/dev/dm-0 ro"
        )),
        "{arguments}"
    );
    let checked = BootOptions {
        verity_table: Some(table.clone()),
        ..plain.clone()
    };

    let boot = rig.boot(&built.image, &checked).unwrap();
    assert_says(&boot, &["command exited with code 0"]);
    assert!(boot.serial.contains("/dev/dm-0 / ext4 ro"), "{}", boot.serial);
    let sum = sum(&boot.serial);

    // The root hash is what is trusted: another one is another image.
    let root = built.metadata["verity_root_hash"].as_str().unwrap();
    let wrong = format!("{}{}", &root[1..], &root[..1]);
    assert_ne!(wrong, root);
    let untrusted = BootOptions {
        verity_table: Some(table.replace(root, &wrong)),
        ..plain.clone()
    };
    let boot = rig.boot(&built.image, &untrusted).unwrap();
    assert!(
        boot.serial.contains("initrd: cannot mount the image") && !boot.serial.contains("/data"),
        "{}",
        boot.serial
    );

    let bytes = fs::read(&built.image).unwrap();
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK)
        .unwrap();
    let file = OpenOptions::new().write(true).open(&built.image).unwrap();
    file.write_all_at(&[bytes[at + 5000] ^ 1], at as u64 + 5000)
        .unwrap();
    let boot = rig.boot(&built.image, &checked).unwrap();
    assert_says(&boot, &["command exited with code 1"]);
    assert!(boot.serial.contains("can't read '/data'"), "{}", boot.serial);

    let boot = rig.boot(&built.image, &plain).unwrap();
    assert_says(&boot, &["command exited with code 0"]);
    assert_ne!(self::sum(&boot.serial), sum, "without a hash tree nobody notices");
}

/// The checksum that the guest has printed.
fn sum(serial: &str) -> String {
    let line = serial.lines().find(|line| line.ends_with("  /data")).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}
