//! Makes what is compiled into the daemon besides its own code: the wire types (without protoc), and the static programs
//! that it carries, built by a second cargo: the guest's init, the sandbox's helper and the worker.

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
    build_guest_init(&workspace, &output)?;
    build_workers(&workspace, &output)
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

    let programs = build_static(
        workspace,
        &output.join("guest-init"),
        &["--package", "guest-init", "--bin", "guest-init"],
        // It is in every image: as small as it gets.
        &["opt-level='z'", "lto='fat'", "codegen-units=1", "panic='abort'"],
    )?;
    println!(
        "cargo::rustc-env=GUEST_INIT_PROGRAM={}",
        programs.join("guest-init").display()
    );
    Ok(())
}

/// Builds the worker and the helper that puts it into a box. Both have to be static: in the box is no file at all.
fn build_workers(workspace: &Path, output: &Path) -> Result<()> {
    for path in [
        "crates/builder-core/src",
        "crates/rootfs/src",
        "crates/sandbox/src",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for name in ["builder-core", "rootfs", "sandbox"] {
        let manifest = workspace.join("crates").join(name).join("Cargo.toml");
        println!("cargo::rerun-if-changed={}", manifest.display());
    }
    let programs = build_static(
        workspace,
        &output.join("worker"),
        &[
            "--package",
            "builder-core",
            "--package",
            "sandbox",
            "--no-default-features",
            "--bin",
            "builderd-worker",
            "--bin",
            "sandbox-helper",
        ],
        &["opt-level=3", "lto=false", "codegen-units=16"],
    )?;
    for (variable, name) in [
        ("WORKER_PROGRAM", "builderd-worker"),
        ("SANDBOX_HELPER_PROGRAM", "sandbox-helper"),
    ] {
        println!("cargo::rustc-env={variable}={}", programs.join(name).display());
    }
    Ok(())
}

/// Builds static programs for the target's own architecture; gives the directory that they are in.
fn build_static(
    directory: &Path,
    target_directory: &Path,
    what: &[&str],
    profile: &[&str],
) -> Result<PathBuf> {
    let target = env::var("TARGET")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(directory)
        .args(["build", "--locked", "--release", "--quiet"])
        .args(what)
        // With an explicit target the flags below reach neither procedural macros nor build scripts, which a static
        // C runtime would break.
        .args(["--target", &target])
        // A target directory of its own: the outer cargo holds the lock of the usual one.
        .arg("--target-dir")
        .arg(target_directory);
    for setting in profile.iter().chain(&["debug=false", "strip='symbols'"]) {
        cargo.args(["--config", &format!("profile.release.{setting}")]);
    }
    let status = cargo
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // What `cargo clippy` and coverage tools set for the outer build must not reach the programs.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR")
        .status()?;
    if !status.success() {
        return Err(format!("building {} for {target} failed with {status}", what.join(" ")).into());
    }
    Ok(target_directory.join(&target).join("release"))
}
