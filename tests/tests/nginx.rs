//! A real image through the daemon and Debian's registry, compared entry by entry with what another tool makes of the
//! same layers, and booted.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use builderd::proto::BuildState;
use builderd_e2e::{
    api::Api,
    check::{self, Mounted},
    daemon::Daemon,
    docker_registry::DockerRegistry,
    parts,
};
use rootfs::listing::{Difference, Field, Listing};
use tempfile::TempDir;
use test_support::{
    lab::{self, Missing},
    vm::{BootOptions, VmRig},
};

/// What builderd adds to an image that is to boot.
const ADDED: [&str; 3] = ["/container.cmd", "/container.env", "/usr/bin/metald-init"];

/// Directories whose modification time follows from what is added to them.
const HOLDS_ADDED: [&str; 2] = ["/", "/usr/bin"];

/// A finished image, and what has to live as long.
struct Built {
    image: PathBuf,
    checksum: String,
    _state: TempDir,
}

/// Has a daemon build an image of the lab, from Debian's registry.
async fn built(layout: &Path, format: &str, backend: &str) -> Built {
    let registry = DockerRegistry::start().unwrap();
    let reference = registry.push(layout, "site/image", format).unwrap();
    let state = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(
        &parts::builderd().unwrap(),
        state.path(),
        &[("ROOTFS_BACKEND", backend)],
    )
    .unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let build_id = api.create(&reference).await.unwrap();
    let build = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        daemon.log()
    );
    let image = PathBuf::from(&build.rootfs_path);
    assert_eq!(check::sha256(&image).unwrap(), build.rootfs_checksum);
    check::e2fsck(&image).unwrap();
    Built {
        image,
        checksum: build.rootfs_checksum,
        _state: state,
    }
}

/// Has the command line build an image of the lab, from its directory.
fn built_by_command_line(layout: &Path, options: &[&str]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("rootfs.ext4");
    let mut command = Command::new(parts::builderd().unwrap());
    command
        .arg("build")
        .arg(format!("oci:{}:1", layout.display()))
        .arg("--output")
        .arg(&image);
    check::run(
        command
            .arg("--cache-dir")
            .arg(directory.path().join("cache"))
            .args(options),
    )
    .unwrap();
    check::e2fsck(&image).unwrap();
    (directory, image)
}

/// What every test here needs.
fn layout(name: &str) -> Result<PathBuf, Missing> {
    parts::root()?;
    parts::builderd()?;
    for (program, package) in [
        ("docker-registry", "docker-registry"),
        ("skopeo", "skopeo"),
        ("umoci", "umoci"),
    ] {
        lab::program(program, package)?;
    }
    parts::lab_image(name)
}

/// Mounts an image and compares every entry of it with what the other tool unpacked.
fn compare(backend: &str, image: &Path, theirs: &Listing) {
    let mounted = Mounted::image(image).unwrap();
    let ours = Listing::of_directory(mounted.path()).unwrap();
    let unexplained: Vec<String> = ours
        .differences(theirs)
        .iter()
        .filter(|difference| !is_explained(difference))
        .map(ToString::to_string)
        .collect();
    assert!(
        unexplained.is_empty(),
        "{backend}: {} differences:\n{}",
        unexplained.len(),
        unexplained.join("\n")
    );
    for path in ADDED {
        assert!(
            ours.lines.contains_key(path.as_bytes()),
            "{backend}: {path} is missing"
        );
    }
}

/// Whether it is clear why the two differ.
fn is_explained(difference: &Difference) -> bool {
    let path = String::from_utf8_lossy(&difference.path);
    match &difference.field {
        // The left side is ours.
        None => difference.right.is_none() && (ADDED.contains(&&*path) || path == "/lost+found"),
        Some(Field::ModificationTime) => HOLDS_ADDED.contains(&&*path),
        Some(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_server_holds_what_its_layers_say_and_boots() {
    let layout = match layout("nginx") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let bundle = tempfile::tempdir().unwrap();
    let bundle = bundle.path().join("bundle");
    check::run(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:1", layout.display()))
            .arg(&bundle),
    )
    .unwrap();
    let theirs = Listing::of_directory(&bundle.join("rootfs")).unwrap();
    assert!(
        theirs.lines.len() > 5000,
        "a whole distribution, not {} entries",
        theirs.lines.len()
    );

    // The compression of a push and the kind of manifest must not matter, and neither must the backend.
    let by_mke2fs = built(&layout, "v2s2", "mke2fs").await;
    compare("mke2fs", &by_mke2fs.image, &theirs);
    let built = built(&layout, "oci", "native").await;
    compare("native", &built.image, &theirs);

    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    let vm = rig.start(&built.image, &BootOptions::default()).unwrap();
    assert!(
        vm.wait_for("start worker process"),
        "nginx does not run:\n{}",
        vm.serial()
    );
    vm.send_ctrl_alt_delete().unwrap();
    let boot = vm.wait().unwrap();
    // SIGQUIT is the image's STOPSIGNAL, on which nginx ends in order.
    for expected in [
        "gracefully shutting down",
        "guest-init: command exited with code 0",
    ] {
        assert!(
            boot.serial.contains(expected),
            "{expected:?} is missing:\n{}",
            boot.serial
        );
    }
    assert!(boot.ended_by_itself, "{}", boot.serial);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tiny_image_says_hello_from_every_kind_of_manifest() {
    let layout = match layout("tiny") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    for format in ["oci", "v2s2"] {
        let built = built(&layout, format, "native").await;
        let boot = rig.boot(&built.image, &BootOptions::default()).unwrap();
        for expected in ["tiny says hello", "guest-init: command exited with code 0"] {
            assert!(
                boot.serial.contains(expected),
                "{format}: {expected:?} is missing:\n{}",
                boot.serial
            );
        }
        assert!(boot.ended_by_itself, "{format}: {}", boot.serial);
        if format == "oci" {
            // The same manifest gives the same bytes, whoever asks and wherever it comes from.
            let (_directory, image) = built_by_command_line(&layout, &[]);
            assert_eq!(check::sha256(&image).unwrap(), built.checksum);
        }
    }

    // The other architecture's has no init, so it is only built.
    let (_directory, image) = built_by_command_line(&layout, &["--platform", "linux/arm64", "--raw"]);
    let mounted = Mounted::image(&image).unwrap();
    let listing = Listing::of_directory(mounted.path()).unwrap();
    let paths: Vec<_> = listing
        .lines
        .keys()
        .map(|path| String::from_utf8_lossy(path))
        .collect();
    assert_eq!(
        paths,
        ["/", "/bin", "/bin/busybox", "/etc", "/etc/hello", "/lost+found"],
        "nothing of ours"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_runs_its_command() {
    let layout = match layout("debian") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    let built = built(&layout, "v2s2", "native").await;
    // What the kernel's command line says goes before what the image says.
    for (command, expected) in [
        (&[][..], "Debian GNU/Linux 12 (bookworm) says hello"),
        (&["/usr/bin/printenv", "EXTRA"][..], "said-by-the-kernel"),
    ] {
        let options = BootOptions {
            kernel_arguments: vec!["env.EXTRA=said-by-the-kernel".into()],
            command: command.iter().map(ToString::to_string).collect(),
            ..BootOptions::default()
        };
        let boot = rig.boot(&built.image, &options).unwrap();
        assert!(
            boot.serial.contains(expected),
            "{expected:?} is missing:\n{}",
            boot.serial
        );
        assert!(boot.ended_by_itself, "{}", boot.serial);
    }
}
