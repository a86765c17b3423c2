//! Lines on the console.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Writes `guest-init: MESSAGE` as one line.
pub(crate) fn say(message: impl fmt::Display) {
    write_out(&format!("guest-init: {message}\n"));
}

/// The same on a line of its own, even when the command did not end its last one.
pub(crate) fn say_on_fresh_line(message: impl fmt::Display) {
    write_out(&format!("\nguest-init: {message}\n"));
}

/// In one call, so that the kernel's own messages do not come in between; not by `eprintln!`, which panics when
/// there is no console to write to.
fn write_out(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
