//! System calls that no library offers, because nobody should make them.

#![allow(unsafe_code)]

#[path = "ipc.rs"]
pub(crate) mod ipc;

use std::{ffi::CString, io, ptr};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::socket(family, kind, protocol) }))?;
    Ok("made a socket".to_owned())
}

pub(crate) fn unshare(flags: i32) -> io::Result<String> {
    // SAFETY: flags that concern neither memory nor descriptors.
    check(i64::from(unsafe { libc::unshare(flags) }))?;
    Ok("made a namespace".to_owned())
}

/// In a mount namespace of its own, so that the control run leaves the host alone.
pub(crate) fn mount_somewhere() -> io::Result<String> {
    unshare(libc::CLONE_NEWNS)?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: live zero-terminated strings; tmpfs takes no data.
    check(i64::from(unsafe {
        libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), private, ptr::null())
    }))?;
    // SAFETY: as above.
    check(i64::from(unsafe {
        libc::mount(c"t".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, ptr::null())
    }))?;
    Ok("mounted".to_owned())
}

pub(crate) fn fsopen() -> io::Result<String> {
    // SAFETY: a live zero-terminated string and flags.
    check(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) })?;
    Ok("opened a file system".to_owned())
}

pub(crate) fn make_device(path: &str) -> io::Result<String> {
    let path = CString::new(path)?;
    // SAFETY: a live zero-terminated string.
    check(i64::from(unsafe {
        libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3))
    }))?;
    // SAFETY: as above.
    check(i64::from(unsafe { libc::unlink(path.as_ptr()) }))?;
    Ok("made a device".to_owned())
}

pub(crate) fn become_root() -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::setresuid(0, 0, 0) }))?;
    Ok("is root".to_owned())
}

pub(crate) fn signal(process: i32) -> io::Result<String> {
    // SAFETY: signal 0 is only a question.
    check(i64::from(unsafe { libc::kill(process, 0) }))?;
    Ok("may signal".to_owned())
}

pub(crate) fn read_parent() -> io::Result<String> {
    // SAFETY: getppid has no requirements.
    let parent = unsafe { libc::getppid() };
    // SAFETY: PTRACE_ATTACH ignores both pointers; the parent is detached at once.
    unsafe {
        check(libc::ptrace(libc::PTRACE_ATTACH, parent, 0, 0))?;
        let mut status = 0;
        libc::waitpid(parent, &raw mut status, 0);
        libc::ptrace(libc::PTRACE_DETACH, parent, 0, 0);
    }
    Ok("attached to the parent".to_owned())
}

pub(crate) fn trace_me() -> io::Result<String> {
    // SAFETY: PTRACE_TRACEME ignores all else.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })?;
    Ok("is traced".to_owned())
}

pub(crate) fn add_key() -> io::Result<String> {
    /// `KEY_SPEC_PROCESS_KEYRING`.
    const PROCESS_KEYRING: i32 = -2;
    // SAFETY: live zero-terminated strings, and a payload of that length.
    check(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"probe".as_ptr(),
            c"x".as_ptr(),
            1_usize,
            PROCESS_KEYRING,
        )
    })?;
    Ok("added a key".to_owned())
}

pub(crate) fn io_uring() -> io::Result<String> {
    let mut parameters = [0_u8; 256];
    // SAFETY: the structure has 120 bytes, zero asks for nothing special.
    check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) })?;
    Ok("made a ring".to_owned())
}

pub(crate) fn fork() -> io::Result<String> {
    // SAFETY: this process has one thread; the child ends at once.
    let process = unsafe { libc::fork() };
    if process == 0 {
        // SAFETY: no requirements.
        unsafe { libc::_exit(0) };
    }
    check(i64::from(process))?;
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(process, ptr::null_mut(), 0) };
    Ok("forked".to_owned())
}

pub(crate) fn executable_memory() -> io::Result<String> {
    let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new anonymous memory.
    let memory = unsafe { libc::mmap(ptr::null_mut(), 4096, access, kind, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok("has memory that runs".to_owned())
}

pub(crate) fn lock_descriptor() -> io::Result<String> {
    // SAFETY: two integers.
    check(i64::from(unsafe { libc::flock(1, libc::LOCK_SH) }))?;
    Ok("locked".to_owned())
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

pub(crate) fn descriptors_beyond_the_standard_ones() -> io::Result<String> {
    // SAFETY: F_GETFD takes no further argument.
    let open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    let found: Vec<String> = (3..4096).filter(open).map(|number| number.to_string()).collect();
    if found.is_empty() {
        return Err(io::Error::other("none"));
    }
    Ok(found.join(" "))
}

/// Types a letter for whoever reads the controlling terminal, as a program can where `TIOCSTI` is allowed.
pub(crate) fn push_into_terminal() -> io::Result<String> {
    let letter = b'x';
    // SAFETY: descriptor 0 is open or the call fails; it reads one live byte.
    check(i64::from(unsafe {
        libc::ioctl(0, libc::TIOCSTI, ptr::from_ref(&letter))
    }))?;
    Ok("typed into the terminal".to_owned())
}

/// Copies descriptor 1 until no more can be had; gives how many there were.
pub(crate) fn descriptor_flood() -> u64 {
    let mut count = 0;
    // SAFETY: copies of an open descriptor, which nobody owns.
    while count < 1_000_000 && unsafe { libc::dup(1) } >= 0 {
        count += 1;
    }
    count
}

pub(crate) fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

pub(crate) fn stop_self() {
    // SAFETY: a signal to this process.
    unsafe { libc::raise(libc::SIGSTOP) };
}

pub(crate) fn memory_bomb() -> ! {
    let mut hoard = Vec::new();
    loop {
        // Written to, so that there are pages behind it.
        hoard.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&hoard);
    }
}

pub(crate) fn fork_bomb() -> ! {
    loop {
        // SAFETY: this process has one thread, and both go on in the loop.
        unsafe { libc::fork() };
    }
}

/// Leaves processes that have left every session and group, ignore signals, and hold standard output; goes on itself.
pub(crate) fn daemons() {
    for _ in 0..5 {
        // SAFETY: this process has one thread; the children call nothing but system calls.
        unsafe {
            if libc::fork() == 0 {
                libc::setsid();
                if libc::fork() == 0 {
                    libc::setsid();
                    libc::signal(libc::SIGTERM, libc::SIG_IGN);
                    libc::signal(libc::SIGHUP, libc::SIG_IGN);
                    loop {
                        libc::pause();
                    }
                }
                libc::_exit(0);
            }
        }
    }
    use std::io::Write as _;
    let _ = io::stdout().write_all(b"ready\n");
}

pub(crate) fn grow_descriptor(number: i32) {
    let block = [b'x'; 4096];
    // SAFETY: pointer and length are those of a live array.
    while unsafe { libc::write(number, block.as_ptr().cast(), block.len()) } > 0 {}
}
