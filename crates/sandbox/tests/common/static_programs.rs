//! The static programs of this crate, built by a second cargo: a box has an empty root, where nothing else runs.

use std::{path::PathBuf, process::Command, sync::OnceLock};

/// A program's bytes.
pub(crate) fn program(name: &str) -> Vec<u8> {
    std::fs::read(directory().join(name)).unwrap()
}

/// Tells a process that a test starts where they are, so that it need not ask cargo.
pub(crate) const PLACE: &str = "SANDBOX_TEST_PROGRAMS";

pub(crate) fn directory() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(place) = std::env::var_os(PLACE) {
            return PathBuf::from(place);
        }
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("static");
        // Two test programs that come here at once wait for each other: cargo locks the directory.
        let status = Command::new(env!("CARGO"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--locked", "--quiet", "--package", "sandbox", "--bins"])
            .args(["--target", &target, "--target-dir"])
            .arg(&directory)
            .args(["--config", "profile.dev.debug=false"])
            .args(["--config", "profile.dev.opt-level=1"])
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CLIPPY_ARGS")
            .env_remove("CARGO_TARGET_DIR")
            .status()
            .unwrap();
        assert!(
            status.success(),
            "building the static programs failed with {status}"
        );
        directory.join(target).join("debug")
    })
}
