//! What an image of a tree must hold, derived from the tree alone.

use std::collections::BTreeMap;

use rootfs::{Inode, InodeId, InodeKind, Tree, pack::Packs, tree::Content};

use crate::{
    reader::{Reader, Stat},
    support::{Fixture, Image},
};

/// Every path of the tree, `/`-separated and without a slash for the root.
pub(crate) fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, InodeId> {
    let mut paths = BTreeMap::from([(Vec::new(), Tree::ROOT)]);
    let mut work = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = work.pop() {
        for (name, child) in tree.children(id).into_iter().flatten() {
            let path = [&path[..], b"/", name].concat();
            if tree.children(*child).is_some() {
                work.push((path.clone(), *child));
            }
            paths.insert(path, *child);
        }
    }
    paths
}

/// The bytes of a file.
pub(crate) fn content(inode: &Inode, packs: &Packs) -> Option<Vec<u8>> {
    let InodeKind::File(file) = &inode.kind else {
        return None;
    };
    let mut bytes = vec![0; usize::try_from(file.size_bytes).unwrap()];
    match &file.content {
        Content::Inline(inline) => bytes.copy_from_slice(inline),
        Content::Packed { pack, extents } => {
            for extent in &**extents {
                let start = usize::try_from(extent.logical_offset).unwrap();
                let end = start + usize::try_from(extent.length).unwrap();
                packs
                    .get(*pack)
                    .unwrap()
                    .read_exact_at(&mut bytes[start..end], extent.pack_offset)
                    .unwrap();
            }
        }
    }
    Some(bytes)
}

fn expected(tree: &Tree, id: InodeId, number: u32) -> Stat {
    let Inode {
        metadata,
        kind,
        names,
    } = tree.inode(id);
    let (type_bits, size, detail) = match kind {
        InodeKind::Directory(_) => (0o040_000, 0, String::new()),
        InodeKind::File(file) => (0o100_000, file.size_bytes, String::new()),
        InodeKind::Symlink(target) => (0o120_000, target.len() as u64, target.escape_ascii().to_string()),
        InodeKind::CharacterDevice(device) => (0o020_000, 0, format!("{}:{}", device.major, device.minor)),
        InodeKind::BlockDevice(device) => (0o060_000, 0, format!("{}:{}", device.major, device.minor)),
        InodeKind::Fifo => (0o010_000, 0, String::new()),
    };
    let seconds = metadata.mtime.seconds.clamp(-(1 << 31), 15_032_385_535);
    let nanoseconds = if seconds == metadata.mtime.seconds {
        metadata.mtime.nanoseconds
    } else {
        0
    };
    let links = match kind {
        InodeKind::Directory(children) => {
            2 + children
                .values()
                .filter(|child| tree.children(**child).is_some())
                .count()
        }
        _ => *names as usize,
    };
    let xattrs = metadata.xattrs.iter().map(|(name, value)| {
        if name.starts_with(b"system.posix_acl_") {
            let mut disk = vec![1, 0, 0, 0];
            for entry in value[4..].chunks(8) {
                let has_id = entry[0] == 2 || entry[0] == 8;
                disk.extend_from_slice(&entry[..if has_id { 8 } else { 4 }]);
            }
            return ((if name.ends_with(b"access") { 2 } else { 3 }, Vec::new()), disk);
        }
        let dot = name.iter().position(|byte| *byte == b'.').unwrap();
        let prefix = match &name[..dot] {
            b"user" => 1,
            b"trusted" => 4,
            _ => 6,
        };
        ((prefix, name[dot + 1..].to_vec()), value.clone())
    });
    Stat {
        number,
        mode: type_bits | metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        size,
        links: u16::try_from(links).unwrap(),
        seconds,
        nanoseconds,
        detail,
        xattrs: xattrs.collect(),
    }
}

/// Compares an image with the tree it was made of: metadata by our own reader, content by it and by `ext4-view`.
pub(crate) fn compare(fixture: &Fixture, image: &Image) {
    let reader = Reader::new(&image.file);
    let mut actual = reader.list();
    let packs = fixture.packs();
    let view = image.open();
    let tree = &fixture.tree;
    let paths = paths(tree);
    if !paths.contains_key(&b"/lost+found"[..]) {
        let made = actual.remove(&b"/lost+found"[..]).expect("lost+found is made");
        assert_eq!(
            (made.number, made.mode, made.links, made.size),
            (11, 0o040_700, 2, 16_384)
        );
        let root = actual.get_mut(&b""[..]).unwrap();
        root.links -= 1;
    }
    // ext4-view 1.0.0 takes seconds whose low word is negative for corruption, on the way to a file as well.
    let is_readable = actual.values().all(|stat| stat.seconds & 1 << 31 == 0);
    let mut numbers: BTreeMap<InodeId, u32> = BTreeMap::new();
    for (path, id) in &paths {
        let name = path.escape_ascii().to_string();
        let mut actual = actual.remove(path).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            *numbers.entry(*id).or_insert(actual.number),
            actual.number,
            "{name} is another inode"
        );
        if tree.children(*id).is_some() {
            assert!(actual.size > 0 && actual.size.is_multiple_of(4096));
            actual.size = 0;
        }
        assert_eq!(actual, expected(tree, *id, actual.number), "{name}");
        if let Some(content) = content(tree.inode(*id), &packs) {
            assert!(
                reader.content(actual.number) == content,
                "{name} has other content"
            );
            if is_readable {
                assert!(
                    view.read(path_of(path)).unwrap() == content,
                    "ext4-view reads something else from {name}"
                );
            }
        }
    }
    let numbers_differ = numbers.values().collect::<std::collections::BTreeSet<_>>().len() == numbers.len();
    assert!(numbers_differ, "two inodes became one");
    assert_eq!(actual.keys().next(), None, "there is more than there should be");
}

/// A path for ext4-view, which takes bytes.
pub(crate) fn path_of(path: &[u8]) -> ext4_view::Path<'_> {
    ext4_view::Path::new(path)
}
