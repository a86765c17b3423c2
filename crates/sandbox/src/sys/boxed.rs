//! The system calls of the helper, which has one thread: between its forks it may allocate like any program.

use std::{
    ffi::{CString, c_char, c_int, c_long},
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use super::{check, errno, execute_descriptor, reset_signals};
use crate::{
    plan::{Resource, boxed::Execution},
    seccomp::Instruction,
};

/// Takes over a descriptor that the process was started with.
///
/// # Errors
/// EBADF when there is none, EEXIST for the second call with the same number, EINVAL for the standard ones.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    use std::sync::Mutex;
    /// The numbers that are owned already. It is never locked by code that can panic.
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_GETFD takes no further argument and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // Descriptors that this program opened itself are close-on-exec, as all that Rust's library opens are; those that it
    // was started with cannot be.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    // SAFETY: F_SETFD takes an integer and touches no memory.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    taken.push(number);
    // SAFETY: the descriptor is open, and it is nobody's: it was inherited from the launching process, since anything
    // opened by this one is close-on-exec; and it was not given out before, which `TAKEN` remembers for ever.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Forks with the given namespaces. 0 in the child.
pub(crate) fn fork_into(namespaces: u64) -> Result<c_int, c_int> {
    let flags = c_long::try_from(namespaces).unwrap_or(0) | c_long::from(libc::SIGCHLD);
    clone(flags)
}

/// Forks; the parent goes on when the child has executed its program or ended. 0 in the child.
pub(crate) fn fork_until_execution() -> Result<c_int, c_int> {
    clone(c_long::from(libc::CLONE_VFORK | libc::SIGCHLD))
}

fn clone(flags: c_long) -> Result<c_int, c_int> {
    let nothing: c_long = 0;
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child has its own copy of all memory and goes on
    // here. The process has one thread, so no lock is held by anyone else. All other arguments are unused by these flags.
    let process = unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, nothing, nothing) };
    if process < 0 {
        Err(errno())
    } else {
        Ok(c_int::try_from(process).unwrap_or(0))
    }
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: c_int) -> Result<(), c_int> {
    let (first, last, flags) = (first.cast_unsigned(), u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: close_range takes three integers; with this flag it closes nothing yet.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
}

/// Writes to a descriptor that stays open.
pub(crate) fn write(descriptor: RawFd, bytes: &[u8]) -> Result<(), c_int> {
    // SAFETY: pointer and length are those of a live slice.
    let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(errno()) } else { Ok(()) }
}

pub(crate) fn set_undumpable() -> Result<(), c_int> {
    // SAFETY: PR_SET_DUMPABLE takes a number and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Dies when the parent does. `parent_is_gone` is asked afterwards, for a parent that ended before.
pub(crate) fn die_with_parent(parent_is_gone: impl Fn() -> bool) -> Result<(), c_int> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    if parent_is_gone() {
        Err(libc::ESRCH)
    } else {
        Ok(())
    }
}

pub(crate) fn parent_process() -> c_int {
    // SAFETY: getppid has no requirements.
    unsafe { libc::getppid() }
}

pub(crate) fn clear_groups() -> Result<(), c_int> {
    // SAFETY: a length of zero reads no memory.
    check(unsafe { libc::setgroups(0, ptr::null()) })
}

pub(crate) fn become_user(id: u32) -> Result<(), c_int> {
    // SAFETY: both take three integers. The process has one thread, so that there are no others to be changed too.
    check(unsafe { libc::setresgid(id, id, id) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(id, id, id) })
}

pub(crate) fn unshare(namespaces: c_int) -> Result<(), c_int> {
    // SAFETY: unshare takes flags and touches no memory; the namespaces asked for do not concern descriptors or memory.
    check(unsafe { libc::unshare(namespaces) })
}

pub(crate) fn set_host_name(name: &str) -> Result<(), c_int> {
    // SAFETY: pointer and length are those of a live string; the kernel wants no zero byte.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

/// Joins a new, anonymous session keyring. A kernel without keys has none to hide.
pub(crate) fn join_new_keyring() -> Result<(), c_int> {
    /// `KEYCTL_JOIN_SESSION_KEYRING`.
    const JOIN: c_long = 1;
    let anonymous: *const c_char = ptr::null();
    // SAFETY: a null name asks for an anonymous keyring; nothing is read.
    match check_long(unsafe { libc::syscall(libc::SYS_keyctl, JOIN, anonymous) }) {
        Err(libc::ENOSYS) => Ok(()),
        result => result,
    }
}

fn mount(kind: Option<&str>, target: &str, flags: libc::c_ulong, options: &str) -> Result<(), c_int> {
    let string = |text: &str| CString::new(text).map_err(|_| libc::EINVAL);
    let (kind, target, options) = (string(kind.unwrap_or(""))?, string(target)?, string(options)?);
    // SAFETY: all four pointers are to live zero-terminated strings; the options are text for the file systems used.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
}

pub(crate) fn make_mounts_private() -> Result<(), c_int> {
    mount(None, "/", libc::MS_REC | libc::MS_PRIVATE, "")
}

/// Makes an empty, read-only tmpfs the root and unmounts everything else.
pub(crate) fn enter_empty_root() -> Result<(), c_int> {
    // A place that every host has; it is covered in this namespace only, and only for a moment.
    let place = "/proc";
    let closed = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some("tmpfs"), place, closed, "size=4k,nr_inodes=2,mode=555")?;
    change_directory(place)?;
    // The new root is put over the old one, and the old one is then what "." leads to: no directory is needed for it.
    // Source: the notes of pivot_root(2).
    // SAFETY: both are live zero-terminated strings.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: a live zero-terminated string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    change_directory("/")?;
    // One call cannot do both: a remount is what makes read-only hold.
    mount(None, "/", closed | libc::MS_REMOUNT | libc::MS_RDONLY, "")?;
    // Not the host's, not a path outside: where we are is the root, and it is empty.
    match std::env::current_dir() {
        Ok(path) if path == std::path::Path::new("/") => Ok(()),
        _ => Err(libc::EXDEV),
    }
}

fn change_directory(path: &str) -> Result<(), c_int> {
    std::env::set_current_dir(path).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

pub(crate) fn new_session() -> Result<(), c_int> {
    // SAFETY: setsid has no requirements.
    check(unsafe { libc::setsid() })
}

pub(crate) fn set_umask(mask: libc::mode_t) {
    // SAFETY: umask has no requirements and cannot fail.
    unsafe { libc::umask(mask) };
}

pub(crate) fn set_limit(resource: Resource, soft: u64, hard: u64) -> Result<(), c_int> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
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

/// Takes every capability out of the bounding and the ambient set.
pub(crate) fn empty_bounding_set() -> Result<(), c_int> {
    // The kernel says EINVAL for the first number that it does not know; 64 is the most that its sets can hold.
    for capability in 0_u64..64 {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(()) => {}
            Err(libc::EINVAL) if capability > 0 => break,
            Err(error) => return Err(error),
        }
    }
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL takes zeros and touches no memory.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
}

/// Makes user id 0 a user like any other, for ever.
pub(crate) fn lock_capabilities() -> Result<(), c_int> {
    /// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock, and the lock of KEEP_CAPS.
    /// Source: `linux/securebits.h`.
    const SECURE_BITS: libc::c_ulong = 0b1110_1111;
    // SAFETY: PR_SET_SECUREBITS takes bits and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) })
}

/// Empties the effective, permitted and inheritable sets.
pub(crate) fn drop_capabilities() -> Result<(), c_int> {
    // `_LINUX_CAPABILITY_VERSION_3` and process 0, which is the caller.
    let header: [u32; 2] = [0x2008_0522, 0];
    // Two halves of three sets.
    let nothing = [0_u32; 6];
    // SAFETY: the header has the layout of __user_cap_header_struct, the data that of two __user_cap_data_struct, as
    // this version wants.
    check_long(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) })
}

pub(crate) fn no_new_privileges() -> Result<(), c_int> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes the number 1 and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// The version of landlock that the kernel speaks; an error when it speaks none.
pub(crate) fn landlock_version() -> Result<u32, c_int> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: u32 = 1;
    let nothing: *const u64 = ptr::null();
    // SAFETY: with this flag the call wants a null pointer and the length 0, and reads nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    u32::try_from(version).map_err(|_| errno())
}

/// Denies everything that the kernel's version of landlock can deny: a ruleset without a single rule.
///
/// Source: `landlock(7)`, `linux/landlock.h`.
pub(crate) fn landlock() -> Result<(), c_int> {
    let version = landlock_version()?;
    // Rights on files: 13 in the first version, then one more in each of 2 (refer), 3 (truncate), 5 (ioctl).
    let files: u64 = match version {
        1 => 0x1FFF,
        2 => 0x3FFF,
        3 | 4 => 0x7FFF,
        _ => 0xFFFF,
    };
    // Bind and connect of TCP since 4; abstract sockets and signals since 6.
    let network: u64 = if version >= 4 { 3 } else { 0 };
    let scopes: u64 = if version >= 6 { 3 } else { 0 };
    let ruleset = [files, network, scopes];
    // Older kernels know a shorter structure, and refuse longer ones unless the rest is zero, as it is here.
    let length = match version {
        1..=3 => 8_usize,
        4 | 5 => 16,
        _ => 24,
    };
    let flags = 0_u32;
    // SAFETY: the array has the layout of landlock_ruleset_attr, of which `length` bytes are read.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ruleset.as_ptr(), length, flags) };
    let descriptor = c_int::try_from(made).map_err(|_| errno())?;
    if descriptor < 0 {
        return Err(errno());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let ruleset = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: takes two integers.
    check_long(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), flags) })
}

/// Gives signals their default handlers and empties the mask.
pub(crate) fn default_signals() -> Result<(), c_int> {
    reset_signals();
    super::unblock_signals()
}

/// Installs a filter of system calls, for this process and all that come from it.
pub(crate) fn install_filter(filter: &[Instruction]) -> Result<(), c_int> {
    let instructions: Vec<libc::sock_filter> = filter
        .iter()
        .map(|instruction| libc::sock_filter {
            code: instruction.code,
            jt: instruction.on_true,
            jf: instruction.on_false,
            k: instruction.operand,
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| libc::E2BIG)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the instructions that it points to are live; the kernel copies and checks them.
    check(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    })
}

/// Executes; gives the errno, since it returns only on failure.
pub(crate) fn execute(execution: &Execution, descriptor: RawFd) -> c_int {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let strings = strings.iter().map(|string| string.as_ptr());
        strings.chain([ptr::null()]).collect()
    };
    let arguments = pointers(&execution.arguments);
    let environment = pointers(&execution.environment);
    match &execution.path {
        None => execute_descriptor(descriptor, &arguments, &environment),
        Some(path) => {
            // SAFETY: the path is a live zero-terminated string; both arrays end with a null pointer and point to live
            // zero-terminated strings.
            unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            errno()
        }
    }
}

/// Waits for any child. `None` when there is none.
pub(crate) fn wait_any() -> Option<(c_int, c_int)> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live, exclusively borrowed integer.
        let process = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if process > 0 {
            return Some((process, status));
        }
        if errno() != libc::EINTR {
            return None;
        }
    }
}

/// What all children that were waited for used.
pub(crate) fn children_usage() -> libc::rusage {
    // SAFETY: rusage is plain data, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid, exclusively borrowed rusage. The call cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage
}

/// Ends this process at once, without handlers.
pub(crate) fn end(code: c_int) -> ! {
    // SAFETY: _exit has no requirements.
    unsafe { libc::_exit(code) }
}

/// Maps ids of a new user namespace: `inner` inside is `outer` outside.
pub(crate) fn map_ids(process: c_int, inner: u32, outer: (u32, u32), privileged: bool) -> Result<(), c_int> {
    let write = |file: &str, text: String| -> Result<(), c_int> {
        let code = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let path = format!("/proc/{process}/{file}");
        let mut file = File::options().write(true).open(path).map_err(code)?;
        file.write_all(text.as_bytes()).map_err(code)
    };
    // user_namespaces(7): one who may not map groups at will has to give up setgroups first. Root needs it once more,
    // to clear them.
    if !privileged {
        write("setgroups", "deny".to_owned())?;
    }
    write("uid_map", format!("{inner} {} 1\n", outer.0))?;
    write("gid_map", format!("{inner} {} 1\n", outer.1))
}

fn check_long(result: c_long) -> Result<(), c_int> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

/// Closes a descriptor of the program that this process only passed on. Nothing here owns those.
pub(crate) fn close(number: RawFd) {
    // SAFETY: the callers name only numbers that were placed for the program, which no value of this process owns.
    unsafe { libc::close(number) };
}
