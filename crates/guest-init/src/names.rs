//! The guest's name, its network, and the files that tell of both.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    fs::OpenOptions,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::OpenOptionsExt as _,
    },
    path::Path,
};

use crate::{
    cmdline::KernelArguments,
    console::say,
    files,
    network::Network,
    sys::{self, InterfaceSocket},
};

const HOSTNAME_FILE: &str = "/etc/hostname";
const HOSTS_FILE: &str = "/etc/hosts";
const RESOLVER_FILE: &str = "/etc/resolv.conf";

/// Where files are that cannot be written where they belong.
const RUN_DIRECTORY: &str = "/run/guest-init";

/// What the kernel has learnt about its network (`net/ipv4/ipconfig.c`), in the form of `/etc/resolv.conf`.
const KERNEL_RESOLVER_FILE: &str = "/proc/net/pnp";

/// The name of a machine that has none.
const DEFAULT_NAME: &str = "localhost";

/// `__NEW_UTS_LEN` of the kernel.
const LONGEST_NAME: usize = 64;

/// Files of names are short.
const LARGEST_FILE: u64 = 64 << 10;

/// Names the machine and makes it reachable; what fails is said, and the rest goes on.
pub(crate) fn set_up(kernel: &KernelArguments, report: &dyn Fn(&dyn fmt::Display)) {
    let network = kernel.network.as_deref().and_then(|value| {
        Network::parse(value)
            .inspect_err(|reason| {
                say(format_args!(
                    "the kernel argument ip={} {reason}",
                    value.display()
                ))
            })
            .ok()
    });
    match InterfaceSocket::open() {
        Ok(socket) => {
            if let Err(error) = socket.bring_up(OsStr::new("lo")) {
                report(&format_args!("no loopback interface: {error}"));
            }
            if let Some(network) = &network {
                configure(&socket, network, report);
            }
        }
        Err(error) => report(&format_args!("no network: {error}")),
    }

    let from_network = network.as_ref().and_then(|network| network.hostname.clone());
    let name = kernel.hostname.clone().or(from_network).or_else(name_of_image);
    let name = name.unwrap_or_else(|| DEFAULT_NAME.into());
    match sys::set_hostname(&name) {
        Ok(()) => report(&format_args!("named the machine {}", name.display())),
        Err(error) => say(format_args!("cannot set the hostname {name:?}: {error}")),
    }

    let address = network.as_ref().and_then(|network| network.address);
    provide(HOSTS_FILE, &hosts(&name, address), report);
    let servers = network.map(|network| network.name_servers).unwrap_or_default();
    if let Some(text) = resolver(&servers) {
        provide(RESOLVER_FILE, &text, report);
    }
}

/// Sets the address, unless the kernel has done it.
fn configure(socket: &InterfaceSocket, network: &Network, report: &dyn Fn(&dyn fmt::Display)) {
    let name = network.interface.display();
    match socket.has_address(&network.interface) {
        Ok(true) => return report(&format_args!("{name} has an address already")),
        Ok(false) => {}
        Err(error) => return say(format_args!("cannot set up {name}: {error}")),
    }
    let Some(address) = network.address else {
        return say(format_args!(
            "{name} has no address: the kernel has got none, and ip= names none"
        ));
    };
    let result = socket
        .set_address(&network.interface, address, network.mask)
        .and_then(|()| socket.bring_up(&network.interface))
        .and_then(|()| {
            network
                .gateway
                .map_or(Ok(()), |gateway| socket.add_default_route(gateway))
        });
    match result {
        Ok(()) => report(&format_args!("{name} has the address {address}")),
        Err(error) => say(format_args!("cannot set up {name}: {error}")),
    }
}

/// The first line of the image's own `/etc/hostname`.
fn name_of_image() -> Option<OsString> {
    let (bytes, _) = files::read_beginning(Path::new(HOSTNAME_FILE), LARGEST_FILE).ok()?;
    first_name(&bytes)
}

fn first_name(file: &[u8]) -> Option<OsString> {
    let mut lines = file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let name = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"))?;
    let is_name = name.len() <= LONGEST_NAME && name.iter().all(u8::is_ascii_graphic);
    is_name.then(|| OsString::from_vec(name.to_vec()))
}

fn hosts(name: &OsStr, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut text = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_vec();
    if name != DEFAULT_NAME {
        // As Debian does it for a machine without an address of its own.
        let address = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
        text.extend(format!("{address}\t").as_bytes());
        text.extend(name.as_bytes());
        text.push(b'\n');
    }
    text
}

/// The name servers of `ip=`, else what the kernel has been told by others; `None` without any.
fn resolver(servers: &[Ipv4Addr]) -> Option<Vec<u8>> {
    if !servers.is_empty() {
        let lines = servers.iter().map(|server| format!("nameserver {server}\n"));
        return Some(lines.collect::<String>().into_bytes());
    }
    let file = files::read(Path::new(KERNEL_RESOLVER_FILE), LARGEST_FILE).ok()??;
    let text = from_kernel(&file);
    (!text.is_empty()).then_some(text)
}

/// The lines of `/proc/net/pnp` that a resolver knows; comments tell of other things, and 0.0.0.0 is no server.
fn from_kernel(file: &[u8]) -> Vec<u8> {
    let lines = file.split(|&byte| byte == b'\n').filter(|line| {
        line.starts_with(b"domain ")
            || line
                .strip_prefix(b"nameserver ")
                .is_some_and(|server| server != b"0.0.0.0")
    });
    lines.flat_map(|line| [line, b"\n"].concat()).collect()
}

/// Writes a file that the image lacks, or has empty.
fn provide(path: &str, text: &[u8], report: &dyn Fn(&dyn fmt::Display)) {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() || metadata.len() > 0 => return,
        _ => {}
    }
    match write_through(Path::new(path), text) {
        Ok(()) => report(&format_args!("wrote {path}")),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            match write_over(Path::new(path), text) {
                Ok(()) => report(&format_args!("wrote {path}, from {RUN_DIRECTORY}")),
                Err(error) => say(format_args!("no {path}: {error}")),
            }
        }
        Err(error) => say(format_args!("no {path}: {error}")),
    }
}

/// Writes a file, also where a symbolic link says that it is to be: images of systems that make `/etc/resolv.conf` at run
/// time have a link to below `/run`, whose directory is not there yet.
fn write_through(path: &Path, text: &[u8]) -> io::Result<()> {
    match write(path, text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let target = fs::read_link(path).map_err(|_| error)?;
            let beside = path.parent().unwrap_or(Path::new("/"));
            write(&beside.join(target), text)
        }
        result => result,
    }
}

/// Puts a file of the memory over one of a read-only root, which is empty. builderd makes such files in images that are
/// to be read-only; where there is none, there is no place.
fn write_over(path: &Path, text: &[u8]) -> io::Result<()> {
    let own = Path::new(RUN_DIRECTORY).join(path.file_name().unwrap_or_default());
    write(&own, text)?;
    sys::bind(&own, path)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    file.write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_where_nothing_is_yet_is_written_through() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for target in ["../run/resolve/stub.conf", "plain"] {
            let link = root.path().join("etc/resolv.conf");
            std::os::unix::fs::symlink(target, &link).unwrap();
            write_through(&link, b"nameserver 10.0.2.3\n").unwrap();
            assert_eq!(fs::read(&link).unwrap(), b"nameserver 10.0.2.3\n", "{target}");
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn the_name_is_the_first_word_that_can_be_one() {
        for (file, expected) in [
            (&b"web\n"[..], Some("web")),
            (b"# comment\n\n  web-1.example  \nother\n", Some("web-1.example")),
            (b"", None),
            (b"two words\n", None),
            (b"\xff\xfe\n", None),
            (&[b'x'; 65], None),
        ] {
            assert_eq!(first_name(file), expected.map(Into::into), "{file:?}");
        }
    }

    #[test]
    fn hosts_name_the_machine_by_its_address() {
        let text = |name: &str, address| String::from_utf8(hosts(name.as_ref(), address)).unwrap();
        assert!(text("web", Some(Ipv4Addr::new(10, 0, 0, 2))).ends_with("\n10.0.0.2\tweb\n"));
        assert!(text("web", None).ends_with("\n127.0.1.1\tweb\n"));
        assert_eq!(text("localhost", None).lines().count(), 2);
    }

    #[test]
    fn of_what_the_kernel_knows_only_servers_and_domain_are_taken() {
        let file = b"#PROTO: DHCP\ndomain example.org\nnameserver 0.0.0.0\nnameserver 10.0.2.3\nbootserver 10.0.2.2\n";
        assert_eq!(from_kernel(file), b"domain example.org\nnameserver 10.0.2.3\n");
        assert!(from_kernel(b"#MANUAL\n").is_empty());
    }

    #[test]
    fn only_what_is_absent_or_empty_is_provided() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("own"), "own").unwrap();
        fs::write(path("empty"), "").unwrap();
        for name in ["own", "empty", "etc/absent"] {
            provide(&path(name), b"ours", &|_| {});
        }
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        assert_eq!(
            (read("own"), read("empty"), read("etc/absent")),
            ("own".into(), "ours".into(), "ours".into())
        );
    }
}
