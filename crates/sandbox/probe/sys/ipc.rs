//! Memory segments, message queues and keys that outlive their maker: what one box leaves there, another must not find.

use std::{ffi::CString, io, ptr};

use super::check;

const MODE: i32 = 0o666;
const BYTES: usize = 4096;

const fn flags(make: bool) -> i32 {
    if make { libc::IPC_CREAT | MODE } else { 0 }
}

fn said(make: bool) -> String {
    if make { "made one" } else { "found it" }.to_owned()
}

pub(crate) fn segment(key: i32, make: bool) -> io::Result<String> {
    // SAFETY: three numbers.
    check(i64::from(unsafe { libc::shmget(key, BYTES, flags(make)) }))?;
    Ok(said(make))
}

pub(crate) fn remove_segment(key: i32) -> io::Result<String> {
    // SAFETY: IPC_RMID reads no memory of this process.
    unsafe {
        let segment = libc::shmget(key, 0, 0);
        check(i64::from(libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut())))?;
    }
    Ok("removed it".to_owned())
}

pub(crate) fn queue(key: i32, make: bool) -> io::Result<String> {
    // SAFETY: two numbers.
    check(i64::from(unsafe { libc::msgget(key, flags(make)) }))?;
    Ok(said(make))
}

pub(crate) fn remove_queue(key: i32) -> io::Result<String> {
    // SAFETY: IPC_RMID reads no memory of this process.
    unsafe {
        let queue = libc::msgget(key, 0);
        check(i64::from(libc::msgctl(queue, libc::IPC_RMID, ptr::null_mut())))?;
    }
    Ok("removed it".to_owned())
}

fn queue_name(key: &str) -> io::Result<CString> {
    Ok(CString::new(format!("sandbox-probe-{key}"))?)
}

/// The system call takes the name without the slash that `mq_open(3)` wants.
pub(crate) fn posix_queue(key: &str, make: bool) -> io::Result<String> {
    let flags = libc::O_RDWR | if make { libc::O_CREAT } else { 0 };
    let name = queue_name(key)?;
    // SAFETY: a live zero-terminated name; without attributes the kernel takes its defaults.
    check(unsafe {
        libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags,
            MODE,
            ptr::null::<libc::mq_attr>(),
        )
    })?;
    Ok(said(make))
}

pub(crate) fn remove_posix_queue(key: &str) -> io::Result<String> {
    let name = queue_name(key)?;
    // SAFETY: a live zero-terminated name.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) })?;
    Ok("removed it".to_owned())
}

/// `KEY_SPEC_USER_KEYRING`: what all processes of a user have in common.
const USER_KEYRING: i32 = -4;

/// Puts a key into the user's keyring, for all processes of the user.
pub(crate) fn make_key(name: &str) -> io::Result<String> {
    /// `KEYCTL_SETPERM`, and all rights for the possessor and the user.
    const SET_PERMISSION: libc::c_long = 5;
    const ALL: libc::c_long = 0x3f3f_0000;
    let name = queue_name(name)?;
    // SAFETY: live zero-terminated strings, and a payload of that length.
    let key = check(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            c"x".as_ptr(),
            1_usize,
            USER_KEYRING,
        )
    })?;
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSION, key, ALL) })?;
    Ok(said(true))
}

/// Looks for a key in the user's keyring, and takes it out.
pub(crate) fn find_key(name: &str, remove: bool) -> io::Result<String> {
    /// `KEYCTL_SEARCH` and `KEYCTL_UNLINK`.
    const SEARCH: libc::c_long = 10;
    const UNLINK: libc::c_long = 9;
    let name = queue_name(name)?;
    // SAFETY: live zero-terminated strings and integers.
    let key = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            SEARCH,
            USER_KEYRING,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        )
    })?;
    if remove {
        // SAFETY: three integers.
        check(unsafe { libc::syscall(libc::SYS_keyctl, UNLINK, key, USER_KEYRING) })?;
        return Ok("removed it".to_owned());
    }
    Ok(said(false))
}
