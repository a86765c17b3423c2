//! The system calls that std does not offer. All unsafe code of the crate is here.
//!
//! The programs of this crate have one thread, which is what the calls about signals and `fork` rest on.

use std::{
    ffi::{CStr, CString, OsStr, c_int, c_ulong},
    io, mem,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, ExitStatus},
    ptr,
    time::Duration,
};

use crate::{signals::Signal, users::Identity};

/// Restrictions of a mount (`mount(2)`).
#[derive(Clone, Copy, Debug)]
pub struct MountFlags {
    /// `MS_NOSUID`.
    pub no_set_user_id: bool,
    /// `MS_NODEV`.
    pub no_devices: bool,
    /// `MS_NOEXEC`.
    pub no_execution: bool,
}

/// Mounts a file system that has no device.
///
/// # Errors
///
/// Those of `mount(2)`.
pub fn mount(kind: &CStr, target: &Path, flags: MountFlags, options: &CStr) -> io::Result<()> {
    let mut bits: c_ulong = 0;
    for (wanted, bit) in [
        (flags.no_set_user_id, libc::MS_NOSUID),
        (flags.no_devices, libc::MS_NODEV),
        (flags.no_execution, libc::MS_NOEXEC),
    ] {
        bits |= if wanted { bit } else { 0 };
    }
    let target = c_string(target.as_os_str())?;
    // SAFETY: all four strings are live and end with a zero byte, which is also all that these file systems require of
    // their options.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            bits,
            options.as_ptr().cast(),
        )
    })
}

/// Makes the root file system read-only, once nothing is open for writing any more.
///
/// # Errors
///
/// Those of `mount(2)`; EBUSY while a file is open for writing.
pub fn remount_root_read_only() -> io::Result<()> {
    // SAFETY: the target is a constant with a zero byte at its end; the other pointers may be null for a remount.
    check(unsafe {
        libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_REMOUNT | libc::MS_RDONLY,
            ptr::null(),
        )
    })
}

/// Shows the file `source` in the place of the file `target`.
///
/// # Errors
///
/// Those of `mount(2)` with `MS_BIND`; ENOENT when one of the two is not there.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (c_string(source.as_os_str())?, c_string(target.as_os_str())?);
    // SAFETY: both paths are live and end with a zero byte; type and options may be null for a bind mount.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            ptr::null(),
            libc::MS_BIND,
            ptr::null(),
        )
    })
}

/// Whether the file system that holds `path` is mounted read-only.
///
/// # Errors
///
/// Those of `statvfs(3)`.
pub fn is_read_only(path: &Path) -> io::Result<bool> {
    let path = c_string(path.as_os_str())?;
    // SAFETY: statvfs is plain data, for which all zeros is a valid value.
    let mut facts: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: the path ends with a zero byte, `facts` is exclusively borrowed.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut facts) })?;
    Ok(facts.f_flag & libc::ST_RDONLY != 0)
}

/// Names the machine.
///
/// # Errors
///
/// Those of `sethostname(2)`; EINVAL for more than 64 bytes.
pub fn set_hostname(name: &OsStr) -> io::Result<()> {
    // SAFETY: pointer and length are those of one live slice.
    check(unsafe { libc::sethostname(name.as_bytes().as_ptr().cast(), name.len()) })
}

/// Makes a character device.
///
/// # Errors
///
/// Those of `mknod(2)`.
pub fn make_character_device(path: &Path, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    let path = c_string(path.as_os_str())?;
    // SAFETY: the path ends with a zero byte; the rest are integers.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | mode, libc::makedev(major, minor)) })
}

/// How long the machine has been running, counted from the start of the kernel's clock.
#[must_use]
pub fn since_boot() -> Duration {
    // SAFETY: timespec is plain data, for which all zeros is a valid value.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: `time` is exclusively borrowed. On failure it stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// A socket through which interfaces are configured.
#[derive(Debug)]
pub struct InterfaceSocket(OwnedFd);

impl InterfaceSocket {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`.
    pub fn open() -> io::Result<Self> {
        // SAFETY: socket takes three integers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(socket)?;
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    ///
    /// Those of `netdevice(7)`; ENODEV when there is no such interface.
    pub fn bring_up(&self, interface: &OsStr) -> io::Result<()> {
        let mut request = interface_request(interface)?;
        // SAFETY: SIOCGIFFLAGS reads the name from and writes the flags to a live ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
        // SAFETY: SIOCGIFFLAGS made the flags the active field of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
        let up = libc::IFF_UP as libc::c_short;
        request.ifr_ifru.ifru_flags = flags | up;
        // SAFETY: SIOCSIFFLAGS reads a live ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
    }

    /// Whether an interface has an IPv4 address.
    ///
    /// # Errors
    ///
    /// Those of `netdevice(7)`; ENODEV when there is no such interface.
    pub fn has_address(&self, interface: &OsStr) -> io::Result<bool> {
        let mut request = interface_request(interface)?;
        // SAFETY: SIOCGIFADDR reads the name from and writes an address to a live ifreq.
        match check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFADDR as _, &raw mut request) }) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Gives an interface its IPv4 address and netmask.
    ///
    /// # Errors
    ///
    /// Those of `netdevice(7)`.
    pub fn set_address(&self, interface: &OsStr, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        let mut request = interface_request(interface)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        // SAFETY: SIOCSIFADDR reads name and address from a live ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request) })?;
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        // SAFETY: SIOCSIFNETMASK reads name and mask from a live ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCSIFNETMASK as _, &raw const request) })
    }

    /// Sends everything that has no other route to a gateway.
    ///
    /// # Errors
    ///
    /// Those of `route(8)`'s SIOCADDRT: ENETUNREACH when no interface reaches the gateway.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: rtentry is plain data, for which all zeros is a valid value; its device is a null pointer, "any".
        let mut route: libc::rtentry = unsafe { mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads a live rtentry.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) })
    }
}

/// An ifreq for the interface of that name.
fn interface_request(interface: &OsStr) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero.
    if interface.is_empty() || interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.as_bytes()) {
        // A signed byte on some architectures, an unsigned one on others.
        *to = libc::c_char::from_le_bytes([*from]);
    }
    Ok(request)
}

/// An IPv4 address in the general form, a `sockaddr_in` by its bytes: family (native order), port, address (network order).
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain data, for which all zeros is a valid value.
    let mut general: libc::sockaddr = unsafe { mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
    let family = libc::AF_INET as libc::sa_family_t;
    general.sa_family = family;
    for (to, from) in general.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = libc::c_char::from_le_bytes([from]);
    }
    general
}

/// Makes Ctrl-Alt-Del send SIGINT to process 1 instead of resetting the machine at once.
///
/// # Errors
///
/// Those of `reboot(2)`.
pub fn catch_control_alt_delete() -> io::Result<()> {
    // SAFETY: reboot takes one integer; this command only changes a setting.
    check(unsafe { libc::reboot(libc::RB_DISABLE_CAD) })
}

/// Resets the machine. Returns only when it cannot.
pub fn reboot() -> io::Error {
    // SAFETY: reboot takes one integer; the machine ends here, which is the purpose of this program.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    io::Error::last_os_error()
}

/// Writes all file systems out.
pub fn sync() {
    // SAFETY: sync has no requirements and cannot fail.
    unsafe { libc::sync() }
}

/// Blocks all signals: from now on they wait for [`wait_for_signal`].
///
/// Process 1 receives no signal that it neither handles nor blocks.
///
/// # Errors
///
/// None that can happen with a valid mask.
pub fn block_all_signals() -> io::Result<()> {
    set_signal_mask(&all_signals())
}

/// Takes the next signal that has arrived, waiting for at most `patience`.
#[must_use]
pub fn wait_for_signal(patience: Duration) -> Option<Signal> {
    let all = all_signals();
    let timeout = libc::timespec {
        tv_sec: patience.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: mask and time are live and valid; details of the signal are not asked for.
    let number = unsafe { libc::sigtimedwait(&raw const all, ptr::null_mut(), &raw const timeout) };
    // An error is EAGAIN (time over) or EINTR: there is no signal either way.
    Signal::from_number(number)
}

/// Sends a signal to every process of a group.
///
/// # Errors
///
/// Those of `kill(2)`; ESRCH when nobody is left in it.
pub fn signal_group(group: i32, signal: Signal) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    check(unsafe { libc::kill(-group, signal.number()) })
}

/// Sends a signal to every process but this one.
///
/// # Errors
///
/// Those of `kill(2)`; ESRCH when there is no other.
pub fn signal_everyone(signal: Signal) -> io::Result<()> {
    // SAFETY: kill takes two integers; process 1 leaves itself out.
    check(unsafe { libc::kill(-1, signal.number()) })
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// This process has ended, and is gone now.
    Process(i32, ExitStatus),
    /// There are children, and all of them live.
    AllAlive,
    /// There is no child.
    NoChild,
}

/// Reaps one child that has ended, without waiting.
#[must_use]
pub fn reap() -> Reaped {
    let mut status: c_int = 0;
    // SAFETY: `status` is exclusively borrowed.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Reaped::AllAlive,
        process if process > 0 => Reaped::Process(process, ExitStatus::from_raw(status)),
        // ECHILD; WNOHANG is never interrupted.
        _ => Reaped::NoChild,
    }
}

/// Starts a command in a session and process group of its own, as someone else, in a directory. Gives its process id.
///
/// # Errors
///
/// That of the step that failed: `setsid`, `chdir`, `setgroups`, `setgid`, `setuid`, `execve`.
pub fn spawn(command: Command, identity: &Identity, directory: &Path) -> io::Result<i32> {
    let child = prepared(command, identity, directory, true)?.spawn()?;
    Ok(child.id().cast_signed())
}

/// Becomes a command: as [`spawn`], but in place of this process. Returns only when it cannot.
#[must_use]
pub fn become_command(command: Command, identity: &Identity, directory: &Path) -> io::Error {
    match prepared(command, identity, directory, false) {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

fn prepared(
    mut command: Command,
    identity: &Identity,
    directory: &Path,
    is_child: bool,
) -> io::Result<Command> {
    let directory = c_string(directory.as_os_str())?;
    let Identity { uid, gid, groups, .. } = identity.clone();
    let prepare = move || {
        // SAFETY: setsid has no requirements.
        let session = check(unsafe { libc::setsid() });
        if is_child {
            // Process 1 may lead a session already, which is as good.
            session?;
        }
        // As root, as container runtimes do it: a directory that only root may enter is still a valid one to start in.
        // SAFETY: the path ends with a zero byte and lives as long as the closure.
        check(unsafe { libc::chdir(directory.as_ptr()) })?;
        // Groups first: after setuid nothing of this is allowed any more.
        // SAFETY: pointer and length are those of one live slice.
        check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: setgid and setuid take one integer, and set real, effective and saved id for root.
        check(unsafe { libc::setgid(gid) })?;
        // SAFETY: as above.
        check(unsafe { libc::setuid(uid) })?;
        // The mask would be inherited, and the command deaf to everything but SIGKILL.
        set_signal_mask(&no_signals())
    };
    // SAFETY: this process has one thread, so the closure finds no lock held and no memory in flight; it only makes
    // system calls.
    unsafe { command.pre_exec(prepare) };
    Ok(command)
}

/// Which of the descriptors 0, 1 and 2 are not open. They are taken by the root directory for now, so that no file is
/// opened under one of these numbers by accident.
#[must_use]
pub fn hold_missing_descriptors() -> [bool; 3] {
    let mut missing = [false; 3];
    for (descriptor, missing) in (0..).zip(&mut missing) {
        // SAFETY: F_GETFD takes an integer and touches no memory.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1 {
            *missing = true;
            // The lowest free number is taken, and that is this one.
            // SAFETY: the path is a constant with a zero byte at its end.
            unsafe { libc::open(c"/".as_ptr(), libc::O_PATH) };
        }
    }
    missing
}

/// Opens the console under the numbers that [`hold_missing_descriptors`] holds, or `/dev/null` when there is none.
///
/// # Errors
///
/// Those of `open(2)` for `/dev/null`.
pub fn open_console(missing: [bool; 3]) -> io::Result<()> {
    if missing == [false; 3] {
        return Ok(());
    }
    let open = |path: &CStr| {
        // SAFETY: the path ends with a zero byte. O_NOCTTY: the console is nobody's controlling terminal.
        unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) }
    };
    let mut console = open(c"/dev/console");
    if console < 0 {
        console = open(c"/dev/null");
    }
    check(console)?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let console = unsafe { OwnedFd::from_raw_fd(console) };
    for (descriptor, missing) in (0..).zip(missing) {
        if missing {
            // SAFETY: dup2 takes two integers; the target holds nothing but the root directory.
            check(unsafe { libc::dup2(console.as_raw_fd(), descriptor) })?;
        }
    }
    Ok(())
}

/// Waits until a serial console has sent what was written to it: a reset would cut it off.
pub fn drain_console() {
    // SAFETY: tcdrain takes an integer. On anything but a terminal it does nothing.
    unsafe { libc::tcdrain(libc::STDERR_FILENO) };
}

/// The mode mask of new files.
pub fn set_umask(mask: libc::mode_t) {
    // SAFETY: umask takes an integer and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Real user, group, and supplementary groups of this process.
///
/// # Errors
///
/// Those of `getgroups(2)`.
pub fn identity() -> io::Result<(u32, u32, Vec<u32>)> {
    // SAFETY: getuid and getgid have no requirements and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    // SAFETY: a size of 0 asks for the number and writes nothing.
    let count = unsafe { libc::getgroups(0, ptr::null_mut()) };
    check(count)?;
    let mut groups = vec![0; count.unsigned_abs() as usize];
    // SAFETY: there is room for `count` groups; nobody else changes them in between.
    let count = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    check(count)?;
    groups.truncate(count.unsigned_abs() as usize);
    Ok((uid, gid, groups))
}

/// An extended attribute of a file, or `None` when it has none of that name. Symbolic links are not followed.
///
/// # Errors
///
/// Those of `getxattr(2)`; ERANGE for more than 64 KiB, which the kernel does not allow anyway.
pub fn extended_attribute(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = c_string(path.as_os_str())?;
    let mut value = vec![0_u8; 64 << 10];
    // SAFETY: both strings end with a zero byte; pointer and length are those of one exclusively borrowed vector.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        };
    };
    value.truncate(length);
    Ok(Some(value))
}

fn set_signal_mask(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the mask is live and valid, the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut()) })
}

fn all_signals() -> libc::sigset_t {
    let mut set = no_signals();
    // SAFETY: `set` is exclusively borrowed.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

fn no_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, for which all zeros is a valid value; sigemptyset gives it its meaning.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is exclusively borrowed.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn check(result: c_int) -> io::Result<()> {
    if result >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
