//! From a plan to a running process.
//!
//! The kernel sends a parent-death signal when the *thread* that forked ends, not the process
//! (`PR_SET_PDEATHSIG(2const)`). Threads of an async runtime's blocking pool end after some idle seconds, and a child
//! launched from one would die with it. So one thread, which lives as long as the process, does all forking; the
//! callers do all waiting.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, channel, sync_channel},
    },
    thread,
    time::Instant,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, getpid, getrlimit, pidfd_open},
};

use crate::{
    cgroup::Group,
    child::{Child, Deadlines, Inside, poll_until},
    descriptor::data_memory,
    error::{Failure, LaunchError, LaunchErrorKind},
    isolation::{Isolation, Layer},
    lease::Lease,
    message::{MESSAGE_SIZE, Message},
    plan::{
        Facts, Placement, Plan, Resource, Step,
        boxed::{self, BoxFacts, BoxPlan, Execution},
        command, environment, limits,
    },
    program::{Program, SealedProgram},
    spec::Spec,
    sys,
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
/// [`LaunchError`] when the spec is contradictory, when a step of the child fails (the program does not exist, say),
/// when the program has not begun after a minute, or when the machine lacks processes or descriptors. No process is left then, but for a [survivor](LaunchError::take_survivor).
pub fn launch(spec: Spec) -> Result<Child, LaunchError> {
    let program = spec.program.describe();
    start(spec).map_err(|failure| LaunchError::new(&program, failure))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the descriptors in it are closed here"
)]
fn start(spec: Spec) -> Result<Child, Failure> {
    if spec.limits.idle_time.is_some() || spec.limits.processes.is_some() {
        let reason = "idle_time and processes are limits of a box: see Sandbox::launch".to_owned();
        let field = "limits";
        return Err(LaunchErrorKind::InvalidSpec { field, reason }.into());
    }
    let null = open_null()?;
    let plan = Plan::new(&spec, &facts(&null))?;
    let (status_reader, status_pipe) = status_pipe()?;
    let deadlines = Deadlines::new(&spec.limits, Instant::now());
    let forked = fork(plan, status_pipe)?;
    let steps = forked.steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut child = Child::new(forked.pid()?, forked.pidfd()?, deadlines, None);
    match read_status(&File::from(status_reader), deadlines.launch(), &steps, |_| Ok(())) {
        Ok(baseline_kib) => child.begin(Some(baseline_kib), None),
        Err(kind) => return Err(child.abandon(kind)),
    }
    tracing::debug!(process = forked.process, program = %spec.program.describe().display(), "Launched");
    Ok(child)
}

/// What a box is made with, beside the spec.
pub(crate) struct BoxRequest<'a> {
    pub(crate) helper: &'a SealedProgram,
    pub(crate) isolation: Isolation,
    pub(crate) group: Option<Arc<Group>>,
    /// The user and group ids of the program outside.
    pub(crate) outer_ids: (u32, u32),
    pub(crate) privileged: bool,
    /// Freed with the child.
    pub(crate) lease: Option<Lease>,
}

/// Starts the helper, which makes the box and starts the program in it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the descriptors in it are closed here"
)]
pub(crate) fn start_boxed(spec: Spec, request: BoxRequest<'_>) -> Result<Child, Failure> {
    let namespaced = request.isolation.layers.has(Layer::Namespaces);
    let invalid = |field, reason: &str| {
        let reason = reason.to_owned();
        Failure::from(LaunchErrorKind::InvalidSpec { field, reason })
    };
    if namespaced && !matches!(spec.program, Program::Sealed(_)) {
        return Err(invalid(
            "program",
            "the root of the box is empty: only a sealed program can run in it",
        ));
    }
    if spec.working_directory != std::path::Path::new("/") {
        return Err(invalid("working_directory", "in a box it is /"));
    }
    if spec.limits.idle_time.is_some() && request.group.is_none() {
        return Err(invalid("limits", "idle_time is measured by a control group"));
    }
    let null = open_null()?;
    let facts = facts(&null);
    let (path, arguments) = command(&spec)?;
    let mut limits: Vec<_> = limits(&spec.limits, &facts.hard_limit).collect();
    // Elsewhere the user's other processes would be counted too.
    if let Some(processes) = spec.limits.processes.filter(|_| namespaced) {
        limits.push((Resource::Processes, processes, processes));
    }
    let entrances = match &request.group {
        Some(group) => group.entrances().map_err(LaunchErrorKind::Group)?,
        None => Vec::new(),
    };
    let n_groups = i32::try_from(entrances.len().min(boxed::MAX_GROUPS)).unwrap_or(0);
    let (status_reader, status_writer) = status_pipe()?;

    let mut own = vec![
        (status_writer.as_raw_fd(), boxed::STATUS),
        (request.helper.as_fd().as_raw_fd(), boxed::HELPER),
    ];
    if let Program::Sealed(sealed) = &spec.program {
        own.push((sealed.as_fd().as_raw_fd(), boxed::PROGRAM));
    }
    for (entrance, number) in entrances.iter().zip(boxed::FIRST_GROUP..) {
        own.push((entrance.as_raw_fd(), number));
    }
    let mut memory = data_memory("sandbox-plan").map_err(LaunchErrorKind::parent("memfd_create"))?;
    own.push((memory.as_raw_fd(), boxed::PLAN));
    let own: Vec<Placement> = own
        .into_iter()
        .map(|(source, target)| Placement { source, target })
        .collect();
    let plan = Plan::for_helper(&spec, &facts, &own)?;

    let box_plan = BoxPlan::new(BoxFacts {
        first_index: u32::try_from(plan.steps.len()).unwrap_or(0),
        isolation: request.isolation,
        n_groups,
        outer_ids: request.outer_ids,
        privileged: request.privileged,
        limits,
        execution: Execution::new(path, arguments, environment(&spec)?),
    });
    let bytes = postcard::to_stdvec(&box_plan)
        .map_err(|error| LaunchErrorKind::parent("encoding the plan")(io::Error::other(error)))?;
    memory
        .write_all(&bytes)
        .map_err(LaunchErrorKind::parent("write of the plan"))?;

    // Before there is a process that would have to be ended if this fails.
    let status = File::from(status_reader);
    let said = status
        .try_clone()
        .map_err(LaunchErrorKind::parent("dup of the status pipe"))?;
    let deadlines = Deadlines::new(&spec.limits, Instant::now());
    let forked = fork(plan, status_writer)?;
    let steps: Vec<String> = forked
        .steps
        .iter()
        .map(ToString::to_string)
        .chain(box_plan.words())
        .collect();
    let inside = Inside {
        status: said,
        init: None,
        group: request.group,
        _lease: request.lease,
    };
    let mut child = Child::new(forked.pid()?, forked.pidfd()?, deadlines, Some(inside));
    let mut init = None;
    let read = read_status(&status, deadlines.launch(), &steps, |process| {
        init = open_init(process)?;
        Ok(())
    });
    child.begin(None, init);
    if let Err(kind) = read {
        return Err(child.abandon(kind));
    }
    tracing::debug!(process = forked.process, program = %spec.program.describe().display(), layers = %request.isolation.layers, "Launched in a box");
    Ok(child)
}

/// A descriptor of the box's process 1. `None` when it has ended already, and everything with it.
fn open_init(process: i32) -> Result<Option<OwnedFd>, LaunchErrorKind> {
    let Some(process) = Pid::from_raw(process) else {
        return Ok(None);
    };
    match pidfd_open(process, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        // Without it nobody could tell when the box is empty.
        Err(error) => Err(LaunchErrorKind::parent("pidfd_open")(error.into())),
    }
}

fn open_null() -> Result<File, LaunchErrorKind> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(LaunchErrorKind::parent("open of /dev/null"))
}

fn facts(null: &File) -> Facts<fn(Resource) -> Option<u64>> {
    Facts {
        parent: getpid().as_raw_nonzero().get(),
        null: null.as_raw_fd(),
        hard_limit,
    }
}

fn status_pipe() -> Result<(OwnedFd, OwnedFd), LaunchErrorKind> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| LaunchErrorKind::parent("pipe")(error.into()))
}

/// A process that was forked and is on its way to its program.
struct Forked {
    process: i32,
    steps: Vec<Step>,
}

/// Has the plan carried out. The writing end of the status pipe is closed here.
fn fork(plan: Plan, status_pipe: OwnedFd) -> Result<Forked, LaunchErrorKind> {
    let (answer, answered) = sync_channel(1);
    let request = Request {
        plan,
        status_pipe,
        answer,
    };
    let gone = || LaunchErrorKind::parent("the forking thread")(io::ErrorKind::BrokenPipe.into());
    forking_thread()?.send(request).map_err(|_| gone())?;
    let (process, steps) = answered.recv().map_err(|_| gone())?;
    let process = process.map_err(LaunchErrorKind::parent("fork"))?;
    Ok(Forked { process, steps })
}

impl Forked {
    fn pid(&self) -> Result<Pid, LaunchErrorKind> {
        Pid::from_raw(self.process).ok_or(LaunchErrorKind::Vanished)
    }

    /// Ends a child that has failed or is about to: the message is the last thing that it sends.
    fn give_up(&self, kind: LaunchErrorKind) -> LaunchErrorKind {
        if let Ok(pid) = self.pid() {
            // It may not be a leader yet.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let reaped = sys::wait4(self.process);
        tracing::debug!(
            process = self.process,
            ?reaped,
            "Child ended before its program began"
        );
        kind
    }

    /// Nobody but us reaps the child, so the number is still its own.
    fn pidfd(&self) -> Result<OwnedFd, LaunchErrorKind> {
        pidfd_open(self.pid()?, PidfdFlags::empty())
            .map_err(|error| self.give_up(LaunchErrorKind::parent("pidfd_open")(error.into())))
    }
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

/// Messages of a child before its program runs: its baseline, or its init and that it has started.
const MESSAGES: usize = 4;

/// Reads what the child says until `execve` closes the pipe, or until the helper says that the program runs; gives the
/// baseline in KiB, 0 with a helper.
fn read_status(
    mut pipe: &File,
    deadline: Instant,
    steps: &[String],
    mut init: impl FnMut(i32) -> Result<(), LaunchErrorKind>,
) -> Result<u64, LaunchErrorKind> {
    let started_at = Instant::now();
    let mut baseline = None;
    for _ in 0..MESSAGES {
        let readable = poll_until(pipe, deadline)
            .map_err(|error| LaunchErrorKind::parent("poll of the status pipe")(error.into()))?;
        if !readable {
            return Err(LaunchErrorKind::TimedOut {
                waited: started_at.elapsed(),
            });
        }
        // A message is written in one go, so it is there whole (PIPE_BUF, pipe(7)).
        let mut bytes = [0; MESSAGE_SIZE];
        match pipe.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(LaunchErrorKind::parent("read of the status pipe")(error)),
        }
        match Message::from_bytes(bytes) {
            Some(Message::Baseline { peak_kib }) => baseline = Some(peak_kib),
            Some(Message::Init { process }) => init(process)?,
            Some(Message::Started) => return Ok(0),
            Some(Message::Failed { step, errno }) => {
                let step = usize::try_from(step).ok().and_then(|index| steps.get(index));
                let step = step.map_or_else(|| "unknown".to_owned(), Clone::clone);
                return Err(LaunchErrorKind::Step {
                    step,
                    source: io::Error::from_raw_os_error(errno),
                });
            }
            Some(Message::Ended(_)) | None => return Err(LaunchErrorKind::Vanished),
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
        Resource::Processes => Kernel::Nproc,
    })
    .maximum
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::WaitError;

    #[test]
    fn a_child_that_says_nothing_is_not_waited_for_for_ever() {
        let (reader, _writer) = status_pipe().unwrap();
        let read = read_status(&File::from(reader), Instant::now(), &[], |_| Ok(()));
        assert!(matches!(read, Err(LaunchErrorKind::TimedOut { .. })), "{read:?}");
    }

    /// A shell that ignores what can be ignored.
    fn shell(script: &str) -> Spec {
        let mut spec = Spec::new("/bin/sh");
        spec.arguments = vec!["-c".into(), script.into()];
        spec
    }

    fn is_there(process: u32) -> bool {
        std::fs::exists(format!("/proc/{process}")).unwrap()
    }

    #[test]
    fn of_a_launch_that_is_given_up_nothing_is_left() {
        let child = launch(shell("trap '' TERM; sleep 1000 & wait")).unwrap();
        let process = child.id();
        let failure = child.abandon(LaunchErrorKind::Vanished);
        assert!(matches!(failure.kind, LaunchErrorKind::Vanished));
        assert!(failure.survivor.is_none() && !is_there(process));
    }

    #[test]
    fn privileged_what_survives_a_launch_that_is_given_up_is_handed_over() {
        // The leader itself, and one that it has started: then the leader is gone at once.
        for script in ["echo line", "echo line & wait"] {
            survive(script);
        }
    }

    /// The state of some process of a group. Field 3 of `proc_pid_stat(5)`, the group is field 5.
    fn has_a_member_asleep(group: u32) -> bool {
        let stats = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = stats.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        stats.into_iter().any(|stat| {
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            fields.next() == Some("D") && fields.nth(1) == Some(&group.to_string())
        })
    }

    fn survive(script: &str) {
        let (frozen, file) = match test_support::frozen::Frozen::new() {
            Ok(made) => made,
            Err(reason) => {
                return test_support::lab::skip(format!("no file system can be frozen here: {reason}"));
            }
        };
        let mut spec = shell(script);
        spec.stdout = Some(file.into());
        let child = launch(spec).unwrap();
        let process = child.id();
        let deadline = Instant::now() + Duration::from_mins(1);
        while !has_a_member_asleep(process) {
            assert!(Instant::now() < deadline, "nobody writes: {script}");
            thread::yield_now();
        }
        let timed_out = LaunchErrorKind::TimedOut {
            waited: Duration::ZERO,
        };
        let mut error = LaunchError::new("/bin/sh".as_ref(), child.abandon(timed_out));
        let survivor = error.take_survivor();
        let was_there = has_a_member_asleep(process);
        let mut times_asked = 0;
        let outcome = survivor.map(|survivor| {
            survivor.wait_until_gone(|error| {
                times_asked += 1;
                frozen.thaw();
                matches!(error, WaitError::Unkillable { .. })
            })
        });
        frozen.thaw();
        assert!(was_there && !is_there(process), "{script}");
        let outcome = outcome.expect("it cannot be killed").unwrap();
        assert!(
            !outcome.status.success() && times_asked > 0,
            "{script}: {outcome:?}"
        );
        assert!(error.take_survivor().is_none());
    }
}
