//! Runs a program to its end, with a limit, and says what it took.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, Read as _, Seek as _, SeekFrom},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, pidfd_open},
};

use crate::{interrupt, usage};

/// How often a wait looks whether somebody asked to stop.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// How long a program that was asked to end has.
const GRACE: Duration = Duration::from_secs(20);

/// What a program printed and took.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: String,
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) peak_bytes: u64,
}

/// Runs `command` and measures it with everything that works for it: all processes below this one but `except`. A failure
/// has the end of what it said.
pub(crate) fn measure(
    command: &mut Command,
    limit: Duration,
    except: &BTreeSet<i32>,
) -> anyhow::Result<Finished> {
    interrupt::check()?;
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        // Ctrl-C is for this process; it ends the others.
        .process_group(0);
    let name = command.get_program().to_string_lossy().into_owned();
    let cpu = usage::cpu_seconds(except);
    let watch = usage::Watch::start(except.clone());
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let mut group = Group(child);
    let status = group.wait(limit).with_context(|| format!("{name} was ended"))?;
    let wall = start.elapsed().as_secs_f64();
    let peak_bytes = watch.finish();
    let cpu = usage::cpu_seconds(except) - cpu;
    let (stdout, stderr) = (text(stdout)?, text(stderr)?);
    if !status.success() {
        let said: Vec<&str> = stderr.lines().chain(stdout.lines()).collect();
        let end = &said[said.len().saturating_sub(8)..];
        bail!("{name} ended with {status}: {}", end.join(" / "));
    }
    Ok(Finished {
        stdout,
        wall,
        cpu,
        peak_bytes,
    })
}

/// Runs `command` for what it prints.
pub(crate) fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    Ok(measure(command, limit, &BTreeSet::new())?.stdout)
}

fn text(mut file: File) -> anyhow::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    BufReader::new(file).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A process group of our own making. Dropping it ends the whole of it.
pub(crate) struct Group(Child);

impl Group {
    /// Starts a program that goes on until it is dropped.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn();
        Ok(Self(child.with_context(|| format!("cannot run {name}"))?))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap_or(i32::MAX)
    }

    pub(crate) const fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }

    fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        if !self.wait_until(Instant::now() + limit, false)? {
            self.end();
            interrupt::check()?;
            bail!("it took longer than {} s", limit.as_secs());
        }
        Ok(self.0.wait()?)
    }

    /// Whether it ended before `deadline`, and before somebody asked to stop unless that does not matter any more.
    fn wait_until(&mut self, deadline: Instant, in_spite_of_interrupt: bool) -> anyhow::Result<bool> {
        let pid = rustix::process::Pid::from_child(&self.0);
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
        while Instant::now() < deadline && (in_spite_of_interrupt || !interrupt::is_raised()) {
            let mut ends = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
            match poll(&mut ends, Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Asks the group to end, and makes it end when it does not.
    fn end(&mut self) {
        if self.has_ended() {
            return;
        }
        let group = Pid::from_raw(self.pid());
        // Each fails only when nobody is left.
        let _ = killpg(group, Signal::SIGTERM);
        if !self.wait_until(Instant::now() + GRACE, true).unwrap_or_default() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends what is still running below this process, `except` apart: what a daemon left behind.
pub(crate) fn end_stragglers(except: &BTreeSet<i32>) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in usage::running(except) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
        let deadline = Instant::now() + GRACE / 4;
        while !usage::running(except).is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_it_prints_comes_back_and_a_failure_says_why() {
        let limit = Duration::from_secs(60);
        assert_eq!(output(&mut shell("echo hello"), limit).unwrap(), "hello\n");
        let error = output(&mut shell("echo no such thing >&2; exit 3"), limit).unwrap_err();
        assert!(
            format!("{error:#}").contains("exit status: 3: no such thing"),
            "{error:#}"
        );
    }

    #[test]
    fn a_program_over_its_limit_is_ended_with_its_children() {
        let error = output(&mut shell("sleep 1000 & sleep 1000"), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("it took longer than"), "{error:#}");
    }
}
