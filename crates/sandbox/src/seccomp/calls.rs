//! The lists.

use super::{Condition, Rule, errno, number};

const ENOSYS: u32 = errno(libc::ENOSYS);
const EPERM: u32 = errno(libc::EPERM);

/// What `clone` has to ask for: a thread, never a process.
const THREAD: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;

/// All flags of `clone` that make a namespace.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Memory that can be executed.
const EXECUTABLE: u32 = libc::PROT_EXEC as u32;

/// Sharing blocks between two open files: `_IOW(0x94, 9, int)` and `_IOW(0x94, 13, struct file_clone_range)`.
/// Source: `ioctl_ficlonerange(2)`.
const CLONE_IOCTLS: &[u32] = &[0x4004_9409, 0x4020_940D];

/// Of `fcntl`: duplicates, descriptor flags, status flags, pipe sizes. Nothing that locks, leases or signals.
const FCNTL_COMMANDS: &[u32] = &[
    libc::F_DUPFD as u32,
    libc::F_DUPFD_CLOEXEC as u32,
    libc::F_GETFD as u32,
    libc::F_SETFD as u32,
    libc::F_GETFL as u32,
    libc::F_SETPIPE_SZ as u32,
    libc::F_GETPIPE_SZ as u32,
];

/// Names for threads and for memory.
const PRCTL_OPTIONS: &[u32] = &[libc::PR_SET_NAME as u32, 0x5356_4d41];

const fn allow(call: libc::c_long) -> Rule {
    Rule {
        number: number(call),
        conditions: &[],
        otherwise: 0,
    }
}

const fn when(call: libc::c_long, conditions: &'static [Condition], otherwise: u32) -> Rule {
    Rule {
        number: number(call),
        conditions,
        otherwise,
    }
}

/// Never allowed, and answered with EPERM: libraries that probe for it take ENOSYS as well, but some only know EPERM.
const fn refuse(call: libc::c_long) -> Rule {
    // No value is among none.
    const NEVER: &[Condition] = &[Condition::OneOf {
        argument: 0,
        values: &[],
    }];
    when(call, NEVER, EPERM)
}

/// [`Calls::Worker`](super::Calls::Worker).
pub(super) fn worker() -> impl Iterator<Item = Rule> {
    // The most frequent first: the filter is read from its beginning.
    const RULES: &[Rule] = &[
        allow(libc::SYS_read),
        allow(libc::SYS_write),
        allow(libc::SYS_pread64),
        allow(libc::SYS_pwrite64),
        allow(libc::SYS_futex),
        allow(libc::SYS_readv),
        allow(libc::SYS_writev),
        allow(libc::SYS_preadv),
        allow(libc::SYS_pwritev),
        allow(libc::SYS_lseek),
        allow(libc::SYS_copy_file_range),
        when(
            libc::SYS_ioctl,
            &[Condition::OneOf {
                argument: 1,
                values: CLONE_IOCTLS,
            }],
            errno(libc::ENOTTY),
        ),
        // Memory, none of it executable.
        when(
            libc::SYS_mmap,
            &[Condition::NoneOf {
                argument: 2,
                mask: EXECUTABLE,
            }],
            EPERM,
        ),
        when(
            libc::SYS_mprotect,
            &[Condition::NoneOf {
                argument: 2,
                mask: EXECUTABLE,
            }],
            EPERM,
        ),
        allow(libc::SYS_munmap),
        allow(libc::SYS_mremap),
        allow(libc::SYS_madvise),
        allow(libc::SYS_brk),
        // Files that are open already.
        allow(libc::SYS_fstat),
        // What asks of a descriptor says that the path may be empty (AT_EMPTY_PATH). One that is not is resolved all the same, in
        // a root in which there is nothing.
        when(
            libc::SYS_statx,
            &[Condition::AllOf {
                argument: 2,
                mask: 0x1000,
            }],
            ENOSYS,
        ),
        allow(libc::SYS_ftruncate),
        allow(libc::SYS_fsync),
        allow(libc::SYS_fdatasync),
        allow(libc::SYS_sync_file_range),
        allow(libc::SYS_fadvise64),
        allow(libc::SYS_close),
        allow(libc::SYS_dup),
        when(
            libc::SYS_fcntl,
            &[Condition::OneOf {
                argument: 1,
                values: FCNTL_COMMANDS,
            }],
            EPERM,
        ),
        allow(libc::SYS_ppoll),
        // Threads of this process.
        when(
            libc::SYS_clone,
            &[
                Condition::AllOf {
                    argument: 0,
                    mask: THREAD,
                },
                Condition::NoneOf {
                    argument: 0,
                    mask: NAMESPACES,
                },
            ],
            EPERM,
        ),
        allow(libc::SYS_set_robust_list),
        allow(libc::SYS_set_tid_address),
        allow(libc::SYS_rseq),
        allow(libc::SYS_sched_getaffinity),
        allow(libc::SYS_sched_yield),
        allow(libc::SYS_gettid),
        allow(libc::SYS_getpid),
        allow(libc::SYS_exit),
        allow(libc::SYS_exit_group),
        // Signals to itself: aborting, and the handler that reports an overflown stack.
        allow(libc::SYS_rt_sigaction),
        allow(libc::SYS_rt_sigprocmask),
        allow(libc::SYS_rt_sigreturn),
        allow(libc::SYS_sigaltstack),
        allow(libc::SYS_tgkill),
        allow(libc::SYS_restart_syscall),
        // Time and chance.
        allow(libc::SYS_clock_gettime),
        allow(libc::SYS_clock_nanosleep),
        allow(libc::SYS_nanosleep),
        allow(libc::SYS_getrandom),
        // Looking at its own limits, not changing any.
        when(
            libc::SYS_prlimit64,
            &[Condition::Zero { argument: 0 }, Condition::Zero { argument: 2 }],
            EPERM,
        ),
        allow(libc::SYS_getrusage),
        when(
            libc::SYS_prctl,
            &[Condition::OneOf {
                argument: 0,
                values: PRCTL_OPTIONS,
            }],
            errno(libc::EINVAL),
        ),
        refuse(libc::SYS_io_uring_setup),
        refuse(libc::SYS_io_uring_enter),
        refuse(libc::SYS_io_uring_register),
    ];
    #[cfg(target_arch = "x86_64")]
    const OWN: &[Rule] = &[
        allow(libc::SYS_arch_prctl),
        allow(libc::SYS_poll),
        allow(libc::SYS_time),
    ];
    #[cfg(target_arch = "aarch64")]
    const OWN: &[Rule] = &[];
    RULES.iter().chain(OWN).copied()
}
