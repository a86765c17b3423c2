//! Nothing that is not named reaches the child.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use common::{run, shell};
use sandbox::Spec;

#[test]
fn the_environment_is_empty_but_for_what_is_given() {
    assert!(
        std::env::vars_os().next().is_some(),
        "this process has an environment to leak"
    );
    let (outcome, output) = run(Spec::new("/usr/bin/env"));
    assert!(outcome.status.success());
    assert_eq!(output, "");

    let mut spec = Spec::new("/usr/bin/env");
    spec.environment = vec![("B".into(), "2=3".into()), ("A".into(), "".into())];
    assert_eq!(run(spec).1, "B=2=3\nA=\n");
}

#[test]
fn only_the_named_descriptors_are_open() {
    // Open on purpose, without close-on-exec, as a careless library would leave it.
    let (_keep, leak) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();

    let mut spec = shell("echo /proc/self/fd/*");
    spec.descriptors = vec![(File::open("/dev/null").unwrap().into(), 77)];
    let (_, output) = run(spec);
    // The shell expands the pattern itself; the descriptor with which it reads the directory may show.
    let mut numbers: Vec<&str> = output
        .split_ascii_whitespace()
        .map(|path| path.rsplit('/').next().unwrap())
        .collect();
    numbers.retain(|number| *number != "3");
    assert_eq!(numbers, ["0", "1", "2", "77"], "{output}");
}

#[test]
fn descriptors_arrive_where_they_belong_even_when_all_numbers_collide() {
    let directory = tempfile::tempdir().unwrap();
    let mut files: Vec<OwnedFd> = Vec::new();
    for index in 0..12 {
        let path = directory.path().join(index.to_string());
        File::create(&path)
            .unwrap()
            .write_all(format!("file {index}\n").as_bytes())
            .unwrap();
        files.push(File::open(&path).unwrap().into());
    }
    // The numbers that the files have here, rotated by one, are those that they shall have there: a plain dup2 of one
    // after the other would overwrite every source before it was copied.
    let mut numbers: Vec<i32> = files.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    numbers.rotate_left(1);
    let script: String = numbers.iter().map(|number| format!("cat <&{number}; ")).collect();

    // dash knows descriptors of one digit only; cat of /proc/self/fd works for all.
    let script = script.replace("<&", "/proc/self/fd/");
    let mut spec = shell(&script);
    spec.descriptors = files.into_iter().zip(numbers).collect();
    let expected: String = (0..12).map(|index| format!("file {index}\n")).collect();
    assert_eq!(run(spec).1, expected);
}

#[test]
fn standard_descriptors_are_null_unless_given() {
    let mut spec = shell("readlink /proc/self/fd/0 /proc/self/fd/2 >&3; echo lost; echo lost >&2");
    let (mut reader, writer) = std::io::pipe().unwrap();
    spec.descriptors = vec![(writer.into(), 3)];
    let child = sandbox::launch(spec).unwrap();
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(output, "/dev/null\n/dev/null\n");
    assert!(child.wait().unwrap().status.success());
}

#[test]
fn standard_input_is_what_was_given() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"a line\n").unwrap();
    drop(writer);
    let mut spec = shell("read line; echo \"got $line\"");
    spec.stdin = Some(reader.into());
    assert_eq!(run(spec).1, "got a line\n");
}

#[test]
fn session_umask_directory_and_signals_are_the_childs_own() {
    let script = "umask; pwd; cut -d' ' -f1,5,6,7 /proc/self/stat; grep -E '^Sig(Blk|Ign)' /proc/self/status; echo pid $$";
    let mut spec = shell(script);
    spec.working_directory = "/usr".into();
    let (_, output) = run(spec);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["0077", "/usr"], "{output}");
    let leader = lines.last().unwrap().strip_prefix("pid ").unwrap();
    // `cut` is a member: its group and session are the leader's, and there is no terminal.
    let fields: Vec<&str> = lines[2].split(' ').collect();
    assert_eq!(fields[1..], [leader, leader, "0"], "{output}");
    assert!(output.contains("SigBlk:\t0000000000000000"), "{output}");
    // Rust ignores SIGPIPE (bit 12) in this process; the child does not inherit that.
    assert!(output.contains("SigIgn:\t0000000000000000"), "{output}");
}
