//! `cargo xtask lab`: what the end-to-end tests use and what takes long to make. Everything is kept below the target
//! directory and made again only when its recipe changes.

mod images;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    context::{Context, Result, at, output, run},
    debian,
};

pub(crate) use images::{image, images};

/// Debian's kernel for clouds: small, and with everything that a virtual machine shows.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// The Connect client and the command-line client that the end-to-end tests run, and what they need beside them.
const NODE_PACKAGES: [&str; 4] = [
    "@bufbuild/buf@1.75.0",
    "@bufbuild/protobuf@2.17.0",
    "@connectrpc/connect@2.0.4",
    "@connectrpc/connect-node@2.0.4",
];

/// The gRPC client that the end-to-end tests run, with the services that go with it, and a server that stands in for S3.
const PYTHON_PACKAGES: [&str; 7] = [
    "flask==3.1.3",
    "flask-cors==6.0.5",
    "grpcio==1.85.1",
    "grpcio-health-checking==1.85.1",
    "grpcio-reflection==1.85.1",
    "moto[s3]==5.2.5",
    "protobuf==7.36.2",
];

/// Makes everything.
pub(crate) fn make(context: &Context) -> Result<()> {
    debian::can_install()?;
    debian::install()?;
    kernel(context)?;
    images(context)?;
    clients(context)?;
    println!("everything is in {}", context.lab().display());
    Ok(())
}

/// A kernel and its modules in `lab/kernel`.
pub(crate) fn kernel(context: &Context) -> Result<()> {
    once(&context.lab().join("kernel"), KERNEL_PACKAGE, |directory| {
        let depends = output(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]));
        let depends = match depends {
            Ok(text) if text.contains("Depends:") => text,
            // A machine that was never updated knows no packages.
            _ => {
                run(Command::new("apt-get").args(["-q", "update"]))?;
                output(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]))?
            }
        };
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .ok_or_else(|| format!("{KERNEL_PACKAGE} depends on no kernel"))?;
        run(Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(directory))?;
        for archive in at(directory, fs::read_dir(directory))? {
            let archive = at(directory, archive)?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg").arg("-x").arg(&archive).arg(directory))?;
                at(&archive, fs::remove_file(&archive))?;
            }
        }
        Ok(())
    })
}

/// Clients in other languages, in `lab/node` and `lab/python`.
pub(crate) fn clients(context: &Context) -> Result<()> {
    once(
        &context.lab().join("node"),
        &NODE_PACKAGES.join("\n"),
        |directory| {
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--no-package-lock",
                "--no-audit",
                "--no-fund",
                "--save-exact",
                "--prefix",
            ]);
            run(npm.arg(directory).args(NODE_PACKAGES))
        },
    )?;
    once(
        &context.lab().join("python"),
        &PYTHON_PACKAGES.join("\n"),
        |directory| {
            run(Command::new(debian::python()).args(["-m", "venv"]).arg(directory))?;
            run(Command::new(directory.join("bin/pip"))
                .args(["install", "--quiet"])
                .args(PYTHON_PACKAGES))
        },
    )
}

/// Makes a directory unless it was made by the same recipe before. One that was not finished is made again.
fn once(directory: &Path, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let stamp: PathBuf = directory.join(".recipe");
    if fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == recipe) {
        println!("{} is there", directory.display());
        return Ok(());
    }
    println!("making {}", directory.display());
    if directory.exists() {
        at(directory, fs::remove_dir_all(directory))?;
    }
    at(directory, fs::create_dir_all(directory))?;
    make(directory)?;
    at(&stamp, fs::write(&stamp, recipe))
}
