//! Workers in real boxes: what a build says of its own, and what a worker that was taken over can reach.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::SystemTime,
};

use builder_core::{
    admin::{Change, Changed, Database},
    audit::{Actor, AuditEvent},
    build::BuildState,
    error::BuildErrorKind,
    event::Level,
    service::{Builder, Check, ListQuery},
    worker::{BoxLauncher, BuildBox, Launcher, ProcessLauncher},
};
use common::{Ended, Site, host_architecture, request, sample};
use fixture::Service;
use sandbox::{Layers, Sandbox, SealedProgram, Settings};
use tenant::{LimitOverrides, SandboxLevel};
use test_support::{image::Layer, registry::Registry};

/// The helper and the worker with a hole, linked statically: a box has an empty root.
fn programs() -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("static-holed");
    let status = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--quiet", "--package", "builder-core"])
        .args(["--package", "sandbox", "--no-default-features"])
        .args(["--features", "builder-core/planted-hole"])
        .args(["--bin", "builder-core-holed-worker", "--bin", "sandbox-helper"])
        .args(["--target", &target, "--target-dir"])
        .arg(&directory)
        .args(["--config", "profile.dev.debug=false"])
        .args(["--config", "profile.dev.opt-level=1"])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .unwrap();
    assert!(
        status.success(),
        "building the static programs failed with {status}"
    );
    directory.join(target).join("debug")
}

/// A launcher of boxes, and the worker's path; `None` where this host does not offer every layer.
fn boxes(name: &str, state: &std::path::Path) -> Option<(BoxLauncher, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        test_support::lab::skip("boxes with every layer need root");
        return None;
    }
    let programs = programs();
    let sandbox = Sandbox::start(&Settings {
        name,
        helper: &fs::read(programs.join("sandbox-helper")).unwrap(),
        lease_directory: Some(state.join("users")),
    })
    .unwrap();
    if sandbox.available() != Layers::ALL {
        test_support::lab::skip(format!("this host lacks {:?}", sandbox.missing()));
        return None;
    }
    let worker = programs.join("builder-core-holed-worker");
    let program = SealedProgram::new("worker", &fs::read(&worker).unwrap()).unwrap();
    let launcher = BoxLauncher::new(sandbox, program, sandbox::Level::Strict, false);
    Some((launcher, worker))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_level_that_a_build_has_is_seen_in_it() {
    let state = tempfile::tempdir().unwrap();
    let Some((launcher, _)) = boxes("core-test-levels", state.path()) else {
        return;
    };
    let launcher = Arc::new(launcher);
    let service = Service::start_with(|config| config.launcher = Some(launcher)).await;
    assert_eq!(service.builder.health().await.isolation, Check::Healthy);
    // A request can only raise the level.
    for (asked, level) in [(None, 2), (Some(1), 2), (Some(2), 2), (Some(3), 3)] {
        let mut wanted = request(&service.reference);
        wanted.limits.sandbox_level = asked;
        wanted.limits.max_cpu_cores = Some(1);
        let id = service.builder.create(wanted).await.unwrap().id;
        let build = service.ended(id).await;
        assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
        let isolation = build.metrics.isolation.clone().unwrap();
        assert_eq!(isolation.sandbox_level, level, "{asked:?}");
        assert_eq!(isolation.sandbox_id, id.to_string());
        assert_eq!(isolation.network_namespace, "private");
        assert_eq!(isolation.filesystem_namespace, "private");
        for context in ["no_new_privs", "no-capabilities", "seccomp", "landlock"] {
            assert!(
                isolation.security_contexts.iter().any(|has| has == context),
                "{isolation:?}"
            );
        }
        let own_user = isolation.security_contexts.iter().any(|has| has == "own-user");
        assert_eq!(own_user, level == 3, "{isolation:?}");
        assert!(!isolation.cgroup_path.is_empty());
        assert!(build.metrics.cpu_time_ms.is_some());
        // The image, at least, had to go to the disk.
        assert!(
            build.metrics.io_write_bytes.is_some_and(|bytes| bytes > 0),
            "{:?}",
            build.metrics
        );
    }
    // At level 3 nothing is taken that was made in a box of somebody else's build; below it is.
    for (asked, is_taken) in [(2, true), (3, false)] {
        let mut wanted = request(&service.reference);
        wanted.limits.sandbox_level = Some(asked);
        wanted.tenant.tenant_id = format!("bob-{asked}").parse().unwrap();
        let tenant = wanted.tenant.tenant_id.clone();
        let id = service.builder.create(wanted).await.unwrap().id;
        let log = fixture::lines(service.builder.logs(tenant, id, 0, true))
            .await
            .unwrap();
        let taken = log.iter().filter(|line| line.message.starts_with("Took layer"));
        assert_eq!(
            taken.count(),
            if is_taken { 3 } else { 0 },
            "level {asked}: {log:?}"
        );
    }
    // What the operator has set for the tenant holds for a request that says nothing, or less.
    let alice = "alice".parse().unwrap();
    let mut database = Database::open(&service.directory.path().join("database")).unwrap();
    let version = database.tenant(&alice).unwrap().unwrap().version;
    let stronger = LimitOverrides {
        sandbox_level: Some(SandboxLevel::Maximum),
        ..LimitOverrides::default()
    };
    let told = |_: &Changed| AuditEvent::new("tenant.change", Actor::builderd(), SystemTime::now());
    let change = Change::Limits(stronger);
    drop(database.change(&alice, &change, version, told).unwrap());
    for asked in [None, Some(2)] {
        let mut wanted = request(&service.reference);
        wanted.limits.sandbox_level = asked;
        let id = service.builder.create(wanted).await.unwrap().id;
        let isolation = service.ended(id).await.metrics.isolation.unwrap();
        assert_eq!(isolation.sandbox_level, 3, "{asked:?} of a tenant with level 3");
    }
    let mut wanted = request(&service.reference);
    wanted.limits.sandbox_level = Some(4);
    let refused = service.builder.create(wanted).await.unwrap_err().to_string();
    assert!(refused.contains("sandbox_level"), "{refused}");
}

/// What the hole told of its attacks.
fn attacks(ended: &Ended) -> Vec<String> {
    let lines = ended.lines(Level::Info);
    lines
        .into_iter()
        .filter_map(|line| Some(line.split_once("attack ")?.1.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_worker_that_was_taken_over_reaches_nothing() {
    let mut site = Site::new();
    let Some((launcher, worker)) = boxes("core-test-hole", site.directory.path()) else {
        return;
    };
    let boxed = launcher
        .for_build(&BuildBox {
            name: "hole".to_owned(),
            ..BuildBox::default()
        })
        .unwrap()
        .unwrap();
    site.config.launcher = Arc::clone(&boxed);

    // A build of somebody else, whose layer files and image are there to be spoilt.
    let registry = Registry::start().unwrap();
    let of_alice = request(&registry.publish("alice/app", "1", &sample().build()));
    let first = site.build(&of_alice, "1.ext4").await;
    assert_eq!(first.indexed_and_cached(), (3, 0), "{:?}", first.result);
    let contents =
        |files: &[PathBuf]| -> Vec<Vec<u8>> { files.iter().map(|file| fs::read(file).unwrap()).collect() };
    let (entries, image) = (site.pack_entries(), site.output("1.ext4"));
    let (packs_before, image_before) = (contents(&entries), fs::read(&image).unwrap());

    let secret = site.directory.path().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hole = format!(
        "PLANTED HOLE\nread {}\nlist {}\noverwrite {}\noverwrite {}\nconnect {}\nEND\n",
        secret.display(),
        site.directory.path().display(),
        entries[0].display(),
        image.display(),
        listener.local_addr().unwrap(),
    );
    let trap = hole.replace("END", "reopen /cache/packs/\nEND");
    // On top of layers whose packs are there, made by the build of somebody else.
    let hostile = sample()
        .layer(
            &Layer::new()
                .file("hole", hole)
                .file("later", b"as the layer has it")
                .symlink("trap", trap),
        )
        .platform("linux", &host_architecture(), "");
    let mut of_mallory = request(&registry.publish("mallory/app", "1", &hostile.build()));
    of_mallory.tenant.tenant_id = "mallory".parse().unwrap();

    let ended = site.build(&of_mallory, "2.ext4").await;
    assert_eq!(ended.indexed_and_cached(), (1, 3), "{:?}", ended.result);
    let told = attacks(&ended);
    assert_eq!(told.len(), 5 + 6, "{:?}", ended.events);
    assert!(told.iter().all(|line| line.contains(": blocked")), "{told:?}");
    assert_eq!(contents(&entries), packs_before);
    assert_eq!(fs::read(&image).unwrap(), image_before);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody called");

    // What is built of those layers is what it was; the liar's own may be what it likes.
    let mut of_bob = of_alice.clone();
    of_bob.tenant.tenant_id = "bob".parse().unwrap();
    let again = site.build(&of_bob, "3.ext4").await;
    assert_eq!(again.outcome().checksum, first.outcome().checksum);

    // Its output is not larger than what is left of the build's disk, and what may be holes.
    let grow = "PLANTED HOLE\ngrow 3@8000000000\nEND\n";
    let growing = sample().layer(&Layer::new().symlink("trap", grow));
    let of_mallory_too = {
        let mut wanted = request(&registry.publish("mallory/big", "1", &growing.build()));
        wanted.tenant.tenant_id = "mallory".parse().unwrap();
        wanted
    };
    for (disk_bytes, may_grow) in [(Some(64 << 20), false), (None, true)] {
        site.config.limits.max_disk_bytes = disk_bytes;
        let ended = site.build(&of_mallory_too, "5.ext4").await;
        assert_eq!(attacks(&ended).len(), usize::from(may_grow), "{:?}", ended.events);
        let error = ended.error();
        let is_limit = *error.kind() == BuildErrorKind::LimitExceeded;
        assert_eq!(is_limit, !may_grow, "{error:?}");
    }

    // The control: the same worker outside of a box reaches all of it.
    let launcher = ProcessLauncher::from_command(&[worker.into_os_string()]).unwrap();
    let mut control = Site::new();
    control.config.launcher = Arc::new(launcher);
    let told = attacks(&control.build(&of_mallory, "4.ext4").await);
    assert_eq!(told.len(), 5 + 6);
    assert!(told.iter().all(|line| line.ends_with(": succeeded")), "{told:?}");
    assert!(listener.accept().is_ok());
    assert_ne!(contents(&entries), packs_before);
}

/// Control groups of the boxes that a process has served with.
fn groups_of(process: u32) -> Vec<PathBuf> {
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    let owner = format!("-{process}-");
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.starts_with(serve::BOXES_NAME) && name.contains(&owner) {
                true => found.push(entry.path()),
                false => pending.push(entry.path()),
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_service_that_is_killed_at_any_step_leaves_no_box_and_loses_nothing() {
    let state = tempfile::tempdir().unwrap();
    let Some((_, worker)) = boxes("core-test-steps", state.path()) else {
        return;
    };
    let programs = worker.parent().unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    for step in [
        "The build begins",
        "Resolved",
        "Indexed layer",
        "Folded",
        "Wrote the image",
        "Published the image",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut killed = Command::new(env!("CARGO_BIN_EXE_builder-core-test-worker"))
            .arg("serve")
            .arg(directory.path())
            .arg(serde_json::to_string(&request(&reference)).unwrap())
            .env(serve::DIE_AT, step)
            .env(serve::BOXES, programs)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = killed.id();
        let status = killed.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{step}: {status}");
        assert_ne!(
            groups_of(process),
            Vec::<PathBuf>::new(),
            "{step}: there were boxes"
        );

        let mut config = serve::config(directory.path(), common::worker_command("worker"));
        config.launcher = Some(Arc::new(serve::boxes(programs, directory.path()).unwrap()));
        assert_eq!(groups_of(process), Vec::<PathBuf>::new(), "{step}");
        let builder = Builder::start(config).await.unwrap();
        assert_eq!(builder.health().await.isolation, Check::Healthy, "{step}");
        let query = ListQuery {
            tenant: fixture::alice(),
            states: Vec::new(),
            page_size: 0,
            page_token: String::new(),
        };
        let builds = builder.list(query).await.unwrap().builds;
        assert_eq!(builds.len(), 1, "{step}");
        let log = fixture::lines(builder.logs(fixture::alice(), builds[0].id, 0, true));
        let log = log.await.unwrap();
        let build = builder.get(&fixture::alice(), &builds[0].id).await.unwrap();
        assert_eq!(build.state, BuildState::Completed, "{step}: {log:?}");
        for place in ["workspace/cache/packs/tmp", "workspace/staging"] {
            assert_eq!(
                common::files_below(&directory.path().join(place)).len(),
                0,
                "{step}: {place}"
            );
        }
        // The empty root of a box is a tmpfs with two inodes; outside of it none must ever be.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("nr_inodes=2,"), "{step}: {mounts}");
    }
}
