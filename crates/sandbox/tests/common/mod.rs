//! What the tests of this crate share.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "not every test file uses everything")]

pub(crate) mod static_programs;

use std::{io::Read, os::fd::OwnedFd};

use sandbox::{Outcome, Spec, launch};

/// A shell that runs `script`, with an empty environment.
#[must_use]
pub(crate) fn shell(script: &str) -> Spec {
    let mut spec = Spec::new("/bin/sh");
    spec.arguments = vec!["-c".into(), script.into()];
    spec
}

/// Runs to the end; gives the outcome and what the child wrote to standard output and standard error.
#[must_use]
pub(crate) fn run(mut spec: Spec) -> (Outcome, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    spec.stderr = Some(OwnedFd::from(writer.try_clone().unwrap()));
    spec.stdout = Some(OwnedFd::from(writer));
    let child = launch(spec).unwrap();
    let mut output = Vec::new();
    // Ends when every holder of the pipe is gone: what wait() is about to make sure of, or the child itself.
    let outcome = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| child.wait().unwrap());
        reader.read_to_end(&mut output).unwrap();
        waiter.join().unwrap()
    });
    (outcome, String::from_utf8_lossy(&output).into_owned())
}

/// The host's means of isolation, with a name of this test process's own.
#[must_use]
pub(crate) fn sandbox() -> sandbox::Sandbox {
    let helper = static_programs::program("sandbox-helper");
    let directory = users();
    sandbox::Sandbox::start(&sandbox::Settings {
        name: "sandbox-test",
        helper: &helper,
        lease_directory: Some(directory),
    })
    .unwrap()
}

/// A sandbox with every layer, or `None` with the reason on standard output; with BUILDERD_REQUIRE_LAB a missing layer
/// is a failure.
#[must_use]
#[allow(clippy::print_stdout, reason = "tests")]
pub(crate) fn full_sandbox() -> Option<sandbox::Sandbox> {
    let required = std::env::var_os("BUILDERD_REQUIRE_LAB").is_some();
    let missing = if rustix::process::geteuid().is_root() {
        let sandbox = sandbox();
        if sandbox.available() == sandbox::Layers::ALL {
            return Some(sandbox);
        }
        format!("{:?}", sandbox.missing())
    } else {
        "this test needs root".to_owned()
    };
    assert!(!required, "{missing}");
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {missing}\n"));
    None
}

/// The program that tries to break out.
#[must_use]
pub(crate) fn probe_program() -> sandbox::SealedProgram {
    use std::sync::OnceLock;
    static PROGRAM: OnceLock<sandbox::SealedProgram> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let bytes = static_programs::program("escape-probe");
            sandbox::SealedProgram::new("escape-probe", &bytes).unwrap()
        })
        .clone()
}

/// As [`run`], in a box.
#[must_use]
pub(crate) fn run_boxed(
    sandbox: &sandbox::Sandbox,
    mut spec: Spec,
    isolation: sandbox::Isolation,
    limits: &sandbox::GroupLimits,
) -> (Outcome, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    spec.stdout = Some(OwnedFd::from(writer));
    let child = sandbox.launch(spec, isolation, None, limits).unwrap();
    let mut output = Vec::new();
    let outcome = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| child.wait().unwrap());
        reader.read_to_end(&mut output).unwrap();
        waiter.join().unwrap()
    });
    (outcome, String::from_utf8_lossy(&output).into_owned())
}

/// The user id, as the host sees it, of the program in a group; not root's, which a member has until its box is set up.
///
/// # Panics
/// When there is none within a minute.
#[must_use]
pub(crate) fn user_of_a_member(group: &sandbox::Group) -> u32 {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::time::Instant::now() < deadline {
        let members = std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap();
        // Of the members the helper and init have other names; the program of a descriptor is called after its number.
        let user = members
            .lines()
            .filter_map(|process| std::fs::read_to_string(format!("/proc/{process}/status")).ok())
            .filter(|status| !status.starts_with("Name:\tsandbox") && !status.starts_with("Name:\t279"))
            .filter_map(|status| {
                let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
                line.split_ascii_whitespace().next()?.parse().ok()
            })
            .find(|user| *user != 0);
        if let Some(user) = user {
            return user;
        }
        std::thread::yield_now();
    }
    panic!("no member of the group has a user of its own");
}

/// Control groups of this test program's launchers, in every hierarchy.
#[must_use]
pub(crate) fn control_groups_of(process: u32) -> Vec<std::path::PathBuf> {
    let mut pending = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    let owner = format!("-{process}-");
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("sandbox-test-") && name.contains(&owner) {
                found.push(entry.path());
            } else {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// The empty root of a box is a tmpfs with two inodes; in this mount namespace none must ever be.
#[must_use]
pub(crate) fn mounts_of_boxes() -> Vec<String> {
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = all.lines().filter(|line| line.contains("nr_inodes=2,"));
    roots.map(str::to_owned).collect()
}

/// Where the ranges of user ids are leased.
#[must_use]
pub(crate) fn users() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("users")
}

/// The lock files of ranges of user ids that a launching process holds, as the kernel's list of locks has them.
#[must_use]
pub(crate) fn ranges_of(process: u32) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let owner = process.to_string();
    let held: Vec<u64> = locks
        .lines()
        .filter_map(|line| {
            // `1: FLOCK ADVISORY WRITE 9569 fe:00:7503945 0 EOF`
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_owned = fields.get(1) == Some(&"FLOCK") && fields.get(4) == Some(&owner.as_str());
            let inode = fields.get(5)?.rsplit(':').next()?.parse().ok()?;
            is_owned.then_some(inode)
        })
        .collect();
    let files = std::fs::read_dir(users()).into_iter().flatten().flatten();
    files
        .filter(|file| held.contains(&file.metadata().unwrap().ino()))
        .map(|file| file.path())
        .collect()
}

/// Control groups of single boxes of this launching process.
#[must_use]
pub(crate) fn boxes_of(process: u32) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for group in control_groups_of(process) {
        let below = std::fs::read_dir(group).into_iter().flatten().flatten();
        found.extend(
            below
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("box-"))
                .map(|entry| entry.path()),
        );
    }
    found
}
