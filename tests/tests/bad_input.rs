//! Whatever is wrong is said clearly, by the command line, over gRPC and over Connect, and nothing half-done stays.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use builderd::proto::{
    BuildConfig, BuildJob, BuildSource, BuildState, BuildTarget, CreateBuildRequest, DockerImageSource,
    MicroVmRootfs, TenantContext, build_source::SourceType, build_target::TargetType,
};
use builderd_e2e::{
    api::{Api, TENANT, seed_request},
    check::{self, Mounted},
    daemon::Daemon,
    parts,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{
    image::{Compression, Fault, Format, Image, Layer},
    lab::{self, Missing},
    registry::Registry,
};
use tonic::Code;

/// The daemon's program, where everything that is needed is there.
fn builderd() -> Result<PathBuf, Missing> {
    parts::root()?;
    lab::program("mke2fs", "e2fsprogs")?;
    parts::builderd()
}

fn sample() -> Image {
    Image::new()
        .layer(&Layer::new().file("bin/sh", noise(100_000)))
        .cmd(&["/bin/sh"])
}

/// Bytes that no compression makes fewer (a linear congruential generator's).
fn noise(length: usize) -> Vec<u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1_u64), next)
        .map(|state| state.to_be_bytes()[0])
        .take(length)
        .collect()
}

/// One run of `builderd build` in a place of its own.
struct CommandLine {
    directory: TempDir,
    output: PathBuf,
    command: Command,
}

impl CommandLine {
    fn new(builderd: &Path, image: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["temporary", "output"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let output = directory.path().join("output");
        let mut command = Command::new(builderd);
        command.args(["build", image, "--plain-http"]);
        command.arg("--cache-dir").arg(directory.path().join("cache"));
        command.env("TMPDIR", directory.path().join("temporary"));
        Self {
            directory,
            output,
            command,
        }
    }

    /// Runs it, checks that it failed with this text, and that nothing half-done stays.
    fn fails_with(mut self, name: &str, expected: &[&str]) -> Output {
        let output = self
            .command
            .arg("--output")
            .arg(self.output.join("rootfs.ext4"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{name}: {said}");
        for expected in expected {
            assert!(said.contains(expected), "{name}: {expected:?} is missing: {said}");
        }
        assert!(!said.contains("panicked"), "{name}: {said}");
        let directory = self.directory.path();
        if self.output.is_dir() {
            assert_eq!(
                check::paths_below(&self.output).unwrap(),
                [""; 0].map(PathBuf::from),
                "{name}: output"
            );
        }
        for place in ["temporary", "cache/staging"] {
            let left = check::paths_below(&directory.join(place)).unwrap_or_default();
            assert_eq!(left, [""; 0].map(PathBuf::from), "{name}: {place}");
        }
        output
    }
}

/// Files of builds, finished or not, that a daemon has.
fn files_of_builds(daemon: &Daemon) -> Vec<PathBuf> {
    let state = daemon.state_directory();
    let kept = [state.join("data"), state.join("workspace/cache")];
    let mut left = check::paths_below(state).unwrap();
    left.retain(|path| !path.is_dir() && !kept.iter().any(|kept| path.starts_with(kept)));
    left
}

fn grpc_request(image_uri: &str) -> CreateBuildRequest {
    let source = DockerImageSource {
        image_uri: image_uri.into(),
        ..Default::default()
    };
    let config = BuildConfig {
        tenant: Some(TenantContext {
            tenant_id: TENANT.into(),
            ..Default::default()
        }),
        source: Some(BuildSource {
            source_type: Some(SourceType::DockerImage(source)),
        }),
        target: Some(BuildTarget {
            target_type: Some(TargetType::MicrovmRootfs(MicroVmRootfs::default())),
        }),
        ..Default::default()
    };
    CreateBuildRequest { config: Some(config) }
}

/// Has a build fail over both protocols and checks that both say why.
async fn build_fails_with(api: &Api, daemon: &Daemon, name: &str, image: &str, expected: &[&str]) {
    let over_connect = api.create(image).await.unwrap();
    let over_grpc = api
        .grpc()
        .create_build(grpc_request(image))
        .await
        .unwrap()
        .into_inner()
        .build_id;
    for build_id in [over_connect, over_grpc] {
        let mut errors = Vec::new();
        let build = api
            .finish(&build_id, |line| {
                if line.level == "error" {
                    errors.push(line.message.clone());
                }
            })
            .await
            .unwrap();
        assert_failed(name, &build, expected);
        let is_said = errors.iter().any(|error| error.contains(&build.error_message));
        assert!(is_said, "{name}: the log says {errors:?}");
        let json = api.build_as_json(&build_id).await.unwrap();
        assert_eq!(json["state"], "BUILD_STATE_FAILED", "{name}: {json}");
        assert_eq!(json["errorMessage"], build.error_message.as_str(), "{name}");
    }
    assert_eq!(files_of_builds(daemon), [""; 0].map(PathBuf::from), "{name}");
}

fn assert_failed(name: &str, build: &BuildJob, expected: &[&str]) {
    assert_eq!(
        build.state(),
        BuildState::Failed,
        "{name}: {}",
        build.error_message
    );
    for expected in expected {
        assert!(
            build.error_message.contains(expected),
            "{name}: {expected:?} is missing: {}",
            build.error_message
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_bad_image_is_a_clear_error_by_every_interface() {
    let builderd = match builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let publish = |name: &str, image: &Image| registry.publish(name, "1", &image.build());
    let nobody_listens = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        (
            "unknown image",
            registry.reference("no/such", "1"),
            &["no such manifest"][..],
        ),
        (
            "wrong digest",
            publish("digest", &sample().fault(0, Fault::WrongDigest)),
            &["digest"],
        ),
        (
            "wrong size",
            publish("size", &sample().fault(0, Fault::WrongSize)),
            &["size"],
        ),
        (
            "missing layer",
            publish("missing", &sample().fault(0, Fault::MissingBlob)),
            &["no such layer"],
        ),
        (
            "wrong architecture",
            publish("arm", &sample().platform("linux", "arm64", "")),
            &["arm64"],
        ),
        (
            "schema 1",
            publish("schema1", &sample().format(Format::DockerSchema1)),
            &["schema"],
        ),
        (
            "truncated layer",
            publish("short", &sample().fault(0, Fault::TruncatedStream)),
            &["layer", "ends too early"],
        ),
        (
            "corrupt gzip",
            publish("corrupt", &sample().fault(0, Fault::CorruptStream)),
            &["layer", "gzip data is corrupt"],
        ),
        (
            "wrong diff_id",
            publish("diff", &sample().fault(0, Fault::WrongDiffId)),
            &["diff_id"],
        ),
        (
            "no tar",
            publish(
                "no-tar",
                &Image::new().layer_bytes(noise(5000), Compression::Gzip),
            ),
            &["layer", "archive is malformed"],
        ),
        (
            "unreachable registry",
            format!("{nobody_listens}/team/app:1"),
            &[&nobody_listens.to_string()],
        ),
    ];
    let state = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&builderd, state.path(), &[]).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    for (name, image, expected) in &cases {
        CommandLine::new(&builderd, image).fails_with(name, expected);
        build_fails_with(&api, &daemon, name, image, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_full_disk_and_an_unwritable_directory_are_clear_errors() {
    let builderd = match builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let image = Image::new()
        .layer(&Layer::new().file("bin/sh", noise(12 << 20)))
        .cmd(&["/bin/sh"]);
    let reference = registry.publish("large", "1", &image.build());

    // The image alone is on the small disk: layers and staging have room.
    let small = Mounted::memory(8 << 20).unwrap();
    let mut command_line = CommandLine::new(&builderd, &reference);
    command_line.output = small.path().to_owned();
    command_line.fails_with("disk full", &["No space left"]);

    let read_only = Mounted::memory(1 << 20).unwrap();
    read_only.make_read_only().unwrap();
    let mut command_line = CommandLine::new(&builderd, &reference);
    command_line.output = read_only.path().to_owned();
    command_line.fails_with("not writable", &["Read-only"]);

    let output = small.path().join("rootfs");
    let state = tempfile::tempdir().unwrap();
    let settings = [("ROOTFS_OUTPUT_DIR", output.to_str().unwrap())];
    let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    build_fails_with(&api, &daemon, "disk full", &reference, &["no space left"]).await;
    // A tenant's directory may stay.
    let mut left = check::paths_below(&output).unwrap();
    left.retain(|path| !path.is_dir());
    assert_eq!(left, [""; 0].map(PathBuf::from), "disk full");
    small.make_read_only().unwrap();
    build_fails_with(&api, &daemon, "not writable", &reference, &["output directory"]).await;
    drop(daemon);

    let refused = Daemon::start(&builderd, state.path(), &settings)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("UNKEY_BUILDERD_ROOTFS_OUTPUT_DIR"), "{refused}");
}

#[test]
fn privileged_without_e2fsprogs_or_root_the_mke2fs_backend_says_what_it_needs() {
    let builderd = match builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());

    // In a mount namespace where something else lies over the program.
    let mut without_e2fsprogs = CommandLine::new(&builderd, &reference);
    let plain = without_e2fsprogs.command;
    let mut hidden = Command::new("unshare");
    hidden.args([
        "--mount",
        "sh",
        "-c",
        r#"mount --bind /dev/null "$0" && exec "$@""#,
    ]);
    hidden
        .arg(lab::program("mke2fs", "e2fsprogs").unwrap())
        .arg(plain.get_program())
        .args(plain.get_args());
    hidden.args(["--backend", "mke2fs"]);
    without_e2fsprogs.command = hidden;
    without_e2fsprogs.fails_with("no e2fsprogs", &["e2fsprogs"]);

    // As somebody who may reach the program and its directories and is not root.
    let programs = tempfile::tempdir().unwrap();
    let copy = programs.path().join("builderd");
    fs::copy(&builderd, &copy).unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut not_root = CommandLine::new(&copy, &reference);
    for name in ["", "temporary", "output"] {
        fs::set_permissions(
            not_root.directory.path().join(name),
            fs::Permissions::from_mode(0o777),
        )
        .unwrap();
    }
    not_root
        .command
        .args(["--backend", "mke2fs"])
        .uid(65534)
        .gid(65534);
    not_root.fails_with("not root", &["root"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_request_that_cannot_be_understood_names_its_field() {
    let builderd = match builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let state = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&builderd, state.path(), &[]).unwrap();
    let api = Api::new(daemon.address()).unwrap();

    // Over Connect: one member of the document's request is changed.
    let request: Value = serde_json::from_str(&seed_request("team/app:1")).unwrap();
    let cases = [
        (
            "unknown enum name",
            "/config/tenant/tier",
            json!("TENANT_TIER_PLATINUM"),
            400,
            "TENANT_TIER_PLATINUM",
        ),
        (
            "unknown enum number",
            "/config/tenant/tier",
            json!(99),
            400,
            "tier",
        ),
        ("missing tenant", "/config/tenant", json!({}), 400, "tenant_id"),
        ("no source", "/config/source", json!({}), 400, "source"),
        (
            "no image",
            "/config/source/docker_image",
            json!({}),
            400,
            "image_uri",
        ),
        (
            "bad reference",
            "/config/source/docker_image/image_uri",
            json!("Team//app::1"),
            400,
            "image_uri",
        ),
        (
            "wrong type",
            "/config/source/docker_image/image_uri",
            json!(7),
            400,
            "string",
        ),
        (
            "bad platform",
            "/config/source/docker_image",
            json!({"image_uri": "team/app:1", "platform": "pdp11"}),
            400,
            "platform",
        ),
        (
            "bad profile",
            "/config/target/microvm_rootfs",
            json!({"init_strategy": "INIT_STRATEGY_TINI", "profile": "wo"}),
            400,
            "profile",
        ),
        (
            "a later source",
            "/config/source",
            json!({"git_repository": {"repository_url": "x"}}),
            501,
            "git_repository",
        ),
    ];
    for (name, path, value, status, expected) in cases {
        let mut request = request.clone();
        *request.pointer_mut(path).unwrap() = value;
        let answer = api.call("CreateBuild", &request.to_string()).await.unwrap();
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        let code = if status == 501 {
            "unimplemented"
        } else {
            "invalid_argument"
        };
        assert_eq!(answer.body["code"], code, "{name}: {}", answer.body);
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(expected), "{name}: {message}");
    }

    // Over gRPC: the same, as far as its types allow it to be said.
    type Edit = fn(&mut BuildConfig);
    let cases: [(&str, Edit, &str); 4] = [
        ("missing tenant", |config| config.tenant = None, "tenant"),
        (
            "unknown enum number",
            |config| config.tenant.as_mut().unwrap().tier = 99,
            "tier",
        ),
        ("no source", |config| config.source = None, "source"),
        ("no target", |config| config.target = None, "target"),
    ];
    for (name, edit, expected) in cases {
        let mut request = grpc_request("team/app:1");
        edit(request.config.as_mut().unwrap());
        let status = api.grpc().create_build(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
        assert!(status.message().contains(expected), "{name}: {status}");
    }
    let listed = api
        .call("ListBuilds", &json!({ "tenant_id": TENANT }).to_string())
        .await
        .unwrap();
    assert!(
        listed.body["builds"].as_array().is_none_or(Vec::is_empty),
        "a refused request left {}",
        listed.body
    );
    assert_eq!(files_of_builds(&daemon), [""; 0].map(PathBuf::from));

    // On the command line.
    for (name, option) in [
        ("unknown mode", ["--mode", "podman"]),
        ("unknown backend", ["--backend", "tape"]),
        ("unknown profile", ["--profile", "wo"]),
        ("bad platform", ["--platform", "pdp11"]),
        ("bad size", ["--free-space", "much"]),
    ] {
        let mut command_line = CommandLine::new(&builderd, "127.0.0.1:1/team/app:1");
        command_line.command.args(option);
        command_line.fails_with(name, &[option[0], option[1]]);
    }
}
