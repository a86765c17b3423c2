//! A kill at each step in which a box is made leaves nothing, whoever is killed.
//!
//! `strace` stops or kills the processes of a launch as they enter a system call; the plan's steps are told apart by the
//! calls that they make. Counts are per process: the third `prctl` of the helper, say. Where two processes make the same
//! call, the first of them is met.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use common::static_programs;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::{Calls, GroupLimits, Groups, Level, Spec};

/// What a busy machine may need for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A system call, and which one of a process, with the step of the plan that makes it.
const MOMENTS: [(&str, u32, &str); 25] = [
    ("setsid", 1, "the fork: new session"),
    ("prctl", 1, "the fork: die with parent"),
    ("umask", 1, "the fork: umask"),
    ("chdir", 1, "the fork: working directory"),
    ("close_range", 1, "the fork: close on exec"),
    ("prctl", 2, "the fork: no new privileges"),
    ("execveat", 1, "the fork: execute"),
    ("close_range", 2, "helper: close on exec"),
    ("prctl", 3, "helper: undumpable"),
    ("setgroups", 1, "init: no groups"),
    ("setresgid", 1, "init: become user"),
    ("setresuid", 1, "init: become user, half of it done"),
    ("unshare", 1, "init: own control group root"),
    ("sethostname", 1, "init: host name"),
    ("keyctl", 1, "init: own keyring"),
    ("mount", 1, "init: private mounts"),
    ("mount", 2, "init: empty root"),
    ("pivot_root", 1, "init: empty root, not yet entered"),
    ("umount2", 1, "init: empty root, the host's still there"),
    ("mount", 3, "init: empty root, still writable"),
    ("prctl", 5, "program: empty bounding set"),
    ("capset", 1, "program: drop capabilities"),
    ("landlock_create_ruleset", 2, "program: landlock"),
    ("landlock_restrict_self", 1, "program: landlock, not yet in force"),
    ("exit_group", 1, "the tear-down"),
];

/// Not a test of its own: launches a box for each line on its standard input.
#[test]
#[ignore = "started by the other tests"]
fn launcher_on_demand() {
    if std::env::var_os("SANDBOX_TEST_LAUNCHER").is_none() {
        return;
    }
    let sandbox = common::sandbox();
    println!("\nready");
    for _ in std::io::stdin().lines() {
        let mut spec = Spec::new(common::probe_program());
        spec.arguments = vec!["exit=0".into()];
        spec.limits.wall_time = Some(PATIENCE);
        let isolation = Level::Maximum.isolation(Calls::Worker);
        match sandbox.launch(spec, isolation, None, &GroupLimits::default()) {
            Ok(child) => println!("\nended {:?}", child.wait().map(|outcome| outcome.status.code())),
            Err(error) => println!("\nfailed {error:?}"),
        }
    }
}

struct Launcher {
    child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

impl Launcher {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launcher_on_demand", "--ignored", "--nocapture"])
            .env("SANDBOX_TEST_LAUNCHER", "1")
            .env(static_programs::PLACE, static_programs::directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut launcher = Self {
            orders: child.stdin.take().unwrap(),
            words: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        launcher.word("ready");
        launcher
    }

    /// Its own threads, which are followed as well.
    fn threads(&self) -> BTreeSet<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks
            .filter_map(|task| task.unwrap().file_name().to_str()?.parse().ok())
            .collect()
    }

    fn order(&mut self) {
        self.orders.write_all(b"launch\n").unwrap();
    }

    /// The next line that begins so, or with the other word.
    fn word(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.words.read_line(&mut line).unwrap(), 0, "it ended");
            if line.starts_with(wanted) || line.starts_with("failed") {
                return line;
            }
        }
    }
}

/// Follows a launcher and all that it starts.
struct Trace {
    strace: Child,
    log: tempfile::NamedTempFile,
    _words: BufReader<std::process::ChildStderr>,
}

impl Trace {
    /// Sends `signal` to each process that enters `call` for the time `when`.
    fn attach(launcher: &Launcher, call: &str, when: u32, signal: &str) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace")
            .args(["--follow-forks", "--attach"])
            .arg(launcher.child.id().to_string())
            .arg("--output")
            .arg(log.path())
            .arg(format!("--trace={call}"))
            .arg(format!("--inject={call}:signal={signal}:when={when}"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            assert_ne!(words.read_line(&mut line).unwrap(), 0, "strace cannot attach");
        }
        Self {
            strace,
            log,
            _words: words,
        }
    }

    /// Every process that has an entry in the log.
    fn processes(&self) -> BTreeSet<i32> {
        let log = fs::read_to_string(self.log.path()).unwrap();
        log.lines().filter_map(first_number).collect()
    }

    /// Waits until a process has stopped, and says which.
    fn wait_for_a_stop(&self, step: &str) -> Pid {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = fs::read_to_string(self.log.path()).unwrap();
            let stopped = log.lines().find(|line| line.contains("--- stopped by SIGSTOP"));
            if let Some(process) = stopped.and_then(first_number) {
                return Pid::from_raw(process).unwrap();
            }
            assert!(Instant::now() < deadline, "{step}: nobody came there: {log}");
            std::thread::yield_now();
        }
    }

    /// Ends it, and gives the processes that it has seen and those that it has seen end.
    fn finish(mut self) -> (BTreeSet<i32>, BTreeSet<i32>, String) {
        let _ = kill_process(pid(self.strace.id()), Signal::INT);
        self.strace.wait().unwrap();
        let log = fs::read_to_string(self.log.path()).unwrap();
        let seen = log.lines().filter_map(first_number).collect();
        let ends = log.lines().filter(|line| line.contains("+++ "));
        let ended = ends.filter_map(first_number).collect();
        (seen, ended, log)
    }
}

/// Each line of the log begins with the process that it is about.
fn first_number(line: &str) -> Option<i32> {
    line.split_whitespace().next()?.parse().ok()
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

fn exists(process: i32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// Nothing is here that was not before.
fn assert_nothing_is_left(moment: &str, launcher: u32) {
    assert_eq!(
        common::boxes_of(launcher),
        Vec::<std::path::PathBuf>::new(),
        "{moment}"
    );
    assert_eq!(common::mounts_of_boxes(), Vec::<String>::new(), "{moment}");
    assert_eq!(
        common::ranges_of(launcher),
        Vec::<std::path::PathBuf>::new(),
        "{moment}"
    );
}

/// What all tests here need.
fn has_strace() -> bool {
    match test_support::lab::program("strace", "strace") {
        Ok(_) => common::full_sandbox().is_some(),
        Err(missing) => {
            test_support::lab::skip(missing);
            false
        }
    }
}

#[test]
fn privileged_a_process_of_a_box_killed_at_any_step_takes_the_box_with_it() {
    if !has_strace() {
        return;
    }
    let mut launcher = Launcher::start();
    for (call, when, step) in MOMENTS {
        let trace = Trace::attach(&launcher, call, when, "KILL");
        launcher.order();
        let said = launcher.word("ended");
        let (seen, ended, log) = trace.finish();
        assert!(
            log.contains("killed by SIGKILL"),
            "{step}: nobody was killed: {log}"
        );
        // Whoever it was: it is told, as a failed launch or as a program that was killed.
        assert!(
            said.starts_with("failed") || said.contains("ended Ok(None)") || call == "exit_group",
            "{step}: {said}"
        );
        let own = launcher.threads();
        let left: Vec<_> = seen
            .difference(&ended)
            .filter(|process| exists(**process) && !own.contains(process))
            .collect();
        assert!(left.is_empty(), "{step}: {left:?} live on: {log}");
        // The helper ends as it should when nobody kills it.
        assert!(!log.contains("killed by SIGABRT"), "{step}: {log}");
        assert_nothing_is_left(step, launcher.child.id());
    }
    // And the launcher is as good as before.
    launcher.order();
    assert_eq!(launcher.word("ended").trim(), "ended Ok(Some(0))");
    launcher.child.kill().unwrap();
    launcher.child.wait().unwrap();
    drop(Groups::start("sandbox-test").unwrap());
}

#[test]
fn privileged_a_launching_process_killed_at_any_step_takes_all_of_its_box_with_it() {
    if !has_strace() {
        return;
    }
    // A process that has begun to end cannot be stopped any more.
    for (call, when, step) in MOMENTS.into_iter().filter(|(call, ..)| *call != "exit_group") {
        let mut launcher = Launcher::start();
        let trace = Trace::attach(&launcher, call, when, "STOP");
        launcher.order();
        // One process of the launch stands still at the step: whatever the machine does, the kill comes at that moment.
        let stopped = trace.wait_for_a_stop(step);
        launcher.child.kill().unwrap();
        launcher.child.wait().unwrap();
        // Before it has asked to die with its parent it goes on, and finds out by itself.
        let _ = kill_process(stopped, Signal::CONT);
        let own = pid(launcher.child.id()).as_raw_nonzero().get();
        let deadline = Instant::now() + PATIENCE;
        while trace
            .processes()
            .into_iter()
            .any(|process| process != own && exists(process))
        {
            assert!(
                Instant::now() < deadline,
                "{step}: {:?} live on",
                trace.processes()
            );
            std::thread::yield_now();
        }
        trace.finish();
        drop(Groups::start("sandbox-test").unwrap());
        let groups = common::control_groups_of(launcher.child.id());
        assert_eq!(groups, Vec::<std::path::PathBuf>::new(), "{step}");
        assert_nothing_is_left(step, launcher.child.id());
    }
}
