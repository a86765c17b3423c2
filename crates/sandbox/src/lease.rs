//! User ids that only one box has at a time.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The first id of all ranges: where no distribution gives ids to users, nor systemd to containers
/// (<https://systemd.io/UIDS-GIDS>: 1879048192 to 2147483647 is unused).
pub(crate) const FIRST_ID: u32 = 0x7000_0000;

/// Ids in a range.
const RANGE: u32 = 65_536;

/// Ranges beside the shared one.
const RANGES: u32 = 1000;

/// Gives ranges of user ids, one holder each, over all processes that use the same directory.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    directory: PathBuf,
}

/// A range of ids. It is free again when this is dropped, or when the process that holds it ends.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Locked.
    _file: File,
    number: u32,
}

impl Leases {
    /// One lock file for each range is made in `directory` as they are needed.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// A range that nobody has.
    pub(crate) fn take(&self) -> io::Result<Lease> {
        for number in 1..=RANGES {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.directory.join(format!("range-{number}")))?;
            // The lock belongs to this open file, so that two of one process exclude each other as well.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lease { _file: file, number }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!(
            "all {RANGES} ranges of user ids are in use"
        )))
    }
}

impl Lease {
    /// The first id of the range, the one that is used.
    pub(crate) const fn id(&self) -> u32 {
        FIRST_ID + self.number * RANGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same_range_and_a_dropped_one_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::new(&directory.path().join("users")).unwrap();
        let again = Leases::new(&directory.path().join("users")).unwrap();
        let (first, second) = (leases.take().unwrap(), again.take().unwrap());
        assert_eq!(first.id(), FIRST_ID + RANGE);
        assert_eq!(second.id(), FIRST_ID + 2 * RANGE);
        drop(first);
        assert_eq!(leases.take().unwrap().id(), FIRST_ID + RANGE);
    }
}
