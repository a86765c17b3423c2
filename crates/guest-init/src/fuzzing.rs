//! What the fuzz targets in `fuzz/` call; `cargo test` runs the same over their corpora.
//!
//! A target must not panic, hang or allocate without bound, and what it accepts must keep the promises that it asserts.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use crate::{cmdline::KernelArguments, container::Container, network::Network, signals, users::Identity};

/// A kernel command line: each has a meaning.
pub fn command_line(bytes: &[u8]) {
    let arguments = KernelArguments::parse(bytes);
    assert!(arguments.command.is_none_or(|command| !command.is_empty()));
    assert!(arguments.environment.iter().all(|(name, _)| !name.is_empty()));
    if let Some(value) = arguments.network {
        network(value.as_bytes());
    }
}

/// `/container.cmd`.
pub fn container_command(bytes: &[u8]) {
    check(Some(bytes), None);
}

/// `/container.env`.
pub fn container_environment(bytes: &[u8]) {
    check(None, Some(bytes));
}

fn check(command: Option<&[u8]>, environment: Option<&[u8]>) {
    let Ok(container) = Container::new(command, environment, &KernelArguments::default()) else {
        return;
    };
    assert!(
        container
            .command
            .first()
            .is_some_and(|program| !program.is_empty())
    );
    assert!(container.environment.contains_key(OsStr::new("PATH")));
    assert!(container.working_directory.is_absolute());
    assert!(signals::parse(&container.stop_signal.to_string()) == Some(container.stop_signal));
}

/// The value of `ip=`.
pub fn network(bytes: &[u8]) {
    if let Ok(network) = Network::parse(OsStr::from_bytes(bytes)) {
        assert!((1..=15).contains(&network.interface.len()));
        assert!(network.name_servers.len() <= 2);
        assert!(network.address.is_none_or(|address| !address.is_unspecified()));
    }
}

/// The first line is USER, the second `/etc/passwd` up to an empty line, the rest `/etc/group`.
pub fn users(bytes: &[u8]) {
    let end = bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(bytes.len());
    let (user, files) = bytes.split_at(end);
    let middle = files
        .windows(2)
        .position(|window| window == b"\n\n")
        .unwrap_or(files.len());
    let (passwd, group) = files.split_at(middle);
    if let Ok(user) = str::from_utf8(user) {
        let _ = Identity::resolve(user, passwd, group);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_of_the_corpora_is_survived() {
        let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in [
            ("command_line", super::command_line as fn(&[u8])),
            ("container_command", super::container_command),
            ("container_environment", super::container_environment),
            ("network", super::network),
            ("users", super::users),
        ] {
            let mut count = 0;
            for entry in std::fs::read_dir(corpora.join(name)).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                target(&bytes);
                // Every cut and every flipped byte besides: cheap, and near to what a fuzzer would try first.
                for at in 0..bytes.len() {
                    target(&bytes[..at]);
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << (at % 7);
                    target(&changed);
                }
                count += 1;
            }
            assert!(count > 1, "the corpus of {name} is nearly empty");
        }
    }
}
