//! The directory that a tree is staged in, and its end.

use std::{
    fs::Permissions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use tempfile::TempDir;

const PREFIX: &str = "rootfs-staging-";
const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory of mode 0700 that is removed with everything in it when this is dropped.
#[derive(Debug)]
pub(super) struct Staging {
    directory: TempDir,
    /// Holds the lock by which others see that the directory is in use. The kernel drops it with the process.
    lock: OwnedFd,
}

impl Staging {
    /// Makes one, after removing those whose processes are gone.
    pub(super) fn create(parent: &Path) -> io::Result<Self> {
        // While the parent is locked, no directory exists that is in use and not locked yet.
        let parent_lock = rustix::fs::open(parent, OPEN_DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?;
        rustix::fs::flock(&parent_lock, FlockOperation::LockExclusive)?;
        remove_abandoned(parent)?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = rustix::fs::open(directory.path(), OPEN_DIRECTORY, Mode::empty())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(Self { directory, lock })
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes staging directories that nobody holds a lock on and that belong to this user.
fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in parent.read_dir()? {
        let entry = entry?;
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            continue;
        }
        // What is no directory, or is gone by now, is not one of ours.
        let Ok(lock) = rustix::fs::open(entry.path(), OPEN_DIRECTORY, Mode::empty()) else {
            continue;
        };
        if rustix::fs::fstat(&lock)?.st_uid != rustix::process::geteuid().as_raw() {
            continue;
        }
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                tracing::info!(path = %entry.path().display(), "Removing what an interrupted build left behind");
                std::fs::remove_dir_all(entry.path())?;
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PREFIX, Staging};

    #[test]
    fn what_an_interrupted_run_left_is_removed_and_what_is_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let abandoned = parent.path().join(format!("{PREFIX}abandoned"));
        std::fs::create_dir_all(abandoned.join("deep/er")).unwrap();
        let unrelated = parent.path().join("other");
        std::fs::create_dir(&unrelated).unwrap();

        let first = Staging::create(parent.path()).unwrap();
        std::fs::write(first.path().join("file"), "x").unwrap();
        let second = Staging::create(parent.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(unrelated.exists());
        assert!(first.path().join("file").exists());

        drop((first, second));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
