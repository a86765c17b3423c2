//! A real image through the daemon and Debian's registry, compared entry by entry with what another tool makes of the
//! same layers, and booted.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use builderd::proto::BuildState;
use builderd_e2e::{
    api::{Api, seed_request},
    check::{self, Mounted},
    daemon::Daemon,
    docker_registry::DockerRegistry,
    parts,
};
use rootfs::listing::{Difference, Field, Listing};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    lab::{self, Missing},
    vm::{BootOptions, VmRig},
};

/// What builderd adds to an image that is to boot.
const ADDED: [&str; 3] = ["/container.cmd", "/container.env", "/usr/bin/metald-init"];

/// What it adds besides to one that is never written to, unless it is there already.
const MOUNT_POINTS: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// Directories whose modification time follows from what is added to them.
const HOLDS_ADDED: [&str; 3] = ["/", "/etc", "/usr/bin"];

/// Has the guest say what its kernel makes of capabilities (which alone let another user than root ping), attributes, owners, special bits and hard links, and of its root.
const LOOK_AT_SERVER: &str = "/usr/sbin/getcap /bin/ping; \
    stat -c %n,%u:%g,%a,%h /srv/special/owner /srv/special/setuid /srv/special/setgid /srv/links/lower; \
    test /srv/links/lower -ef /usr/share/doc/site/one && echo linked to a lower layer; \
    ping -c 1 -q 127.0.0.1 >/dev/null && echo pinged as user $(id -u); \
    echo comment=$(getfattr --only-values --absolute-names -n user.comment /srv/special/attributes); \
    grep ' / ext4 ' /proc/mounts";

/// What the recipe of the image `nginx` says.
const SEEN_IN_SERVER: [&str; 8] = [
    "/bin/ping cap_net_raw=ep",
    "/srv/special/owner,12345:54321,644,1",
    "/srv/special/setuid,0:0,4755,1",
    "/srv/special/setgid,0:0,2755,1",
    "/srv/links/lower,0:0,644,2",
    "linked to a lower layer",
    "pinged as user 33",
    "comment=kept",
];

/// The same with what a distribution has by itself.
const LOOK_AT_DEBIAN: &str = "printenv EXTRA; \
    stat -c %n,%u:%g,%a /etc/shadow /usr/bin/chage /usr/bin/passwd; \
    test /usr/bin/perl -ef /usr/bin/perl5.36.0 && echo one perl; \
    echo text > /tmp/new && echo can write to /tmp; \
    grep ' / ext4 ' /proc/mounts";

/// The owners are those of the package `passwd`; 42 is the group `shadow`.
const SEEN_IN_DEBIAN: [&str; 6] = [
    "said-by-the-kernel",
    "/etc/shadow,0:42,640",
    "/usr/bin/chage,0:42,2755",
    "/usr/bin/passwd,0:0,4755",
    "one perl",
    "can write to /tmp",
];

/// A finished image, and what has to live as long.
struct Built {
    image: PathBuf,
    checksum: String,
    _state: TempDir,
}

/// Has a daemon build an image of the lab, from Debian's registry.
async fn built(layout: &Path, format: &str, backend: &str, profile: &str) -> Built {
    let registry = DockerRegistry::start().unwrap();
    let reference = registry.push(layout, "site/image", format).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut variables = vec![("ROOTFS_BACKEND", backend)];
    if backend == "mke2fs" {
        // A box holds no program of the host, and mke2fs is one.
        variables.push(("TENANT_ISOLATION_ENABLED", "false"));
    }
    let daemon = Daemon::start(&parts::builderd().unwrap(), state.path(), &variables).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let mut request: Value = serde_json::from_str(&seed_request(&reference)).unwrap();
    request["config"]["target"]["microvm_rootfs"]["profile"] = profile.into();
    let answer = api.call("CreateBuild", &request.to_string()).await.unwrap();
    let build_id = answer.body["buildId"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", answer.body))
        .to_owned();
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

/// Has another tool unpack an image of the lab.
fn unpacked(layout: &Path) -> Listing {
    let bundle = tempfile::tempdir().unwrap();
    let bundle = bundle.path().join("bundle");
    check::run(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:1", layout.display()))
            .arg(&bundle),
    )
    .unwrap();
    let listing = Listing::of_directory(&bundle.join("rootfs")).unwrap();
    assert!(
        listing.lines.len() > 5000,
        "a whole distribution, not {} entries",
        listing.lines.len()
    );
    listing
}

/// How a machine is started that has a shell run a script. The script has no double quotes.
fn running(profile: &str, script: &str) -> BootOptions {
    BootOptions {
        kernel_arguments: vec!["env.EXTRA=said-by-the-kernel".into()],
        command: vec!["/bin/sh".into(), "-c".into(), format!("\"{script}\"")],
        read_only: profile == "ro",
        ..BootOptions::default()
    }
}

/// Whether everything that was expected is a line of the console, the first of which the firmware's escapes precede.
fn assert_lines(case: &str, serial: &str, expected: &[&str]) {
    for expected in expected {
        assert!(
            serial.lines().any(|line| line.trim_end().ends_with(expected)),
            "{case}: {expected:?} is missing:\n{serial}"
        );
    }
}

/// Whether the guest's own list of mounts, which both scripts end with, says so of its root.
fn assert_root_is(read_only: bool, case: &str, serial: &str) {
    let expected = if read_only { " / ext4 ro," } else { " / ext4 rw," };
    assert!(
        serial.contains(expected),
        "{case}: {expected:?} is missing:\n{serial}"
    );
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
        None => {
            let mut added = ADDED.iter().chain(&MOUNT_POINTS).chain(&["/lost+found"]);
            difference.right.is_none() && added.any(|added| *added == path)
        }
        Some(Field::ModificationTime) => HOLDS_ADDED.contains(&&*path),
        Some(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_image_of_a_server_holds_what_its_layers_say_and_boots() {
    let layout = match layout("nginx") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let theirs = unpacked(&layout);

    // The compression of a push and the kind of manifest must not matter, and neither must the backend.
    let by_mke2fs = built(&layout, "v2s2", "mke2fs", "rw").await;
    compare("mke2fs", &by_mke2fs.image, &theirs);
    let read_write = built(&layout, "oci", "native", "rw").await;
    compare("native rw", &read_write.image, &theirs);
    let read_only = built(&layout, "oci", "native", "ro").await;
    compare("native ro", &read_only.image, &theirs);

    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    let serve = "exec /usr/bin/tini -- nginx -c /srv/site/nginx.conf -e stderr";
    let look_and_serve = |profile| running(profile, &format!("{LOOK_AT_SERVER}; {serve}"));
    for (case, image, options, expected) in [
        (
            "its own command",
            &read_write.image,
            BootOptions::default(),
            &[][..],
        ),
        ("rw", &read_write.image, look_and_serve("rw"), &SEEN_IN_SERVER),
        ("ro", &read_only.image, look_and_serve("ro"), &SEEN_IN_SERVER),
    ] {
        let is_read_only = options.read_only;
        let vm = rig.start(image, &options).unwrap();
        assert!(
            vm.wait_for("start worker process"),
            "{case}: nginx does not run:\n{}",
            vm.serial()
        );
        vm.send_ctrl_alt_delete().unwrap();
        let boot = vm.wait().unwrap();
        assert_lines(case, &boot.serial, expected);
        if !expected.is_empty() {
            assert_root_is(is_read_only, case, &boot.serial);
        }
        // SIGQUIT is the image's STOPSIGNAL, on which nginx ends in order.
        for expected in [
            "gracefully shutting down",
            "guest-init: command exited with code 0",
        ] {
            assert!(
                boot.serial.contains(expected),
                "{case}: {expected:?} is missing:\n{}",
                boot.serial
            );
        }
        assert!(boot.ended_by_itself, "{case}: {}", boot.serial);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_tiny_image_says_hello_from_every_kind_of_manifest() {
    let layout = match layout("tiny") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    for format in ["oci", "v2s2"] {
        let built = built(&layout, format, "native", "rw").await;
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
async fn privileged_a_distribution_runs_its_command() {
    let layout = match layout("debian") {
        Ok(layout) => layout,
        Err(missing) => return lab::skip(missing),
    };
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => return lab::skip(missing),
    };
    let theirs = unpacked(&layout);
    let read_write = built(&layout, "v2s2", "native", "rw").await;
    compare("native rw", &read_write.image, &theirs);
    let (_directory, read_only) = built_by_command_line(&layout, &["--profile", "ro"]);
    compare("native ro", &read_only, &theirs);

    let boot = rig.boot(&read_write.image, &BootOptions::default()).unwrap();
    assert_lines(
        "its own command",
        &boot.serial,
        &["Debian GNU/Linux 12 (bookworm) says hello"],
    );
    assert!(boot.ended_by_itself, "{}", boot.serial);

    // What the kernel's command line says goes before what the image says.
    for (profile, image) in [("rw", &read_write.image), ("ro", &read_only)] {
        let boot = rig.boot(image, &running(profile, LOOK_AT_DEBIAN)).unwrap();
        assert_lines(profile, &boot.serial, &SEEN_IN_DEBIAN);
        assert_root_is(profile == "ro", profile, &boot.serial);
        assert!(boot.ended_by_itself, "{profile}: {}", boot.serial);
    }
}
