//! The kernel as the judge: mounts images from loop devices. Needs root; skipped otherwise.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rootfs::InodeKind;

use crate::{
    basics::everything,
    directories::flat,
    expect::{content, paths},
    files::{SPARSE_FILES, sparse_file},
    support::{BLOCK, Fixture, Image, check_with_e2fsck, read_only, read_write, run, skip},
};

/// A mounted image, unmounted when dropped.
pub(crate) struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    /// An ext4 image. `None`, and a note, where nothing can be mounted.
    fn new(source: &Path, options: &str) -> Option<Self> {
        Self::of_type("ext4", source, options)
    }

    /// A file system of any kind in a file. `None`, and a note, where nothing can be mounted.
    pub(crate) fn of_type(kind: &str, source: &Path, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("mounting needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        let output = run(command
            .args(["-t", kind, "-o", options])
            .arg(source)
            .arg(directory.path()))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.contains("loop device") {
            skip("there are no loop devices");
            return None;
        }
        assert!(output.status.success(), "mount: {text}");
        Some(Self { directory })
    }

    pub(crate) fn path(&self, path: &[u8]) -> PathBuf {
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        self.directory.path().join(OsStr::from_bytes(relative))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Something may still look at a mount that has just been used; nothing may stay behind after a failed test.
        for lazy in [&[][..], &["--lazy"]] {
            let status = Command::new("umount")
                .args(lazy)
                .arg(self.directory.path())
                .status();
            if status.is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let count = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut values = BTreeMap::new();
    for name in names[..count]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 8192];
        let count = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        values.insert(name.to_vec(), value[..count].to_vec());
    }
    values
}

/// Compares what the kernel shows with the tree.
fn compare(fixture: &Fixture, mount: &Mount) {
    let packs = fixture.packs();
    let mut numbers = BTreeMap::new();
    for (path, id) in paths(&fixture.tree) {
        let name = path.escape_ascii().to_string();
        let inode = fixture.tree.inode(id);
        let host = mount.path(&path);
        let stat = std::fs::symlink_metadata(&host).unwrap_or_else(|error| panic!("{name}: {error}"));
        let metadata = &inode.metadata;
        assert_eq!(stat.mode() & 0o7777, u32::from(metadata.mode), "{name}");
        assert_eq!((stat.uid(), stat.gid()), (metadata.uid, metadata.gid), "{name}");
        let seconds = metadata.mtime.seconds.clamp(-(1 << 31), 15_032_385_535);
        let nanoseconds = if seconds == metadata.mtime.seconds {
            metadata.mtime.nanoseconds
        } else {
            0
        };
        let expected = (seconds, i64::from(nanoseconds));
        assert_eq!((stat.mtime(), stat.mtime_nsec()), expected, "{name}");
        assert_eq!((stat.atime(), stat.atime_nsec()), expected, "{name}");
        assert_eq!((stat.ctime(), stat.ctime_nsec()), expected, "{name}");
        assert_eq!(
            *numbers.entry(id).or_insert(stat.ino()),
            stat.ino(),
            "{name} is another inode"
        );
        assert_eq!(xattrs(&host), metadata.xattrs, "{name}");
        match &inode.kind {
            InodeKind::Directory(_) => assert!(stat.is_dir()),
            InodeKind::File(_) => {
                assert_eq!(stat.nlink(), u64::from(inode.names), "{name}");
                assert!(
                    std::fs::read(&host).unwrap() == content(inode, &packs).unwrap(),
                    "{name}"
                );
            }
            InodeKind::Symlink(target) => {
                assert_eq!(
                    std::fs::read_link(&host).unwrap().as_os_str().as_bytes(),
                    &**target,
                    "{name}"
                );
            }
            InodeKind::CharacterDevice(device) | InodeKind::BlockDevice(device) => {
                let number = rustix::fs::makedev(device.major, device.minor);
                assert_eq!(stat.rdev(), number, "{name}");
            }
            InodeKind::Fifo => assert_eq!(stat.mode() & 0o170_000, 0o010_000, "{name}"),
        }
    }
}

/// [`everything`] without what the kernel does not let pass: `user.` attributes need no root, but read fine.
fn fixture() -> Fixture {
    everything()
}

#[test]
fn privileged_the_kernel_shows_everything_as_it_was_meant() {
    for (options, mount_options) in [(read_only(), "loop,ro"), (read_write(30 << 20, 100), "loop,ro")] {
        let fixture = fixture();
        let image = fixture.image(&options);
        let Some(mount) = Mount::new(&image.path(), mount_options) else {
            return;
        };
        compare(&fixture, &mount);
    }
}

#[test]
fn privileged_a_read_only_image_stays_read_only_whatever_is_asked_for() {
    let image = fixture().image(&read_only());
    let before = image.sha256();
    let Some(mount) = Mount::new(&image.path(), "loop,rw") else {
        return;
    };
    let error = std::fs::write(mount.path(b"new"), b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(mount);
    assert_eq!(image.sha256(), before);
}

#[test]
fn privileged_a_mounted_image_can_be_written_to() {
    let fixture = fixture();
    let image = fixture.image(&read_write(30 << 20, 3000));
    let Some(mount) = Mount::new(&image.path(), "loop,rw") else {
        return;
    };
    // As much as was asked for, and into directories of every kind.
    std::fs::write(mount.path(b"large"), vec![5; 29 << 20]).unwrap();
    for nth in 0..2000 {
        std::fs::write(
            mount.path(format!("etc/new file with a rather long name {nth}").as_bytes()),
            b"",
        )
        .unwrap();
    }
    std::fs::remove_file(mount.path(b"etc/holes")).unwrap();
    std::fs::remove_file(mount.path(b"etc/xattr block")).unwrap();
    std::fs::write(mount.path(b"etc/passwd"), b"new content").unwrap();
    std::fs::rename(mount.path(b"etc/deep"), mount.path(b"acl/deep")).unwrap();
    let changed = mount.path(b"etc/xattr the same block");
    rustix::fs::setxattr(&changed, "user.1", b"changed", rustix::fs::XattrFlags::empty()).unwrap();
    drop(mount);
    check_with_e2fsck(&image.path());
    let Some(mount) = Mount::new(&image.path(), "loop,rw") else {
        return;
    };
    assert_eq!(std::fs::read(mount.path(b"etc/passwd")).unwrap(), b"new content");
    assert_eq!(std::fs::read(mount.path(b"large")).unwrap(), vec![5; 29 << 20]);
    assert_eq!(std::fs::read_dir(mount.path(b"etc")).unwrap().count(), {
        let etc = fixture.tree.lookup(b"etc").unwrap();
        fixture.tree.children(etc).unwrap().len() - 3 + 2000
    });
}

#[test]
fn privileged_the_kernel_finds_every_name_of_a_large_directory() {
    let fixture = flat(100_000, |nth| {
        [b"\xf0name ".to_vec(), nth.to_string().into_bytes()].concat()
    });
    let image = fixture.image(&read_write(100 << 20, 120_000));
    let Some(mount) = Mount::new(&image.path(), "loop,rw") else {
        return;
    };
    for nth in 0..100_000u32 {
        let path = [b"flat/\xf0name ".to_vec(), nth.to_string().into_bytes()].concat();
        assert!(std::fs::symlink_metadata(mount.path(&path)).is_ok(), "{nth}");
    }
    assert!(std::fs::symlink_metadata(mount.path(b"flat/\xf0name 100000")).is_err());
    assert_eq!(std::fs::read_dir(mount.path(b"flat")).unwrap().count(), 100_000);
    // Full leaves are split, all over the index.
    for nth in 0..20_000u32 {
        std::fs::write(mount.path(format!("flat/more {nth}").as_bytes()), b"").unwrap();
    }
    for nth in (0..100_000u32).step_by(3) {
        let path = [b"flat/\xf0name ".to_vec(), nth.to_string().into_bytes()].concat();
        std::fs::remove_file(mount.path(&path)).unwrap();
    }
    drop(mount);
    check_with_e2fsck(&image.path());
}

#[test]
fn privileged_the_kernel_reads_sparse_files() {
    let mut fixture = Fixture::new();
    for (path, size, blocks) in SPARSE_FILES {
        sparse_file(&mut fixture, path, size, blocks);
    }
    let many: Vec<u64> = (0..3000).map(|nth| nth * 3).collect();
    sparse_file(&mut fixture, "many", 9000 * BLOCK, &many);
    let image = fixture.image(&read_only());
    let Some(mount) = Mount::new(&image.path(), "loop,ro") else {
        return;
    };
    for (path, size, blocks) in SPARSE_FILES
        .into_iter()
        .chain([("many", 9000 * BLOCK, &many[..])])
    {
        let file = std::fs::File::open(mount.path(path.as_bytes())).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        for nth in blocks {
            let mut mark = [0; 8];
            file.read_exact_at(&mut mark, nth * BLOCK).unwrap();
            assert_eq!(mark, nth.to_le_bytes(), "{path}, block {nth}");
            if let Some(before) = nth.checked_sub(1).filter(|before| !blocks.contains(before)) {
                file.read_exact_at(&mut mark, before * BLOCK).unwrap();
                assert_eq!(mark, [0; 8], "{path}, block {before}");
            }
        }
    }
}

/// A loop device, detached when dropped.
struct LoopDevice(PathBuf);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn privileged_a_mounted_image_grows() {
    if !rustix::process::geteuid().is_root() {
        return skip("mounting needs root");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    // Bit 24 is CAP_SYS_RESOURCE, without which the kernel resizes nothing.
    if u64::from_str_radix(capabilities.trim(), 16).unwrap() & 1 << 24 == 0 {
        // Never required: `machine` grows an image online in a guest of its own, on any host.
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: growing a mounted image needs CAP_SYS_RESOURCE\n"),
        );
        return;
    }
    let fixture = fixture();
    let image = fixture.image(&read_write(30 << 20, 100));
    let attach = run(Command::new("losetup")
        .args(["--find", "--show"])
        .arg(image.path()));
    let Some(output) = attach.filter(|output| output.status.success()) else {
        return skip("there are no loop devices");
    };
    let device = LoopDevice(String::from_utf8(output.stdout).unwrap().trim().into());
    let Some(mount) = Mount::new(&device.0, "rw") else {
        return;
    };
    let before = image.file.metadata().unwrap().len();
    for factor in [8, 64] {
        image.file.set_len(before * factor).unwrap();
        run(Command::new("losetup").arg("--set-capacity").arg(&device.0)).unwrap();
        let Some(output) = run(Command::new("resize2fs").arg(&device.0)) else {
            return;
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let size = rustix::fs::statvfs(mount.path(b"")).unwrap();
        assert!(
            size.f_blocks * 4096 > before * (factor - 1),
            "{} blocks",
            size.f_blocks
        );
        std::fs::write(
            mount.path(format!("after {factor}").as_bytes()),
            vec![1; 40 << 20],
        )
        .unwrap();
    }
    drop(mount);
    drop(device);
    check_with_e2fsck(&image.path());
}

/// An image that a file system on this host can hold only if it is sparse and has large files: XFS on a loop device.
#[test]
fn privileged_an_image_beyond_16_tib_is_clean_and_mounts() {
    if !rustix::process::geteuid().is_root() {
        return skip("mounting needs root");
    }
    let host = Image::create();
    host.file.set_len(8 << 30).unwrap();
    let Some(output) = run(Command::new("mkfs.xfs").arg("-q").arg(host.path())) else {
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let directory = tempfile::tempdir().unwrap();
    let output = run(Command::new("mount")
        .args(["-o", "loop"])
        .arg(host.path())
        .arg(directory.path()))
    .unwrap();
    if !output.status.success() {
        return skip("XFS cannot be mounted");
    }
    let host = Mount { directory };
    let path = host.path(b"image");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let fixture = fixture();
    let plan = fixture.plan(&read_write(17 << 40, 1000));
    plan.emit(&fixture.packs(), &file).unwrap();
    assert!(plan.size_bytes() > 17 << 40);
    check_with_e2fsck(&path);
    let Some(mount) = Mount::new(&path, "loop,rw,noatime") else {
        return;
    };
    compare(&fixture, &mount);
    std::fs::write(mount.path(b"new"), vec![1; 10 << 20]).unwrap();
    drop(mount);
    check_with_e2fsck(&path);
}

/// The journal of an image of this size has more extents than fit into its inode.
#[test]
fn privileged_a_journal_of_1_gib_is_used() {
    let mut fixture = fixture();
    fixture.inline(b"more", &[1; 70_000]);
    let image = fixture.image(&read_write(200 << 30, 100_000));
    let Some(mount) = Mount::new(&image.path(), "loop,rw,noatime") else {
        return;
    };
    compare(&fixture, &mount);
    for nth in 0..1000 {
        std::fs::create_dir(mount.path(format!("new {nth}").as_bytes())).unwrap();
    }
    drop(mount);
    check_with_e2fsck(&image.path());
}
