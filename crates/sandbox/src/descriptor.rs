//! Taking over what the launching process placed.

use std::{fs::File, io};

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
