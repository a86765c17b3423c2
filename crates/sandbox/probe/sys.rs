//! System calls that no library offers, because nobody should make them.

#![allow(unsafe_code)]

pub(crate) mod descriptors;
pub(crate) mod entry;
pub(crate) mod files;
pub(crate) mod ipc;
pub(crate) mod kernel;
pub(crate) mod load;
pub(crate) mod mounts;
pub(crate) mod processes;

use std::{io, ptr};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// As [`check`], for calls that give a length.
fn check_length(result: isize) -> io::Result<libc::c_long> {
    check(libc::c_long::try_from(result).unwrap_or(-1))
}

/// Of a call whose arguments cannot be meant: with this error it is only them that were refused, not the caller.
fn allowed_but(errno: i32, result: io::Result<libc::c_long>, gain: &str) -> io::Result<String> {
    match result {
        Err(error) if error.raw_os_error() != Some(errno) => Err(error),
        _ => Ok(gain.to_owned()),
    }
}

pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<String> {
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::socket(family, kind, protocol) }))?;
    Ok("made a socket".to_owned())
}

const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn memory(access: i32) -> io::Result<*mut libc::c_void> {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new anonymous memory.
    let memory = unsafe { libc::mmap(ptr::null_mut(), 4096, access, kind, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(memory)
}

pub(crate) fn executable_memory() -> io::Result<String> {
    memory(WRITABLE | libc::PROT_EXEC)?;
    Ok("has memory that runs".to_owned())
}

/// Memory that is written first and made executable then.
pub(crate) fn memory_made_executable() -> io::Result<String> {
    let memory = memory(WRITABLE)?;
    // SAFETY: the page is nobody else's.
    check(i64::from(unsafe {
        libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC)
    }))?;
    Ok("has memory that runs".to_owned())
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
