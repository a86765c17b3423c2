//! Reads of files that the image controls: bounded, and without blocking; and directories that it lacks.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The contents of a regular file, or `None` when there is no such file.
///
/// # Errors
///
/// When it is longer than `limit` bytes, or not a regular file: to open a FIFO would block for ever.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let (bytes, complete) = match read_beginning(path, limit) {
        Ok(result) => result,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !complete {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {limit} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// The first `limit` bytes of a regular file, and whether that was all.
pub(crate) fn read_beginning(path: &Path, limit: u64) -> io::Result<(Vec<u8>, bool)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let mut file = file.take(limit);
    file.read_to_end(&mut bytes)?;
    let complete = file.into_inner().read(&mut [0])? == 0;
    Ok((bytes, complete))
}

/// Whether `path` leads to a regular file that someone may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Symbolic links that are followed; the kernel's own bound.
const MAX_LINKS: usize = 40;

/// Makes a directory and those above it, as Docker does for a working directory: with root as their owner, and at the end
/// of a symbolic link that leads to nothing yet.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    // Components that are still to be made, the next one last.
    let mut remaining: Vec<PathBuf> = components(path);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(component) = remaining.pop() {
        here.push(&component);
        // A component `..` and the root exist.
        match fs::DirBuilder::new().mode(0o755).create(&here) {
            Ok(()) => continue,
            Err(_) if here.is_dir() => continue,
            Err(error) => {
                let target = fs::read_link(&here).map_err(|_| error)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                here.pop();
                remaining.extend(components(&target));
            }
        }
    }
    Ok(())
}

/// The next one last; an absolute path begins with the root, at which `PathBuf::push` begins anew.
fn components(path: &Path) -> Vec<PathBuf> {
    let parts = path
        .components()
        .map(|component| PathBuf::from(component.as_os_str()));
    let mut parts: Vec<PathBuf> = parts.collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert_eq!(read(&path, 10).unwrap(), None);
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"0123456789");
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_beginning(&path, 4).unwrap(), (b"0123".to_vec(), false));
    }

    #[test]
    fn what_is_no_file_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        for path in [fifo.as_path(), directory.path(), Path::new("/dev/zero")] {
            assert!(read(path, 10).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn a_directory_is_made_at_the_end_of_links() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::os::unix::fs::symlink(path("data/real"), path("absolute")).unwrap();
        std::os::unix::fs::symlink("other/real/../deep", path("relative")).unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        fs::write(path("file"), b"").unwrap();
        for (name, expected) in [
            ("plain/a/b", "plain/a/b"),
            ("plain/a/b", "plain/a/b"),
            ("absolute/x", "data/real/x"),
            ("relative/y", "other/deep/y"),
        ] {
            make_directories(&path(name)).unwrap();
            assert!(path(expected).is_dir(), "{name}");
        }
        for name in ["loop", "loop/x", "file", "file/x"] {
            assert!(make_directories(&path(name)).is_err(), "{name}");
        }
    }
}
