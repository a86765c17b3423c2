//! What the tests of this crate share.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "not every test file uses everything")]

use std::{io::Read, os::fd::OwnedFd};

use sandbox::{Outcome, Spec, launch};

/// A shell that runs `script`, with an empty environment.
#[must_use]
pub(crate) fn shell(script: &str) -> Spec {
    let mut spec = Spec::new("/bin/sh");
    spec.arguments = vec!["-c".into(), script.into()];
    spec
}

/// Runs to the end; gives the outcome and what the child wrote to standard output and standard error.
#[must_use]
pub(crate) fn run(mut spec: Spec) -> (Outcome, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    spec.stderr = Some(OwnedFd::from(writer.try_clone().unwrap()));
    spec.stdout = Some(OwnedFd::from(writer));
    let child = launch(spec).unwrap();
    let mut output = Vec::new();
    // Ends when every holder of the pipe is gone: what wait() is about to make sure of, or the child itself.
    let outcome = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| child.wait().unwrap());
        reader.read_to_end(&mut output).unwrap();
        waiter.join().unwrap()
    });
    (outcome, String::from_utf8_lossy(&output).into_owned())
}
