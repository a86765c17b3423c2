//! Parts of the kernel that a worker has no business with.
//!
//! Of the calls that change the whole machine only the check of rights is tried: with arguments that cannot be meant, and
//! after which the kernel says so to somebody who may.

use std::{io, ptr};

use super::{allowed_but, check};

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

/// An array with one place.
pub(crate) fn bpf() -> io::Result<String> {
    /// `BPF_MAP_CREATE`.
    const MAP_CREATE: i32 = 0;
    // `BPF_MAP_TYPE_ARRAY`, sizes of key and value, number of entries, flags.
    let attributes: [u32; 5] = [2, 4, 4, 1, 0];
    // SAFETY: a live array of that length, the first fields of `union bpf_attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })?;
    Ok("made a map".to_owned())
}

/// The processor's clock, with the kernel's share.
pub(crate) fn performance_events() -> io::Result<String> {
    /// The first version of `struct perf_event_attr`.
    const LENGTH: u32 = 64;
    /// `PERF_TYPE_SOFTWARE`; its number 0 is the processor's clock.
    const SOFTWARE: u32 = 1;
    let mut attributes = [0_u32; LENGTH as usize / 4];
    attributes[0] = SOFTWARE;
    attributes[1] = LENGTH;
    // SAFETY: a live structure that says how long it is; the rest are integers: this process, any processor, no group.
    check(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) })?;
    Ok("counts events".to_owned())
}

/// Stops the kernel wherever it touches a page of this process: what makes races easy to win.
pub(crate) fn page_faults() -> io::Result<String> {
    // SAFETY: one integer.
    check(unsafe { libc::syscall(libc::SYS_userfaultfd, 0) })?;
    Ok("handles page faults".to_owned())
}

/// No module: nothing can be loaded from nothing.
pub(crate) fn load_module() -> io::Result<String> {
    // SAFETY: of a length of 0 nothing is read; an empty live string.
    let result = unsafe { libc::syscall(libc::SYS_init_module, ptr::null::<u8>(), 0_usize, c"".as_ptr()) };
    allowed_but(libc::ENOEXEC, check(result), "may load modules")
}

/// Flags that no kernel knows. A call without segments would be taken for the order to unload what is loaded.
pub(crate) fn load_kernel() -> io::Result<String> {
    const UNKNOWN_FLAGS: libc::c_ulong = 0x8000;
    const TOO_MANY: libc::c_ulong = 1 << 20;
    // SAFETY: integers and a null pointer, which is not followed before the flags are looked at.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            0_usize,
            TOO_MANY,
            ptr::null::<u8>(),
            UNKNOWN_FLAGS,
        )
    };
    allowed_but(libc::EINVAL, check(result), "may load a kernel")
}

/// A name that no file has.
pub(crate) fn swap_on() -> io::Result<String> {
    // SAFETY: a live zero-terminated string.
    let result = unsafe { libc::swapon(c"".as_ptr(), 0) };
    allowed_but(libc::ENOENT, check(i64::from(result)), "may swap")
}

/// Neither a time nor a zone.
pub(crate) fn set_clock() -> io::Result<String> {
    // SAFETY: both pointers may be null.
    check(unsafe { libc::syscall(libc::SYS_settimeofday, ptr::null::<u8>(), ptr::null::<u8>()) })?;
    Ok("may set the clock".to_owned())
}

/// How much of the kernel's log is unread.
pub(crate) fn kernel_log() -> io::Result<String> {
    /// `SYSLOG_ACTION_SIZE_UNREAD`.
    const UNREAD: i32 = 9;
    // SAFETY: this action reads and writes no memory.
    check(i64::from(unsafe { libc::klogctl(UNREAD, ptr::null_mut(), 0) }))?;
    Ok("reads the kernel's log".to_owned())
}
