//! What a guest finds, whichever way its image is started: images made here, built by the command line, booted.

#![expect(clippy::unwrap_used, reason = "a test program")]

mod firecracker;
mod read_only;
mod server;
mod strategies;
mod stripped;
mod systemd;
mod unit;
mod verity;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use builderd_e2e::{check, parts};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    image::{Image, Layer},
    lab::{self, Missing},
    vm::{BootLog, BootOptions, VmRig},
};

/// An image that was built, and what lies beside it.
struct Built {
    image: PathBuf,
    metadata: Value,
    machine: Value,
    metrics: Value,
    _directory: TempDir,
}

impl Built {
    /// The machine that the metadata asks for: nothing is added to what they say.
    fn boot_options(&self) -> BootOptions {
        let line = self.metadata["kernel_args"].as_str().unwrap();
        assert_eq!(self.machine["boot-source"]["boot_args"], line);
        let (words, command) = line.split_once(" -- ").unwrap_or((line, ""));
        let mut options = BootOptions {
            command: command.split_whitespace().map(str::to_owned).collect(),
            read_only: self.machine["drives"][0]["is_read_only"] == true,
            ..BootOptions::default()
        };
        // Those of the rig's own are the same; the disk is mounted by the initial file system.
        for word in words.split(' ') {
            match word.split_once('=') {
                Some(("init", path)) => path.clone_into(&mut options.init),
                Some(("console" | "reboot" | "panic" | "root", _)) | None => {}
                Some(_) => options.kernel_arguments.push(word.to_owned()),
            }
        }
        options
    }
}

/// A file system with nothing but a busybox, and names for some of its applets.
fn busybox() -> Result<Layer, Missing> {
    let program = fs::read(lab::program("busybox", "busybox-static")?).unwrap();
    let mut layer = Layer::new()
        .directory("bin", 0o755)
        .file("bin/busybox", program)
        .mode(0o755)
        .directory("etc", 0o755)
        .file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        )
        .file(
            "etc/group",
            "root:x:0:\napp:x:1001:\naudio:x:29:app\nvideo:x:44:app\n",
        );
    for applet in [
        "sh", "cat", "env", "id", "kill", "ls", "pwd", "reboot", "sleep", "stat",
    ] {
        layer = layer.symlink(format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// Has the command line build an image that is made here.
fn build(image: &Image, options: &[&str]) -> Built {
    let directory = tempfile::tempdir().unwrap();
    image.build().write_oci_layout(directory.path(), "1").unwrap();
    build_layout(directory.path(), options)
}

/// Has the command line build an image that is there.
fn build_layout(layout: &Path, options: &[&str]) -> Built {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("guest.ext4");
    let done = Command::new(parts::builderd().unwrap())
        .args(["build", "--json"])
        .arg(format!("oci:{}:1", layout.display()))
        .arg("--output")
        .arg(&output)
        .arg("--cache-dir")
        .arg(directory.path().join("cache"))
        .args(options)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let completed: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    check::e2fsck(&output).unwrap();
    let json = |ending: &str| {
        let text = fs::read(output.with_extension(ending)).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    Built {
        metadata: json("metadata.json"),
        machine: json("firecracker.json"),
        metrics: completed["metrics"].clone(),
        image: output,
        _directory: directory,
    }
}

/// What every test here needs.
fn rig() -> Result<VmRig, Missing> {
    parts::builderd()?;
    VmRig::find()
}

#[track_caller]
fn assert_says(boot: &BootLog, expected: &[&str]) {
    for expected in expected {
        assert!(
            boot.serial
                .lines()
                .any(|line| line.trim_end().ends_with(expected)),
            "{expected:?} is missing:\n{}",
            boot.serial
        );
    }
    assert!(boot.ended_by_itself, "{}", boot.serial);
}
