//! The system calls that neither std nor rustix offers: `fork`, what the child does until `execve`, and `wait4`.
//!
//! The launching process has several threads, so its forked child may hold locks that nobody will ever release
//! (`fork(2)`: only async-signal-safe functions until `execve`). Hence everything the child needs is allocated before
//! the fork, and [`run_child`] calls nothing but thin wrappers of system calls: no allocation, no panic, no `Drop`.

use std::{
    ffi::{CString, c_char, c_int},
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    process::ExitStatus,
    ptr,
    time::Duration,
};

use std::os::unix::process::ExitStatusExt;

use crate::{
    message::Message,
    plan::{Executable, HIGHEST_TARGET, Placement, Plan, Resource, Step},
};

pub(crate) mod boxed;

/// What `wait4` says about a process that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub(crate) status: ExitStatus,
    /// User and system time of the process and of the descendants that were waited for.
    pub(crate) cpu_time: Duration,
    /// The largest resident set of any of them, in KiB.
    pub(crate) peak_kib: u64,
    /// Blocks of 512 bytes read from and written to storage by them.
    pub(crate) blocks: (u64, u64),
}

/// What the child works on; its vectors are not resized after the fork.
struct Child<'plan> {
    steps: &'plan [Step],
    program: *const c_char,
    /// Used when `program` is null.
    program_descriptor: c_int,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    placements: Vec<Placement>,
    status_pipe: c_int,
}

/// Blocks every signal for the calling thread, which is to be the one that forks: a handler of the launching process
/// must not run in the child.
pub(crate) fn block_all_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data, for which all zeros is a valid value; sigfillset gives it its meaning.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `all` is a valid, exclusively borrowed sigset_t; the old mask is not asked for (null is allowed).
    let result = unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Forks; the child carries out `plan` and never returns. Gives the child's process id.
///
/// All signals must be blocked in the calling thread. `status_pipe` is a writing end with close-on-exec.
pub(crate) fn fork_and_run(plan: &Plan, status_pipe: BorrowedFd<'_>) -> io::Result<i32> {
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect::<Vec<_>>()
    };
    let mut child = Child {
        steps: &plan.steps,
        program: match &plan.program {
            Executable::Path(path) => path.as_ptr(),
            Executable::Descriptor(_) => ptr::null(),
        },
        program_descriptor: match &plan.program {
            Executable::Path(_) => -1,
            Executable::Descriptor(number) => *number,
        },
        arguments: pointers(&plan.arguments),
        environment: pointers(&plan.environment),
        placements: plan.placements.clone(),
        status_pipe: status_pipe.as_raw_fd(),
    };
    // SAFETY: the child only calls `run_child`, which keeps to async-signal-safe calls (see there) and does not
    // return, so that no destructor of the launching process runs twice.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => run_child(&mut child),
        process => Ok(process),
    }
}

/// The child: every step in order; at the first failure a message and the end.
fn run_child(child: &mut Child<'_>) -> ! {
    let steps = child.steps;
    // Execute, the last step, does not return when it succeeds.
    let mut index = 0_u32;
    for step in steps {
        if let Err(errno) = run_step(step, child) {
            send(child.status_pipe, Message::Failed { step: index, errno });
            break;
        }
        index = index.wrapping_add(1);
    }
    // SAFETY: _exit ends the process without running exit handlers of the launching process, and has no
    // requirements.
    unsafe { libc::_exit(127) }
}

/// Carries out one step. An error is the bare errno: nothing here may allocate.
fn run_step(step: &Step, child: &mut Child<'_>) -> Result<(), c_int> {
    match step {
        // SAFETY: setsid has no requirements. A freshly forked process never leads a group, so it cannot fail with
        // EPERM.
        Step::NewSession => check(unsafe { libc::setsid() }),
        Step::DieWithParent { parent } => {
            // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) })?;
            // A parent that ended before the call sends nothing any more; then the child belongs to someone else.
            // SAFETY: getppid has no requirements.
            if unsafe { libc::getppid() } == *parent {
                Ok(())
            } else {
                Err(libc::ESRCH)
            }
        }
        Step::ResetSignals => {
            reset_signals();
            Ok(())
        }
        Step::Umask(mask) => {
            // SAFETY: umask has no requirements and cannot fail.
            unsafe { libc::umask(*mask as libc::mode_t) };
            Ok(())
        }
        // SAFETY: the path is a live zero-terminated string.
        Step::WorkingDirectory(path) => check(unsafe { libc::chdir(path.as_ptr()) }),
        Step::LiftDescriptors => {
            child.status_pipe = lift(child.status_pipe)?;
            for placement in &mut child.placements {
                placement.source = lift(placement.source)?;
            }
            Ok(())
        }
        Step::CloseOnExec => {
            let (first, last, flags) = (3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            // SAFETY: close_range takes three integers; CLOSE_RANGE_CLOEXEC closes nothing yet, it only marks. The
            // raw call is used because the wrapper is younger (glibc 2.34) than the call.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
            if result == 0 { Ok(()) } else { Err(errno()) }
        }
        Step::PlaceDescriptors => {
            for placement in &child.placements {
                // SAFETY: dup2 takes two integers. The target may be open: it is then one that nobody named, or one
                // whose copy was lifted; the source never equals it, so close-on-exec is always cleared.
                check(unsafe { libc::dup2(placement.source, placement.target) })?;
            }
            Ok(())
        }
        Step::Limit { resource, soft, hard } => {
            let limit = libc::rlimit {
                rlim_cur: *soft,
                rlim_max: *hard,
            };
            let resource = match resource {
                Resource::CoreSize => libc::RLIMIT_CORE,
                Resource::FileSize => libc::RLIMIT_FSIZE,
                Resource::OpenFiles => libc::RLIMIT_NOFILE,
                Resource::AddressSpace => libc::RLIMIT_AS,
                Resource::CpuSeconds => libc::RLIMIT_CPU,
                Resource::Processes => libc::RLIMIT_NPROC,
            };
            // SAFETY: `limit` is a valid rlimit for the time of the call.
            check(unsafe { libc::setrlimit(resource, &raw const limit) })
        }
        // SAFETY: PR_SET_NO_NEW_PRIVS takes the number 1 and touches no memory.
        Step::NoNewPrivileges => check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }),
        Step::ReportBaseline => {
            // SAFETY: rusage is plain data, for which all zeros is a valid value.
            let mut usage: libc::rusage = unsafe { mem::zeroed() };
            // SAFETY: `usage` is a valid, exclusively borrowed rusage.
            check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) })?;
            let peak_kib = u32::try_from(usage.ru_maxrss).unwrap_or(u32::MAX);
            send(
                child.status_pipe,
                Message::Baseline {
                    peak_kib: u64::from(peak_kib),
                },
            );
            Ok(())
        }
        Step::UnblockSignals => unblock_signals(),
        Step::Execute => {
            if child.program.is_null() {
                return Err(execute_descriptor(
                    child.program_descriptor,
                    &child.arguments,
                    &child.environment,
                ));
            }
            // SAFETY: program is a live zero-terminated string; both arrays end with a null pointer and point to live
            // zero-terminated strings of the plan, which outlives the child. It returns only on failure.
            unsafe {
                libc::execve(
                    child.program,
                    child.arguments.as_ptr(),
                    child.environment.as_ptr(),
                );
            }
            Err(errno())
        }
    }
}

/// An empty signal mask.
fn unblock_signals() -> Result<(), c_int> {
    // SAFETY: sigset_t is plain data, for which all zeros is a valid value; sigemptyset gives it its meaning.
    let mut none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `none` is a valid, exclusively borrowed sigset_t; the old mask is not asked for.
    check(unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    })
}

/// Executes what is behind a descriptor; gives the errno, since it returns only on failure. Both arrays end with null.
///
/// The descriptor is closed by the execution, so that a script, whose interpreter would open it again, is not for here.
fn execute_descriptor(
    descriptor: c_int,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> c_int {
    // SAFETY: F_SETFD takes an integer and touches no memory. A descriptor that is not open fails below.
    unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the path is an empty zero-terminated string; both arrays end with a null pointer and point to live
    // zero-terminated strings.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            descriptor,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    errno()
}

/// Gives every signal its default disposition. SIGKILL and SIGSTOP refuse, which is as it should be.
fn reset_signals() {
    // The kernel's own sigaction (handler, flags, restorer, mask of eight bytes): all zeros is SIG_DFL, no flags, an
    // empty mask. The wrapper is not used because the C library refuses the two numbers that it keeps for itself, and a
    // process can have inherited those as ignored.
    let default = [0_u64; 4];
    let mask_size = 8_usize;
    for signal in 1_usize..=64 {
        let previous: *mut u64 = ptr::null_mut();
        // SAFETY: `default` is as large as the kernel's sigaction on every 64-bit architecture that has a restorer
        // field, and larger than on those that have none; the old one is not asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                previous,
                mask_size,
            )
        };
    }
}

/// Copies a descriptor to a number above every target, with close-on-exec.
fn lift(descriptor: c_int) -> Result<c_int, c_int> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory.
    let lifted = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, HIGHEST_TARGET + 1) };
    if lifted >= 0 { Ok(lifted) } else { Err(errno()) }
}

/// Sends a message; when that fails there is nobody left to tell.
fn send(pipe: c_int, message: Message) {
    let bytes: [u8; crate::message::MESSAGE_SIZE] = message.to_bytes();
    // SAFETY: the pointer and the length are those of a live array.
    unsafe { libc::write(pipe, bytes.as_ptr().cast(), bytes.len()) };
}

fn check(result: c_int) -> Result<(), c_int> {
    if result >= 0 { Ok(()) } else { Err(errno()) }
}

fn errno() -> c_int {
    // SAFETY: the pointer is that of this thread's errno, valid as long as the thread.
    unsafe { *libc::__errno_location() }
}

/// Reaps a child that has ended, or blocks until it has.
pub(crate) fn wait4(process: i32) -> io::Result<Reaped> {
    let mut status: c_int = 0;
    // SAFETY: rusage is plain data, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live, exclusively borrowed values of the right type.
        let result = unsafe { libc::wait4(process, &raw mut status, 0, &raw mut usage) };
        if result == process {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(Reaped {
        status: ExitStatus::from_raw(status),
        cpu_time: duration(usage.ru_utime).saturating_add(duration(usage.ru_stime)),
        peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        blocks: (
            u64::try_from(usage.ru_inblock).unwrap_or(0),
            u64::try_from(usage.ru_oublock).unwrap_or(0),
        ),
    })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds).saturating_add(Duration::from_micros(microseconds))
}
