//! A child ends whole.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::shell;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use sandbox::{Child, Spec, launch};

/// A shell that starts a tree of sleeping processes, some ignoring signals, and says so; the pipe ends when the last
/// of them is gone.
fn start_tree(wall_time: Option<Duration>) -> (Child, BufReader<std::io::PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell(
        "trap '' TERM HUP INT; for i in 1 2 3; do (trap '' TERM; sleep 1000 & sleep 1000 & wait) & done; echo ready; wait",
    );
    spec.environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.stdout = Some(OwnedFd::from(writer));
    spec.limits.wall_time = wall_time;
    let child = launch(spec).unwrap();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, reader)
}

fn assert_nothing_holds(mut reader: impl Read) {
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn the_time_limit_kills_a_forking_tree_whole() {
    let started = Instant::now();
    let (child, reader) = start_tree(Some(Duration::from_millis(400)));
    let group = child.id();
    let outcome = child.wait().unwrap();
    assert!(outcome.timed_out && !outcome.killed, "{outcome:?}");
    assert_eq!(outcome.status.signal(), Some(9));
    assert!(started.elapsed() >= Duration::from_millis(400));
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(living_members(group), Vec::<String>::new());
    assert_nothing_holds(reader);
}

#[test]
fn a_killer_ends_the_tree_from_another_thread_and_is_harmless_afterwards() {
    let (child, reader) = start_tree(None);
    let killer = child.killer();
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    killer.clone().kill();
    let outcome = waiter.join().unwrap();
    assert!(outcome.killed && !outcome.timed_out, "{outcome:?}");
    assert_eq!(outcome.status.signal(), Some(9));
    assert_nothing_holds(reader);
    killer.kill();
}

#[test]
fn what_the_leader_leaves_behind_is_killed_when_it_exits() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("trap '' HUP; sleep 1000 & exit 3");
    spec.environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.stdout = Some(OwnedFd::from(writer));
    let child = launch(spec).unwrap();
    let group = child.id();
    let outcome = child.wait().unwrap();
    assert_eq!(outcome.status.code(), Some(3));
    assert_eq!(living_members(group), Vec::<String>::new());
    assert_nothing_holds(reader);
}

#[test]
fn a_stopped_child_is_killed_too() {
    let mut spec = shell("kill -STOP $$");
    spec.limits.wall_time = Some(Duration::from_millis(200));
    let outcome = launch(spec).unwrap().wait().unwrap();
    assert!(outcome.timed_out, "{outcome:?}");
    assert_eq!(outcome.status.signal(), Some(9));
}

#[test]
fn dropping_a_child_kills_it() {
    let (child, reader) = start_tree(None);
    drop(child);
    assert_nothing_holds(reader);
}

#[test]
fn a_child_outlives_the_thread_that_launched_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("read line; echo alive");
    spec.stdin = Some(OwnedFd::from(reader));
    let (mut output, stdout) = std::io::pipe().unwrap();
    spec.stdout = Some(OwnedFd::from(stdout));
    let child = std::thread::spawn(move || launch(spec).unwrap()).join().unwrap();
    drop(writer);
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert_eq!(said, "alive\n");
    assert!(child.wait().unwrap().status.success());
}

#[test]
fn many_children_at_once_keep_apart() {
    std::thread::scope(|scope| {
        for index in 0..8 {
            scope.spawn(move || {
                for round in 0..10 {
                    let code = index * 10 + round;
                    let outcome = launch(shell(&format!("exit {code}"))).unwrap().wait().unwrap();
                    assert_eq!(outcome.status.code(), Some(code));
                }
            });
        }
    });
}

/// Not a test of its own: the process that `a_child_dies_with_its_parent` kills.
#[test]
#[ignore = "started by a_child_dies_with_its_parent"]
fn parent_that_is_killed() {
    if std::env::var_os("SANDBOX_TEST_PARENT").is_none() {
        return;
    }
    let mut spec = Spec::new("/bin/sleep");
    spec.arguments = vec!["1000".into()];
    let child = launch(spec).unwrap();
    println!("\nchild={}", child.id());
    let _ = child.wait();
}

#[test]
fn a_child_dies_with_its_parent() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_that_is_killed", "--ignored", "--nocapture"])
        .env("SANDBOX_TEST_PARENT", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let child = lines
        .take(20)
        .find_map(|line| line.strip_prefix("child=")?.parse().ok())
        .unwrap();
    let pidfd = pidfd_open(Pid::from_raw(child).unwrap(), PidfdFlags::empty()).unwrap();

    parent.kill().unwrap();
    parent.wait().unwrap();

    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Duration::from_secs(20).try_into().unwrap();
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "the child lives on");
}

/// Members of a process group that are not zombies, as `pid state`.
fn living_members(group: u32) -> Vec<String> {
    let output = Command::new("/bin/ps")
        .args(["-e", "-o", "pgid=,pid=,stat="])
        .output();
    let Ok(output) = output else {
        assert!(
            std::env::var_os("BUILDERD_REQUIRE_LAB").is_none(),
            "ps is not here"
        );
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: ps is not here\n"));
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [pgid, pid, stat] = fields[..] else {
                return None;
            };
            (pgid == group.to_string() && !stat.starts_with('Z')).then(|| format!("{pid} {stat}"))
        })
        .collect()
}
