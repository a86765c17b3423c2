//! A kernel that lacks something, or has it no more: a filter of system calls, for this process and all that it starts,
//! answers as such a kernel does.

#![allow(unsafe_code, reason = "no library installs a filter that refuses filters")]

/// What the kernel is to lack.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lacking {
    /// `prctl(PR_SET_SECCOMP)` fails with EINVAL, as it does without CONFIG_SECCOMP_FILTER and for a faulty filter.
    Seccomp,
    /// `landlock_create_ruleset` fails with ENOSYS, as it does before Linux 5.13.
    Landlock,
}

/// Takes it away from all threads, for ever. It needs root.
pub(crate) fn take_away(lacking: Lacking) {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where `struct seccomp_data` has the number of the call, and the low half of its first argument.
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let allow = line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let fail = |errno: i32| line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let mut filter = match lacking {
        Lacking::Seccomp => vec![
            line(LOAD, 0, 0, NUMBER),
            line(JUMP_IF_EQUAL, 0, 3, number(libc::SYS_prctl)),
            line(LOAD, 0, 0, FIRST_ARGUMENT),
            line(JUMP_IF_EQUAL, 0, 1, libc::PR_SET_SECCOMP.cast_unsigned()),
            fail(libc::EINVAL),
            allow,
        ],
        Lacking::Landlock => vec![
            line(LOAD, 0, 0, NUMBER),
            line(JUMP_IF_EQUAL, 0, 1, number(libc::SYS_landlock_create_ruleset)),
            fail(libc::ENOSYS),
            allow,
        ],
    };
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions are live during the call, which copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
