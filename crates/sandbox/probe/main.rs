//! Tries to break out, one way for each word on the command line, and says how it went: a line of JSON on standard
//! output for each.
//!
//! ```text
//! {"probe":"host-file","blocked":true,"detail":"No such file or directory (os error 2)"}
//! ```
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
    ("user-namespace", |_| sys::unshare(libc::CLONE_NEWUSER)),
    ("mount", |_| sys::mount_somewhere()),
    ("mount-api", |_| sys::fsopen()),
    ("device", |path| sys::make_device(path)),
    ("root", |_| sys::become_root()),
    ("signal", |process| sys::signal(parse(process)?)),
    ("parent-memory", |_| sys::read_parent()),
    ("ptrace", |_| sys::trace_me()),
    ("keyring", |_| sys::add_key()),
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
    ("terminal", |_| sys::push_into_terminal()),
    ("io-uring", |_| sys::io_uring()),
    ("process", |_| sys::fork()),
    ("program", |path| {
        std::process::Command::new(path).status()?;
        Ok("ran".to_owned())
    }),
    ("executable-memory", |_| sys::executable_memory()),
    ("file-lock", |_| sys::lock_descriptor()),
    ("raise-limit", |_| sys::raise_limit()),
    ("descriptors", |_| sys::descriptors_beyond_the_standard_ones()),
];

fn main() -> ExitCode {
    let mut failed = false;
    for word in std::env::args().skip(1) {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        if let Some((_, attack)) = ATTACKS.iter().find(|(known, _)| *known == name) {
            let result = attack(value);
            let blocked = result.is_err();
            let detail = match result {
                Ok(gain) => gain,
                Err(error) => error.to_string(),
            };
            let detail = detail.replace(['"', '\\'], "'");
            let line = format!("{{\"probe\":\"{name}\",\"blocked\":{blocked},\"detail\":\"{detail}\"}}\n");
            failed |= io::stdout().write_all(line.as_bytes()).is_err();
        } else {
            match name {
                "idle" => sys::sleep_for_ever(),
                "stop" => sys::stop_self(),
                "spin" => loop {
                    std::hint::spin_loop();
                },
                "memory" => sys::memory_bomb(),
                "forks" => sys::fork_bomb(),
                "daemons" => sys::daemons(),
                "flood" => while io::stdout().write_all(&[b'x'; 4096]).is_ok() {},
                "many-descriptors" => {
                    let line = format!("{}\n", sys::descriptor_flood());
                    failed |= io::stdout().write_all(line.as_bytes()).is_err();
                }
                "exit" => std::process::exit(value.parse().unwrap_or(1)),
                "abort" => std::process::abort(),
                "file" => sys::grow_descriptor(value.parse().unwrap_or(3)),
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

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text} is not what this probe needs")))
}
