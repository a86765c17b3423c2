//! deploy/Containerfile gives an image whose program starts. Its two bases are made here: Debian's from the lab, and one in
//! which `make build` takes the programs that were built for the tests.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use builderd_e2e::parts;
use test_support::lab::{self, Missing};

const BUILD_IMAGE: &str = "FROM scratch\n\
    COPY busybox /bin/busybox\n\
    COPY busybox /bin/sh\n\
    COPY make /bin/make\n\
    COPY builderd builderd-cli /prebuilt/\n";

const BASE_IMAGE: &str = "FROM scratch\nADD base.tar /\n";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// buildah with a store of its own.
struct Buildah {
    program: PathBuf,
    store: tempfile::TempDir,
}

impl Buildah {
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .arg("--root")
            .arg(self.store.path().join("root"))
            .arg("--runroot")
            .arg(self.store.path().join("run"))
            .args(["--storage-driver", "overlay"])
            .args(arguments)
            .current_dir(workspace())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{arguments:?}: {printed}{said}");
        printed
    }

    fn build(&self, name: &str, text: &str, files: &[(&str, &Path)]) {
        let context = tempfile::tempdir().unwrap();
        fs::write(context.path().join("Containerfile"), text).unwrap();
        for (name, file) in files {
            fs::copy(file, context.path().join(name)).unwrap();
        }
        let context = context.path().to_str().unwrap();
        self.run(&["bud", "--quiet", "--isolation", "chroot", "--tag", name, context]);
    }
}

fn needed() -> Result<(PathBuf, [PathBuf; 4]), Missing> {
    parts::root()?;
    Ok((
        lab::program("buildah", "buildah")?,
        [
            lab::program("busybox", "busybox-static")?,
            parts::builderd()?,
            parts::builderd_cli()?,
            parts::lab_part("base/base.tar")?,
        ],
    ))
}

#[test]
fn privileged_the_container_is_built_and_its_program_starts() {
    let (program, [busybox, builderd, builderd_cli, base]) = match needed() {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let store = tempfile::Builder::new().prefix("container-").tempdir().unwrap();
    let buildah = Buildah { program, store };
    let make = workspace().join("tests/tests/container/make");
    buildah.build(
        "prebuilt",
        BUILD_IMAGE,
        &[
            ("busybox", &busybox),
            ("make", &make),
            ("builderd", &builderd),
            ("builderd-cli", &builderd_cli),
        ],
    );
    buildah.build("base", BASE_IMAGE, &[("base.tar", &base)]);
    buildah.run(&[
        "bud",
        "--quiet",
        "--isolation",
        "chroot",
        "--network",
        "host",
        "--file",
        "deploy/Containerfile",
        "--build-arg",
        "BUILD_IMAGE=localhost/prebuilt",
        "--build-arg",
        "BASE_IMAGE=localhost/base",
        "--tag",
        "builderd",
        ".",
    ]);
    let container = buildah.run(&["from", "localhost/builderd"]);
    let container = container.trim();
    for program in ["builderd", "builderd-cli"] {
        let version = buildah.run(&[
            "run",
            "--isolation",
            "chroot",
            container,
            "--",
            program,
            "--version",
        ]);
        assert!(version.starts_with(program), "{version}");
    }
    let settings = buildah.run(&[
        "inspect",
        "--format",
        "{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}",
        container,
    ]);
    assert_eq!(settings.trim(), "[/usr/bin/builderd] [serve]");
    buildah.run(&["rm", container]);
}
