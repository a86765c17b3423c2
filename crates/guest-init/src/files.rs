//! Reads of files that the image controls: bounded, and without blocking.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
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
}
