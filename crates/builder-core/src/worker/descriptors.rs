//! Taking over the descriptors that the parent placed.

use std::{fs::File, io};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The descriptor `number` of this process, as a file of our own.
///
/// A number cannot be turned into an owned descriptor without a promise to the compiler that nobody else owns it. Asking
/// the kernel for a copy needs no promise: it says EBADF when there is none. The original stays open until the process
/// ends, which for a worker is soon. Kernel: `pidfd_getfd(2)`, Linux 5.6.
pub(super) fn take(number: i32) -> io::Result<File> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(File::from(pidfd_getfd(
        this_process,
        number,
        PidfdGetfdFlags::empty(),
    )?))
}
