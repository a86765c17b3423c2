//! User ids that only one box has at a time.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
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

/// What stands in the file of a range while it is leased. A process that is killed leaves it there, without its lock.
const MARK: &[u8] = b"leased\n";

/// A range of ids. It is free again when this is dropped; when the process that holds it ends without that, as soon as
/// no process has the range's id any more.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Locked.
    file: File,
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

    /// A range that nobody has, and of which no process is left of a holder that was killed: one that sleeps
    /// uninterruptibly outlives its holder, and must not share its id with another box.
    pub(crate) fn take(&self) -> io::Result<Lease> {
        let mut users: Option<BTreeSet<u32>> = None;
        for number in 1..=RANGES {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.directory.join(format!("range-{number}")))?;
            // The lock belongs to this open file, so that two of one process exclude each other as well.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let id = first_id(number);
                    // Only after a crash, so that looking at all processes costs no other launch anything.
                    if file.metadata()?.len() > 0 {
                        let users = match &mut users {
                            Some(users) => users,
                            None => users.insert(users_of_processes()?),
                        };
                        if users.contains(&id) {
                            tracing::warn!(
                                user = id,
                                "A process of a box has outlived what launched it: its user id is not given to another"
                            );
                            continue;
                        }
                    }
                    file.set_len(0)?;
                    (&file).write_all(MARK)?;
                    return Ok(Lease { file, number });
                }
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
        first_id(self.number)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A mark that stays costs the next holder a look at all processes, and nothing else.
        let _ = self.file.set_len(0);
        // By name, and not by closing: a process that is being forked holds a copy of the descriptor until it executes.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

const fn first_id(number: u32) -> u32 {
    FIRST_ID + number * RANGE
}

/// Every user id that any process has (`Uid:` of `proc_pid_status(5)`: real, effective, saved, of the file system).
fn users_of_processes() -> io::Result<BTreeSet<u32>> {
    let mut users = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        if !path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_process)
        {
            continue;
        }
        // One that has ended meanwhile has none any more.
        let Ok(status) = fs::read_to_string(path.join("status")) else {
            continue;
        };
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        users.extend(
            line.into_iter()
                .flat_map(str::split_ascii_whitespace)
                .filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    Ok(users)
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

    /// Tests that ask which users processes have, one at a time.
    static USERS: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn the_range_of_a_holder_that_was_killed_is_free_when_nobody_uses_it() {
        let _alone = USERS.lock().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::new(directory.path()).unwrap();
        fs::write(directory.path().join("range-1"), MARK).unwrap();
        let lease = leases.take().unwrap();
        assert_eq!(lease.id(), first_id(1));
        drop(lease);
        assert_eq!(fs::metadata(directory.path().join("range-1")).unwrap().len(), 0);
    }

    #[test]
    fn privileged_the_range_of_a_process_that_outlives_its_holder_is_not_given_away() {
        use std::os::unix::process::CommandExt as _;
        if !rustix::process::geteuid().is_root() {
            test_support::lab::skip("only root can start a process of another user");
            return;
        }
        let _alone = USERS.lock().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::new(directory.path()).unwrap();
        // What a daemon leaves that is killed while a process of its box cannot be: the mark, no lock, the process.
        fs::write(directory.path().join("range-1"), MARK).unwrap();
        let mut survivor = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .uid(first_id(1))
            .spawn()
            .unwrap();
        let second = leases.take();
        survivor.kill().unwrap();
        survivor.wait().unwrap();
        assert_eq!(second.unwrap().id(), first_id(2));
        assert_eq!(leases.take().unwrap().id(), first_id(1), "the process is gone");
    }
}
