//! The helper: a process with one thread between the launching process and the program.
//!
//! The launching process has many threads and much memory, among it secrets. Its forked child does only what is safe
//! there, and executes the helper from sealed memory. The helper reads its plan, makes the box around process 1, and
//! stays as the one whom the launching process watches: when the launching process dies, the kernel kills the helper,
//! then process 1, then everything in its pid namespace.

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    message::{Ended, Message},
    plan::{
        HIGHEST_TARGET,
        boxed::{BoxPlan, BoxStep, INNER_ID, PLAN, PROGRAM, STATUS},
    },
    sys::boxed as calls,
};

/// Bytes of a plan; the largest has the longest environment that `execve` takes.
const MAX_PLAN_BYTES: u64 = 16 << 20;

/// The code with which helper and init end when the box could not be made. Nobody relies on it: a message was sent.
const NOT_MADE: i32 = 125;

/// The name of every host inside.
const HOST_NAME: &str = "sandbox";

/// What the steps of one process refer to.
struct Surroundings<'a> {
    plan: &'a BoxPlan,
    /// Ends when the process on its other end does; a byte on it says that the ids are mapped.
    lifeline: Option<&'a OwnedFd>,
    /// Process id of the parent, where the kernel can say it.
    parent: Option<i32>,
}

/// The main function of the helper binary. Started by anyone but [`Sandbox::launch`](crate::Sandbox::launch), it
/// ends with code 2.
#[must_use]
pub fn main() -> ExitCode {
    // The self-test starts the helper once more, as the program in the box.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "self-test")
    {
        return ExitCode::SUCCESS;
    }
    let Some(plan) = read_plan() else {
        return ExitCode::from(2);
    };
    let here = Surroundings {
        plan: &plan,
        lifeline: None,
        parent: None,
    };
    carry_out(&plan.helper, plan.first_index, &here);
    let failed = |errno: i32| -> ! { fail(plan.namespaces_index(), errno) };
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap_or_else(|error| failed(error.raw_os_error()));
    let init = match calls::fork_into(plan.namespaces) {
        Ok(0) => {
            drop(ours);
            run_init(&plan, &theirs)
        }
        Ok(init) => init,
        Err(errno) => failed(errno),
    };
    drop(theirs);
    // Out of the way of the program's numbers, which are closed next.
    let in_the_way = ours;
    let ours = rustix::io::fcntl_dupfd_cloexec(&in_the_way, HIGHEST_TARGET + 1)
        .unwrap_or_else(|error| failed(error.raw_os_error()));
    // Now, and not by its number with the others: what is closed twice ends this process at its end.
    drop(in_the_way);
    close_what_is_the_programs();
    say(Message::Init { process: init });
    if plan.namespaces != 0
        && let Err(errno) = calls::map_ids(init, INNER_ID, plan.outer_ids, plan.privileged)
    {
        failed(errno);
    }
    // Not before: the files of an undumpable process in /proc are root's, and so the id maps of init would be, to which a
    // helper without rights has to write. The program does not run before the next line.
    if let Err(errno) = calls::set_undumpable() {
        failed(errno);
    }
    // Without namespaces init waits for nothing: it may have closed its end by now, and a helper that took this for its
    // death would take a running program down with it.
    if plan.namespaces != 0 && rustix::io::write(&ours, &[1]).is_err() {
        // It has said itself what is wrong.
        calls::end(NOT_MADE);
    }
    // Kept open: its end tells init that the helper is gone.
    let _lifeline = ours;
    while calls::wait_any().is_some() {}
    ExitCode::SUCCESS
}

fn read_plan() -> Option<BoxPlan> {
    let mut file = File::from(calls::take_descriptor(PLAN).ok()?);
    file.rewind().ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_PLAN_BYTES).read_to_end(&mut bytes).ok()?;
    postcard::from_bytes(&bytes).ok()
}

/// Process 1: makes the box, starts the program, reaps until it has ended, says how.
fn run_init(plan: &BoxPlan, lifeline: &OwnedFd) -> ! {
    let here = Surroundings {
        plan,
        lifeline: Some(lifeline),
        parent: None,
    };
    carry_out(&plan.init, plan.init_index(), &here);
    let this_process = rustix::process::getpid().as_raw_nonzero().get();
    let program = match calls::fork_until_execution() {
        Ok(0) => {
            let here = Surroundings {
                plan,
                lifeline: None,
                parent: Some(this_process),
            };
            carry_out(&plan.program, plan.program_index(), &here);
            calls::end(NOT_MADE)
        }
        Ok(program) => program,
        Err(errno) => fail(plan.start_index(), errno),
    };
    // A program that could not be executed has said so before this.
    say(Message::Started);
    close_what_is_the_programs();
    while let Some((process, wait_status)) = calls::wait_any() {
        if process == program {
            say(Message::Ended(ended(wait_status)));
            break;
        }
    }
    // With process 1 the kernel ends all others in the namespace.
    calls::end(0)
}

/// The program's descriptors are its alone: whoever reads the other end of a pipe must see its end.
fn close_what_is_the_programs() {
    for number in (0..STATUS).chain(PROGRAM..=HIGHEST_TARGET) {
        calls::close(number);
    }
}

fn ended(wait_status: i32) -> Ended {
    let usage = calls::children_usage();
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let time = |time: libc::timeval| {
        Duration::from_secs(number(time.tv_sec)).saturating_add(Duration::from_micros(number(time.tv_usec)))
    };
    Ended {
        wait_status,
        cpu_time: time(usage.ru_utime).saturating_add(time(usage.ru_stime)),
        peak_kib: number(usage.ru_maxrss),
        blocks_read: number(usage.ru_inblock),
        blocks_written: number(usage.ru_oublock),
    }
}

/// All steps in order; at the first failure a message and the end.
fn carry_out(steps: &[BoxStep], first_index: u32, here: &Surroundings<'_>) {
    for (index, step) in (first_index..).zip(steps) {
        if let Err(errno) = run_step(step, here) {
            fail(index, errno);
        }
    }
}

fn run_step(step: &BoxStep, here: &Surroundings<'_>) -> Result<(), i32> {
    match step {
        BoxStep::CloseOwnOnExec => calls::close_on_exec_from(STATUS),
        BoxStep::JoinGroup { descriptor } => calls::write(*descriptor, b"0"),
        BoxStep::Undumpable => calls::set_undumpable(),
        BoxStep::AwaitIds => {
            let mut byte = [0];
            match here
                .lifeline
                .map(|lifeline| rustix::io::read(lifeline, &mut byte))
            {
                Some(Ok(1)) => Ok(()),
                Some(Err(error)) => Err(error.raw_os_error()),
                _ => Err(libc::ESRCH),
            }
        }
        BoxStep::NoGroups => calls::clear_groups(),
        BoxStep::BecomeUser { id } => calls::become_user(*id),
        BoxStep::DieWithParent => calls::die_with_parent(|| match (here.parent, here.lifeline) {
            (Some(parent), _) => calls::parent_process() != parent,
            (None, Some(lifeline)) => has_ended(lifeline),
            (None, None) => true,
        }),
        BoxStep::OwnGroupRoot => calls::unshare(libc::CLONE_NEWCGROUP),
        BoxStep::HostName => calls::set_host_name(HOST_NAME),
        BoxStep::OwnKeyring => calls::join_new_keyring(),
        BoxStep::PrivateMounts => calls::make_mounts_private(),
        BoxStep::EmptyRoot => calls::enter_empty_root(),
        BoxStep::NewSession => calls::new_session(),
        BoxStep::Umask => {
            calls::set_umask(0o077);
            Ok(())
        }
        BoxStep::Limit { resource, soft, hard } => calls::set_limit(*resource, *soft, *hard),
        BoxStep::EmptyBoundingSet => calls::empty_bounding_set(),
        BoxStep::LockCapabilities => calls::lock_capabilities(),
        BoxStep::DropCapabilities => calls::drop_capabilities(),
        BoxStep::NoNewPrivileges => calls::no_new_privileges(),
        BoxStep::Landlock => calls::landlock(),
        BoxStep::ResetSignals => calls::default_signals(),
        BoxStep::Seccomp(filter) => calls::install_filter(filter),
        BoxStep::Execute => Err(calls::execute(&here.plan.execution, PROGRAM)),
    }
}

/// Whether the other end of a pipe is closed.
fn has_ended(lifeline: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(lifeline.as_fd(), PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_err() || fds[0].revents().contains(PollFlags::HUP)
}

/// Says which step failed, and ends this process. When there is nobody to be told, nobody waits.
fn fail(step: u32, errno: i32) -> ! {
    say(Message::Failed { step, errno });
    calls::end(NOT_MADE)
}

fn say(message: Message) {
    // The launching process may be gone; then this one is about to be.
    let _ = calls::write(STATUS, &message.to_bytes());
}
