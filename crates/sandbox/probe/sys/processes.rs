//! Other processes, and more of one's own.

use std::{io, ptr};

use super::check;

/// A descriptor for a process.
pub(super) fn open(process: i32) -> io::Result<i32> {
    // SAFETY: two integers.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    i32::try_from(descriptor).map_err(io::Error::other)
}

pub(crate) fn parent() -> i32 {
    // SAFETY: getppid has no requirements.
    unsafe { libc::getppid() }
}

pub(crate) fn signal(process: i32) -> io::Result<String> {
    // SAFETY: signal 0 is only a question.
    check(i64::from(unsafe { libc::kill(process, 0) }))?;
    Ok("may signal".to_owned())
}

/// With the one call for signals that a worker has, for its own abort.
pub(crate) fn signal_thread(process: i32) -> io::Result<String> {
    // SAFETY: signal 0 is only a question.
    check(unsafe { libc::syscall(libc::SYS_tgkill, process, process, 0) })?;
    Ok("may signal".to_owned())
}

/// Has the kernel send signals about descriptor 1 to somebody else.
pub(crate) fn own_descriptor(process: i32) -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::fcntl(1, libc::F_SETOWN, process) }))?;
    Ok("named the owner".to_owned())
}

pub(crate) fn read_limit(process: i32) -> io::Result<String> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no new limit, and a live structure for the old one.
    check(i64::from(unsafe {
        libc::prlimit64(process, libc::RLIMIT_CORE, ptr::null(), &raw mut limit)
    }))?;
    Ok("knows its limits".to_owned())
}

/// Without a stop: it ends with this process.
pub(crate) fn trace(process: i32) -> io::Result<String> {
    // SAFETY: PTRACE_SEIZE takes numbers, of which the address has to be 0.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, process, 0, 0) })?;
    Ok("traces it".to_owned())
}

pub(crate) fn attach_to_parent() -> io::Result<String> {
    // SAFETY: PTRACE_ATTACH ignores both pointers; the parent is detached at once.
    unsafe {
        check(libc::ptrace(libc::PTRACE_ATTACH, parent(), 0, 0))?;
        let mut status = 0;
        libc::waitpid(parent(), &raw mut status, 0);
        libc::ptrace(libc::PTRACE_DETACH, parent(), 0, 0);
    }
    Ok("attached to the parent".to_owned())
}

pub(crate) fn write_to_parent() -> io::Result<String> {
    write_to(parent())
}

/// At address 0, where no process has anything: who may write at all learns that, and changes nothing.
pub(crate) fn write_to(process: i32) -> io::Result<String> {
    let byte = [0_u8];
    let ours = libc::iovec {
        iov_base: byte.as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    let theirs = libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 1,
    };
    // SAFETY: one live byte is read; the other address is not this process's.
    let written = unsafe { libc::process_vm_writev(process, &raw const ours, 1, &raw const theirs, 1, 0) };
    super::allowed_but(libc::EFAULT, super::check_length(written), "may write")
}

/// Descriptor `number`: to 256 init writes how the program has ended.
pub(crate) fn take_from_parent(number: i32) -> io::Result<String> {
    take_from(parent(), number)
}

/// Who may take any descriptor is told which are not open.
pub(crate) fn take_from(process: i32, number: i32) -> io::Result<String> {
    let process = open(process)?;
    // SAFETY: three integers; the copy is nobody's.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
    super::allowed_but(libc::EBADF, check(taken), "may take descriptors")
}

pub(crate) fn trace_me() -> io::Result<String> {
    // SAFETY: PTRACE_TRACEME ignores all else.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })?;
    Ok("is traced".to_owned())
}

pub(crate) fn fork() -> io::Result<String> {
    // SAFETY: this process has one thread; the child ends at once.
    let process = unsafe { libc::fork() };
    end_child(i64::from(process))
}

/// `clone3`, whose arguments a filter cannot see.
pub(crate) fn clone3() -> io::Result<String> {
    /// `struct clone_args` of `linux/sched.h`, in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
    }
    let arguments = Arguments {
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..Arguments::default()
    };
    // SAFETY: a live structure of that size; without CLONE_VM and a stack this is a fork, of a process with one thread.
    end_child(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) })
}

fn end_child(process: i64) -> io::Result<String> {
    if process == 0 {
        // SAFETY: no requirements.
        unsafe { libc::_exit(0) };
    }
    let process = i32::try_from(check(process)?).map_err(io::Error::other)?;
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(process, ptr::null_mut(), 0) };
    Ok("has a child".to_owned())
}

pub(crate) fn become_root() -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::setresuid(0, 0, 0) }))?;
    Ok("is root".to_owned())
}

/// Runs before everybody else.
pub(crate) fn raise_priority() -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, -20)
    }))?;
    Ok("is more important".to_owned())
}

/// Memory at known addresses, and all that can be read of it executable.
pub(crate) fn change_personality() -> io::Result<String> {
    let wanted = libc::ADDR_NO_RANDOMIZE | libc::READ_IMPLIES_EXEC;
    // SAFETY: one integer.
    check(i64::from(unsafe {
        libc::personality(wanted.cast_unsigned().into())
    }))?;
    Ok("is another personality".to_owned())
}

/// Others of the same user may look into this process again.
pub(crate) fn become_dumpable() -> io::Result<String> {
    // SAFETY: integers only.
    check(i64::from(unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)
    }))?;
    Ok("is dumpable".to_owned())
}

/// A filter of its own, which asks somebody else about system calls, say; this one allows all.
pub(crate) fn install_filter() -> io::Result<String> {
    /// Return, a constant.
    const RETURN: u16 = 0x06;
    let mut filter = [libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: program and instruction are live; the kernel copies them.
    check(i64::from(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    }))?;
    Ok("installed a filter".to_owned())
}

pub(crate) fn raise_limit() -> io::Result<String> {
    let limit = libc::rlimit {
        rlim_cur: 1 << 20,
        rlim_max: 1 << 20,
    };
    // SAFETY: a live structure.
    check(i64::from(unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit)
    }))?;
    Ok("raised a limit".to_owned())
}
