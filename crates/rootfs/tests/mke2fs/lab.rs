//! Root, loop devices and e2fsprogs, or a reason why not.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use rootfs::mke2fs::Mke2fs;
use tempfile::TempDir;

/// What the tests of this file need.
pub(crate) struct Lab {
    directory: TempDir,
}

/// A file to be made an image.
pub(crate) struct Image {
    path: PathBuf,
}

/// An image that the kernel reads; unmounted when dropped.
pub(crate) struct Mounted {
    path: PathBuf,
}

impl Lab {
    /// Nothing when something is missing, after saying what.
    pub(crate) fn new() -> Option<Self> {
        let missing = Mke2fs::default()
            .check_available()
            .err()
            .map(|error| error.to_string())
            .or_else(|| {
                (!Path::new("/dev/loop-control").exists()).then(|| "there are no loop devices".to_owned())
            });
        if let Some(reason) = missing {
            test_support::lab::skip(reason);
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("staging")).unwrap();
        Some(Self { directory })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn backend(&self) -> Mke2fs {
        Mke2fs::new(self.path().join("staging"))
    }

    pub(crate) fn image(&self) -> Image {
        let path = self.path().join("image.ext4");
        File::create(&path).unwrap();
        Image { path }
    }

    #[track_caller]
    pub(crate) fn fsck(&self, image: &Image) {
        let output = Command::new("e2fsck")
            .arg("-fn")
            .arg(&image.path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(std::fs::read_dir(self.path().join("staging")).unwrap().count(), 0);
    }
}

impl Image {
    pub(crate) fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }
}

impl Mounted {
    pub(crate) fn new(lab: &Lab, image: &Image) -> Self {
        let path = lab.path().join("mounted");
        std::fs::create_dir_all(&path).unwrap();
        // The journal is not replayed and nothing of the image is acted on.
        let options = "ro,loop,noload,nodev,nosuid,noexec";
        let status = Command::new("mount")
            .args(["-t", "ext4", "-o", options])
            .arg(&image.path)
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.path).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
