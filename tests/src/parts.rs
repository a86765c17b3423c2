//! Where the parts are that the tests and the demo run.

use std::{env, path::PathBuf, process::Command};

use test_support::lab::{self, Missing};

/// The daemon's program: `BUILDERD_BINARY`, else what `cargo build -p builderd` left in the target directory.
///
/// # Errors
/// When it was not built.
pub fn builderd() -> Result<PathBuf, Missing> {
    built("BUILDERD_BINARY", "debug/builderd")
}

/// The remote client: `BUILDERD_CLI_BINARY`, else what cargo left in the target directory.
///
/// # Errors
/// When it was not built.
pub fn builderd_cli() -> Result<PathBuf, Missing> {
    built("BUILDERD_CLI_BINARY", "debug/builderd-cli")
}

/// The example with every method: `BUILDERD_METHODS_EXAMPLE`, else what cargo left in the target directory.
///
/// # Errors
/// When it was not built.
pub fn methods_example() -> Result<PathBuf, Missing> {
    built("BUILDERD_METHODS_EXAMPLE", "debug/examples/methods")
}

/// The demo's program: `BUILDERD_DEMO_BINARY`, else what cargo left in the target directory.
///
/// # Errors
/// When it was not built.
pub fn demo() -> Result<PathBuf, Missing> {
    built("BUILDERD_DEMO_BINARY", "debug/demo")
}

/// The static program that the demo's image runs: `BUILDERD_GUEST_HELLO`, as xtask sets it.
///
/// # Errors
/// When it was not built.
pub fn guest_hello() -> Result<PathBuf, Missing> {
    built(
        "BUILDERD_GUEST_HELLO",
        "guest/x86_64-unknown-linux-gnu/release/guest-hello",
    )
}

fn built(variable: &str, in_target: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os(variable).map_or_else(|| lab::target_directory().join(in_target), PathBuf::from);
    if path.is_file() {
        return Ok(path);
    }
    Err(Missing::new(format!(
        "{} is not built: run cargo xtask test",
        path.display()
    )))
}

/// One of the images that `cargo xtask lab` makes, as an OCI layout with the tag `1`.
///
/// # Errors
/// When it was not made.
pub fn lab_image(name: &str) -> Result<PathBuf, Missing> {
    let path = lab::directory().join("images").join(name);
    if path.join(".recipe").is_file() {
        return Ok(path);
    }
    Err(Missing::new(format!(
        "the image {name} is missing: run cargo xtask lab"
    )))
}

/// Something that `cargo xtask lab` fetches, by its path below the lab's directory.
///
/// # Errors
/// When it was not fetched.
pub fn lab_part(path: &str) -> Result<PathBuf, Missing> {
    let path = lab::directory().join(path);
    if path.exists() {
        return Ok(path);
    }
    Err(Missing::new(format!(
        "{} is missing: run cargo xtask lab",
        path.display()
    )))
}

/// Mounting, and the `mke2fs` backend, are for root.
///
/// # Errors
/// When this process is not root.
pub fn root() -> Result<(), Missing> {
    let output = Command::new("id")
        .arg("-u")
        .output()
        .map_err(|error| Missing::new(error.to_string()))?;
    match output.stdout.trim_ascii() {
        b"0" => Ok(()),
        _ => Err(Missing::new("this needs root")),
    }
}
