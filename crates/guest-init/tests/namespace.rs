//! guest-init as process 1 of a pid namespace: everything but the kernel of the microVM.
//!
//! There a reset ends the namespace, and its process 1 is reported as killed by SIGHUP (`reboot(2)`). The root is a tmpfs
//! of the test's own mount namespace, so that the read-only remount touches nothing of the host.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// A root directory to be copied into the guest, made file by file.
struct Guest {
    directory: tempfile::TempDir,
    kernel_arguments: String,
}

/// A guest that is running.
struct Running {
    unshare: Child,
    output: BufReader<std::process::ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Guest {
    /// A guest with this crate's programs, a shell, and the libraries that they need; `None` where that cannot run.
    fn new() -> Option<Self> {
        if let Some(reason) = cannot_run() {
            assert!(std::env::var_os("BUILDERD_REQUIRE_LAB").is_none(), "{reason}");
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
            return None;
        }
        let guest = Self {
            directory: tempfile::tempdir().unwrap(),
            kernel_arguments: String::new(),
        };
        let programs = [
            (env!("CARGO_BIN_EXE_guest-init"), "usr/bin/metald-init"),
            (env!("CARGO_BIN_EXE_guest-hello"), "bin/guest-hello"),
            ("/bin/sh", "bin/sh"),
        ];
        let mut libraries = BTreeSet::new();
        for (from, to) in programs {
            guest.copy(Path::new(from), to);
            libraries.extend(libraries_of(from));
        }
        for library in libraries {
            guest.copy(&library, library.strip_prefix("/").unwrap().to_str().unwrap());
        }
        Some(guest)
    }

    fn copy(&self, from: &Path, to: &str) {
        let to = self.directory.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }

    fn file(self, path: &str, contents: &str) -> Self {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    fn without(self, path: &str) -> Self {
        fs::remove_file(self.directory.path().join(path)).unwrap();
        self
    }

    fn kernel_arguments(mut self, arguments: &str) -> Self {
        self.kernel_arguments = format!("console=ttyS0 reboot=k {arguments}\n");
        self
    }

    fn start(self) -> Running {
        // The device directory is a tmpfs with what is needed: the real devtmpfs is one for the whole host.
        let script = r#"
            set -e
            mount -t tmpfs guest "$1/mnt"
            cp -a "$1/root/." "$1/mnt"
            mkdir -p "$1/mnt/dev"
            mount -t tmpfs guest-dev "$1/mnt/dev"
            for device in null zero full random urandom; do
                touch "$1/mnt/dev/$device"
                mount --bind "/dev/$device" "$1/mnt/dev/$device"
            done
            # The kernel arguments of the host are not meant for this guest.
            mkdir -p "$1/mnt/proc"
            mount -t proc guest-proc "$1/mnt/proc"
            mount --bind "$1/cmdline" "$1/mnt/proc/cmdline"
            exec chroot "$1/mnt" /usr/bin/metald-init
        "#;
        let top = tempfile::tempdir().unwrap();
        fs::rename(self.directory.keep(), top.path().join("root")).unwrap();
        fs::create_dir(top.path().join("mnt")).unwrap();
        fs::write(top.path().join("cmdline"), &self.kernel_arguments).unwrap();
        let mut unshare = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--net",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
            ])
            .args(["--propagation", "private", "sh", "-c", script, "guest"])
            .arg(top.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One stream, as on a serial console; the order between the two does not matter to the tests.
        let output = BufReader::new(unshare.stdout.take().unwrap());
        Running {
            unshare,
            output,
            _directory: top,
        }
    }

    fn run(self) -> (String, ExitStatus) {
        self.start().finish()
    }
}

impl Running {
    fn wait_for_line(&mut self, expected: &str) {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if line.trim_end() == expected {
                return;
            }
            line.clear();
        }
        panic!("the output ended without {expected:?}");
    }

    /// Sends a signal to process 1 of the guest.
    fn signal(&self, name: &str) {
        let unshare = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        let sent = Command::new("kill")
            .args(["-s", name, children.trim()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Standard output, then standard error; and how process 1 ended.
    fn finish(mut self) -> (String, ExitStatus) {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let mut error = self.unshare.stderr.take().unwrap();
        error.read_to_string(&mut output).unwrap();
        (output, self.unshare.wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn cannot_run() -> Option<String> {
    let probe = ["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "true"];
    match Command::new("unshare").args(probe).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(_) => Some("namespaces need root".to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Shared libraries and loader, as absolute paths.
fn libraries_of(program: &str) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Process 1 reset the machine instead of ending.
fn assert_reset(status: ExitStatus, output: &str) {
    assert_eq!(status.signal(), Some(1), "{output}");
}

fn assert_has(output: &str, line: &str) {
    assert!(
        output.lines().any(|other| other == line),
        "no line {line:?} in:\n{output}"
    );
}

#[test]
fn privileged_the_command_runs_as_the_image_says_and_the_machine_ends() {
    let Some(guest) = Guest::new() else { return };
    let (output, status) = guest
        .file(
            "container.cmd",
            r#"["guest-hello", "two words", "/tmp", "/dev/shm", "/dev/fd", "/gone", "--exit", "3"]"#,
        )
        .file(
            "container.env",
            r#"{"working_dir": "/srv/new", "env": {"GREETING": "hi", "PATH": "/sbin:/bin"}, "user": "app"}"#,
        )
        .file("etc/passwd", "root:x:0:0::/root:\napp:x:1000:1001::/home/app:\n")
        .file("etc/group", "audio:x:29:app\n")
        .run();
    for line in [
        "hello from the guest",
        r#"argv 0 "guest-hello""#,
        r#"argv 1 "two words""#,
        r#"env GREETING="hi""#,
        r#"env HOME="/home/app""#,
        r#"env PATH="/sbin:/bin""#,
        "id uid=1000 gid=1001 groups=[29, 1001]",
        "cwd /srv/new",
        "file /gone absent",
        "guest-init: command exited with code 3",
    ] {
        assert_has(&output, line);
    }
    assert_eq!(
        output.lines().filter(|line| line.starts_with("env ")).count(),
        3,
        "{output}"
    );
    assert!(output.contains("file /tmp type=directory mode=1777"), "{output}");
    assert!(
        output.contains("file /dev/shm type=directory mode=1777"),
        "{output}"
    );
    assert!(output.contains("target=/proc/self/fd"), "{output}");
    assert_reset(status, &output);
}

#[test]
fn privileged_kernel_arguments_have_the_last_word() {
    let Some(guest) = Guest::new() else { return };
    let arguments = "env.A=1 env.B=\"two words\" workdir=/tmp hostname=box guest-init.log=verbose \
                     -- sh -c \"read -r name < /proc/sys/kernel/hostname; echo $name $A $B; pwd; exit 4\"";
    let (output, status) = guest
        .file("container.cmd", r#"["guest-hello"]"#)
        .file(
            "container.env",
            r#"{"env": {"A": "image"}, "working_dir": "/srv"}"#,
        )
        .kernel_arguments(arguments)
        .run();
    assert_has(&output, "box 1 two words");
    assert_has(&output, "/tmp");
    assert_has(&output, "guest-init: mounted tmpfs on /tmp");
    assert_has(&output, "guest-init: command exited with code 4");
    assert_reset(status, &output);
}

#[test]
fn privileged_directories_that_the_image_filled_stay_as_they_are() {
    let Some(guest) = Guest::new() else { return };
    let (output, status) = guest
        .file("run/app/pid", "12")
        .file("container.cmd", r#"["guest-hello", "/run/app/pid"]"#)
        .kernel_arguments("guest-init.log=verbose")
        .run();
    assert!(output.contains("file /run/app/pid type=file"), "{output}");
    assert_has(&output, "guest-init: left /run as the image has it");
    assert_reset(status, &output);
}

#[test]
fn privileged_whatever_is_wrong_is_said_in_one_line_and_the_machine_ends() {
    type Change = fn(Guest) -> Guest;
    let cases: [(&str, &str, Change); 7] = [
        (
            "no shell and no files",
            "/bin/sh in / as user 0: No such file",
            |guest| guest.without("bin/sh"),
        ),
        ("broken command", "/container.cmd: ", |guest| {
            guest.file("container.cmd", "sh")
        }),
        ("unknown user", r#"user "app" is not in /etc/passwd"#, |guest| {
            guest.file("container.env", r#"{"user": "app"}"#)
        }),
        ("not in PATH", r#""nginx" is in no directory of PATH"#, |guest| {
            guest.file("container.cmd", r#"["nginx"]"#)
        }),
        ("not executable", "Permission denied", |guest| {
            guest
                .file("container.cmd", r#"["/etc/text"]"#)
                .file("etc/text", "")
        }),
        (
            "file as directory",
            "cannot make the working directory /etc/text",
            |guest| {
                guest
                    .file("container.env", r#"{"working_dir": "/etc/text"}"#)
                    .file("etc/text", "")
            },
        ),
        ("zero byte", "cannot run the command: ", |guest| {
            guest.file("container.cmd", r#"["sh", "\u0000"]"#)
        }),
    ];
    for (name, expected, change) in cases {
        let Some(guest) = Guest::new() else { return };
        let (output, status) = change(guest).run();
        let lines: Vec<&str> = output
            .lines()
            .filter(|line| line.starts_with("guest-init: cannot run"))
            .collect();
        assert!(
            lines.len() == 1 && lines[0].contains(expected),
            "{name}: {output}"
        );
        assert_reset(status, &output);
    }
}

fn shell(script: &str) -> String {
    format!(r#"["/bin/sh", "-c", "{script}"]"#)
}

#[test]
fn privileged_another_user_can_open_the_console_anew() {
    let Some(guest) = Guest::new() else { return };
    let (output, status) = guest
        .file("container.cmd", &shell("echo opened > /dev/stdout"))
        .file("container.env", r#"{"user": "33"}"#)
        .run();
    assert_has(&output, "opened");
    assert_reset(status, &output);
}

#[test]
fn privileged_the_end_by_a_signal_is_told() {
    let Some(guest) = Guest::new() else { return };
    let (output, status) = guest.file("container.cmd", &shell("kill -9 $$")).run();
    assert_has(&output, "guest-init: command was ended by signal 9");
    assert_reset(status, &output);
}

#[test]
fn privileged_control_alt_delete_reaches_the_command_as_its_stop_signal() {
    let Some(guest) = Guest::new() else { return };
    let script = "trap 'echo stopped; exit 5' QUIT; trap 'echo reload' USR1; echo ready; \
        turn=0; while [ $turn -lt 30000000 ]; do turn=$((turn + 1)); done";
    let mut running = guest
        .file("container.cmd", &shell(script))
        .file("container.env", r#"{"stop_signal": "SIGQUIT"}"#)
        .start();
    running.wait_for_line("ready");
    running.signal("USR1");
    running.wait_for_line("reload");
    // What the kernel sends to process 1 for Ctrl-Alt-Del.
    running.signal("INT");
    running.wait_for_line("stopped");
    let (output, status) = running.finish();
    assert_has(&output, "guest-init: command exited with code 5");
    assert_reset(status, &output);
}

#[test]
fn privileged_orphans_are_reaped_and_what_is_left_is_ended() {
    let Some(guest) = Guest::new() else { return };
    // A hundred orphans at a time; then a look at every process until none is a zombie, for a bounded number of times.
    let script = "for round in 1 2 3 4 5 6 7 8 9 10; do for a in 1 2 3 4 5 6 7 8 9 10; do \
        (for b in 1 2 3 4 5 6 7 8 9 10; do (exit 0) & done); done; done; \
        try=0; while [ $try -lt 2000 ]; do try=$((try + 1)); zombies=0; \
        for stat in /proc/[0-9]*/stat; do read -r pid name state rest < $stat && [ $state = Z ] && zombies=1; done \
        2>/dev/null; [ $zombies = 0 ] && break; done; echo zombies $zombies; \
        (trap '' TERM HUP; turn=0; while [ $turn -lt 30000000 ]; do turn=$((turn + 1)); done) & exit 0";
    let (output, status) = guest.file("container.cmd", &shell(script)).run();
    assert_has(&output, "zombies 0");
    assert_has(&output, "guest-init: command exited with code 0");
    assert!(!output.contains("do not end"), "{output}");
    assert_reset(status, &output);
}

#[test]
fn anywhere_else_it_refuses_and_explains_itself() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_guest-init"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not run as process"));

    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        format!("guest-init {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("workdir=DIR"));
    assert_eq!(run(&["--version", "x"]).status.code(), Some(64));
}
