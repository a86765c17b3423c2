//! Puts a program that tries to break out into a box of each level, and prints what it could do.
//!
//! ```text
//! cargo run -p sandbox --example run
//! ```
//!
//! The two static programs, the helper and the attacker, are built first, by a second cargo. As root, all layers can be
//! had on most hosts; what is missing is said.

use std::{io::Read as _, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use sandbox::{Calls, GroupLimits, Level, Sandbox, SealedProgram, Settings, Spec};

const ATTACKS: [&str; 6] = [
    "host-file=/etc/passwd",
    "proc",
    "raw-socket",
    "user-namespace",
    "process",
    "io-uring",
];

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> anyhow::Result<()> {
    let programs = static_programs()?;
    let sandbox = Sandbox::start(&Settings {
        name: "sandbox-example",
        helper: &std::fs::read(programs.join("sandbox-helper"))?,
        lease_directory: Some(std::env::temp_dir().join("sandbox-example-users")),
    })?;
    for missing in sandbox.missing() {
        println!("missing here: {missing}");
    }
    let program = SealedProgram::new("escape-probe", &std::fs::read(programs.join("escape-probe"))?)?;
    let limits = GroupLimits {
        memory_bytes: Some(64 << 20),
        ..GroupLimits::default()
    };
    for level in [Level::Basic, Level::Strict, Level::Maximum] {
        println!("level {}: {}", level.number(), level.layers());
        for attack in ATTACKS {
            let (mut reader, writer) = std::io::pipe()?;
            let mut spec = Spec::new(program.clone());
            spec.arguments = vec![attack.into()];
            spec.stdout = Some(writer.into());
            let child = sandbox.launch(spec, level.isolation(Calls::Worker), None, &limits)?;
            let mut line = String::new();
            reader.read_to_string(&mut line)?;
            let outcome = child.wait()?;
            println!("  {} ({})", line.trim_end(), outcome.status);
        }
    }
    Ok(())
}

/// Builds the static programs; gives their directory.
fn static_programs() -> anyhow::Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = std::env::temp_dir().join("sandbox-example-target");
    let status = Command::new("cargo")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--quiet",
            "--package",
            "sandbox",
            "--bins",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()
        .context("cargo cannot be run")?;
    ensure!(
        status.success(),
        "building the static programs failed with {status}"
    );
    Ok(directory.join(target).join("debug"))
}
