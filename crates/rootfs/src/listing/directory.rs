//! Listing a directory of the host.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Field, Line, Listing, Names, device_text, escape, metadata_line, rooted};
use crate::{DeviceNumber, Metadata, Timestamp, Xattrs};

impl Listing {
    /// Lists a directory of the host with everything below it and the SHA-256 of every regular file. Symbolic links
    /// are not followed, and other file systems mounted below it are listed like the rest.
    ///
    /// Made for comparing in tests: the directory must not change meanwhile, and depth is bounded by the descriptors
    /// that the process may open. Attributes that the kernel shows to root only (`trusted.*`) appear for root only.
    ///
    /// # Errors
    /// Whatever the system reports, with the path.
    pub fn of_directory(directory: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        let mut names = Names::default();
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, open, Mode::empty())?;
        let root_line = entry_line(&root, c".", b"/", &mut names)?;
        listing.lines.insert(b"/".to_vec(), root_line);
        let mut frames = vec![Frame::new(root, Vec::new())?];
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                frames.pop();
                continue;
            };
            let relative = [&frame.prefix, name.to_bytes()].concat();
            let path = rooted(&relative);
            let with_path =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", escape(&path)));
            let line = entry_line(&frame.directory, &name, &path, &mut names).map_err(with_path)?;
            let is_directory = line.get(&Field::Kind).is_some_and(|kind| kind == "directory");
            if is_directory {
                let child =
                    rustix::fs::openat(&frame.directory, &name, open | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(|error| with_path(error.into()))?;
                frames.push(Frame::new(child, [&relative[..], b"/"].concat()).map_err(with_path)?);
            }
            listing.lines.insert(path, line);
        }
        names.link(&mut listing);
        Ok(listing)
    }
}

/// A directory whose names are being listed.
struct Frame {
    directory: OwnedFd,
    prefix: Vec<u8>,
    /// What is still to be listed, the first in byte order at the end.
    names: Vec<CString>,
}

impl Frame {
    fn new(directory: OwnedFd, prefix: Vec<u8>) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable_by(|left, right| right.cmp(left));
        Ok(Self {
            directory,
            prefix,
            names,
        })
    }
}

fn entry_line(
    directory: &OwnedFd,
    name: &CStr,
    path: &[u8],
    names: &mut Names<(u64, u64)>,
) -> io::Result<Line> {
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        // An overlay file system can show the name of a whiteout that hides nothing.
        Err(Errno::NOENT) => return Ok(Line::from([(Field::Kind, "nothing".to_owned())])),
        other => other?,
    };
    let mut line = metadata_line(&Metadata {
        mode: u16::try_from(stat.st_mode & 0o7777).expect("twelve bits"),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: modification_time(&stat),
        xattrs: extended_attributes(directory, name)?,
    });
    let kind = FileType::from_raw_mode(stat.st_mode);
    let text = match kind {
        FileType::Directory => "directory",
        FileType::RegularFile => {
            line.insert(Field::Size, stat.st_size.to_string());
            line.insert(Field::Content, hash_file(directory, name)?);
            "file"
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
            line.insert(Field::Target, escape(target.to_bytes()));
            "symlink"
        }
        FileType::CharacterDevice => "character-device",
        FileType::BlockDevice => "block-device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Unknown => "unknown",
    };
    line.insert(Field::Kind, text.to_owned());
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        line.insert(Field::Device, device_text(DeviceNumber { major, minor }));
    }
    if kind != FileType::Directory {
        #[allow(
            clippy::useless_conversion,
            reason = "the field's width differs between architectures"
        )]
        names.add_names(&mut line, (stat.st_dev, stat.st_ino), stat.st_nlink.into(), path);
    }
    Ok(line)
}

#[allow(
    clippy::unnecessary_fallible_conversions,
    reason = "the fields' widths differ between architectures"
)]
fn modification_time(stat: &Stat) -> Timestamp {
    Timestamp {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).expect("the kernel gives less than a second"),
    }
}

/// All extended attributes, those of symbolic links and devices included. The path through `/proc` names the link
/// itself: there is no `getxattrat` before Linux 6.13.
fn extended_attributes(directory: &OwnedFd, name: &CStr) -> io::Result<Xattrs> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let path = CString::new(path).expect("neither part has a NUL");
    let mut list = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(&*path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut attributes = Xattrs::new();
    for attribute in list[..length]
        .split(|&byte| byte == 0)
        .filter(|attribute| !attribute.is_empty())
    {
        let mut value = vec![0; 1 << 16];
        let attribute = CString::new(attribute).expect("split at the NULs");
        let length = rustix::fs::lgetxattr(&*path, &*attribute, &mut value[..])?;
        value.truncate(length);
        attributes.insert(attribute.into_bytes(), value);
    }
    Ok(attributes)
}

fn hash_file(directory: &OwnedFd, name: &CStr) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..length]);
    }
}
