//! A box counts, limits, and ends whole.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::{
    Calls, GroupLimits, Groups, Isolation, LaunchErrorKind, Layer, Layers, Level, Limits, Sandbox, Spec,
};

fn spec(words: &[&str]) -> Spec {
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = words.iter().map(Into::into).collect();
    // A fault of the box must not become an endless test.
    spec.limits.wall_time = Some(Duration::from_secs(60));
    spec
}

fn basic(sandbox: &Sandbox, spec: Spec, limits: &GroupLimits) -> (sandbox::Outcome, String) {
    common::run_boxed(sandbox, spec, Level::Basic.isolation(Calls::Worker), limits)
}

#[test]
fn privileged_endings_are_told_apart() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let none = GroupLimits::default();
    let (outcome, _) = basic(&sandbox, spec(&["exit=7"]), &none);
    assert_eq!(outcome.status.code(), Some(7));
    assert!(!outcome.out_of_memory && !outcome.timed_out && !outcome.killed);
    // Process 1 would ignore it; the program is not process 1.
    let (outcome, _) = basic(&sandbox, spec(&["abort"]), &none);
    assert_eq!(outcome.status.signal(), Some(6));

    let mut sleeper = spec(&["idle"]);
    sleeper.limits.wall_time = Some(Duration::from_millis(200));
    let (outcome, _) = basic(&sandbox, sleeper, &none);
    assert!(outcome.timed_out && !outcome.idled_out, "{outcome:?}");

    for words in ["idle", "stop"] {
        let mut sleeper = spec(&[words]);
        sleeper.limits.idle_time = Some(Duration::from_millis(300));
        let (outcome, _) = basic(&sandbox, sleeper, &none);
        assert!(outcome.idled_out && !outcome.timed_out, "{words}: {outcome:?}");
    }
}

/// Init of a box without namespaces of its own waits for nothing: it may have started the program, or have ended, before
/// its helper runs again.
#[test]
fn privileged_boxes_with_one_layer_start_side_by_side() {
    const THREADS: usize = 16;
    const BOXES: usize = 24;
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let isolation = Isolation {
        layers: Layers::NONE.with(Layer::Seccomp),
        calls: Calls::Worker,
        own_user: false,
    };
    let launch_some = || {
        for _ in 0..BOXES {
            let mut sleeper = spec(&["idle"]);
            sleeper.limits.wall_time = Some(Duration::from_millis(100));
            let none = GroupLimits::default();
            let (outcome, _) = common::run_boxed(&sandbox, sleeper, isolation, &none);
            assert!(outcome.timed_out, "it ended by itself: {outcome:?}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(launch_some);
        }
    });
}

#[test]
fn privileged_a_limit_that_is_too_low_for_the_box_itself_is_told_as_what_it_is() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let mut refusals = 0;
    for kibibytes in [4, 64, 128, 256, 512, 1024, 2048] {
        let limits = GroupLimits {
            memory_bytes: Some(kibibytes << 10),
            ..GroupLimits::default()
        };
        let isolation = Level::Strict.isolation(Calls::Worker);
        match sandbox.launch(spec(&["exit=0"]), isolation, None, &limits) {
            Ok(child) => {
                let outcome = child.wait().unwrap();
                assert!(
                    outcome.out_of_memory || outcome.status.success(),
                    "{kibibytes} KiB: {outcome:?}"
                );
            }
            Err(error) => {
                refusals += 1;
                assert!(
                    matches!(error.kind(), LaunchErrorKind::OutOfMemory),
                    "{kibibytes} KiB: {error:?}"
                );
            }
        }
    }
    assert!(refusals > 0);
    // Of this sandbox, not of those of the tests beside it.
    let groups = sandbox.groups().unwrap();
    let group = groups.group("probe", &GroupLimits::default()).unwrap();
    let base = group.path().parent().unwrap().file_name().unwrap().to_owned();
    let mut left = common::boxes_of(std::process::id());
    left.retain(|path| path.parent().unwrap().file_name() == Some(&base));
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn privileged_memory_is_bounded_and_its_end_is_told() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let limits = GroupLimits {
        memory_bytes: Some(48 << 20),
        ..GroupLimits::default()
    };
    let (outcome, _) = basic(&sandbox, spec(&["memory"]), &limits);
    assert!(outcome.out_of_memory, "{outcome:?}");
    assert!(!outcome.timed_out && !outcome.status.success(), "{outcome:?}");
    assert!(outcome.peak_memory_bytes > 16 << 20, "{outcome:?}");
}

#[test]
fn privileged_the_end_of_memory_is_told_although_the_program_says_that_all_went_well() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let limits = GroupLimits {
        memory_bytes: Some(48 << 20),
        ..GroupLimits::default()
    };
    let (outcome, _) = basic(&sandbox, spec(&["childs-memory", "exit=0"]), &limits);
    assert!(outcome.out_of_memory && !outcome.timed_out, "{outcome:?}");
    // Where a group is killed as a whole, the program is not asked.
    let killed = sandbox.groups().unwrap().version() == sandbox::GroupVersion::V2
        && outcome.status.signal() == Some(Signal::KILL.as_raw());
    assert!(killed || outcome.status.code() == Some(0), "{outcome:?}");
}

#[test]
fn privileged_processes_are_bounded_and_a_fork_bomb_ends_whole() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let limits = GroupLimits {
        processes: Some(24),
        ..GroupLimits::default()
    };
    let basic = Level::Basic.isolation(Calls::Worker);
    let child = sandbox.launch(spec(&["forks"]), basic, None, &limits).unwrap();
    // Dropped with the kill: as long as it is there, so is the group.
    let mut killer = Some(child.killer());
    let group = child.group().unwrap().path().to_owned();
    let (outcome, most) = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| child.wait().unwrap());
        let (mut most, mut looks) = (0, 0);
        while !waiter.is_finished() {
            let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            most = most.max(members.lines().count());
            // Once it is full, it is looked at many times more.
            looks += u32::from(most >= 24);
            if looks >= 500
                && let Some(killer) = killer.take()
            {
                killer.kill();
            }
        }
        (waiter.join().unwrap(), most)
    });
    assert!(outcome.killed && !outcome.timed_out, "{outcome:?}");
    // As many as it may, the helper and init included, and never one more.
    assert_eq!(most, 24, "{outcome:?}");
    assert!(!group.exists());
}

#[test]
fn privileged_processor_time_is_bounded_and_counted() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let limits = GroupLimits {
        cpu_millicores: Some(100),
        ..GroupLimits::default()
    };
    let mut spinner = spec(&["spin"]);
    spinner.limits.wall_time = Some(Duration::from_secs(2));
    let (outcome, _) = basic(&sandbox, spinner, &limits);
    // A tenth of two seconds, and some periods more; a busy machine gives less.
    assert!(outcome.cpu_time < Duration::from_millis(900), "{outcome:?}");
    assert!(outcome.cpu_time > Duration::ZERO, "{outcome:?}");
}

#[test]
fn privileged_files_are_bounded_by_the_signal_that_says_so() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let file = tempfile::tempfile().unwrap();
    let mut writer = spec(&["file=3"]);
    writer.descriptors = vec![(file.try_clone().unwrap().into(), 3)];
    writer.limits = Limits {
        file_size_bytes: Some(64 << 10),
        ..writer.limits
    };
    let (outcome, _) = basic(&sandbox, writer, &GroupLimits::default());
    assert_eq!(outcome.status.signal(), Some(25), "SIGXFSZ: {outcome:?}");
    assert_eq!(file.metadata().unwrap().len(), 64 << 10);
}

/// The pipe ends when the last holder is gone.
fn start_daemons(sandbox: &Sandbox, then: &str) -> (sandbox::Child, BufReader<std::io::PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut daemons = spec(&["daemons", then]);
    daemons.stdout = Some(writer.into());
    let basic = Level::Basic.isolation(Calls::Worker);
    let child = sandbox
        .launch(daemons, basic, None, &GroupLimits::default())
        .unwrap();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, reader)
}

#[test]
fn privileged_daemons_that_left_every_group_end_too() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    for then in ["exit=0", "idle"] {
        let (child, mut reader) = start_daemons(&sandbox, then);
        let path = child.group().unwrap().path().to_owned();
        if then == "idle" {
            child.killer().kill();
        }
        let outcome = child.wait().unwrap();
        assert_eq!(outcome.killed, then == "idle", "{outcome:?}");
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(!path.exists(), "{}", path.display());
    }
}

/// Nobody has waited for them: a zombie goes only with its parent, and init then has to wait for what is left.
#[test]
fn privileged_zombies_are_bounded_and_end_with_their_box() {
    const PROCESSES: u64 = 200;
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    for then in ["exit=0", "idle"] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut storm = spec(&["zombies", then]);
        storm.stdout = Some(writer.into());
        let limits = GroupLimits {
            processes: Some(PROCESSES),
            ..GroupLimits::default()
        };
        let basic = Level::Basic.isolation(Calls::Worker);
        let child = sandbox.launch(storm, basic, None, &limits).unwrap();
        let path = child.group().unwrap().path().to_owned();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        // All that the limit leaves beside the helper, init and the program.
        assert_eq!(line, format!("{} zombies\n", PROCESSES - 3));
        if then == "idle" {
            child.killer().kill();
        }
        let outcome = child.wait().unwrap();
        assert_eq!(outcome.killed, then == "idle", "{outcome:?}");
        assert!(!outcome.timed_out, "{outcome:?}");
        reader.read_to_end(&mut Vec::new()).unwrap();
        assert!(!path.exists(), "{}", path.display());
    }
}

/// It is a matter of milliseconds; the promise is a second. What is asserted is more, for a machine that is busy.
#[test]
fn privileged_a_whole_tree_is_gone_soon_after_its_kill() {
    const PROCESSES: u64 = 200;
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let (reader, writer) = std::io::pipe().unwrap();
    let mut tree = spec(&["daemons", "forks"]);
    tree.stdout = Some(writer.into());
    let limits = GroupLimits {
        processes: Some(PROCESSES),
        ..GroupLimits::default()
    };
    let basic = Level::Basic.isolation(Calls::Worker);
    let child = sandbox.launch(tree, basic, None, &limits).unwrap();
    let path = child.group().unwrap().path().to_owned();
    let n_members = || {
        let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        u64::try_from(members.lines().count()).unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    // Five more have ended, which started the daemons and are not waited for.
    while n_members() < PROCESSES - 5 {
        assert!(Instant::now() < deadline, "{} processes", n_members());
        std::thread::yield_now();
    }
    let killed_at = Instant::now();
    child.killer().kill();
    let outcome = child.wait().unwrap();
    // All of them have this pipe: its end is theirs.
    BufReader::new(reader).read_to_end(&mut Vec::new()).unwrap();
    let took = killed_at.elapsed();
    println!("{PROCESSES} processes were gone {took:?} after the kill");
    assert!(outcome.killed && !outcome.timed_out, "{outcome:?}");
    assert!(!path.exists(), "{}", path.display());
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "started by privileged_nothing_is_left_after_a_kill"]
fn launcher_that_is_killed() {
    if std::env::var_os("SANDBOX_TEST_LAUNCHER").is_none() {
        return;
    }
    let sandbox = common::sandbox();
    let mut daemons = spec(&["daemons", "idle"]);
    daemons.stdout = Some(
        std::os::fd::AsFd::as_fd(&std::io::stderr())
            .try_clone_to_owned()
            .unwrap(),
    );
    let basic = Level::Basic.isolation(Calls::Worker);
    let child = sandbox
        .launch(daemons, basic, None, &GroupLimits::default())
        .unwrap();
    println!(
        "\nhelper={} group={}",
        child.id(),
        child.group().unwrap().path().display()
    );
    let _ = child.wait();
    println!("ended");
    loop {
        std::thread::park();
    }
}

#[test]
fn privileged_nothing_is_left_after_a_kill() {
    if common::full_sandbox().is_none() {
        return;
    }
    for whom in ["launcher", "helper"] {
        let mut launcher = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launcher_that_is_killed", "--ignored", "--nocapture"])
            .env("SANDBOX_TEST_LAUNCHER", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(launcher.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let line = lines.find(|line| line.starts_with("helper=")).unwrap();
        let (helper, group) = line
            .strip_prefix("helper=")
            .unwrap()
            .split_once(" group=")
            .unwrap();
        let group = PathBuf::from(group);
        assert!(group.exists());
        // The processes in the box hold this pipe: its end is theirs.
        let mut held = BufReader::new(launcher.stderr.take().unwrap());
        let mut ready = String::new();
        while !ready.contains("ready") {
            ready.clear();
            assert_ne!(held.read_line(&mut ready).unwrap(), 0);
        }
        if whom == "helper" {
            let helper = Pid::from_raw(helper.parse().unwrap()).unwrap();
            kill_process(helper, Signal::KILL).unwrap();
            assert!(lines.any(|line| line == "ended"));
            assert!(!group.exists());
        }
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        held.read_to_end(&mut Vec::new()).unwrap();
        // The next start of the same name finds what the kernel could not remove.
        drop(Groups::start("sandbox-test").unwrap());
        assert!(!group.exists(), "{whom}: {}", group.display());
        assert_eq!(common::mounts_of_boxes(), Vec::<String>::new(), "{whom}");
    }
}

#[test]
fn privileged_many_boxes_at_once_keep_apart() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    std::thread::scope(|scope| {
        for index in 0..8 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for round in 0..3 {
                    let code = index * 3 + round + 1;
                    let (outcome, _) =
                        basic(sandbox, spec(&[&format!("exit={code}")]), &GroupLimits::default());
                    assert_eq!(outcome.status.code(), Some(code));
                }
            });
        }
    });
}
