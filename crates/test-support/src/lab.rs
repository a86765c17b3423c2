//! Where the parts of the test bed are that are fetched or made once.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

/// A part of the test bed that this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    reason: String,
}

impl Missing {
    /// What is missing, and how to get it.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for Missing {}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` of the workspace.
#[must_use]
pub fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."));
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) if !directory.is_empty() => workspace.join(directory),
        _ => workspace.join("target"),
    }
}

/// `lab` below the target directory: what `cargo xtask lab` makes once.
#[must_use]
pub fn directory() -> PathBuf {
    target_directory().join("lab")
}

/// Says why a test cannot run here, past what a test program keeps back of tests that pass, for the test to return; with `BUILDERD_REQUIRE_LAB=1` in the environment, where
/// nothing may be missing, fails the test instead.
///
/// # Panics
/// With `BUILDERD_REQUIRE_LAB=1`.
pub fn skip(reason: impl fmt::Display) {
    assert!(
        env::var_os("BUILDERD_REQUIRE_LAB").is_none_or(|value| value != "1"),
        "cannot run here: {reason}"
    );
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
}

/// Says why a test cannot run here that needs something from outside Debian which nobody has to have: it is left out
/// with `BUILDERD_REQUIRE_LAB=1` as well.
pub fn skip_optional(reason: impl fmt::Display) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
}

/// Finds a program in `PATH` and in the directories for administrators.
///
/// # Errors
/// When it is nowhere. `package` is the Debian package that has it.
pub fn program(name: &str, package: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Missing::new(format!("{name} is missing: apt-get install {package}")))
}
