//! What can be made of a descriptor that was given.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    ptr,
};

use super::{check, check_length};

/// Well above what the tests set as the limit of a file.
const LARGE: libc::off_t = 1 << 20;

pub(crate) fn lock_file() -> io::Result<String> {
    // SAFETY: two integers.
    check(i64::from(unsafe { libc::flock(1, libc::LOCK_SH) }))?;
    Ok("locked".to_owned())
}

/// A lock of the open file, on its first byte.
pub(crate) fn lock_record() -> io::Result<String> {
    // SAFETY: plain integers, for which zero is a valid value.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).map_err(io::Error::other)?;
    lock.l_len = 1;
    // SAFETY: a live structure.
    check(i64::from(unsafe {
        libc::fcntl(1, libc::F_OFD_SETLK, &raw const lock)
    }))?;
    Ok("locked".to_owned())
}

pub(crate) fn beyond_the_standard_ones() -> io::Result<String> {
    // SAFETY: F_GETFD takes no further argument.
    let open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    let found: Vec<String> = (3..4096).filter(open).map(|number| number.to_string()).collect();
    if found.is_empty() {
        return Err(io::Error::other("none"));
    }
    Ok(found.join(" "))
}

/// Asks about a path with the call that a worker has for descriptors.
pub(crate) fn status_of(path: &str) -> io::Result<String> {
    let path = CString::new(path)?;
    let mut status = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: a live zero-terminated string, and room for the answer.
    check(i64::from(unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_BASIC_STATS,
            status.as_mut_ptr(),
        )
    }))?;
    Ok("knows the file".to_owned())
}

/// Another file of the file system that descriptor `number` is on: by a handle, as made for the descriptor's own file,
/// or as it would be for the root of an ext4 file system, which has the number 2.
pub(crate) fn open_by_handle(number: i32) -> io::Result<String> {
    const BYTES: u32 = 128;
    /// `struct file_handle` of `fcntl.h`.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u32; BYTES as usize / 4],
    }
    let mut handle = Handle {
        bytes: BYTES,
        kind: 0,
        handle: [0; BYTES as usize / 4],
    };
    let mut mount = 0;
    // SAFETY: an empty live string, and live structures of the length that they say.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            number,
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if named < 0 {
        handle.bytes = 8;
        handle.kind = 1;
        handle.handle[0] = 2;
    }
    // SAFETY: a live structure of the length that it says.
    check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            number,
            &raw const handle,
            libc::O_RDONLY,
        )
    })?;
    Ok("opened a file by its number".to_owned())
}

/// Runs the program that descriptor `from` has, as descriptor `number`, since a filter can tell numbers only. It is this
/// program, and says so.
pub(crate) fn execute(from: i32, number: i32) -> io::Result<String> {
    execute_with(from, number, c"ran")
}

/// As [`execute`], with another word for what is run.
pub(crate) fn execute_with(from: i32, number: i32, word: &CStr) -> io::Result<String> {
    // SAFETY: three integers.
    let copy = check(i64::from(unsafe { libc::fcntl(from, libc::F_DUPFD, number) }))?;
    let arguments = [c"probe".as_ptr(), word.as_ptr(), ptr::null()];
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: an empty live string, and two arrays of live strings that end with a null pointer.
    check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            copy,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    })?;
    Ok("returned".to_owned())
}

/// A program that no file system has ever seen: a copy of descriptor `number` in memory.
pub(crate) fn execute_from_memory(number: i32) -> io::Result<String> {
    // SAFETY: a live zero-terminated string.
    let memory = check(i64::from(unsafe { libc::memfd_create(c"m".as_ptr(), 0) }))?;
    let memory = i32::try_from(memory).map_err(io::Error::other)?;
    let mut offset = 0;
    loop {
        // SAFETY: integers, and a live offset.
        let copied = unsafe { libc::sendfile(memory, number, &raw mut offset, 1 << 20) };
        if check_length(copied)? == 0 {
            break;
        }
    }
    // Most kernels refuse to execute what is open for writing: opened again for reading, where that can be had.
    let path = CString::new(format!("/proc/self/fd/{memory}"))?;
    // SAFETY: a live zero-terminated string.
    let program = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) };
    if program < 0 {
        return execute(memory, memory);
    }
    // SAFETY: nobody else has the number.
    unsafe { libc::close(memory) };
    execute(program, program)
}

/// As it comes with `sendmsg(2)`, with room for one descriptor.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A message of one byte.
fn message(byte: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: plain integers and pointers, for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = byte;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
    message
}

/// Sends descriptor 0 through the socket `number`: not 1, of which the reader would wait for the end.
pub(crate) fn give(number: i32) -> io::Result<String> {
    let mut payload = [b'x'];
    let mut byte = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = Control([0; 64]);
    let message = message(&mut byte, &mut control);
    // SAFETY: the header lies in the control block, which has room for it and for the descriptor's number.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(0);
    }
    // SAFETY: all that the message points to is live.
    let sent = unsafe { libc::sendmsg(number, &raw const message, 0) };
    check_length(sent)?;
    Ok("gave a descriptor away".to_owned())
}

/// Takes a descriptor that lies in the socket `number`.
pub(crate) fn take(number: i32) -> io::Result<String> {
    let mut payload = [0];
    let mut byte = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = Control([0; 64]);
    let mut message = message(&mut byte, &mut control);
    // SAFETY: all that the message points to is live and exclusively borrowed.
    let got = unsafe { libc::recvmsg(number, &raw mut message, libc::MSG_DONTWAIT) };
    check_length(got)?;
    // SAFETY: the kernel has set the length of what it wrote, which the macro looks at.
    if unsafe { libc::CMSG_FIRSTHDR(&raw const message) }.is_null() {
        return Err(io::Error::other("no descriptor came with it"));
    }
    Ok("took a descriptor".to_owned())
}

/// Space beyond the end of the file, where no limit of a file's size is looked at.
pub(crate) fn allocate(number: i32) -> io::Result<String> {
    // SAFETY: four integers.
    check(i64::from(unsafe {
        libc::fallocate(number, libc::FALLOC_FL_KEEP_SIZE, 0, LARGE)
    }))?;
    Ok("has the space".to_owned())
}

pub(crate) fn lengthen(number: i32) -> io::Result<String> {
    // SAFETY: two integers.
    check(i64::from(unsafe { libc::ftruncate(number, LARGE) }))?;
    Ok("is longer".to_owned())
}

/// From the descriptor behind it.
pub(crate) fn copy_to(number: i32) -> io::Result<String> {
    let mut copied = 0;
    loop {
        // SAFETY: null offsets are allowed: those of the files are used.
        let more = unsafe {
            libc::copy_file_range(number + 1, ptr::null_mut(), number, ptr::null_mut(), 1 << 20, 0)
        };
        match check_length(more)? {
            0 => return Ok(format!("copied {copied} bytes")),
            more => copied += more,
        }
    }
}

/// Copies descriptor 1 until no more can be had; gives how many there were.
pub(crate) fn flood() -> u64 {
    let mut count = 0;
    // SAFETY: copies of an open descriptor, which nobody owns.
    while count < 1_000_000 && unsafe { libc::dup(1) } >= 0 {
        count += 1;
    }
    count
}

pub(crate) fn grow(number: i32) {
    let block = [b'x'; 4096];
    // SAFETY: pointer and length are those of a live array.
    while unsafe { libc::write(number, block.as_ptr().cast(), block.len()) } > 0 {}
}
