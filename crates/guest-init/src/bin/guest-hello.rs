//! A command for trial images: says what it finds in the guest.
//!
//! ```text
//! guest-hello [--exit CODE] [FILE...]
//! ```
//!
//! Prints a greeting, its arguments, environment, identity and working directory, and one line for each FILE: type, mode,
//! owner, number of links, inode, size, target of a symbolic link, file capabilities; or `absent`. From that a reader of
//! the serial console sees that hard links, symbolic links, whiteouts and capabilities of an image have survived.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    process::ExitCode,
};

use guest_init::sys;

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    println!("hello from the guest");
    for (index, argument) in arguments.iter().enumerate() {
        println!("argv {index} {argument:?}");
    }
    let mut environment: Vec<_> = env::vars_os().collect();
    environment.sort();
    for (name, value) in environment {
        println!("env {}={:?}", name.display(), value);
    }
    match sys::identity() {
        Ok((uid, gid, groups)) => println!("id uid={uid} gid={gid} groups={groups:?}"),
        Err(error) => println!("id {error}"),
    }
    match env::current_dir() {
        Ok(directory) => println!("cwd {}", directory.display()),
        Err(error) => println!("cwd {error}"),
    }

    let mut code = 0;
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        if argument == "--exit" {
            code = rest
                .next()
                .and_then(|text| text.to_str()?.parse().ok())
                .unwrap_or(64);
        } else {
            println!("file {} {}", argument.display(), describe(Path::new(&argument)));
        }
    }
    ExitCode::from(code)
}

fn describe(path: &Path) -> String {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return "absent".to_owned(),
        Err(error) => return format!("error {error}"),
    };
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character-device",
        () => "block-device",
    };
    let mut line = format!(
        "type={kind} mode={:04o} owner={}:{} links={} inode={} size={}",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        metadata.nlink(),
        metadata.ino(),
        metadata.size()
    );
    if let Ok(target) = fs::read_link(path) {
        let _ = write!(line, " target={}", target.display());
    }
    match sys::extended_attribute(path, c"security.capability") {
        Ok(None) => {}
        Ok(Some(value)) => {
            let _ = write!(line, " {}", capabilities(&value));
        }
        Err(error) => {
            let _ = write!(line, " capability-error={error}");
        }
    }
    line
}

/// `security.capability` in words: `struct vfs_cap_data` of `linux/capability.h`, little-endian words of 32 bits: magic
/// with the effective flag in its lowest bit, then permitted and inheritable (low half, high half), then the root's uid.
fn capabilities(value: &[u8]) -> String {
    let words: Vec<u32> = value
        .chunks_exact(4)
        .map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |word, &byte| (word << 8) | u32::from(byte))
        })
        .collect();
    let (Some(magic), Some(permitted), Some(inheritable)) = (words.first(), words.get(1), words.get(2))
    else {
        return format!("capability-bytes={}", value.len());
    };
    let high = |index: usize| words.get(index).copied().map_or(0, u64::from) << 32;
    let permitted = high(3) | u64::from(*permitted);
    let inheritable = high(4) | u64::from(*inheritable);
    let mut text = format!(
        "permitted={permitted:#x} inheritable={inheritable:#x} effective={}",
        magic & 1
    );
    if let Some(root) = words.get(5) {
        let _ = write!(text, " rootid={root}");
    }
    text
}
