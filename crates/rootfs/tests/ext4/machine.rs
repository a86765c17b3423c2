//! A virtual machine that boots an image and lets it grow while it runs. Skipped without QEMU, a kernel or resize2fs.

use std::{path::Path, process::Command, time::Duration};

use rootfs::{Metadata, tree::FileContent};
use test_support::vm::{BootOptions, VmRig};

use crate::support::{Fixture, check_with_e2fsck, read_write, run, skip};

const INIT: &[u8] = br#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
echo "before: $($b stat -f -c %b /) blocks"
/sbin/resize2fs /dev/vda && echo "grown"
echo "after: $($b stat -f -c %b /) blocks"
$b dd if=/dev/urandom of=/large bs=1M count=60 2>/dev/null && echo "written"
$b sync
$b mount -o remount,ro /
$b reboot -f
"#;

/// Puts a program of the host and the libraries it needs into the tree.
fn put_program(fixture: &mut Fixture, program: &str) -> Option<()> {
    let output = run(Command::new("ldd").arg(program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain([program]) {
        let bytes = std::fs::read(path).ok()?;
        let parent = Path::new(path).parent().unwrap().to_str().unwrap();
        fixture.directory(parent, 0o755);
        let content = fixture.store(0, &bytes);
        fixture
            .tree
            .put_file(path.as_bytes(), Metadata::root(0o755), content)
            .unwrap();
    }
    Some(())
}

#[test]
fn a_running_guest_grows_its_root() {
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return skip(&missing.to_string()),
    };
    let mut fixture = Fixture::new();
    for path in ["proc", "sys", "dev", "etc", "bin"] {
        fixture.directory(path, 0o755);
    }
    let found = put_program(&mut fixture, "/sbin/resize2fs").and_then(|()| {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find_map(|path| std::fs::read(path).ok())?;
        let content = fixture.store(0, &busybox);
        fixture
            .tree
            .put_file(b"/bin/busybox", Metadata::root(0o755), content)
            .ok()
    });
    if found.is_none() {
        return skip("resize2fs or busybox is not installed");
    }
    let mtab = b"../proc/self/mounts";
    fixture
        .tree
        .put_symlink(b"/etc/mtab", Metadata::root(0o777), mtab)
        .unwrap();
    fixture
        .tree
        .put_file(b"/init", Metadata::root(0o755), FileContent::inline(INIT))
        .unwrap();

    let image = fixture.image(&read_write(20 << 20, 100));
    let before = image.file.metadata().unwrap().len();
    // From less than one group to more than 128, whose descriptors need a reserved block.
    image.file.set_len(before + (18 << 30)).unwrap();
    let options = BootOptions {
        init: "/init".into(),
        keep_writes: true,
        limit: Duration::from_secs(300),
        ..BootOptions::default()
    };
    let boot = rig.boot(&image.path(), &options).unwrap();
    assert!(
        boot.ended_by_itself && boot.serial.contains("grown\n"),
        "{}",
        boot.serial
    );
    assert!(boot.serial.contains("written\n"), "{}", boot.serial);
    check_with_e2fsck(&image.path());
    let blocks = u64::from(image.superblock_u32(4));
    assert!(blocks * 4096 >= 18 << 30, "{blocks} blocks");
}
