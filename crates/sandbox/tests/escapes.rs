//! What the walls of a box hold, with the same attack outside as the control.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

#[path = "common/attacks.rs"]
mod attacks;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Seek},
    net::{TcpListener, UdpSocket},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use attacks::{ATTACKS, End};
use sandbox::{Calls, GroupLimits, Isolation, Layer, Layers, Level, Outcome, Sandbox, Spec};
use test_support::lab;

fn spec(words: &str) -> Spec {
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = vec![words.into()];
    // A fault of the box must not become an endless test.
    spec.limits.wall_time = Some(std::time::Duration::from_secs(60));
    spec
}

/// Runs an attack; gives how it ended, and what was said.
fn strike(sandbox: &Sandbox, isolation: Isolation, words: &str, host: &Host) -> (End, String) {
    // One process for each: an attack may change what the next one can do.
    let mut spec = spec(words);
    spec.descriptors = host.descriptors();
    let (outcome, output) = common::run_boxed(sandbox, spec, isolation, &GroupLimits::default());
    let Some(end) = ending(&outcome, &output) else {
        panic!("{words} gives no verdict: {output:?}, {outcome:?}");
    };
    (end, format!("{words}: {end:?}: {}", output.trim_end()))
}

/// What the probe says, or the signal that kept it from saying anything. Silence alone proves nothing: it may have had
/// any fault.
fn ending(outcome: &Outcome, output: &str) -> Option<End> {
    let Some(line) = output.lines().next() else {
        return outcome.status.signal().map(End::Dies);
    };
    if line.contains("\"blocked\":false") {
        return Some(End::Gains);
    }
    let (_, rest) = line.split_once("\"blocked\":true,\"errno\":")?;
    let (errno, _) = rest.split_once(',')?;
    errno.parse().ok().map(End::Fails)
}

/// Everything that the attacks are aimed at.
struct Host {
    number: u32,
    tcp: TcpListener,
    /// `None` on a host without IPv6.
    tcp6: Option<TcpListener>,
    udp: UdpSocket,
    name: String,
    _abstract: UnixListener,
}

impl Host {
    fn new() -> Self {
        // Tests run side by side.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sandbox-test-{}-{number}", std::process::id());
        Self {
            number,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            tcp6: TcpListener::bind("[::1]:0").ok(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            name,
        }
    }

    /// The words of an attack, with what they stand for.
    fn name_in(&self, words: &str) -> String {
        let own = std::process::id();
        let path = std::env::temp_dir().join(format!("sandbox-probe-{own}-{}", self.number));
        let root = format!("/sandbox-probe-{own}-{}", self.number);
        let tcp6 = match &self.tcp6 {
            Some(listener) => listener.local_addr().unwrap().to_string(),
            None => "[::1]:9".to_owned(),
        };
        // A hierarchy of its own takes no controller away from another.
        let own_groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let is_there = own_groups.contains(":pids:");
        let groups = if is_there {
            "pids"
        } else {
            "none,name=sandbox-probe"
        };
        words
            .replace("{root}", &root)
            .replace("{tcp6}", &tcp6)
            .replace("{groups}", groups)
            .replace("{tcp}", &self.tcp.local_addr().unwrap().to_string())
            .replace("{udp}", &self.udp.local_addr().unwrap().to_string())
            .replace("{name}", &self.name)
            .replace("{process}", &own.to_string())
            .replace("{path}", &path.display().to_string())
    }

    /// What a worker has as well: a file of the host, and one in memory, which it may write, both of them programs. And
    /// what it should not have been given: the host's root directory, a file of the host to write, the console.
    fn descriptors(&self) -> Vec<(OwnedFd, i32)> {
        let mut file = File::open(common::static_programs::directory().join("escape-probe")).unwrap();
        let memory = rustix::fs::memfd_create("sandbox-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        std::io::copy(&mut file, &mut File::from(memory.try_clone().unwrap())).unwrap();
        let root = File::open("/").unwrap();
        let output = tempfile::tempfile().unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOCTTY;
        let console = rustix::fs::open("/dev/tty0", flags, rustix::fs::Mode::empty())
            .unwrap_or_else(|_| File::open("/dev/null").unwrap().into());
        vec![
            (file.into(), 3),
            (memory, 4),
            (root.into(), 5),
            (output.into(), 6),
            (console, 7),
        ]
    }
}

fn with(layers: Layers) -> Isolation {
    Isolation {
        layers,
        calls: Calls::Worker,
        own_user: false,
    }
}

/// Without any layer. An attack that succeeds once is one: some depend on who runs first.
fn strike_outside(sandbox: &Sandbox, words: &str, host: &Host) -> (End, String) {
    let again = || strike(sandbox, with(Layers::NONE), words, host);
    let mut last = again();
    for _ in 0..9 {
        if last.0 == End::Gains {
            break;
        }
        last = again();
    }
    last
}

#[test]
fn privileged_every_attack_succeeds_outside_and_none_in_a_box() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    for attack in ATTACKS {
        let words = host.name_in(attack.words);
        let (end, said) = strike(&sandbox, Level::Strict.isolation(Calls::Worker), &words, &host);
        assert_eq!(end, attack.boxed(), "{said}");
        assert_ne!(end, End::Gains, "{said}");
        // The control.
        let (end, said) = strike_outside(&sandbox, &words, &host);
        if attack.is_lacking(end) {
            // Seen elsewhere as well: nobody can do it, with or without a box.
            lab::skip_optional(format!("this kernel lacks what the control needs: {said}"));
            continue;
        }
        assert_eq!(end, End::Gains, "the control has to succeed: {said}");
    }
}

/// What is said of each layer is true of it alone: where one is open, another has to hold, and no layer is in the table
/// for more than it does.
#[test]
fn privileged_each_layer_alone_stops_what_the_table_says() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    for attack in ATTACKS {
        let words = host.name_in(attack.words);
        if attack.is_lacking(strike(&sandbox, with(Layers::NONE), &words, &host).0) {
            continue;
        }
        for (layer, expected) in [
            (Layer::Namespaces, attack.namespaces),
            (Layer::Seccomp, attack.seccomp),
            (Layer::Landlock, attack.landlock),
        ] {
            let alone = with(Layers::NONE.with(layer));
            let (end, said) = strike(&sandbox, alone, &words, &host);
            assert!(
                expected.allows(end),
                "{layer} alone: {said}; expected {expected:?}"
            );
        }
    }
}

#[test]
fn privileged_each_level_blocks_what_the_one_below_lets_through() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    let run = |isolation, words: &str| strike(&sandbox, isolation, words, &host).0;
    let basic = Level::Basic.isolation(Calls::Worker);
    let strict = Level::Strict.isolation(Calls::Worker);

    assert_eq!(run(with(Layers::NONE), "host-file=/etc/passwd"), End::Gains);
    assert_eq!(run(basic, "host-file=/etc/passwd"), End::Fails(libc::ENOENT));
    for words in ["user-namespace", "process", "executable-memory", "ptrace"] {
        assert_eq!(run(basic, words), End::Gains, "{words} at level 1");
        let attack = ATTACKS.iter().find(|attack| attack.words == words).unwrap();
        assert_eq!(run(strict, words), attack.boxed(), "{words} at level 2");
    }

    // Two at a time: at level 2 the host sees one user, at level 3 two.
    let users = |level: Level| {
        let start = || {
            let mut spec = Spec::new(common::probe_program());
            spec.arguments = vec!["idle".into()];
            let child = sandbox
                .launch(
                    spec,
                    level.isolation(Calls::Worker),
                    None,
                    &GroupLimits::default(),
                )
                .unwrap();
            let user = common::user_of_a_member(child.group().unwrap());
            (child, user)
        };
        let (first, second) = (start(), start());
        (first.1, second.1, common::ranges_of(std::process::id()).len())
    };
    let (first, second, ranges) = users(Level::Strict);
    assert!(first == second && ranges == 0, "{first}, {second}, {ranges}");
    let (first, second, ranges) = users(Level::Maximum);
    assert!(first != second && ranges == 2, "{first}, {second}, {ranges}");
    assert_eq!(common::ranges_of(std::process::id()).len(), 0);
}

#[test]
fn privileged_silence_is_no_verdict() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let ends = ["exit=0", "exit=1", "no-such-attack", "abort"].map(|words| {
        let strict = Level::Strict.isolation(Calls::Worker);
        let (outcome, output) = common::run_boxed(&sandbox, spec(words), strict, &GroupLimits::default());
        ending(&outcome, &output)
    });
    // And a signal is one only where the table has it.
    assert_eq!(ends, [None, None, None, Some(End::Dies(libc::SIGABRT))]);
}

/// Nobody outside gets what the box was given, and the box gets nothing in addition: not even through a socket that is
/// there, as standard input may be one.
#[test]
fn privileged_no_descriptor_passes_through_a_socket() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let strict = Level::Strict.isolation(Calls::Worker);
    let outside = with(Layers::NONE);
    let run = |words, isolation, socket: &UnixStream| {
        let mut spec = spec(words);
        spec.descriptors = vec![(socket.try_clone().unwrap().into(), 3)];
        let (outcome, output) = common::run_boxed(&sandbox, spec, isolation, &GroupLimits::default());
        ending(&outcome, &output).unwrap_or_else(|| panic!("{words}: {output:?}, {outcome:?}"))
    };
    let (here, there) = UnixStream::pair().unwrap();
    assert_eq!(run("give-descriptor=3", strict, &here), End::Fails(libc::ENOSYS));
    assert_eq!(
        run("take-descriptor=3", outside, &there),
        End::Fails(libc::EAGAIN)
    );
    // One lies there from now on: the box leaves it where it is, and the control finds it.
    assert_eq!(run("give-descriptor=3", outside, &here), End::Gains);
    assert_eq!(run("take-descriptor=3", strict, &there), End::Fails(libc::ENOSYS));
    assert_eq!(run("take-descriptor=3", outside, &there), End::Gains);
}

/// At level 1, where only the walls hold, and not the list of system calls. Where no wall is, it succeeds.
#[test]
fn privileged_a_box_cannot_touch_a_process_of_another() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    let basic = Level::Basic.isolation(Calls::Worker);
    let none = GroupLimits::default();
    let target = sandbox.launch(spec("idle"), basic, None, &none).unwrap();
    let _ = common::user_of_a_member(target.group().unwrap());
    let members = fs::read_to_string(target.group().unwrap().path().join("cgroup.procs")).unwrap();
    // The helper and init among them.
    let members: Vec<&str> = members.lines().collect();
    assert!(members.len() >= 3, "{members:?}");
    for process in members {
        for attack in [
            "signal",
            "thread-signal",
            "limits-of",
            "join-namespace",
            "trace",
            "write-memory",
            "descriptor-of",
        ] {
            let words = format!("{attack}={process}");
            let (end, said) = strike(&sandbox, basic, &words, &host);
            assert_eq!(end, End::Fails(libc::ESRCH), "{said}");
            let strict = Level::Strict.isolation(Calls::Worker);
            let (end, said) = strike(&sandbox, strict, &words, &host);
            assert!(matches!(end, End::Fails(_)), "{said}");
            // The control.
            let (end, said) = strike(&sandbox, with(Layers::NONE), &words, &host);
            assert_eq!(end, End::Gains, "{said}");
        }
    }
    target.killer().kill();
    assert!(target.wait().unwrap().killed);
}

/// The control of an address that is not this host's would be somebody else's machine: that of the table has to do.
#[test]
fn privileged_no_address_can_be_reached() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    for words in [
        "tcp=169.254.169.254:80",
        "udp=169.254.169.254:53",
        "tcp=192.0.2.1:443",
        "tcp=[fd00:ec2::254]:80",
        "tcp=[2001:db8::1]:443",
    ] {
        if words.contains('[') && !std::path::Path::new("/proc/net/if_inet6").exists() {
            lab::skip_optional(format!("this kernel has no IPv6: {words}"));
            continue;
        }
        let basic = Level::Basic.isolation(Calls::Worker);
        let (end, said) = strike(&sandbox, basic, words, &host);
        // An address of IPv6 is first looked for one to start from.
        let expected = if words.contains('[') {
            libc::EADDRNOTAVAIL
        } else {
            libc::ENETUNREACH
        };
        assert_eq!(end, End::Fails(expected), "{said}");
        let strict = Level::Strict.isolation(Calls::Worker);
        let (end, said) = strike(&sandbox, strict, words, &host);
        assert_eq!(end, End::Fails(libc::ENOSYS), "{said}");
    }
}

/// A program can be written to once nobody runs it any more, by who has kept it open (CVE-2019-5736); one in sealed
/// memory cannot. The helper and init run from such memory as well.
#[test]
fn privileged_a_program_cannot_be_changed_by_who_runs_it() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let host = Host::new();
    let words = "keep-own-program=3";
    let outside = with(Layers::NONE);
    // The control: a program that is a file.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    // Not copied by this process, of which another thread may fork while the file is open for writing: nobody could
    // run it then.
    let probe = common::static_programs::directory().join("escape-probe");
    let copied = Command::new("cp").args([&probe, &path]).status().unwrap();
    assert!(copied.success());
    let before = fs::read(&path).unwrap();
    let mut unsealed = spec(words);
    unsealed.program = sandbox::Program::Path(path.clone());
    unsealed.descriptors = host.descriptors();
    let (outcome, output) = common::run_boxed(&sandbox, unsealed, outside, &GroupLimits::default());
    assert_eq!(ending(&outcome, &output), Some(End::Gains), "{output}");
    let after = fs::read(&path).unwrap();
    assert!(after.len() == before.len() + 1 && after.starts_with(&before));

    for (isolation, end) in [
        (outside, End::Fails(libc::EPERM)),
        (Level::Basic.isolation(Calls::Worker), End::Fails(libc::ENOENT)),
        (Level::Strict.isolation(Calls::Worker), End::Fails(libc::ENOSYS)),
    ] {
        // One of its own: other tests run the one that is shared, and what runs is busy.
        let bytes = fs::read(&probe).unwrap();
        let mut sealed = spec(words);
        sealed.program = sandbox::SealedProgram::new("own", &bytes).unwrap().into();
        sealed.descriptors = host.descriptors();
        let (outcome, output) = common::run_boxed(&sandbox, sealed, isolation, &GroupLimits::default());
        assert_eq!(ending(&outcome, &output), Some(end), "{output}");
    }

    let basic = Level::Basic.isolation(Calls::Worker);
    let none = GroupLimits::default();
    let sleeper = sandbox.launch(spec("idle"), basic, None, &none).unwrap();
    let _ = common::user_of_a_member(sleeper.group().unwrap());
    let members = fs::read_to_string(sleeper.group().unwrap().path().join("cgroup.procs")).unwrap();
    for process in members.lines() {
        use rustix::fs::{SealFlags, fcntl_get_seals};
        let program = File::open(format!("/proc/{process}/exe")).unwrap();
        let sealed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        assert!(fcntl_get_seals(&program).unwrap().contains(sealed), "{process}");
    }
}

/// No call that a worker has takes more of the disk than the limit of a file says, and one that would is not there.
#[test]
fn privileged_no_call_gives_a_file_more_than_its_limit() {
    const LIMIT: u64 = 64 << 10;
    const LARGE: usize = 1 << 20;
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let strict = Level::Strict.isolation(Calls::Worker);
    let run = |words, isolation, limit| {
        let (file, mut source) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        std::io::copy(&mut [7; LARGE].as_slice(), &mut source).unwrap();
        source.rewind().unwrap();
        let mut spec = spec(words);
        spec.descriptors = vec![(file.try_clone().unwrap().into(), 3), (source.into(), 4)];
        spec.limits.file_size_bytes = limit;
        let (outcome, output) = common::run_boxed(&sandbox, spec, isolation, &GroupLimits::default());
        let end = ending(&outcome, &output).unwrap_or_else(|| panic!("{words}: {output:?}, {outcome:?}"));
        let status = file.metadata().unwrap();
        (end, status.len().max(status.blocks() * 512))
    };
    let strict_but_seccomp = with(Layers::ALL.without(Layer::Seccomp));
    for (words, limited) in [
        ("lengthen=3", End::Dies(libc::SIGXFSZ)),
        ("copy=3", End::Dies(libc::SIGXFSZ)),
        ("allocate=3", End::Fails(libc::ENOSYS)),
    ] {
        // The control is what stops it, taken away: the limit, or the list of system calls.
        let (isolation, limit) = match limited {
            End::Dies(_) => (strict, None),
            _ => (strict_but_seccomp, Some(LIMIT)),
        };
        let (end, size) = run(words, isolation, limit);
        assert!(end == End::Gains && size >= 1 << 20, "{words}: {end:?}, {size}");
        let (end, size) = run(words, strict, Some(LIMIT));
        assert_eq!(end, limited, "{words}");
        assert!(size <= LIMIT, "{words}: {size}");
    }
}

/// A mount that is made in a box is seen by nobody else; where it cannot be made at all, there is nothing to see.
#[test]
fn privileged_a_mount_stays_in_its_box() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let name = format!("sandbox-probe-{}", std::process::id());
    let words = format!("mount-for-all={name}:{}", directory.path().display());
    // What is said, and whether the mount is seen here while its maker lives.
    let run = |isolation| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut spec = spec(&words);
        spec.arguments.push("idle".into());
        spec.stdout = Some(writer.into());
        let child = sandbox
            .launch(spec, isolation, None, &GroupLimits::default())
            .unwrap();
        let mut said = String::new();
        BufReader::new(reader).read_line(&mut said).unwrap();
        let seen = fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&name);
        child.killer().kill();
        child.wait().unwrap();
        (said, seen)
    };
    let (said, seen) = run(Level::Basic.isolation(Calls::Worker));
    assert!(said.contains("mounted for itself"), "{said}");
    assert!(!seen);
    let (said, seen) = run(Level::Strict.isolation(Calls::Worker));
    assert!(said.contains("\"blocked\":true"), "{said}");
    assert!(!seen);
    // The control.
    let (said, seen) = run(with(Layers::NONE));
    let unmounted = Command::new("umount").arg(directory.path()).status();
    assert!(said.contains("mounted for all") && seen, "{said}");
    assert!(unmounted.unwrap().success());
}

#[test]
fn privileged_only_named_descriptors_are_in_the_box() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    // Open on purpose, without close-on-exec, as a careless library would leave it.
    let (_keep, leak) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let strict = Level::Strict.isolation(Calls::Worker);
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = vec!["descriptors".into()];
    let (_, output) = common::run_boxed(&sandbox, spec, strict, &GroupLimits::default());
    assert!(output.contains("\"blocked\":true"), "{output}");

    let mut spec = Spec::new(common::probe_program());
    spec.arguments = vec!["descriptors".into()];
    spec.descriptors = vec![(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()), 77)];
    let (_, output) = common::run_boxed(&sandbox, spec, strict, &GroupLimits::default());
    assert!(output.contains("\"detail\":\"77\""), "{output}");
}

#[test]
fn privileged_a_box_without_a_wanted_layer_is_refused() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    // The helper has no program to run in the empty root: a path names nothing there.
    let error = sandbox
        .launch(
            Spec::new("/bin/true"),
            Level::Strict.isolation(Calls::Worker),
            None,
            &GroupLimits::default(),
        )
        .unwrap_err();
    assert!(
        matches!(
            error.kind(),
            sandbox::LaunchErrorKind::InvalidSpec { field: "program", .. }
        ),
        "{error:?}"
    );
}
