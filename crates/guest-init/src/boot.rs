//! The life of a guest, from the kernel's last step to the reset of the machine.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    os::unix::{
        fs::{MetadataExt as _, fchown},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    panic,
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cmdline::{KernelArguments, LogLevel},
    console::{be_quiet, say, say_on_fresh_line},
    container::{self, Container},
    files, mounts, names,
    program::{self, Lookup},
    signals::Signal,
    stop::Stop,
    sys::{self, Reaped},
    users::{self, Identity},
};

/// How long processes that are left when the command has ended may take to end by themselves.
const REST_GRACE: Duration = Duration::from_secs(2);
/// How long SIGKILL may take.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// Signals wake process 1; it looks around this often anyway.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Why the command was not run.
struct Failure(String);

/// What the program does: as process 1 it never returns, otherwise it says what it is.
///
/// Gives the exit code: 0 for `--version` and `--help`, 64 (EX_USAGE) for anything else.
pub fn main() -> i32 {
    if process::id() == 1 {
        run();
    }
    let mut arguments = env::args_os().skip(1);
    match (
        arguments.next().as_ref().and_then(|argument| argument.to_str()),
        arguments.next(),
    ) {
        (Some("--version"), None) => {
            print(format_args!("guest-init {}", env!("CARGO_PKG_VERSION")));
            0
        }
        (Some("--help"), None) => {
            print(HELP);
            0
        }
        _ => {
            say(format_args!(
                "this is the first process of a microVM and does not run as process {}; see --help",
                process::id()
            ));
            64
        }
    }
}

const HELP: &str = "\
guest-init is the first process of a microVM. The kernel starts it (init=/usr/bin/metald-init).

It mounts /proc, /sys, /dev, /run and /tmp, names the machine, runs the command of /container.cmd with the settings of
/container.env, and resets the machine when the command has ended.

Kernel arguments:
  env.KEY=VALUE           set a variable of the command's environment
  workdir=DIR             start the command in DIR
  hostname=NAME           name the machine
  ip=ADDRESS::GATEWAY:NETMASK:NAME:INTERFACE:off:DNS
                          set up an interface, if the kernel has not
  guest-init.log=LEVEL    quiet: only how the command ended; default: what fails besides;
                          verbose: one line for each step
  -- COMMAND ARGS...      run this instead of /container.cmd

Options, when it is not process 1:
  --version, --help";

fn print(text: impl fmt::Display) {
    use io::Write as _;
    let _ = writeln!(io::stdout(), "{text}");
}

/// Process 1.
fn run() -> ! {
    // A panic would end process 1, and with it the kernel.
    panic::set_hook(Box::new(|information| {
        say_on_fresh_line(format_args!("internal error: {information}"));
        end_machine()
    }));
    match live() {
        Ok(status) => say_on_fresh_line(describe(status)),
        Err(Failure(reason)) => say_on_fresh_line(format_args!("cannot run the command: {reason}")),
    }
    end_processes();
    end_machine()
}

/// The upper line of the picture in the crate's documentation.
fn live() -> Result<ExitStatus, Failure> {
    let began = Instant::now();
    let missing = sys::hold_missing_descriptors();
    sys::block_all_signals().map_err(|error| failure("cannot block signals", &error))?;
    sys::set_umask(0o022);

    // What happens before /proc is there is said afterwards, if it is to be said at all.
    let mut steps = Vec::new();
    mounts::mount_all(&mut |step| steps.push(step));
    let console = sys::open_console(missing);
    let kernel = kernel_arguments();
    let report = |step: &dyn fmt::Display| {
        if kernel.log == LogLevel::Verbose {
            say(step);
        }
    };
    if kernel.log == LogLevel::Quiet {
        be_quiet();
    }
    steps.iter().for_each(|step| report(step));
    if let Err(error) = console {
        report(&format_args!("no console: {error}"));
    }

    if let Err(error) = sys::catch_control_alt_delete() {
        report(&format_args!("Ctrl-Alt-Del is not caught: {error}"));
    }
    names::set_up(&kernel, &report);

    let container = read_container(&kernel)?;
    if let Some(name) = &container.unknown_stop_signal {
        say(format_args!(
            "the image's stop signal {name:?} is no signal: the command is stopped by SIGTERM"
        ));
    }
    let identity = read_identity(&container.user)?;
    let command = command(&container, &identity)?;
    let directory = &container.working_directory;
    let program = PathBuf::from(command.get_program());
    let cannot_start = |error: &io::Error| {
        let (place, user) = (directory.display(), identity.uid);
        Failure(format!(
            "{} in {place} as user {user}: {error}",
            program.display()
        ))
    };
    give_console(identity.uid);
    report(&format_args!(
        "starting {:?} as user {}, {:.1} ms after process 1 began and {:.1} ms after the kernel",
        container.command,
        identity.uid,
        began.elapsed().as_secs_f64() * 1000.0,
        sys::since_boot().as_secs_f64() * 1000.0,
    ));
    if container.is_direct {
        let error = sys::become_command(command, &identity, directory);
        return Err(cannot_start(&error));
    }
    let process = sys::spawn(command, &identity, directory).map_err(|error| cannot_start(&error))?;
    Ok(supervise(process, Stop::new(container.stop_signal)))
}

/// From `/proc/cmdline`; without /proc, the arguments that the kernel handed over are taken for a command.
fn kernel_arguments() -> KernelArguments {
    match files::read(Path::new("/proc/cmdline"), container::LARGEST_FILE) {
        Ok(Some(line)) => KernelArguments::parse(&line),
        result => {
            if let Err(error) = result {
                say(format_args!("cannot read /proc/cmdline: {error}"));
            }
            let words: Vec<OsString> = env::args_os().skip(1).collect();
            KernelArguments {
                command: (!words.is_empty()).then_some(words),
                ..KernelArguments::default()
            }
        }
    }
}

fn read_container(kernel: &KernelArguments) -> Result<Container, Failure> {
    let read = |path: &str| {
        files::read(Path::new(path), container::LARGEST_FILE)
            .map_err(|error| Failure(format!("cannot read {path}: {error}")))
    };
    let command = read(container::COMMAND_FILE)?;
    let environment = read(container::ENVIRONMENT_FILE)?;
    Container::new(command.as_deref(), environment.as_deref(), kernel)
        .map_err(|error| Failure(error.to_string()))
}

fn read_identity(user: &str) -> Result<Identity, Failure> {
    let read = |path: &str| match files::read_beginning(Path::new(path), users::LARGEST_FILE) {
        Ok((bytes, _)) => bytes,
        Err(error) => {
            // Without the file there are only numbers; anything else is worth a line.
            if error.kind() != io::ErrorKind::NotFound {
                say(format_args!("cannot read {path}: {error}"));
            }
            Vec::new()
        }
    };
    Identity::resolve(user, &read(users::PASSWD_FILE), &read(users::GROUP_FILE))
        .map_err(|error| Failure(error.to_string()))
}

/// The command, ready to be run; its working directory is there.
fn command(container: &Container, identity: &Identity) -> Result<Command, Failure> {
    let directory = &container.working_directory;
    if let Err(error) = files::make_directories(directory) {
        return Err(Failure(format!(
            "cannot make the working directory {}: {error}",
            directory.display()
        )));
    }
    let Some(name) = container.command.first() else {
        return Err(Failure("the command is empty".into()));
    };
    let path = container
        .environment
        .get(std::ffi::OsStr::new("PATH"))
        .cloned()
        .unwrap_or_default();
    let Lookup::Found(file) = program::find(name, &path, directory, files::is_executable) else {
        return Err(Failure(format!("{name:?} is in no directory of PATH={path:?}")));
    };
    let mut command = Command::new(&file);
    command
        .arg0(name)
        .args(container.command.iter().skip(1))
        .env_clear();
    if let Some(home) = &identity.home {
        command.env("HOME", home);
    } else {
        command.env("HOME", "/");
    }
    command.envs(&container.environment);
    Ok(command)
}

/// Makes the console the command's own, so that it can open `/dev/stdout` anew, as logs of many images are links to it.
fn give_console(uid: u32) {
    let null = fs::metadata("/dev/null").map(|metadata| metadata.rdev()).ok();
    let is_null = |descriptor: u8| {
        fs::metadata(format!("/proc/self/fd/{descriptor}"))
            .map(|metadata| metadata.rdev())
            .ok()
            == null
    };
    // Only convenience is lost when it fails: what is open already stays usable.
    if !is_null(0) {
        let _ = fchown(io::stdin(), Some(uid), None);
    }
    if !is_null(1) {
        let _ = fchown(io::stdout(), Some(uid), None);
    }
    if !is_null(2) {
        let _ = fchown(io::stderr(), Some(uid), None);
    }
}

/// Waits until `process` has ended; meanwhile passes signals on to its group and reaps whoever ends.
fn supervise(process: i32, mut stop: Stop) -> ExitStatus {
    loop {
        loop {
            match sys::reap() {
                Reaped::Process(ended, status) if ended == process => return status,
                Reaped::Process(..) => {}
                // The command cannot be gone without having been reaped here.
                Reaped::AllAlive | Reaped::NoChild => break,
            }
        }
        let arrived = sys::wait_for_signal(LOOK_AROUND);
        let now = Instant::now();
        let answer = arrived
            .and_then(|signal| stop.signal_arrived(signal, now))
            .or_else(|| stop.time_passed(now));
        if let Some(signal) = answer {
            // ESRCH means that the command has just ended, which the next round sees.
            let _ = sys::signal_group(process, signal);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("command exited with code {code}"),
        (None, Some(signal)) => format!("command was ended by signal {signal}"),
        (None, None) => format!("command ended: {status}"),
    }
}

/// Ends every other process, gently first.
fn end_processes() {
    for (signal, patience) in [(Signal::TERMINATE, REST_GRACE), (Signal::KILL, KILL_PATIENCE)] {
        if sys::signal_everyone(signal).is_err() {
            return;
        }
        // Who is stopped could not even begin to end.
        let _ = sys::signal_everyone(Signal::CONTINUE);
        if wait_for_no_child(patience) {
            return;
        }
    }
    say("some processes do not end");
}

/// Reaps until there is no child, or the time is over. Orphans become children of process 1, so that none is missed.
fn wait_for_no_child(patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match sys::reap() {
            Reaped::Process(..) => {}
            Reaped::NoChild => return true,
            Reaped::AllAlive => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                // SIGCHLD ends the wait early.
                let _ = sys::wait_for_signal(left);
            }
        }
    }
}

/// Writes everything out and resets the machine.
fn end_machine() -> ! {
    sys::sync();
    let root = Path::new("/");
    if !sys::is_read_only(root).unwrap_or(false)
        && let Err(error) = sys::remount_root_read_only()
    {
        say(format_args!("cannot make the root read-only: {error}"));
    }
    sys::drain_console();
    let error = sys::reboot();
    say(format_args!("cannot reset the machine: {error}"));
    loop {
        thread::park();
    }
}

fn failure(what: &str, error: &io::Error) -> Failure {
    Failure(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_command_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(0)), "command exited with code 0");
        assert_eq!(
            describe(ExitStatus::from_raw(137 << 8)),
            "command exited with code 137"
        );
        assert_eq!(describe(ExitStatus::from_raw(9)), "command was ended by signal 9");
    }
}
