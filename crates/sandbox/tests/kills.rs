//! Nothing is left whenever a launching process or a helper is killed; floods end with their box; boxes share no IPC.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use common::static_programs;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::{Calls, GroupLimits, Groups, Level, Spec};

fn spec(words: &[&str]) -> Spec {
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = words.iter().map(Into::into).collect();
    // A fault of the box must not become an endless test.
    spec.limits.wall_time = Some(Duration::from_secs(60));
    spec
}

/// The steps of a launch, a run and a tear-down are many; the kill comes at one of so many moments of them.
const MOMENTS: u32 = 16;

/// Not a test of its own: launches one box after the other until it is killed.
#[test]
#[ignore = "started by privileged_a_kill_at_any_moment_leaves_nothing"]
fn launcher_without_an_end() {
    if std::env::var_os("SANDBOX_TEST_LAUNCHER").is_none() {
        return;
    }
    let sandbox = common::sandbox();
    let strict = Level::Maximum.isolation(Calls::Worker);
    loop {
        // What is written here and not read is no hindrance: the pipe is read by the test.
        println!("\nround");
        let mut once = spec(&["exit=0"]);
        once.stdout = Some(
            std::os::fd::AsFd::as_fd(&std::io::stderr())
                .try_clone_to_owned()
                .unwrap(),
        );
        let child = sandbox
            .launch(once, strict, None, &GroupLimits::default())
            .unwrap();
        println!("\nhelper={}", child.id());
        let _ = child.wait();
    }
}

#[test]
fn privileged_a_kill_at_any_moment_leaves_nothing() {
    if common::full_sandbox().is_none() {
        return;
    }
    for moment in 0..MOMENTS {
        let mut launcher = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launcher_without_an_end", "--ignored", "--nocapture"])
            .env("SANDBOX_TEST_LAUNCHER", "1")
            .env(static_programs::PLACE, static_programs::directory())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(launcher.stdout.take().unwrap());
        // Every third time the helper goes first, and its launcher right behind it.
        let wanted = if moment % 3 == 2 { "helper=" } else { "round" };
        let line = lines
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with(wanted))
            .unwrap_or_else(|| {
                let mut words = String::new();
                let _ = launcher.stderr.take().unwrap().read_to_string(&mut words);
                panic!("moment {moment}: the launcher ended by itself: {words}")
            });
        // Which step this meets depends on the machine; over all rounds they are spread over some twenty milliseconds.
        let until = std::time::Instant::now() + Duration::from_micros(u64::from(moment) * 1300);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        if let Some(helper) = line.strip_prefix("helper=") {
            // Not reaped by anyone but its launcher, which may have done so already.
            let _ = kill_process(Pid::from_raw(helper.parse().unwrap()).unwrap(), Signal::KILL);
        }
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        // Helper, init and program have this pipe: its end is theirs.
        let mut rest = Vec::new();
        launcher.stderr.take().unwrap().read_to_end(&mut rest).unwrap();
        drop(Groups::start("sandbox-test").unwrap());
        assert_eq!(
            common::control_groups_of(launcher.id()),
            Vec::<PathBuf>::new(),
            "moment {moment}"
        );
        assert_eq!(common::mounts_of_boxes(), Vec::<String>::new(), "moment {moment}");
        // The lock files are all that is ever there, and nobody holds one any more.
        for file in std::fs::read_dir(common::users()).unwrap().flatten() {
            let name = file.file_name();
            assert!(name.to_string_lossy().starts_with("range-"), "{name:?}");
            let range = std::fs::File::open(file.path()).unwrap();
            let lock = rustix::fs::flock(&range, rustix::fs::FlockOperation::NonBlockingLockExclusive);
            assert_eq!(lock, Ok(()), "moment {moment}: {name:?}");
        }
    }
}

#[test]
fn privileged_a_flood_of_descriptors_or_words_ends_with_the_box() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let mut greedy = spec(&["many-descriptors"]);
    greedy.limits.open_files = Some(64);
    let basic = Level::Basic.isolation(Calls::Worker);
    let (outcome, output) = common::run_boxed(&sandbox, greedy, basic, &GroupLimits::default());
    assert!(outcome.status.success(), "{outcome:?}");
    let opened: u64 = output.trim().parse().unwrap();
    assert!((1..64).contains(&opened), "{opened}");

    // Nobody reads: the writer sleeps until its time is over, and takes no memory of anyone.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut talker = spec(&["flood"]);
    talker.stdout = Some(writer.into());
    talker.limits.wall_time = Some(Duration::from_millis(300));
    let strict = Level::Strict.isolation(Calls::Worker);
    let child = sandbox
        .launch(talker, strict, None, &GroupLimits::default())
        .unwrap();
    assert!(child.wait().unwrap().timed_out);
}

#[test]
fn privileged_what_worked_at_the_start_and_works_no_more_is_told() {
    if common::full_sandbox().is_none() {
        return;
    }
    // One of its own: the others of this program need theirs.
    let sandbox = common::sandbox();
    let strict = Level::Strict.isolation(Calls::Worker);
    assert_eq!(sandbox.check(strict), Ok(()));
    let groups = sandbox.groups().unwrap();
    let probe = groups.group("probe", &GroupLimits::default()).unwrap();
    let base = probe.path().parent().unwrap().to_owned();
    drop(probe);
    std::fs::remove_dir(&base).unwrap();
    let reason = sandbox.check(strict).unwrap_err();
    assert!(reason.contains("control group"), "{reason}");
}

#[test]
fn privileged_boxes_share_no_queue_no_segment_and_no_key() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let basic = Level::Basic.isolation(Calls::Worker);
    let strict = Level::Strict.isolation(Calls::Worker);
    let outside = sandbox::Isolation {
        layers: sandbox::Layers::NONE,
        ..basic
    };
    let key = format!("0x{:x}", 0x5b00_0000_u32 | (std::process::id() & 0xff_ffff));
    let run = |isolation, word: &str| {
        let word = format!("{word}={key}");
        common::run_boxed(&sandbox, spec(&[&word]), isolation, &GroupLimits::default()).1
    };
    for kind in ["segment", "queue", "posix-queue", "key"] {
        // Made in one process, looked for in the next: outside it is found, in a box with namespaces not.
        for isolation in [outside, basic] {
            run(isolation, &format!("make-{kind}"));
            let found = run(isolation, &format!("find-{kind}"));
            let blocked = found.contains("\"blocked\":true");
            assert_eq!(blocked, isolation == basic, "{kind}: {found}");
        }
        let removed = run(outside, &format!("remove-{kind}"));
        assert!(removed.contains("\"blocked\":false"), "{removed}");
        // With the list of system calls they cannot even be made.
        let made = run(strict, &format!("make-{kind}"));
        assert!(made.contains("\"blocked\":true"), "{kind}: {made}");
    }
}

/// Not a test of its own: it needs a terminal as standard input.
#[test]
#[ignore = "started by privileged_a_terminal_takes_no_typing_from_a_box"]
fn program_at_a_terminal() {
    if std::env::var_os("SANDBOX_TEST_LAUNCHER").is_none() {
        return;
    }
    let sandbox = common::sandbox();
    let basic = Level::Basic.isolation(Calls::Worker);
    let outside = sandbox::Isolation {
        layers: sandbox::Layers::NONE,
        ..basic
    };
    let strict = Level::Strict.isolation(Calls::Worker);
    for (name, isolation) in [("outside", outside), ("basic", basic), ("strict", strict)] {
        let mut typist = spec(&["terminal"]);
        typist.stdin = Some(
            std::os::fd::AsFd::as_fd(&std::io::stdin())
                .try_clone_to_owned()
                .unwrap(),
        );
        let (_, said) = common::run_boxed(&sandbox, typist, isolation, &GroupLimits::default());
        println!("\n{name} {}", said.trim());
    }
}

#[test]
fn privileged_a_terminal_takes_no_typing_from_a_box() {
    if common::full_sandbox().is_none() {
        return;
    }
    let own = std::env::current_exe().unwrap();
    let command = format!(
        "{} --exact program_at_a_terminal --ignored --nocapture",
        own.display()
    );
    // From util-linux: runs a command with a terminal of its own.
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("SANDBOX_TEST_LAUNCHER", "1")
        .env(static_programs::PLACE, static_programs::directory())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{said}"))
            .contains("\"blocked\":true")
    };
    assert!(!verdict("outside "), "root may type into any terminal: {said}");
    assert!(verdict("basic ") && verdict("strict "), "{said}");
}
