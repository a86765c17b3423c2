//! A file system as text, one line per name: for comparing what a tree says with what a host directory shows.
//!
//! The same form comes from a [`Tree`], with or without its contents, and from a directory of the host: a mounted
//! image, or the result of another tool. Two listings are compared with [`Listing::differences`]. This is made for
//! tests and for looking at things; a build does not use it.
//!
//! A line has the path, the type, and then what applies to it:
//!
//! ```text
//! /usr/bin/ping file mode=0755 owner=0:0 mtime=1700000000.000000000 size=90568 names=1 sha256=0f3b… xattr:security.capability=0100000200200000…
//! ```
//!
//! Bytes of paths and symbolic link targets other than printable ASCII, and the backslash and the space, stand as
//! `\x20`. A directory has neither size nor number of names here: both are the business of the file system it is on.
//! Names of one inode say so by `link=PATH`, the first of its paths in byte order.

mod directory;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Write as _},
    io,
};

use sha2::{Digest as _, Sha256};

use crate::{
    DeviceNumber, InodeId, InodeKind, Metadata, Timestamp, Tree,
    pack::Packs,
    tree::{Content, FileContent},
};

/// A file system as text. See the [module documentation](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// What each path shows, in byte order of the paths; the root is `/`, the others begin with a slash.
    pub lines: BTreeMap<Vec<u8>, Line>,
}

/// What one path shows: values by the name of the field.
pub type Line = BTreeMap<Field, String>;

/// One property of a path, in the order in which a line shows them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `directory`, `file`, `symlink`, `character-device`, `block-device`, `fifo`; a host directory can also show
    /// `socket`, and `nothing` for a name that leads nowhere.
    Kind,
    /// Permission bits in octal.
    Mode,
    /// Owner and group.
    Owner,
    /// Modification time in seconds and nanoseconds.
    ModificationTime,
    /// Size of a regular file in bytes.
    Size,
    /// How many names the inode has; not for directories.
    Names,
    /// The first path of an inode with several names.
    Link,
    /// Target of a symbolic link.
    Target,
    /// Device number as `MAJOR:MINOR`.
    Device,
    /// SHA-256 of a regular file's content.
    Content,
    /// An extended attribute by its name, with its value in hexadecimal.
    Xattr(Vec<u8>),
}

/// One difference between two listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which path.
    pub path: Vec<u8>,
    /// Which property; `None` when the whole path is on one side only.
    pub field: Option<Field>,
    /// What the first listing shows.
    pub left: Option<String>,
    /// What the second listing shows.
    pub right: Option<String>,
}

impl Listing {
    /// Lists a tree without looking at file contents.
    #[must_use]
    pub fn of_tree(tree: &Tree) -> Self {
        let mut names = Names::default();
        let lines = tree
            .walk()
            .map(|(path, id)| names.line(tree, &path, id))
            .collect();
        let mut listing = Self { lines };
        names.link(&mut listing);
        listing
    }

    /// Lists a tree with the SHA-256 of every file's content.
    ///
    /// # Errors
    /// `NotFound` when a file names a pack that is not in `packs`; whatever reading a pack reports otherwise.
    pub fn of_tree_with_content(tree: &Tree, packs: &Packs) -> io::Result<Self> {
        let mut listing = Self::of_tree(tree);
        let mut known = HashMap::new();
        for (path, id) in tree.walk() {
            let InodeKind::File(content) = &tree.inode(id).kind else {
                continue;
            };
            let digest = match known.get(&id) {
                Some(digest) => String::clone(digest),
                None => {
                    let digest = hash_content(content, packs)?;
                    known.insert(id, digest.clone());
                    digest
                }
            };
            if let Some(line) = listing.lines.get_mut(&rooted(&path)) {
                line.insert(Field::Content, digest);
            }
        }
        Ok(listing)
    }

    /// Leaves out a path and everything below it, as `/lost+found`.
    pub fn remove(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.lines
            .retain(|other, _| other != path && !other.starts_with(&below));
    }

    /// Leaves out one property of every path.
    pub fn remove_field(&mut self, field: &Field) {
        for line in self.lines.values_mut() {
            line.remove(field);
        }
    }

    /// Everything in which two listings differ, in byte order of the paths.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let paths: BTreeSet<_> = self.lines.keys().chain(other.lines.keys()).collect();
        for path in paths {
            match (self.lines.get(path), other.lines.get(path)) {
                (Some(left), Some(right)) => {
                    let fields: BTreeSet<_> = left.keys().chain(right.keys()).collect();
                    for field in fields
                        .into_iter()
                        .filter(|field| left.get(field) != right.get(field))
                    {
                        differences.push(Difference {
                            path: path.clone(),
                            field: Some(field.clone()),
                            left: left.get(field).cloned(),
                            right: right.get(field).cloned(),
                        });
                    }
                }
                (left, right) => differences.push(Difference {
                    path: path.clone(),
                    field: None,
                    left: left.map(line_text),
                    right: right.map(line_text),
                }),
            }
        }
        differences
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, line) in &self.lines {
            writeln!(formatter, "{} {}", escape(path), line_text(line))?;
        }
        Ok(())
    }
}

impl fmt::Display for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Kind => "kind",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::ModificationTime => "mtime",
            Self::Size => "size",
            Self::Names => "names",
            Self::Link => "link",
            Self::Target => "target",
            Self::Device => "device",
            Self::Content => "sha256",
            Self::Xattr(name) => return write!(formatter, "xattr:{}", escape(name)),
        };
        formatter.write_str(name)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absent = || "nothing".to_owned();
        write!(formatter, "{}", escape(&self.path))?;
        if let Some(field) = &self.field {
            write!(formatter, " {field}")?;
        }
        let (left, right) = (
            self.left.clone().unwrap_or_else(absent),
            self.right.clone().unwrap_or_else(absent),
        );
        write!(formatter, ": {left} | {right}")
    }
}

/// Which paths lead to inodes with several names.
struct Names<Key> {
    inodes: HashMap<Key, BTreeSet<Vec<u8>>>,
}

impl<Key> Default for Names<Key> {
    fn default() -> Self {
        Self {
            inodes: HashMap::new(),
        }
    }
}

impl Names<InodeId> {
    fn line(&mut self, tree: &Tree, path: &[u8], id: InodeId) -> (Vec<u8>, Line) {
        let inode = tree.inode(id);
        let path = rooted(path);
        let mut line = metadata_line(&inode.metadata);
        let (kind, device) = match &inode.kind {
            InodeKind::Directory(_) => ("directory", None),
            InodeKind::File(content) => {
                line.insert(Field::Size, content.size_bytes.to_string());
                ("file", None)
            }
            InodeKind::Symlink(target) => {
                line.insert(Field::Target, escape(target));
                ("symlink", None)
            }
            InodeKind::CharacterDevice(device) => ("character-device", Some(*device)),
            InodeKind::BlockDevice(device) => ("block-device", Some(*device)),
            InodeKind::Fifo => ("fifo", None),
        };
        line.insert(Field::Kind, kind.to_owned());
        if let Some(device) = device {
            line.insert(Field::Device, device_text(device));
        }
        if !inode.kind.is_directory() {
            self.add_names(&mut line, id, inode.names.into(), &path);
        }
        (path, line)
    }
}

impl<Key: Eq + std::hash::Hash> Names<Key> {
    fn add_names(&mut self, line: &mut Line, key: Key, names: u64, path: &[u8]) {
        line.insert(Field::Names, names.to_string());
        if names > 1 {
            self.inodes.entry(key).or_default().insert(path.to_vec());
        }
    }

    /// Adds to each such path the first of the inode's paths.
    fn link(&self, listing: &mut Listing) {
        for paths in self.inodes.values() {
            let first = paths.first().map(|path| escape(path)).unwrap_or_default();
            for path in paths {
                if let Some(line) = listing.lines.get_mut(path) {
                    line.insert(Field::Link, first.clone());
                }
            }
        }
    }
}

fn metadata_line(metadata: &Metadata) -> Line {
    let mut line = Line::new();
    line.insert(Field::Mode, format!("{:04o}", metadata.mode));
    line.insert(Field::Owner, format!("{}:{}", metadata.uid, metadata.gid));
    line.insert(Field::ModificationTime, time_text(metadata.mtime));
    for (name, value) in &metadata.xattrs {
        line.insert(Field::Xattr(name.clone()), hex::encode(value));
    }
    line
}

fn line_text(line: &Line) -> String {
    let mut text = String::new();
    for (field, value) in line {
        if !text.is_empty() {
            text.push(' ');
        }
        // Writing to a string cannot fail.
        let _ = match field {
            Field::Kind => write!(text, "{value}"),
            _ => write!(text, "{field}={value}"),
        };
    }
    text
}

/// Seconds with nine decimals. Nanoseconds count forward, so the text of a time before 1970 is not a plain decimal
/// number, but equal times have equal texts and that is all that is asked of it.
fn time_text(time: Timestamp) -> String {
    format!("{}.{:09}", time.seconds, time.nanoseconds)
}

fn device_text(device: DeviceNumber) -> String {
    format!("{}:{}", device.major, device.minor)
}

fn rooted(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

/// Bytes as printable ASCII without spaces.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// SHA-256 of a file's content in hexadecimal, holes read as zeros.
fn hash_content(file: &FileContent, packs: &Packs) -> io::Result<String> {
    let mut hasher = Sha256::new();
    match &file.content {
        Content::Inline(bytes) => hasher.update(bytes),
        Content::Packed { pack, extents } => {
            let pack = packs.get(*pack).ok_or(io::ErrorKind::NotFound)?;
            let mut buffer = vec![0; 1 << 16];
            let mut position = 0;
            for extent in extents.iter() {
                hash_zeros(&mut hasher, extent.logical_offset - position);
                let mut done = 0;
                while done < extent.length {
                    let length = (extent.length - done).min(buffer.len() as u64);
                    let chunk = &mut buffer[..usize::try_from(length).expect("at most the buffer's length")];
                    pack.read_exact_at(chunk, extent.pack_offset + done)?;
                    hasher.update(&*chunk);
                    done += length;
                }
                position = extent.logical_offset + extent.length;
            }
            hash_zeros(&mut hasher, file.size_bytes - position);
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

fn hash_zeros(hasher: &mut Sha256, mut count: u64) {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let length = count.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..usize::try_from(length).expect("at most 4096")]);
        count -= length;
    }
}

#[cfg(test)]
mod tests;
