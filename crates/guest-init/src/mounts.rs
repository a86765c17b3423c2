//! The file systems that a program expects, mounted where the image has none yet.

use std::{
    ffi::CStr,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use crate::{
    console::say,
    sys::{self, MountFlags},
};

/// A kernel file system and its place.
struct Mount {
    target: &'static str,
    kind: &'static CStr,
    flags: MountFlags,
    options: &'static CStr,
    /// Whether programs commonly work without it.
    optional: bool,
}

const SAFE: MountFlags = MountFlags {
    no_set_user_id: true,
    no_devices: true,
    no_execution: true,
};
const DEVICES: MountFlags = MountFlags {
    no_set_user_id: true,
    no_devices: false,
    no_execution: true,
};
const MEMORY: MountFlags = MountFlags {
    no_set_user_id: true,
    no_devices: true,
    no_execution: false,
};

/// In this order: later ones lie within earlier ones.
const KERNEL_MOUNTS: [Mount; 7] = [
    Mount {
        target: "/proc",
        kind: c"proc",
        flags: SAFE,
        options: c"",
        optional: false,
    },
    Mount {
        target: "/sys",
        kind: c"sysfs",
        flags: SAFE,
        options: c"",
        optional: false,
    },
    Mount {
        target: "/sys/fs/cgroup",
        kind: c"cgroup2",
        flags: SAFE,
        options: c"",
        optional: true,
    },
    Mount {
        target: "/dev",
        kind: c"devtmpfs",
        flags: DEVICES,
        options: c"mode=0755",
        optional: false,
    },
    Mount {
        target: "/dev/pts",
        kind: c"devpts",
        flags: DEVICES,
        options: c"gid=5,mode=0620,ptmxmode=0666",
        optional: true,
    },
    Mount {
        target: "/dev/shm",
        kind: c"tmpfs",
        flags: SAFE,
        options: c"mode=1777",
        optional: true,
    },
    Mount {
        target: "/dev/mqueue",
        kind: c"mqueue",
        flags: SAFE,
        options: c"",
        optional: true,
    },
];

/// Devices that a program expects, for a kernel that does not make them by itself: name, mode, major, minor
/// (Documentation/admin-guide/devices.txt). Docker gives a container these, and a machine has its console besides.
const DEVICE_NODES: [(&str, u32, u32, u32); 9] = [
    ("null", 0o666, 1, 3),
    ("zero", 0o666, 1, 5),
    ("full", 0o666, 1, 7),
    ("random", 0o666, 1, 8),
    ("urandom", 0o666, 1, 9),
    ("tty", 0o666, 5, 0),
    ("console", 0o600, 5, 1),
    ("ptmx", 0o666, 5, 2),
    ("ttyS0", 0o600, 4, 64),
];

/// Links that udev would make.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Directories for scratch files, with their modes.
const SCRATCH: [(&str, &CStr); 2] = [("/run", c"mode=0755"), ("/tmp", c"mode=1777")];

/// A scratch directory deeper or fuller than this is not an image's skeleton.
const MOST_SKELETON_ENTRIES: usize = 512;

/// Mounts everything; what fails is said on the console, and the rest goes on.
pub(crate) fn mount_all(report: &mut dyn FnMut(String)) {
    for mount in &KERNEL_MOUNTS {
        mount_kernel(mount, report);
    }
    for (link, target) in DEVICE_LINKS {
        // Already there, or no place for it: neither is worth a line.
        let _ = symlink(target, link);
    }
    for (target, options) in SCRATCH {
        mount_scratch(Path::new(target), options, report);
    }
}

fn mount_kernel(mount: &Mount, report: &mut dyn FnMut(String)) {
    let target = Path::new(mount.target);
    if is_mount_point(target) {
        report(format!("{} is mounted already", mount.target));
        return;
    }
    let result =
        make_directory(target).and_then(|()| sys::mount(mount.kind, target, mount.flags, mount.options));
    match result {
        Ok(()) => report(format!(
            "mounted {} on {}",
            mount.kind.to_string_lossy(),
            mount.target
        )),
        // ENODEV: the kernel knows no such file system.
        Err(error) if mount.kind == c"devtmpfs" && error.raw_os_error() == Some(libc::ENODEV) => {
            make_devices(target, report);
        }
        Err(error) if mount.optional => report(format!("no {}: {error}", mount.target)),
        Err(error) => say(format_args!("cannot mount {}: {error}", mount.target)),
    }
}

/// A directory of devices of our own.
fn make_devices(target: &Path, report: &mut dyn FnMut(String)) {
    if let Err(error) = sys::mount(c"tmpfs", target, DEVICES, c"mode=0755") {
        say(format_args!("cannot mount {}: {error}", target.display()));
        return;
    }
    for (name, mode, major, minor) in DEVICE_NODES {
        let path = target.join(name);
        let made = sys::make_character_device(&path, mode, major, minor)
            // The mask of new files has taken bits away.
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        if let Err(error) = made {
            say(format_args!("cannot make {}: {error}", path.display()));
        }
    }
    report(format!("made devices in {}", target.display()));
}

/// Gives programs a place to write, without hiding what the image put there.
///
/// A directory that the image filled stays as it is when it can be written to. On a read-only root a tmpfs comes over
/// it, with the same directories in it: packages make them for their own users (`/run/postgresql`, say).
fn mount_scratch(target: &Path, options: &CStr, report: &mut dyn FnMut(String)) {
    if is_mount_point(target) {
        return;
    }
    let skeleton = skeleton(target);
    if !skeleton.is_empty() && is_writable(target) {
        report(format!("left {} as the image has it", target.display()));
        return;
    }
    let result = make_directory(target).and_then(|()| sys::mount(c"tmpfs", target, MEMORY, options));
    match result {
        Ok(()) => report(format!("mounted tmpfs on {}", target.display())),
        Err(error) => say(format_args!("cannot mount {}: {error}", target.display())),
    }
    for directory in skeleton {
        if let Err(error) = directory.make() {
            say(format_args!("cannot make {}: {error}", directory.path.display()));
        }
    }
}

/// An entry of a scratch directory; only directories are made again.
struct Entry {
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
    is_directory: bool,
}

impl Entry {
    fn make(&self) -> io::Result<()> {
        if !self.is_directory {
            return Ok(());
        }
        fs::create_dir(&self.path)?;
        chown(&self.path, Some(self.owner.0), Some(self.owner.1))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(self.mode))
    }
}

/// What is in a directory, parents first. Symbolic links are not followed.
fn skeleton(directory: &Path) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let mut next = 0;
    let mut current = directory.to_owned();
    loop {
        for entry in fs::read_dir(&current).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if found.len() == MOST_SKELETON_ENTRIES {
                return found;
            }
            found.push(Entry {
                path: entry.path(),
                mode: metadata.mode() & 0o7777,
                owner: (metadata.uid(), metadata.gid()),
                is_directory: metadata.is_dir(),
            });
        }
        let Some(offset) = found.iter().skip(next).position(|entry| entry.is_directory) else {
            return found;
        };
        next += offset + 1;
        let Some(entry) = found.get(next - 1) else {
            return found;
        };
        current.clone_from(&entry.path);
    }
}

/// Whether `path` is on another file system than the directory above it.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let parent = path.parent().unwrap_or(path);
    matches!((device(path), device(parent)), (Ok(own), Ok(above)) if own != above)
}

fn is_writable(path: &Path) -> bool {
    sys::is_read_only(path).is_ok_and(|read_only| !read_only)
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // A read-only root says so even for a directory that exists.
        Err(_) if path.is_dir() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skeleton_has_parents_first_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o2770)).unwrap();
        fs::write(root.join("a/file"), "x").unwrap();
        symlink("/", root.join("a/link")).unwrap();

        let entries = skeleton(root);
        let directories: Vec<&Path> = entries
            .iter()
            .filter(|entry| entry.is_directory)
            .map(|entry| entry.path.as_path())
            .collect();
        assert_eq!(
            directories,
            [root.join("a"), root.join("a/b"), root.join("a/b/c")]
        );
        assert_eq!(entries.len(), 5);

        let other = tempfile::tempdir().unwrap();
        for mut entry in entries {
            entry.path = other.path().join(entry.path.strip_prefix(root).unwrap());
            entry.make().unwrap();
        }
        assert_eq!(
            fs::metadata(other.path().join("a/b")).unwrap().mode() & 0o7777,
            0o2770
        );
        assert!(other.path().join("a/b/c").is_dir() && !other.path().join("a/file").exists());
    }

    #[test]
    fn an_absent_directory_has_no_skeleton_and_a_full_one_is_bounded() {
        assert!(skeleton(Path::new("/nonexistent")).is_empty());
        let directory = tempfile::tempdir().unwrap();
        for index in 0..MOST_SKELETON_ENTRIES + 10 {
            fs::create_dir(directory.path().join(index.to_string())).unwrap();
        }
        assert_eq!(skeleton(directory.path()).len(), MOST_SKELETON_ENTRIES);
    }

    #[test]
    fn mount_points_are_told_from_directories() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/nonexistent")));
        assert!(!is_mount_point(Path::new("/")));
    }
}
