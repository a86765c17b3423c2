//! The program to be run: a path, or bytes that nobody can change any more.

use std::{
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// What is executed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Program {
    /// An absolute path; it is never looked up in PATH.
    ///
    /// `/proc/self/exe` means the program of the launching process, even when its file was replaced or deleted.
    Path(PathBuf),
    /// A program in memory. The only kind that an empty root can run, and it has to be linked statically there.
    Sealed(SealedProgram),
}

/// An executable in anonymous memory, sealed: neither its size nor its content can change, not even by the process
/// that runs it. Source: `memfd_create(2)`, `F_ADD_SEALS` of `fcntl(2)`.
///
/// Cheap to clone; all clones are one file.
#[derive(Clone, Debug)]
pub struct SealedProgram {
    name: Arc<str>,
    file: Arc<OwnedFd>,
}

impl SealedProgram {
    /// Copies `bytes` into sealed memory. `name` becomes `argv[0]` and what `ps` shows.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn new(name: &str, bytes: &[u8]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // MFD_EXEC is said where the kernel knows it (6.3): without it, vm.memfd_noexec may refuse the execution.
        let file = match memfd_create(name, flags | MemfdFlags::EXEC) {
            Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
            made => made?,
        };
        let mut file = std::fs::File::from(file);
        file.write_all(bytes)?;
        fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        // Opened again for reading: a descriptor that was opened for writing makes execve say ETXTBSY.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = std::fs::File::open(path)?;
        Ok(Self {
            name: name.into(),
            file: Arc::new(file.into()),
        })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for SealedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Program {
    /// What messages call it.
    pub(crate) fn describe(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Sealed(sealed) => PathBuf::from(sealed.name()),
        }
    }
}

impl From<SealedProgram> for Program {
    fn from(program: SealedProgram) -> Self {
        Self::Sealed(program)
    }
}

impl From<PathBuf> for Program {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&std::path::Path> for Program {
    fn from(path: &std::path::Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&str> for Program {
    fn from(path: &str) -> Self {
        Self::Path(PathBuf::from(path))
    }
}

impl From<std::ffi::OsString> for Program {
    fn from(path: std::ffi::OsString) -> Self {
        Self::Path(PathBuf::from(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_program_cannot_be_changed() {
        let program = SealedProgram::new("tool", b"#!/bin/true").unwrap();
        let path = format!("/proc/self/fd/{}", program.as_fd().as_raw_fd());
        let mut file = std::fs::File::options().write(true).open(path).unwrap();
        assert_eq!(
            file.write_all(b"x").unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        assert_eq!(file.set_len(1).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
