//! The worker's side: read the job, do it, say how it ended.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::ExitCode,
    sync::mpsc,
    thread,
};

use super::{
    assemble, index,
    protocol::{Control, FailureKind, Job, Order, PROTOCOL_VERSION, WorkerEvent},
};

/// Bytes that a line of the parent may have: a job carries an image's environment and names many layers.
const MAX_ORDER_BYTES: u64 = 64 << 20;

/// Stack of the thread that reads control lines.
const CONTROL_STACK_BYTES: usize = 256 << 10;

/// The code with which a worker ends when its parent is gone or has changed its mind.
const ABANDONED: i32 = 3;

/// Why a job was given up.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An error with everything that lies behind it in one line.
    pub(crate) fn chained(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self { kind, message }
    }

    /// What an I/O error while `action` means.
    pub(crate) fn from_io(action: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::DiskFull,
            io::ErrorKind::FileTooLarge => FailureKind::Limit,
            _ => FailureKind::Internal,
        };
        Self::new(kind, format!("failed to {action}: {error}"))
    }
}

/// Where a job's events go.
pub(super) struct Events<W: Write> {
    output: W,
}

impl<W: Write> Events<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output }
    }

    pub(super) fn send(&mut self, event: &WorkerEvent) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(event).expect("events are plain data");
        line.push(b'\n');
        self.output
            .write_all(&line)
            .and_then(|()| self.output.flush())
            .map_err(|error| Failure::from_io("report to the parent", &error))
    }
}

/// Waits for the parent's word.
pub(super) struct Verdict {
    verified: mpsc::Receiver<()>,
}

impl Verdict {
    /// Blocks until the parent says `verified`. Any other word, or none any more, ends the process.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        self.verified
            .recv()
            .map_err(|_| Failure::new(FailureKind::Internal, "the parent is gone"))
    }
}

/// The main function of a worker process: `builderd worker` calls it and exits with its code.
///
/// Reads the job from standard input and writes events to standard output; nothing else may use the two. The code is 0
/// when the job is done, 1 when it was given up (an event says why), 2 when there was no readable job, 3 when the
/// parent is gone or said `abort`.
#[must_use]
pub fn main() -> ExitCode {
    let mut control = BufReader::new(io::stdin());
    let mut events = Events::new(io::stdout());
    let order = match read_order(&mut control) {
        Ok(order) => order,
        Err(failure) => return give_up(&mut events, failure, 2),
    };
    let result = listen(control).and_then(|verdict| match order.job {
        Job::Index(job) => index::run(&job, &verdict, &mut events),
        Job::Assemble(job) => assemble::run(&job, &verdict, &mut events),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => give_up(&mut events, failure, 1),
    }
}

fn give_up<W: Write>(events: &mut Events<W>, failure: Failure, code: u8) -> ExitCode {
    // When the parent cannot be told, the code alone has to do.
    let _ = events.send(&WorkerEvent::Failed {
        kind: failure.kind,
        message: failure.message,
    });
    ExitCode::from(code)
}

fn read_order(control: &mut impl BufRead) -> Result<Order, Failure> {
    let unreadable =
        |reason: String| Failure::new(FailureKind::Internal, format!("unreadable job: {reason}"));
    let mut line = Vec::new();
    control
        .take(MAX_ORDER_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(|error| unreadable(error.to_string()))?;
    let order: Order = serde_json::from_slice(&line).map_err(|error| unreadable(error.to_string()))?;
    if order.version != PROTOCOL_VERSION {
        let found = order.version;
        return Err(unreadable(format!(
            "protocol version {found}, expected {PROTOCOL_VERSION}"
        )));
    }
    Ok(order)
}

/// Reads control lines beside the job, so that a worker deep in its work still ends with its parent.
fn listen(control: BufReader<io::Stdin>) -> Result<Verdict, Failure> {
    let (sender, verified) = mpsc::channel();
    let loop_until_the_end = move || {
        for line in control.take(MAX_ORDER_BYTES).lines() {
            match line.ok().and_then(|line| serde_json::from_str(&line).ok()) {
                Some(Control::Verified) => {
                    // The job may be past its need for it.
                    let _ = sender.send(());
                }
                Some(Control::Abort) | None => break,
            }
        }
        #[expect(
            clippy::exit,
            reason = "the job's thread is to stop wherever it is; nothing is committed yet"
        )]
        std::process::exit(ABANDONED);
    };
    // A tight limit of address space shows here first.
    thread::Builder::new()
        .stack_size(CONTROL_STACK_BYTES)
        .spawn(loop_until_the_end)
        .map_err(|_| {
            Failure::new(
                FailureKind::Limit,
                "the memory that the build may use is too little to begin",
            )
        })?;
    Ok(Verdict { verified })
}
