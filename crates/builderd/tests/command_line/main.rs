//! The program as people and scripts start it: what it says where, and the code it ends with.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod credentials;
mod daemon;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    image::{BuiltImage, Fault, Image, Layer},
    registry::{Authentication, Misbehaviour, Registry},
};

/// Longer than any step takes on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command in a directory of its own, with a cache of its own and no variable of ours.
fn builderd(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UNKEY_BUILDERD_") {
            command.env_remove(name);
        }
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    command
        .current_dir(directory)
        // What is stored for whoever runs the tests is none of theirs.
        .env("DOCKER_CONFIG", directory.join("docker"))
        .env("XDG_CACHE_HOME", directory.join("cache"))
        .stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    builderd(directory).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sample() -> BuiltImage {
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/motd", b"hello")
        .file("etc/old", b"gone soon");
    let top = Layer::new().whiteout("etc/old").symlink("etc/link", "motd");
    Image::new().layer(&base).layer(&top).cmd(&["/bin/app"]).build()
}

fn layout() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    sample()
        .write_oci_layout(directory.path().join("layout"), "v1")
        .unwrap();
    directory
}

/// Everything in a directory but what the command was given and its cache.
fn made_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| !matches!(name.as_str(), "layout" | "cache"))
        .collect();
    names.sort();
    names
}

#[test]
fn help_and_version_go_to_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&["--help"][..], "Exit codes"),
        (&["serve", "--help"], "--build-timeout"),
        (&["build", "--help"], "docker-archive:FILE"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = run(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            text(&output.stdout).contains(expected),
            "{arguments:?}: {}",
            text(&output.stdout)
        );
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_is_64_and_says_why() {
    let directory = layout();
    for (arguments, expected) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["build"], "--output"),
        (&["build", "oci:layout:v1"], "--output"),
        (
            &["build", "oci:layout:v1", "-o", "x", "--mode", "podman"],
            "possible values: oci, docker",
        ),
        (
            &["build", "oci:layout:v1", "-o", "x", "--platform", "amd64"],
            "os/architecture",
        ),
        (
            &["build", "oci:layout:v1", "-o", "x", "--free-space", "much"],
            "512MiB",
        ),
        (
            &["build", "oci:layout:v1", "-o", "x", "--free-space", "200TiB"],
            "less than 128TiB",
        ),
        (
            &[
                "build",
                "oci:layout:v1",
                "-o",
                "x",
                "--profile",
                "ro",
                "--free-space",
                "1G",
            ],
            "--profile ro",
        ),
        (
            &["build", "oci:layout:v1", "-o", "x", "--username", "u"],
            "--password-stdin",
        ),
        (
            &["build", "oci:layout:v1", "-o", "x", "--plain-http"],
            "--plain-http",
        ),
        (&["build", "UPPER", "-o", "x"], "IMAGE"),
        // Production's own defaults, where there is no agent.
        (
            &["serve", "--spiffe-socket", "/nonexistent/agent.sock"],
            "UNKEY_BUILDERD_SPIFFE_SOCKET: no agent answers at /nonexistent/agent.sock: No such file or directory (os \
             error 2): set it",
        ),
        (
            &["--spiffe-socket", "/nonexistent/agent.sock"],
            "UNKEY_BUILDERD_TLS_MODE=file with certificates of your own, or disabled",
        ),
        (&["--dev", "--port", "x"], "UNKEY_BUILDERD_PORT"),
        (&["serve", "--state-dir", "x"], "--dev"),
        (
            &["serve", "--dev", "--docker-insecure-registries", "a b"],
            "UNKEY_BUILDERD_DOCKER_INSECURE_REGISTRIES",
        ),
        (
            &["serve", "--dev", "--docker-allowed-registries", "*x"],
            "UNKEY_BUILDERD_DOCKER_ALLOWED_REGISTRIES",
        ),
    ] {
        let output = run(directory.path(), arguments);
        assert_eq!(
            output.status.code(),
            Some(64),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(expected),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let output = builderd(directory.path())
        .env("UNKEY_BUILDERD_PROT", "1")
        .arg("--dev")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("did you mean UNKEY_BUILDERD_PORT?"));
}

#[test]
fn an_image_is_built_and_its_path_is_all_that_standard_output_gets() {
    let directory = layout();
    let output = run(directory.path(), &["build", "oci:layout:v1", "-o", "a.ext4"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "a.ext4\n");
    assert!(
        text(&output.stderr).contains("sha256 "),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(
        made_in(directory.path()),
        ["a.ext4", "a.firecracker.json", "a.metadata.json"]
    );
}

#[test]
fn the_same_image_from_every_place_is_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let image = sample();
    image
        .write_oci_layout(directory.path().join("layout"), "v1")
        .unwrap();
    image
        .write_oci_archive(directory.path().join("oci.tar"), "v1")
        .unwrap();
    image
        .write_docker_archive(directory.path().join("docker.tar"), "app:v1")
        .unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "v1", &image);
    let sources = [
        "oci:layout:v1",
        "oci:layout",
        "oci-archive:oci.tar",
        "docker-archive:docker.tar",
        &reference,
    ];
    let mut files = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let name = format!("{number}.ext4");
        let mut arguments = vec!["build", source, "-o", &name, "--raw", "--no-reuse"];
        if *source == reference {
            arguments.push("--plain-http");
        }
        let output = run(directory.path(), &arguments);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{source}: {}",
            text(&output.stderr)
        );
        files.push(fs::read(directory.path().join(&name)).unwrap());
    }
    for (source, file) in sources.iter().zip(&files) {
        assert!(*file == files[0], "{source} differs");
    }
}

#[test]
fn json_is_one_object_a_line_and_ends_with_the_result() {
    let directory = layout();
    let output = run(
        directory.path(),
        &["build", "oci:layout:v1", "-o", "a.ext4", "--json"],
    );
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let events: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = events.last().unwrap();
    assert_eq!(last["event"], "completed");
    assert_eq!(last["image"], "a.ext4");
    assert_eq!(
        last["size_bytes"],
        fs::metadata(directory.path().join("a.ext4")).unwrap().len()
    );
    assert!(events.iter().any(|event| event["event"] == "progress"));

    let output = run(
        directory.path(),
        &["build", "oci:layout:v9", "-o", "b.ext4", "--json"],
    );
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "failed");
    assert_eq!(last["exit_code"], output.status.code().unwrap());
}

#[test]
fn files_that_are_there_are_replaced_only_when_asked() {
    let directory = layout();
    for name in ["a.ext4", "a.firecracker.json", "a.metadata.json"] {
        fs::write(directory.path().join(name), "mine").unwrap();
        let output = run(directory.path(), &["build", "oci:layout:v1", "-o", "a.ext4"]);
        assert_eq!(output.status.code(), Some(73));
        assert!(
            text(&output.stderr).contains("--force"),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(fs::read(directory.path().join(name)).unwrap(), b"mine");
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    fs::write(directory.path().join("a.ext4"), "mine").unwrap();
    let output = run(
        directory.path(),
        &["build", "oci:layout:v1", "-o", "a.ext4", "--force"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(fs::metadata(directory.path().join("a.ext4")).unwrap().len() > 4096);
}

#[test]
fn failures_have_codes_that_scripts_can_use_and_leave_nothing() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "v1", &sample());
    let closed = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let secret = closed.publish("team/app", "v1", &sample());
    let spoiled = registry.publish("team/spoiled", "v1", &sample());
    registry.misbehave("/team/spoiled/blobs/", Misbehaviour::FlipBit);

    let directory = layout();
    let corrupt = Image::new()
        .layer(&Layer::new().file("a", b"b"))
        .fault(0, Fault::CorruptStream)
        .build();
    corrupt
        .write_oci_layout(directory.path().join("layout/corrupt"), "v1")
        .unwrap();
    let foreign = Image::new()
        .layer(&Layer::new().file("a", b"b"))
        .platform("linux", "s390x", "")
        .build();
    foreign
        .write_oci_layout(directory.path().join("layout/foreign"), "v1")
        .unwrap();
    fs::create_dir(directory.path().join("layout/a-directory")).unwrap();

    let missing = registry.reference("team/app", "nope");
    for (image, output, code) in [
        ("oci:layout:v9", "x.ext4", 69),
        ("oci:nowhere:v1", "x.ext4", 69),
        (missing.as_str(), "x.ext4", 69),
        ("127.0.0.1:1/team/app:v1", "x.ext4", 69),
        (secret.as_str(), "x.ext4", 77),
        (spoiled.as_str(), "x.ext4", 65),
        ("oci:layout/corrupt:v1", "x.ext4", 65),
        ("oci:layout/foreign:v1", "x.ext4", 69),
        ("oci:layout:v1", "no/such/directory/x.ext4", 73),
        ("oci:layout:v1", "layout/a-directory", 73),
    ] {
        let mut arguments = vec!["build", image, "-o", output];
        if !image.starts_with("oci:") {
            arguments.push("--plain-http");
        }
        let result = run(directory.path(), &arguments);
        let said = text(&result.stderr);
        assert_eq!(result.status.code(), Some(code), "{image} {output}: {said}");
        assert!(
            said.lines().last().unwrap().starts_with("builderd: "),
            "{image} {output}: {said}"
        );
        assert_eq!(
            made_in(directory.path()),
            Vec::<String>::new(),
            "{image} {output}"
        );
    }
    drop(reference);
}

#[test]
fn what_is_wrong_with_the_output_is_said_without_a_name_that_nobody_gave() {
    let directory = layout();
    fs::write(directory.path().join("cache-file"), "").unwrap();
    for (arguments, expected) in [
        (
            &["-o", "nodir/a"][..],
            "nodir/a: the output directory cannot be written to",
        ),
        (&["-o", "cache-file/a"], "cache-file/a"),
        // Larger than a file of most file systems; where it is not, the image is made.
        (
            &["-o", "a.ext4", "--free-space", "127TiB"],
            "a.ext4: the image is larger than a file can be",
        ),
    ] {
        let output = run(
            directory.path(),
            &[&["build", "oci:layout:v1"], arguments].concat(),
        );
        let said = text(&output.stderr);
        if arguments.contains(&"127TiB") && output.status.success() {
            continue;
        }
        assert_eq!(output.status.code(), Some(73), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains("unfinished"), "{arguments:?}: {said}");
    }
}

#[test]
fn an_output_that_takes_nothing_is_a_failure_though_the_image_is_there() {
    for json in [&[][..], &["--json"]] {
        let directory = layout();
        let output = builderd(directory.path())
            .args([&["build", "oci:layout:v1", "-o", "a.ext4"], json].concat())
            .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(73), "{json:?}: {said}");
        assert!(said.contains("a.ext4 is complete"), "{json:?}: {said}");
        assert_eq!(
            made_in(directory.path()),
            ["a.ext4", "a.firecracker.json", "a.metadata.json"],
            "{json:?}"
        );
    }
}

#[test]
fn the_same_image_is_copied_the_second_time_unless_that_is_not_wanted() {
    let directory = layout();
    for (arguments, reused) in [(&[][..], false), (&[], true), (&["--no-reuse"], false)] {
        let arguments = [&["build", "oci:layout:v1", "-o", "a.ext4", "--force"], arguments].concat();
        let output = run(directory.path(), &arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.contains("Reused the image"), reused, "{arguments:?}: {said}");
    }
}

#[test]
fn a_read_only_image_names_its_hash_tree_unless_it_has_none() {
    let directory = layout();
    for (arguments, expected) in [(&[][..], true), (&["--no-verity"], false)] {
        let fixed = [
            "build",
            "oci:layout:v1",
            "-o",
            "a.ext4",
            "--force",
            "--raw",
            "--profile",
            "ro",
        ];
        let output = run(directory.path(), &[&fixed, arguments].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.contains("dm-verity: root hash"), expected, "{said}");
        let metadata = fs::read(directory.path().join("a.metadata.json")).unwrap();
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        assert_eq!(metadata["verity_root_hash"] != "", expected);
    }
}

#[test]
fn chunks_of_two_images_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    // Two megabytes that both have, and half a megabyte that only the second one has.
    let noise = |length: u32, seed: u32| -> Vec<u8> {
        (0..length / 4)
            .flat_map(|n| (n ^ seed).wrapping_mul(0x9e37_79b9).to_le_bytes())
            .collect()
    };
    let base = Layer::new().file("base", noise(2 << 20, 1));
    let top = Layer::new().file("top", noise(512 << 10, 7));
    for (name, image) in [
        ("a", Image::new().layer(&base)),
        ("b", Image::new().layer(&base).layer(&top)),
    ] {
        image
            .build()
            .write_oci_layout(directory.path().join("layout"), name)
            .unwrap();
        let source = format!("oci:layout:{name}");
        let arguments = [
            "build",
            &source,
            "-o",
            name,
            "--raw",
            "--profile",
            "ro",
            "--no-verity",
        ];
        let output = run(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let output = run(directory.path(), &["image", "chunks", "a", "b", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let counted: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(counted["chunk_bytes"], 512 << 10);
    let chunks = |part: &str| counted[part]["chunks"].as_u64().unwrap();
    assert!(chunks("shared") >= 4, "{counted}");
    assert!(chunks("b") > chunks("shared"), "{counted}");
    let size = fs::metadata(directory.path().join("b")).unwrap().len();
    assert_eq!(counted["b"]["size_bytes"], size);

    let output = run(directory.path(), &["image", "chunks", "a", "a"]);
    assert!(text(&output.stdout).contains("100.0 % of the chunks of B are in A"));
    fs::write(directory.path().join("odd"), "no image").unwrap();
    for (arguments, code) in [(["a", "nowhere"], 69), (["odd", "a"], 65), ([".", "a"], 65)] {
        let output = run(directory.path(), &[&["image", "chunks"][..], &arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_interrupt_stops_the_build_and_leaves_nothing() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "v1", &sample());
    registry.misbehave("/blobs/", Misbehaviour::Hang);
    let directory = tempfile::tempdir().unwrap();
    let child = builderd(directory.path())
        .args(["build", &reference, "-o", "a.ext4", "--plain-http"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(registry.wait_for_requests(1, "/blobs/", PATIENCE));
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(made_in(directory.path()), Vec::<String>::new());
    registry.release();
}

#[test]
fn a_registry_without_tls_is_recognized() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let output = run(directory.path(), &["build", &reference, "-o", "image.ext4"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{errors}");
    assert!(
        errors.contains("does not speak TLS; give --plain-http"),
        "{errors}"
    );
}

#[test]
fn a_worker_that_nobody_speaks_to_ends() {
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let output = run(directory.path(), &["worker"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn the_guests_init_is_a_static_program() {
    let directory = tempfile::tempdir().unwrap();
    let init = directory.path().join("init");
    fs::write(&init, builderd::guest::INIT).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    // ELF, 64 bits, little-endian.
    assert_eq!(&builderd::guest::INIT[..6], b"\x7fELF\x02\x01");
    // A program that needs a loader names it; a static one has no interpreter.
    let interpreter = builderd::guest::INIT
        .windows(11)
        .any(|window| window == b"/ld-linux-x" || window == b"/ld-linux-a");
    assert!(!interpreter);
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}
