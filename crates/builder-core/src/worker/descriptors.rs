//! Taking over the descriptors that the parent placed.

use std::{fs::File, io};

/// The descriptor `number` of this process, as a file of our own. A job names each of its descriptors once.
pub(super) fn take(number: i32) -> io::Result<File> {
    sandbox::take_descriptor(number)
}
