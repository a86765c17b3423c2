//! Makes the two things that are compiled into the daemon besides its own code: the wire types (without protoc) and
//! the guest's init (a static program, built by a second cargo).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let manifest_directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_directory.join("../..").canonicalize()?;
    let output = PathBuf::from(env::var("OUT_DIR")?);

    compile_proto(&workspace, &output)?;
    build_guest_init(&workspace, &output)
}

/// Compiles the proto files with protox: a fresh machine has no protoc.
fn compile_proto(workspace: &Path, output: &Path) -> Result<()> {
    let proto = workspace.join("proto");
    println!("cargo::rerun-if-changed={}", proto.display());

    let descriptors = protox::compile(["builder/v1/builder.proto"], [&proto])?;
    // The same bytes feed reflection and the JSON side of the edge.
    fs::write(output.join("builder.v1.binpb"), descriptors.encode_to_vec())?;
    // The daemon accepts its own connections, so tonic's transport is left out.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Builds crates/guest-init as a static program for the target's own architecture.
fn build_guest_init(workspace: &Path, output: &Path) -> Result<()> {
    let target = env::var("TARGET")?;
    let architecture = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => {
            return Err(format!(
                "no guest init for architecture {other}: builderd runs on x86_64 and aarch64"
            )
            .into());
        }
    };
    println!("cargo::rustc-env=GUEST_INIT_ARCHITECTURE={architecture}");
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("crates/guest-init").display()
    );
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("Cargo.lock").display()
    );

    // A target directory of its own: the outer cargo holds the lock of the usual one.
    let target_directory = output.join("guest-init");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "--release",
            "--quiet",
            "--package",
            "guest-init",
            "--bin",
            "guest-init",
        ])
        // With an explicit target the flags below reach neither procedural macros nor build scripts, which a static
        // C runtime would break.
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&target_directory)
        .args(["--config", "profile.release.opt-level='z'"])
        .args(["--config", "profile.release.lto='fat'"])
        .args(["--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.debug=false"])
        .args(["--config", "profile.release.panic='abort'"])
        .args(["--config", "profile.release.strip='symbols'"])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // What `cargo clippy` and coverage tools set for the outer build must not reach the guest's program.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR")
        .status()?;
    if !status.success() {
        return Err(format!("building guest-init for {target} failed with {status}").into());
    }
    let program = target_directory.join(&target).join("release/guest-init");
    println!("cargo::rustc-env=GUEST_INIT_PROGRAM={}", program.display());
    Ok(())
}
