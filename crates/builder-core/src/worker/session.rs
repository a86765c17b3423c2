//! The parent's side of one worker.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};
use sandbox::{Child, Killer, LaunchErrorKind, Outcome, WaitError};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe,
    task::JoinHandle,
};

use super::{
    alarms::Alarms,
    launch::{Launcher, WorkerLimits, WorkerSpec},
    protocol::{Control, FailureKind, Job, Order, PROTOCOL_VERSION, WorkerEvent},
};
use crate::{
    error::{BuildError, BuildErrorKind},
    text::clean,
};

/// Bytes of one line of a worker.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// Lines of one worker. Its own notes are bounded far below.
const MAX_LINES: usize = 4096;

/// Bytes kept of what a worker writes to standard error: its end.
const STDERR_TAIL_BYTES: usize = 4096;

/// Bytes that a worker may write to standard error at all. One that goes on and on is ended.
const MAX_STDERR_BYTES: usize = 1 << 20;

/// How long a worker that has said its last word may take to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Characters of a message of a worker.
const MAX_MESSAGE_CHARS: usize = 1000;

/// What a worker used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_time: Duration,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// A running worker. Dropping it kills the worker without waiting for its end; [`finish`](Self::finish) waits.
#[derive(Debug)]
pub(crate) struct Session {
    /// For messages: `the worker that indexes layer 3`.
    name: String,
    control: pipe::Sender,
    events: BufReader<pipe::Receiver>,
    /// What has arrived of the next line.
    line: Vec<u8>,
    lines_seen: usize,
    failure: Option<BuildError>,
    stderr: JoinHandle<Words>,
    process: Process,
}

/// What a worker wrote to standard error.
#[derive(Debug, Default)]
struct Words {
    tail: String,
    /// It wrote more than it may, and was killed for it.
    flood: bool,
}

#[derive(Debug)]
struct Process {
    killer: Killer,
    end: JoinHandle<Result<Outcome, WaitError>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Harmless when it has ended. The blocking task reaps it.
        self.killer.kill();
    }
}

/// A pipe whose one end is ours and asynchronous, the other the worker's and blocking.
pub(crate) fn input_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((theirs, pipe::Sender::from_owned_fd(ours)?))
}

fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

impl Session {
    /// Starts a worker and hands it its job. `name` is for messages, as `the worker that indexes layer 3`.
    pub(crate) async fn start(
        launcher: &Arc<dyn Launcher>,
        alarms: &Alarms,
        name: String,
        job: Job,
        descriptors: Vec<(OwnedFd, i32)>,
        limits: WorkerLimits,
    ) -> Result<Self, BuildError> {
        let failed = |error: io::Error| BuildError::internal("start a worker", error);
        let (stdin, control) = input_pipe().map_err(failed)?;
        let (events, stdout) = output_pipe().map_err(failed)?;
        let (words, stderr) = output_pipe().map_err(failed)?;
        let launcher = Arc::clone(launcher);
        let spec = WorkerSpec {
            stdin,
            stdout,
            stderr,
            descriptors,
            limits,
        };
        let launching = {
            let (name, alarms) = (name.clone(), alarms.clone());
            tokio::task::spawn_blocking(move || launch(&*launcher, spec, &name, &alarms))
        };
        let child = launching
            .await
            .map_err(|error| BuildError::internal("start a worker", error))??;
        let process = Process {
            killer: child.killer(),
            end: {
                let alarms = alarms.clone();
                let name = name.clone();
                tokio::task::spawn_blocking(move || wait(child, &name, &alarms))
            },
        };
        let mut session = Self {
            name,
            control,
            events: BufReader::new(events),
            line: Vec::new(),
            lines_seen: 0,
            failure: None,
            stderr: tokio::spawn(keep_tail(words, process.killer.clone())),
            process,
        };
        let order = Order {
            version: PROTOCOL_VERSION,
            job,
        };
        session.write_line(&order).await;
        Ok(session)
    }

    /// Says `verified` or `abort`.
    pub(crate) async fn tell(&mut self, word: Control) {
        self.write_line(&word).await;
    }

    async fn write_line(&mut self, value: &impl serde::Serialize) {
        let mut line = serde_json::to_vec(value).expect("plain data encodes as JSON");
        line.push(b'\n');
        // A worker that does not listen any more has ended, and `finish` says how.
        if let Err(error) = self.control.write_all(&line).await {
            tracing::debug!(%error, "A worker does not listen");
        }
    }

    /// The next event, or `None` when the worker says nothing more. A failure that the worker reports is kept for
    /// [`finish`](Self::finish) and ends the events.
    ///
    /// A dropped future loses nothing: what has arrived of a line stays here.
    pub(crate) async fn next_event(&mut self) -> Result<Option<WorkerEvent>, BuildError> {
        let room = MAX_LINE_BYTES.saturating_sub(self.line.len() as u64);
        (&mut self.events)
            .take(room)
            .read_until(b'\n', &mut self.line)
            .await
            .map_err(|error| BuildError::internal("listen to a worker", error))?;
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(None);
        }
        self.lines_seen += 1;
        let garbage = |why: &str| {
            BuildError::new(
                BuildErrorKind::Internal,
                format!("internal error: {} answered with garbage", self.name),
            )
            .with_cause(why.to_owned())
        };
        if line.last() != Some(&b'\n') {
            // A worker that is killed while it writes leaves half a line; its end says more than that line.
            if room > line.len() as u64 {
                return Ok(None);
            }
            return Err(garbage("a line is too long"));
        }
        if self.lines_seen > MAX_LINES {
            return Err(garbage("too many lines"));
        }
        let event = serde_json::from_slice(&line).map_err(|error| garbage(&error.to_string()))?;
        match event {
            WorkerEvent::Failed { kind, message } => {
                self.failure = Some(explain(kind, &message));
                Ok(None)
            }
            WorkerEvent::Note { message } => Ok(Some(WorkerEvent::Note {
                message: clean(&message, MAX_MESSAGE_CHARS),
            })),
            event => Ok(Some(event)),
        }
    }

    /// Kills the worker; [`finish`](Self::finish) still has to be called.
    pub(crate) fn kill(&self) {
        self.process.killer.kill();
    }

    /// Waits until nothing of the worker is left, and says what it used; an error when it reported one or did not
    /// end as it should.
    pub(crate) async fn finish(mut self) -> (Usage, Result<(), BuildError>) {
        // The control pipe stays open meanwhile: its end would tell the worker to leave everything.
        let end = match tokio::time::timeout(LAST_WORDS, &mut self.process.end).await {
            Ok(end) => end,
            Err(_) => {
                self.process.killer.kill();
                (&mut self.process.end).await
            }
        };
        let outcome = match end {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return (Usage::default(), Err(BuildError::internal("end a worker", error))),
            Err(error) => return (Usage::default(), Err(BuildError::internal("end a worker", error))),
        };
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        let usage = Usage {
            cpu_time: outcome.cpu_time,
            peak_memory_bytes: outcome.peak_memory_bytes,
            read_bytes: outcome.read_bytes,
            written_bytes: outcome.written_bytes,
        };
        let exceeded = |what: &str| {
            let message = format!("{} {what}", self.name);
            (
                usage,
                Err(BuildError::new(BuildErrorKind::LimitExceeded, message)),
            )
        };
        // Whatever else was said: a process that was killed for it may not have been the one that speaks.
        if outcome.out_of_memory {
            return (usage, Err(out_of_memory(&self.name)));
        }
        if stderr.flood {
            return exceeded("writes more to its log than it may");
        }
        if outcome.idled_out {
            return exceeded("did nothing for too long");
        }
        let result = match self.failure {
            Some(failure) => Err(failure),
            None => judge(&self.name, outcome.status, &stderr.tail),
        };
        (usage, result)
    }
}

/// Starts a worker. When that fails nothing is left of it, however long that takes.
fn launch(
    launcher: &dyn Launcher,
    spec: WorkerSpec,
    name: &str,
    alarms: &Alarms,
) -> Result<Child, BuildError> {
    launcher.launch(spec).map_err(|mut error| {
        if let Some(survivor) = error.take_survivor() {
            // How it ended is of no interest any more.
            let _ = wait(survivor, name, alarms);
        }
        match error.kind() {
            LaunchErrorKind::OutOfMemory => out_of_memory(name),
            _ => BuildError::internal("start a worker", error),
        }
    })
}

fn out_of_memory(name: &str) -> BuildError {
    BuildError::new(
        BuildErrorKind::LimitExceeded,
        format!("{name} needs more memory than the build may use"),
    )
}

/// Waits until nothing of a worker is left, however long that takes: as long as a process lives on after SIGKILL, its
/// build has not ended, and what is reserved for it stays reserved.
fn wait(child: Child, name: &str, alarms: &Alarms) -> Result<Outcome, WaitError> {
    let process = child.id();
    let mut alarm = None;
    let end = child.wait_until_gone(|error| {
        alarm.get_or_insert_with(|| {
            tracing::error!(
                process,
                worker = name,
                error = error as &dyn std::error::Error,
                "A worker cannot be killed: its build keeps what is reserved for it until it is gone"
            );
            alarms.raise()
        });
        true
    });
    if alarm.is_some() {
        tracing::warn!(
            process,
            worker = name,
            "The worker that could not be killed is gone"
        );
    }
    end
}

async fn keep_tail(mut words: pipe::Receiver, killer: Killer) -> Words {
    let mut tail = Vec::new();
    let mut total = 0_usize;
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = words.read(&mut buffer).await {
        total = total.saturating_add(length);
        if total > MAX_STDERR_BYTES {
            killer.kill();
            break;
        }
        tail.extend_from_slice(&buffer[..length]);
        if tail.len() > STDERR_TAIL_BYTES {
            tail.drain(..tail.len() - STDERR_TAIL_BYTES);
        }
    }
    Words {
        tail: clean(&String::from_utf8_lossy(&tail), STDERR_TAIL_BYTES),
        flood: total > MAX_STDERR_BYTES,
    }
}

fn explain(kind: FailureKind, message: &str) -> BuildError {
    let message = clean(message, MAX_MESSAGE_CHARS);
    let kind = match kind {
        FailureKind::CorruptLayer => BuildErrorKind::CorruptLayer,
        FailureKind::Unsupported => BuildErrorKind::UnsupportedImage,
        FailureKind::Limit => BuildErrorKind::LimitExceeded,
        FailureKind::DiskFull => BuildErrorKind::DiskFull,
        FailureKind::OutputTooLarge => BuildErrorKind::OutputNotWritable,
        FailureKind::BackendUnavailable => BuildErrorKind::BackendUnavailable,
        // What exactly failed inside is for the operator.
        FailureKind::Internal => {
            return BuildError::new(BuildErrorKind::Internal, "internal error: a worker failed")
                .with_cause(message);
        }
    };
    BuildError::new(kind, message)
}

/// What the end of a worker that reported no failure means.
fn judge(name: &str, status: ExitStatus, stderr: &str) -> Result<(), BuildError> {
    if status.success() {
        return Ok(());
    }
    let error = |kind, message: String| {
        let error = BuildError::new(kind, message);
        Err(if stderr.is_empty() {
            error
        } else {
            error.with_cause(stderr.to_owned())
        })
    };
    // Rust's allocation failure under an address space limit: a message, then SIGABRT.
    if stderr.contains("memory allocation of") {
        return Err(out_of_memory(name).with_cause(stderr.to_owned()));
    }
    match status.signal() {
        Some(libc_signal::XFSZ) => error(
            BuildErrorKind::LimitExceeded,
            format!("{name} writes more than the build may use of the disk"),
        ),
        Some(libc_signal::KILL) => error(
            BuildErrorKind::Internal,
            format!(
                "internal error: {name} was killed (signal 9) from outside of the build, as the kernel does when the machine has no memory left"
            ),
        ),
        Some(signal) => error(
            BuildErrorKind::Internal,
            format!("internal error: {name} crashed (signal {signal})"),
        ),
        None => {
            let code = status.code().unwrap_or(-1);
            error(
                BuildErrorKind::Internal,
                format!("internal error: {name} ended with code {code}"),
            )
        }
    }
}

/// Signal numbers that are the same on all Linux architectures we run on. Source: `signal(7)`.
mod libc_signal {
    pub(super) const KILL: i32 = 9;
    pub(super) const XFSZ: i32 = 25;
}
