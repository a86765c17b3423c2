//! What a child may use, and what is known about it afterwards.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{os::unix::process::ExitStatusExt, time::Duration};

use common::{run, shell};
use sandbox::{LaunchErrorKind, Limits, Spec, launch};

#[test]
fn exit_code_and_signal_are_reported() {
    let (outcome, _) = run(shell("exit 7"));
    assert_eq!(outcome.status.code(), Some(7));
    assert!(!outcome.timed_out && !outcome.killed);

    let (outcome, _) = run(shell("kill -USR1 $$"));
    assert_eq!(outcome.status.signal(), Some(10));
}

#[test]
fn a_file_cannot_grow_past_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = shell("while :; do echo 0123456789abcdef; done > big");
    spec.working_directory = directory.path().to_owned();
    spec.limits.file_size_bytes = Some(64 * 1024);
    spec.limits.wall_time = Some(Duration::from_secs(60));
    let (outcome, _) = run(spec);
    assert!(!outcome.timed_out, "{outcome:?}");
    assert_eq!(
        std::fs::metadata(directory.path().join("big")).unwrap().len(),
        64 * 1024
    );
    // SIGXFSZ, or the shell's own report of EFBIG when it handles the signal.
    assert!(!outcome.status.success(), "{outcome:?}");
}

#[test]
fn every_limit_reaches_the_child_and_cannot_be_raised() {
    let mut spec = shell(
        "cat /proc/self/limits; grep NoNewPrivs /proc/self/status; ulimit -n 4096 2>/dev/null && echo raised",
    );
    spec.limits = Limits {
        file_size_bytes: Some(1_000_000),
        open_files: Some(33),
        address_space_bytes: Some(1 << 30),
        cpu_seconds: Some(77),
        ..Limits::default()
    };
    let (_, output) = run(spec);
    let words = |prefix: &str| {
        let line = output.lines().find(|line| line.starts_with(prefix));
        let words = line
            .unwrap_or_else(|| panic!("no {prefix} in {output}"))
            .split_ascii_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let cases = [
        ("Max file size", "1000000", "1000000"),
        ("Max open files", "33", "33"),
        ("Max address space", "1073741824", "1073741824"),
        ("Max cpu time", "77", "78"),
        ("Max core file size", "1", "1"),
    ];
    for (name, soft, hard) in cases {
        let words = words(name);
        let values = &words[name.split(' ').count()..];
        assert_eq!(values[..2], [soft, hard], "{name}");
    }
    assert_eq!(words("NoNewPrivs:")[1], "1");
    assert!(!output.contains("raised"), "{output}");
}

#[test]
fn cpu_time_is_limited_and_counted() {
    let mut spec = shell("while :; do :; done");
    spec.limits.cpu_seconds = Some(1);
    spec.limits.wall_time = Some(Duration::from_secs(120));
    let (outcome, _) = run(spec);
    assert_eq!(outcome.status.signal(), Some(24), "SIGXCPU: {outcome:?}");
    // The kernel compares with ticks, the report is exact: they differ by some ticks on a busy machine.
    assert!((500..2500).contains(&outcome.cpu_time.as_millis()), "{outcome:?}");
}

#[test]
fn peak_memory_is_that_of_the_program_not_of_the_launching_process() {
    // Memory that is really written, so that the forked copy of this process is at least this large.
    let ballast = vec![1_u8; 192 << 20];
    // It waits for the end of its input, so that it certainly lives when the first sample is taken.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("read line");
    spec.stdin = Some(reader.into());
    let child = launch(spec).unwrap();
    drop(writer);
    let outcome = child.wait().unwrap();
    assert!(ballast.iter().all(|&byte| byte == 1));
    assert!((1..64 << 20).contains(&outcome.peak_memory_bytes), "{outcome:?}");
}

#[test]
fn address_space_is_limited_and_a_large_peak_is_exact() {
    let mut spec = shell("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    spec.limits.address_space_bytes = Some(256 << 20);
    spec.limits.wall_time = Some(Duration::from_secs(60));
    let (outcome, _) = run(spec);
    assert!(!outcome.timed_out && !outcome.status.success(), "{outcome:?}");
    assert!(
        (24 << 20..=256 << 20).contains(&outcome.peak_memory_bytes),
        "{outcome:?}"
    );
}

#[test]
fn a_step_that_fails_is_named() {
    let mut no_directory = shell("true");
    no_directory.working_directory = "/nonexistent".into();
    let cases = [
        ("execute", Spec::new("/nonexistent/program")),
        ("execute", Spec::new("/dev/null")),
        ("working directory /nonexistent", no_directory),
    ];
    for (expected, spec) in cases {
        let error = launch(spec).unwrap_err();
        match error.kind() {
            LaunchErrorKind::Step { step, .. } => assert_eq!(step, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
