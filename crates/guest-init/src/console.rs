//! Lines on the console.

use std::{
    fmt,
    io::{self, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether the kernel's arguments ask for nothing but the end. What fails before they are read is said.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on only [`say_on_fresh_line`] says anything.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Writes `guest-init: MESSAGE` as one line, unless that is not wanted.
pub(crate) fn say(message: impl fmt::Display) {
    if QUIET.load(Ordering::Relaxed) {
        return;
    }
    write_out(&format!("guest-init: {message}\n"));
}

/// Writes it in any case, and on a line of its own even when the command did not end its last one.
pub(crate) fn say_on_fresh_line(message: impl fmt::Display) {
    write_out(&format!("\nguest-init: {message}\n"));
}

/// In one call, so that the kernel's own messages do not come in between; not by `eprintln!`, which panics when
/// there is no console to write to.
fn write_out(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
