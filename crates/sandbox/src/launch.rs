//! From a plan to a running process.
//!
//! The kernel sends a parent-death signal when the *thread* that forked ends, not the process
//! (`PR_SET_PDEATHSIG(2const)`). Threads of an async runtime's blocking pool end after some idle seconds, and a child
//! launched from one would die with it. So one thread, which lives as long as the process, does all forking; the
//! callers do all waiting.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel, sync_channel},
    },
    thread,
    time::Instant,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, getpid, getrlimit, pidfd_open},
};

use crate::{
    child::Child,
    error::{LaunchError, LaunchErrorKind},
    plan::{Facts, Plan, Resource, Step},
    spec::Spec,
    sys::{self, MESSAGE_SIZE, Message},
};

/// What the forking thread is asked to do. It owns what must stay alive until the fork.
struct Request {
    plan: Plan,
    status_pipe: OwnedFd,
    answer: std::sync::mpsc::SyncSender<(io::Result<i32>, Vec<Step>)>,
}

/// Starts a process as `spec` says, and returns when its program has begun.
///
/// The descriptors of `spec` are closed in this process before it returns, on failure too.
///
/// # Errors
///
/// [`LaunchError`] when the spec is contradictory, when a step of the child fails (the program does not exist, say), or
/// when the machine lacks processes or descriptors. No process is left then.
pub fn launch(spec: Spec) -> Result<Child, LaunchError> {
    let program = spec.program.clone();
    start(spec).map_err(|kind| LaunchError::new(&program, kind))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the descriptors in it are closed here"
)]
fn start(spec: Spec) -> Result<Child, LaunchErrorKind> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(LaunchErrorKind::parent("open of /dev/null"))?;
    let facts = Facts {
        parent: getpid().as_raw_nonzero().get(),
        null: std::os::fd::AsRawFd::as_raw_fd(&null),
        hard_limit,
    };
    let plan = Plan::new(&spec, facts)?;
    let (status_reader, status_pipe) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| LaunchErrorKind::parent("pipe")(error.into()))?;

    let (answer, answered) = sync_channel(1);
    let request = Request {
        plan,
        status_pipe,
        answer,
    };
    let launched_at = Instant::now();
    let gone = || LaunchErrorKind::parent("the forking thread")(io::ErrorKind::BrokenPipe.into());
    forking_thread()?.send(request).map_err(|_| gone())?;
    let (process, steps) = answered.recv().map_err(|_| gone())?;
    let process = process.map_err(LaunchErrorKind::parent("fork"))?;

    let baseline_kib = match read_status(status_reader.into(), &steps) {
        Ok(baseline_kib) => baseline_kib,
        Err(kind) => {
            // It has ended or is about to: the message is the last thing that a failed child sends.
            let reaped = sys::wait4(process);
            tracing::debug!(process, ?reaped, "Child ended before its program began");
            return Err(kind);
        }
    };
    let pid = Pid::from_raw(process).ok_or(LaunchErrorKind::Vanished)?;
    // Nobody but us reaps the child, so the number is still its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty());
    let pidfd = pidfd.map_err(|error| {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        let _ = sys::wait4(process);
        LaunchErrorKind::parent("pidfd_open")(error.into())
    })?;
    tracing::debug!(process, program = %spec.program.display(), "Launched");
    Ok(Child::new(
        pid,
        pidfd,
        launched_at,
        spec.limits.wall_time,
        baseline_kib,
    ))
}

/// The thread that forks, started at the first launch.
fn forking_thread() -> Result<Sender<Request>, LaunchErrorKind> {
    static THREAD: OnceLock<Sender<Request>> = OnceLock::new();
    if let Some(sender) = THREAD.get() {
        return Ok(sender.clone());
    }
    let (sender, requests) = channel();
    thread::Builder::new()
        .name("sandbox-fork".to_owned())
        .spawn(move || fork_for_ever(&requests))
        .map_err(LaunchErrorKind::parent("starting the forking thread"))?;
    // Of two callers that come first at the same time one loses, and its thread ends with its sender.
    Ok(THREAD.get_or_init(|| sender).clone())
}

fn fork_for_ever(requests: &Receiver<Request>) {
    let blocked = sys::block_all_signals();
    for Request {
        mut plan,
        status_pipe,
        answer,
    } in requests
    {
        let process = match &blocked {
            Ok(()) => sys::fork_and_run(&plan, status_pipe.as_fd()),
            Err(error) => Err(io::Error::from(error.kind())),
        };
        // The caller reads until the pipe's end, and this process must not be what keeps it open.
        drop(status_pipe);
        // A caller that is gone cannot be: it waits without a time limit.
        let _ = answer.send((process, std::mem::take(&mut plan.steps)));
    }
}

/// Reads what the child says until `execve` closes the pipe; gives the baseline in KiB.
fn read_status(mut pipe: File, steps: &[Step]) -> Result<u64, LaunchErrorKind> {
    let mut baseline = None;
    // A child sends at most two messages.
    for _ in 0..2 {
        let mut bytes = [0; MESSAGE_SIZE];
        match pipe.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(LaunchErrorKind::parent("read of the status pipe")(error)),
        }
        match Message::from_bytes(bytes) {
            Some(Message::Baseline { peak_kib }) => baseline = Some(u64::from(peak_kib)),
            Some(Message::Failed { step, errno }) => {
                let step = usize::try_from(step).ok().and_then(|index| steps.get(index));
                let step = step.map_or_else(|| "unknown".to_owned(), ToString::to_string);
                return Err(LaunchErrorKind::Step {
                    step,
                    source: io::Error::from_raw_os_error(errno),
                });
            }
            None => return Err(LaunchErrorKind::Vanished),
        }
    }
    baseline.ok_or(LaunchErrorKind::Vanished)
}

fn hard_limit(resource: Resource) -> Option<u64> {
    use rustix::process::Resource as Kernel;
    getrlimit(match resource {
        Resource::CoreSize => Kernel::Core,
        Resource::FileSize => Kernel::Fsize,
        Resource::OpenFiles => Kernel::Nofile,
        Resource::AddressSpace => Kernel::As,
        Resource::CpuSeconds => Kernel::Cpu,
    })
    .maximum
}
