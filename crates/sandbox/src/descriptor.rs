//! Descriptors for a box: memory with data in it, and taking over what the launching process placed.

use std::{fs::File, io};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::sys::boxed;

/// The descriptor `number`, with which this program was started, as a file of its own. Each can be taken once.
///
/// For the program's side of [`Spec::descriptors`](crate::Spec::descriptors). It is close-on-exec from then on.
///
/// # Errors
/// EBADF when nothing is open under that number; EEXIST when it was taken before, or opened by this program itself
/// (which shows in that it is close-on-exec); EINVAL for the standard three, which the library owns.
pub fn take_descriptor(number: i32) -> io::Result<File> {
    boxed::take_descriptor(number).map(File::from)
}

/// Memory behind a descriptor, for data that a box is given: where the kernel can see to it (Linux 6.3), nobody can
/// execute it, nor let it be executed again. Source: `MFD_NOEXEC_SEAL` of `memfd_create(2)`.
///
/// # Errors
/// When there are no descriptors or there is no memory left.
pub fn data_memory(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC;
    let memory = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        result => result?,
    };
    Ok(File::from(memory))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_inherited_descriptors_can_be_taken_and_each_once() {
        let refused = |number: i32| take_descriptor(number).unwrap_err().raw_os_error();
        assert_eq!(refused(0), Some(libc::EINVAL));
        assert_eq!(refused(-1), Some(libc::EINVAL));
        assert_eq!(refused(9999), Some(libc::EBADF));

        let own = File::open("/dev/null").unwrap();
        assert_eq!(refused(own.as_raw_fd()), Some(libc::EEXIST));

        // As it would be inherited; nobody owns the copy.
        let inherited = rustix::io::dup(&own).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(inherited);
        let taken = take_descriptor(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(refused(number), Some(libc::EEXIST));
    }
}
