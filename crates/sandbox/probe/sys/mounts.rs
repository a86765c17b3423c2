//! Other roots, other mounts, other namespaces.

use std::{ffi::CString, io, ptr};

use super::{check, processes};

pub(crate) fn unshare(flags: i32) -> io::Result<String> {
    // SAFETY: flags that concern neither memory nor descriptors.
    check(i64::from(unsafe { libc::unshare(flags) }))?;
    Ok("made a namespace".to_owned())
}

fn make_private() -> io::Result<()> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: live zero-terminated strings; no data.
    check(i64::from(unsafe {
        libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), private, ptr::null())
    }))?;
    Ok(())
}

/// `name` stands in the list of mounts as the source.
fn mount_memory(name: &str, place: &str) -> io::Result<()> {
    let (name, place) = (CString::new(name)?, CString::new(place)?);
    // SAFETY: live zero-terminated strings; tmpfs takes no data.
    check(i64::from(unsafe {
        libc::mount(name.as_ptr(), place.as_ptr(), c"tmpfs".as_ptr(), 0, ptr::null())
    }))?;
    Ok(())
}

/// In a mount namespace of its own, so that the control run leaves the host alone.
pub(crate) fn mount_somewhere() -> io::Result<String> {
    unshare(libc::CLONE_NEWNS)?;
    make_private()?;
    mount_memory("t", "/")?;
    Ok("mounted".to_owned())
}

/// In a mount namespace of its own; who may not make one, in a user namespace of its own as well.
fn unshare_mounts(more: i32) -> io::Result<()> {
    if unshare(libc::CLONE_NEWNS).is_err() {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | more)?;
    }
    make_private()
}

/// A hierarchy of control groups, and `file` in it opened for writing: `release_agent` names a program that the kernel
/// runs as the host's root (CVE-2022-0492). Nothing is written.
pub(crate) fn mount_groups(kind: &str, options: &str, file: &str) -> io::Result<String> {
    unshare_mounts(libc::CLONE_NEWCGROUP)?;
    let (kind, options) = (CString::new(kind)?, CString::new(options)?);
    // SAFETY: live zero-terminated strings, the options too.
    check(i64::from(unsafe {
        libc::mount(
            c"g".as_ptr(),
            c"/".as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    }))?;
    // What is mounted over the root is behind "..", where "/" is still what was there before.
    std::env::set_current_dir("/..")?;
    std::fs::File::options().write(true).open(file)?;
    Ok("may write to a control group".to_owned())
}

/// The root is made writable, in a mount namespace of its own.
pub(crate) fn remount_root() -> io::Result<String> {
    unshare_mounts(0)?;
    let flags = libc::MS_REMOUNT | libc::MS_BIND;
    // SAFETY: live zero-terminated strings; no data.
    check(i64::from(unsafe {
        libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), flags, ptr::null())
    }))?;
    Ok("made the root writable".to_owned())
}

/// Mounts at `place` where it is; who may not, in a user namespace of its own, on the root that is there.
pub(crate) fn mount_for_all(name: &str, place: &str) -> io::Result<String> {
    if mount_memory(name, place).is_ok() {
        return Ok("mounted for all".to_owned());
    }
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
    mount_memory(name, "/")?;
    Ok("mounted for itself".to_owned())
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

/// The root itself, a first step of the way out of a `chroot`.
pub(crate) fn change_root() -> io::Result<String> {
    // SAFETY: a live zero-terminated string.
    check(i64::from(unsafe { libc::chroot(c"/".as_ptr()) }))?;
    Ok("changed the root".to_owned())
}

/// In a mount namespace of its own, where one can be had; in a box that of the box has to do.
pub(crate) fn pivot_root() -> io::Result<String> {
    if unshare(libc::CLONE_NEWNS).is_ok() {
        make_private()?;
        mount_memory("t", "/proc")?;
        std::env::set_current_dir("/proc")?;
    }
    // SAFETY: live zero-terminated strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok("has another root".to_owned())
}

/// The namespace of the host name, which the caller outside is in already.
pub(crate) fn join_namespace(process: i32) -> io::Result<String> {
    let process = processes::open(process)?;
    // SAFETY: two integers.
    check(i64::from(unsafe { libc::setns(process, libc::CLONE_NEWUTS) }))?;
    Ok("joined a namespace".to_owned())
}
