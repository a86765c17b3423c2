//! The tree as real files, for `mke2fs -d` to copy.
//!
//! Every call names one component relative to an open directory and follows no symbolic link. The staged files stand in
//! [`ROOT`]; those with several names are made in a directory beside it, under their numbers, and linked from there:
//! so nothing has to be found again by its path.

use std::{
    collections::{HashMap, btree_map},
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::unavailable;
use crate::{
    DeviceNumber, Inode, InodeId, InodeKind, Metadata, Tree,
    image::ImageError,
    pack::Packs,
    text::printable,
    tree::{Content, FileContent},
};

/// Name of the staged root in the staging directory.
pub(super) const ROOT: &str = "root";
const LINKS: &str = "links";

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Stages a tree below `staging`.
pub(super) fn stage(tree: &Tree, packs: &Packs, staging: BorrowedFd<'_>) -> Result<(), ImageError> {
    let root = make_directory(staging, ROOT.as_bytes()).map_err(|error| io_error(b"/", error))?;
    let links = make_directory(staging, LINKS.as_bytes()).map_err(|error| io_error(b"/", error))?;
    Stage {
        tree,
        packs,
        links,
        remaining_names: HashMap::new(),
        path: Vec::new(),
    }
    .directory(root)?;
    // All that was in it has been moved to its last name.
    rustix::fs::unlinkat(staging, LINKS, AtFlags::REMOVEDIR).map_err(|error| io_error(b"/", error))
}

struct Stage<'a> {
    tree: &'a Tree,
    packs: &'a Packs,
    /// Where inodes with several names are made.
    links: OwnedFd,
    /// How many names such an inode still has to get.
    remaining_names: HashMap<InodeId, u32>,
    /// Where in the tree this is, for errors.
    path: Vec<u8>,
}

/// A directory that is being filled.
struct Frame<'a> {
    directory: OwnedFd,
    metadata: &'a Metadata,
    children: btree_map::Iter<'a, Box<[u8]>, InodeId>,
    path_length: usize,
}

impl<'a> Stage<'a> {
    fn frame(&self, directory: OwnedFd, id: InodeId, path_length: usize) -> Frame<'a> {
        let inode = self.tree.inode(id);
        let InodeKind::Directory(children) = &inode.kind else {
            unreachable!("frames are made for directories");
        };
        Frame {
            directory,
            metadata: &inode.metadata,
            children: children.iter(),
            path_length,
        }
    }

    fn directory(mut self, root: OwnedFd) -> Result<(), ImageError> {
        let mut frames = vec![self.frame(root, Tree::ROOT, 0)];
        while let Some(frame) = frames.last_mut() {
            self.path.truncate(frame.path_length);
            let Some((name, &id)) = frame.children.next() else {
                // Last, because filling a directory changes its times, and one without write permission is filled too.
                self.dress_open(frame.directory.as_fd(), frame.metadata)?;
                frames.pop();
                continue;
            };
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            let inode = self.tree.inode(id);
            if inode.kind.is_directory() {
                let child =
                    make_directory(frame.directory.as_fd(), name).map_err(|error| self.error(error))?;
                let child = self.frame(child, id, self.path.len());
                frames.push(child);
            } else if inode.names > 1 {
                self.link(frame.directory.as_fd(), name, id, inode)?;
            } else {
                self.make(frame.directory.as_fd(), name, inode)?;
            }
        }
        Ok(())
    }

    /// Gives an inode with several names one of them, and makes it before the first.
    fn link(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        id: InodeId,
        inode: &Inode,
    ) -> Result<(), ImageError> {
        let number = id.0.to_string();
        let remaining = match self.remaining_names.get(&id) {
            Some(&remaining) => remaining,
            None => {
                self.make(self.links.as_fd(), number.as_bytes(), inode)?;
                inode.names
            }
        };
        // The last name takes the file from where it was made, so that it never has one name more than in the tree: the
        // staging file system's limit may be the tree's.
        let linked = if remaining == 1 {
            rustix::fs::renameat(&self.links, number, directory, name)
        } else {
            rustix::fs::linkat(&self.links, number, directory, name, AtFlags::empty())
        };
        linked.map_err(|error| self.error(error))?;
        self.remaining_names.insert(id, remaining - 1);
        Ok(())
    }

    /// Makes anything but a directory, complete.
    fn make(&self, directory: BorrowedFd<'_>, name: &[u8], inode: &Inode) -> Result<(), ImageError> {
        match &inode.kind {
            InodeKind::File(content) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|error| self.error(error))?;
                let file = File::from(file);
                self.fill(&file, content)?;
                return self.dress_open(file.as_fd(), &inode.metadata);
            }
            InodeKind::Symlink(target) => rustix::fs::symlinkat(&**target, directory, name),
            InodeKind::CharacterDevice(device) => {
                make_node(directory, name, FileType::CharacterDevice, *device)
            }
            InodeKind::BlockDevice(device) => make_node(directory, name, FileType::BlockDevice, *device),
            InodeKind::Fifo => make_node(
                directory,
                name,
                FileType::Fifo,
                DeviceNumber { major: 0, minor: 0 },
            ),
            InodeKind::Directory(_) => unreachable!("directories have frames"),
        }
        .map_err(|error| self.error(error))?;
        self.dress_closed(directory, name, inode)
    }

    fn fill(&self, file: &File, content: &FileContent) -> Result<(), ImageError> {
        match &content.content {
            Content::Inline(bytes) => file.write_all_at(bytes, 0).map_err(|error| self.error(error))?,
            Content::Packed { pack, extents } => {
                let source = self
                    .packs
                    .get(*pack)
                    .ok_or(ImageError::MissingPack { pack: *pack })?;
                let mut buffer = vec![0; 1 << 17];
                for extent in extents.iter() {
                    let mut done = 0;
                    while done < extent.length {
                        let length = (extent.length - done).min(buffer.len() as u64);
                        let chunk =
                            &mut buffer[..usize::try_from(length).expect("at most the buffer's length")];
                        source
                            .read_exact_at(chunk, extent.pack_offset + done)
                            .and_then(|()| file.write_all_at(chunk, extent.logical_offset + done))
                            .map_err(|error| self.error(error))?;
                        done += length;
                    }
                }
            }
        }
        file.set_len(content.size_bytes)
            .map_err(|error| self.error(error))
    }

    /// Metadata of a file or directory that is open. The order matters: changing the owner clears setuid and
    /// capabilities, and everything before the times changes them.
    fn dress_open(&self, file: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), ImageError> {
        let (owner, group) = self.owner(metadata)?;
        rustix::fs::fchown(file, owner, group).map_err(|error| self.error(error))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode.into()))
            .map_err(|error| self.error(error))?;
        for (name, value) in &metadata.xattrs {
            rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())
                .map_err(|error| self.xattr_error(name, error))?;
        }
        rustix::fs::futimens(file, &times(metadata)).map_err(|error| self.error(error))
    }

    /// Metadata of what cannot be opened without side effects: symbolic links, devices, pipes.
    fn dress_closed(&self, directory: BorrowedFd<'_>, name: &[u8], inode: &Inode) -> Result<(), ImageError> {
        let metadata = &inode.metadata;
        let (owner, group) = self.owner(metadata)?;
        rustix::fs::chownat(directory, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error(error))?;
        if !matches!(inode.kind, InodeKind::Symlink(_)) {
            // The name was made a moment ago in a directory that nobody else can enter, and is no symbolic link.
            rustix::fs::chmodat(
                directory,
                name,
                Mode::from_raw_mode(metadata.mode.into()),
                AtFlags::empty(),
            )
            .map_err(|error| self.error(error))?;
        }
        for (attribute, value) in &metadata.xattrs {
            // There is no call that takes a directory and a name before Linux 6.13.
            let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            let path = CString::new(path).map_err(|error| self.error(error))?;
            rustix::fs::lsetxattr(&*path, attribute.as_slice(), value, XattrFlags::empty())
                .map_err(|error| self.xattr_error(attribute, error))?;
        }
        rustix::fs::utimensat(directory, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error(error))
    }

    fn owner(&self, metadata: &Metadata) -> Result<(Option<Uid>, Option<Gid>), ImageError> {
        if metadata.uid == u32::MAX || metadata.gid == u32::MAX {
            // chown(2) takes it for "unchanged".
            let reason = "the kernel knows no owner or group 4294967295".to_owned();
            return Err(ImageError::Unrepresentable {
                path: self.path.clone(),
                reason,
            });
        }
        Ok((
            Some(Uid::from_raw(metadata.uid)),
            Some(Gid::from_raw(metadata.gid)),
        ))
    }

    fn error(&self, error: impl Into<io::Error>) -> ImageError {
        io_error(&self.path, error)
    }

    fn xattr_error(&self, name: &[u8], error: Errno) -> ImageError {
        let name = printable(name);
        let reason = match error {
            Errno::NOTSUP => {
                return unavailable(format!(
                    "the staging directory's file system cannot keep the extended attribute {name} of {}; choose a \
                     staging directory on ext4 or XFS",
                    printable(&self.path)
                ));
            }
            Errno::INVAL => format!("the value of the extended attribute {name} is invalid"),
            Errno::PERM => format!("the extended attribute {name} cannot be on a file of this type"),
            Errno::TOOBIG | Errno::RANGE => format!("the extended attribute {name} is too large"),
            other => return self.error(other),
        };
        ImageError::Unrepresentable {
            path: self.path.clone(),
            reason,
        }
    }
}

fn io_error(path: &[u8], error: impl Into<io::Error>) -> ImageError {
    let error = error.into();
    let source = io::Error::new(error.kind(), format!("{}: {error}", printable(path)));
    ImageError::Io {
        action: "stage the tree",
        source,
    }
}

/// Makes a directory that only root can enter, and opens it.
fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    rustix::fs::openat(parent, name, OPEN_DIRECTORY, Mode::empty())
}

fn make_node(
    directory: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    device: DeviceNumber,
) -> rustix::io::Result<()> {
    let number = rustix::fs::makedev(device.major, device.minor);
    rustix::fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, number)
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec {
        tv_sec: metadata.mtime.seconds,
        tv_nsec: metadata.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
