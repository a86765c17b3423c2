//! Other ways into the kernel than that of the program's own architecture: a filter that knows only numbers takes their
//! calls for others.

use std::io;

/// `getpid` of i386, by the interrupt that is its entry.
#[cfg(target_arch = "x86_64")]
pub(crate) fn interrupt() -> io::Result<String> {
    const GETPID: i32 = 20;
    let result: i32;
    // SAFETY: the call takes no argument and touches no memory; the kernel preserves the stack, and the registers that it
    // may not preserve are named.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") GETPID => result,
            lateout("rcx") _, lateout("rdx") _,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok("called as i386".to_owned())
}

/// `getpid` of the x32 ABI.
#[cfg(target_arch = "x86_64")]
pub(crate) fn x32() -> io::Result<String> {
    const X32: libc::c_long = 0x4000_0000;
    // SAFETY: the call takes no argument and touches no memory.
    super::check(unsafe { libc::syscall(X32 | libc::SYS_getpid) })?;
    Ok("called as x32".to_owned())
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn interrupt() -> io::Result<String> {
    Err(io::Error::other("this processor has no such entry"))
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn x32() -> io::Result<String> {
    Err(io::Error::other("this processor has no such entry"))
}
