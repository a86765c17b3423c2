//! Too much of everything: these do not return by themselves.

use std::io::{self, Write as _};

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

/// Children that have ended and are never waited for, until no more can be had; says how many there are.
pub(crate) fn zombies() {
    let mut count = 0_u32;
    loop {
        // SAFETY: this process has one thread; the child ends at once.
        match unsafe { libc::fork() } {
            // SAFETY: no requirements.
            0 => unsafe { libc::_exit(0) },
            1.. => count += 1,
            _ => break,
        }
    }
    let _ = io::stdout().write_all(format!("{count} zombies\n").as_bytes());
}

/// A child takes memory until it is killed; this process does not mind.
pub(crate) fn childs_memory_bomb() {
    // SAFETY: this process has one thread; a null status is allowed.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            memory_bomb();
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
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
    let _ = io::stdout().write_all(b"ready\n");
}
