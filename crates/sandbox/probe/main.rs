//! Tries to break out, one way for each word on the command line, and says how it went: a line of JSON on standard
//! output for each.
//!
//! ```text
//! {"probe":"host-file","blocked":true,"errno":2,"detail":"No such file or directory (os error 2)"}
//! ```
//!
//! `errno` is 0 where the kernel has given none.
//!
//! In a box everything has to be blocked; the same attack outside, or with one layer left out, has to succeed, or the
//! probe proves nothing. `NAME=VALUE` gives a probe what it needs to know of the host. The last words of the list are no
//! attacks on walls but on limits: they do not return by themselves.

mod sys;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::{linux::net::SocketAddrExt, unix::net::UnixStream},
    process::ExitCode,
    time::Duration,
};

/// What an attack gained, in words; an error when it was fended off.
type Attack = fn(&str) -> io::Result<String>;

const ATTACKS: &[(&str, Attack)] = &[
    ("host-file", |path| {
        let mut text = String::new();
        File::open(path)?.take(64).read_to_string(&mut text)?;
        Ok(format!("read {} bytes", text.len()))
    }),
    ("host-write", |path| {
        fs::write(path, "x")?;
        fs::remove_file(path)?;
        Ok("wrote a file".to_owned())
    }),
    ("open-to-write", sys::files::open_to_write),
    ("directory", sys::files::make_directory),
    ("link", sys::files::make_link),
    ("unix-socket", sys::files::make_socket),
    ("mode", sys::files::change_mode),
    ("from-directory", |number| {
        sys::files::read_from_directory(parse(number)?)
    }),
    ("keep-own-program", |number| {
        sys::files::keep_own_program(parse(number)?)
    }),
    ("write-program", |number| {
        sys::files::write_program(parse(number)?)
    }),
    ("set-user-id", |number| sys::files::set_user_id(parse(number)?)),
    ("owner", |number| sys::files::change_owner(parse(number)?)),
    ("file-capability", |number| {
        sys::files::set_capability(parse(number)?)
    }),
    ("proc", |_| {
        let names = fs::read_dir("/proc")?.count();
        Ok(format!("{names} names in /proc"))
    }),
    ("tcp", |address| {
        let address: SocketAddr = parse(address)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        Ok("connected".to_owned())
    }),
    ("udp", |address| {
        let address: SocketAddr = parse(address)?;
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", address)?;
        Ok("sent".to_owned())
    }),
    ("abstract-socket", |name| {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        UnixStream::connect_addr(&address)?;
        Ok("connected".to_owned())
    }),
    ("raw-socket", |_| sys::socket(libc::AF_INET, libc::SOCK_RAW, 1)),
    ("vsock", |_| sys::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("kernel-crypto", |_| {
        sys::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    }),
    ("user-namespace", |_| sys::mounts::unshare(libc::CLONE_NEWUSER)),
    ("mount", |_| sys::mounts::mount_somewhere()),
    ("groups", |kind_and_rest| {
        let (kind, rest) = two(kind_and_rest)?;
        let (options, file) = two(rest)?;
        sys::mounts::mount_groups(kind, options, file)
    }),
    ("remount-root", |_| sys::mounts::remount_root()),
    ("mount-api", |_| sys::mounts::fsopen()),
    ("mount-for-all", |name_and_place| {
        let (name, place) = two(name_and_place)?;
        sys::mounts::mount_for_all(name, place)
    }),
    ("device", sys::mounts::make_device),
    ("change-root", |_| sys::mounts::change_root()),
    ("pivot-root", |_| sys::mounts::pivot_root()),
    ("join-namespace", |process| {
        sys::mounts::join_namespace(match process {
            "parent" => sys::processes::parent(),
            number => parse(number)?,
        })
    }),
    ("root", |_| sys::processes::become_root()),
    ("signal", |process| sys::processes::signal(parse(process)?)),
    ("thread-signal", |process| {
        sys::processes::signal_thread(parse(process)?)
    }),
    ("descriptor-owner", |process| {
        sys::processes::own_descriptor(parse(process)?)
    }),
    ("limits-of", |process| sys::processes::read_limit(parse(process)?)),
    ("trace", |process| sys::processes::trace(parse(process)?)),
    ("write-memory", |process| {
        sys::processes::write_to(parse(process)?)
    }),
    ("descriptor-of", |process| {
        sys::processes::take_from(parse(process)?, 1)
    }),
    ("parent-memory", |_| sys::processes::attach_to_parent()),
    ("write-parent-memory", |_| sys::processes::write_to_parent()),
    ("parent-descriptor", |number| {
        sys::processes::take_from_parent(parse(number)?)
    }),
    ("ptrace", |_| sys::processes::trace_me()),
    ("process", |_| sys::processes::fork()),
    ("clone3", |_| sys::processes::clone3()),
    ("priority", |_| sys::processes::raise_priority()),
    ("personality", |_| sys::processes::change_personality()),
    ("dumpable", |_| sys::processes::become_dumpable()),
    ("own-filter", |_| sys::processes::install_filter()),
    ("raise-limit", |_| sys::processes::raise_limit()),
    ("keyring", |_| sys::kernel::add_key()),
    ("io-uring", |_| sys::kernel::io_uring()),
    ("bpf", |_| sys::kernel::bpf()),
    ("performance-events", |_| sys::kernel::performance_events()),
    ("page-faults", |_| sys::kernel::page_faults()),
    ("module", |_| sys::kernel::load_module()),
    ("other-kernel", |_| sys::kernel::load_kernel()),
    ("swap", |_| sys::kernel::swap_on()),
    ("clock", |_| sys::kernel::set_clock()),
    ("kernel-log", |_| sys::kernel::kernel_log()),
    ("interrupt", |_| sys::entry::interrupt()),
    ("x32", |_| sys::entry::x32()),
    ("make-segment", |key| sys::ipc::segment(number(key)?, true)),
    ("find-segment", |key| sys::ipc::segment(number(key)?, false)),
    ("remove-segment", |key| sys::ipc::remove_segment(number(key)?)),
    ("make-queue", |key| sys::ipc::queue(number(key)?, true)),
    ("find-queue", |key| sys::ipc::queue(number(key)?, false)),
    ("remove-queue", |key| sys::ipc::remove_queue(number(key)?)),
    ("make-posix-queue", |key| sys::ipc::posix_queue(key, true)),
    ("find-posix-queue", |key| sys::ipc::posix_queue(key, false)),
    ("remove-posix-queue", sys::ipc::remove_posix_queue),
    ("make-key", sys::ipc::make_key),
    ("find-key", |name| sys::ipc::find_key(name, false)),
    ("remove-key", |name| sys::ipc::find_key(name, true)),
    ("console", |number| sys::files::console(parse(number)?)),
    ("terminal", |_| sys::push_into_terminal()),
    ("program", |path| {
        std::process::Command::new(path).status()?;
        Ok("ran".to_owned())
    }),
    ("executable-memory", |_| sys::executable_memory()),
    ("made-executable", |_| sys::memory_made_executable()),
    ("file-lock", |_| sys::descriptors::lock_file()),
    ("record-lock", |_| sys::descriptors::lock_record()),
    ("descriptors", |_| sys::descriptors::beyond_the_standard_ones()),
    ("file-status", sys::descriptors::status_of),
    ("file-handle", |number| {
        sys::descriptors::open_by_handle(parse(number)?)
    }),
    ("execute", |from_and_number| {
        let (from, number) = two(from_and_number)?;
        sys::descriptors::execute(parse(from)?, parse(number)?)
    }),
    ("ran", |_| Ok("runs another program".to_owned())),
    ("execute-memory", |number| {
        sys::descriptors::execute_from_memory(parse(number)?)
    }),
    ("give-descriptor", |number| sys::descriptors::give(parse(number)?)),
    ("take-descriptor", |number| sys::descriptors::take(parse(number)?)),
    ("allocate", |number| sys::descriptors::allocate(parse(number)?)),
    ("lengthen", |number| sys::descriptors::lengthen(parse(number)?)),
    ("copy", |number| sys::descriptors::copy_to(parse(number)?)),
];

fn main() -> ExitCode {
    let mut failed = false;
    for word in std::env::args().skip(1) {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        if let Some((_, attack)) = ATTACKS.iter().find(|(known, _)| *known == name) {
            let result = attack(value);
            let blocked = result.is_err();
            let (errno, detail) = match result {
                Ok(gain) => (0, gain),
                Err(error) => (error.raw_os_error().unwrap_or(0), error.to_string()),
            };
            let detail = detail.replace(['"', '\\'], "'");
            let line = format!(
                "{{\"probe\":\"{name}\",\"blocked\":{blocked},\"errno\":{errno},\"detail\":\"{detail}\"}}\n"
            );
            failed |= io::stdout().write_all(line.as_bytes()).is_err();
        } else {
            match name {
                "idle" => sys::load::sleep_for_ever(),
                "stop" => sys::load::stop_self(),
                "spin" => loop {
                    std::hint::spin_loop();
                },
                "memory" => sys::load::memory_bomb(),
                "forks" => sys::load::fork_bomb(),
                "childs-memory" => sys::load::childs_memory_bomb(),
                "zombies" => sys::load::zombies(),
                "daemons" => sys::load::daemons(),
                "flood" => while io::stdout().write_all(&[b'x'; 4096]).is_ok() {},
                "many-descriptors" => {
                    let line = format!("{}\n", sys::descriptors::flood());
                    failed |= io::stdout().write_all(line.as_bytes()).is_err();
                }
                "exit" => std::process::exit(value.parse().unwrap_or(1)),
                "abort" => std::process::abort(),
                "file" => sys::descriptors::grow(value.parse().unwrap_or(3)),
                _ => return ExitCode::from(2),
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

/// `0x…`.
fn number(text: &str) -> io::Result<i32> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    i32::from_str_radix(digits, 16).map_err(io::Error::other)
}

/// `A:B`.
fn two(text: &str) -> io::Result<(&str, &str)> {
    text.split_once(':')
        .ok_or_else(|| io::Error::other("two words are wanted"))
}

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text} is not what this probe needs")))
}
