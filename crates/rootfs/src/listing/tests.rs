use std::os::unix::fs::symlink;

use super::{Field, Listing};
use crate::{
    DeviceNumber, Metadata, Timestamp, Tree,
    layer::BodyExtent,
    pack::{Pack, Packs},
    tree::{Content, FileContent},
};

#[test]
fn a_tree_as_text() {
    let mut tree = Tree::new();
    let metadata = Metadata {
        uid: 1,
        gid: 2,
        mtime: Timestamp {
            seconds: -5,
            nanoseconds: 7,
        },
        xattrs: [(b"user.a".to_vec(), b"\x00\xff".to_vec())].into(),
        ..Metadata::root(0o4755)
    };
    let file = tree
        .put_file(b"b c", metadata, FileContent::inline(*b"abc"))
        .unwrap();
    tree.put_link(b"a", file).unwrap();
    tree.put_symlink(b"s", Metadata::root(0o777), b"a\nb").unwrap();
    tree.put_block_device(b"d", Metadata::root(0o600), DeviceNumber { major: 8, minor: 300 })
        .unwrap();
    let shared = "file mode=4755 owner=1:2 mtime=-5.000000007 size=3 names=2 link=/a";
    assert_eq!(
        tree.dump(),
        format!(
            "/ directory mode=0755 owner=0:0 mtime=0.000000000\n\
             /a {shared} xattr:user.a=00ff\n\
             /b\\x20c {shared} xattr:user.a=00ff\n\
             /d block-device mode=0600 owner=0:0 mtime=0.000000000 names=1 device=8:300\n\
             /s symlink mode=0777 owner=0:0 mtime=0.000000000 names=1 target=a\\x0ab\n"
        )
    );
    let listing = Listing::of_tree_with_content(&tree, &Packs::new()).unwrap();
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(listing.lines[&b"/a"[..]][&Field::Content], digest);
}

#[test]
fn holes_are_read_as_zeros() {
    let mut packs = Packs::new();
    let pack = packs.push(Pack::Memory(vec![1; 8192].into()));
    let extents = [
        BodyExtent {
            logical_offset: 4096,
            pack_offset: 4096,
            length: 4096,
        },
        BodyExtent {
            logical_offset: 12_288,
            pack_offset: 0,
            length: 100,
        },
    ];
    let content = Content::Packed {
        pack,
        extents: extents.into(),
    };
    let mut tree = Tree::new();
    tree.put_file(
        b"f",
        Metadata::root(0o644),
        FileContent {
            size_bytes: 12_388,
            content,
        },
    )
    .unwrap();
    let mut plain = vec![0; 12_388];
    plain[4096..8192].fill(1);
    plain[12_288..].fill(1);
    let mut same = Tree::new();
    same.put_file(b"f", Metadata::root(0o644), FileContent::inline(plain))
        .unwrap();
    let left = Listing::of_tree_with_content(&tree, &packs).unwrap();
    assert_eq!(
        left.differences(&Listing::of_tree_with_content(&same, &packs).unwrap()),
        []
    );
    assert!(Listing::of_tree_with_content(&tree, &Packs::new()).is_err());
}

/// What any user can make in a directory, seen as the tree that says the same.
#[test]
fn a_host_directory_and_a_tree_are_listed_alike() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::create_dir(root.join("d")).unwrap();
    std::fs::write(root.join("d/f"), "hello").unwrap();
    std::fs::hard_link(root.join("d/f"), root.join("d-first")).unwrap();
    symlink("/outside", root.join("s")).unwrap();

    let mut tree = Tree::new();
    tree.create_directories(b"d", &Metadata::root(0o755)).unwrap();
    let file = tree
        .put_file(b"d/f", Metadata::root(0o644), FileContent::inline(*b"hello"))
        .unwrap();
    tree.put_link(b"d-first", file).unwrap();
    tree.put_symlink(b"s", Metadata::root(0o777), b"/outside")
        .unwrap();

    let mut seen = Listing::of_directory(root).unwrap();
    let mut said = Listing::of_tree_with_content(&tree, &Packs::new()).unwrap();
    // Whose they are, when they were made and under which umask is not the test's to say.
    for field in [Field::Owner, Field::ModificationTime, Field::Mode] {
        seen.remove_field(&field);
        said.remove_field(&field);
    }
    assert_eq!(seen.differences(&said), []);
    assert_eq!(seen.lines[&b"/d/f"[..]][&Field::Link], "/d-first");
}

#[test]
fn differences_name_the_path_the_property_and_both_sides() {
    let mut left = Tree::new();
    left.put_file(b"f", Metadata::root(0o644), FileContent::inline(*b"a"))
        .unwrap();
    let mut right = Tree::new();
    right
        .put_file(b"f", Metadata::root(0o600), FileContent::inline(*b"a"))
        .unwrap();
    right.create_directories(b"d", &Metadata::root(0o755)).unwrap();
    let differences: Vec<String> = Listing::of_tree(&left)
        .differences(&Listing::of_tree(&right))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        differences,
        [
            "/d: nothing | directory mode=0755 owner=0:0 mtime=0.000000000",
            "/f mode: 0644 | 0600"
        ]
    );
}

#[test]
fn what_is_explained_can_be_left_out() {
    let mut tree = Tree::new();
    for path in [&b"lost+found/x"[..], b"lost+found-not"] {
        tree.create_directories(path, &Metadata::root(0o755)).unwrap();
    }
    let mut listing = Listing::of_tree(&tree);
    listing.remove(b"/lost+found");
    let left: Vec<_> = listing
        .lines
        .keys()
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect();
    assert_eq!(left, ["/", "/lost+found-not"]);
}
