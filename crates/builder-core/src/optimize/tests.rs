use std::{io::Write as _, sync::Arc};

use rootfs::{
    InodeKind, Metadata,
    layer::BodyExtent,
    pack::Pack,
    tree::{Content, FileContent},
};

use super::*;
use crate::optimize::elf::ReadAt as _;

fn put(tree: &mut Tree, path: &str, content: FileContent) {
    let parent = path.rsplit_once('/').unwrap().0;
    tree.create_directories(parent.as_bytes(), &Metadata::root(0o755))
        .unwrap();
    tree.put_file(path.as_bytes(), Metadata::root(0o755), content)
        .unwrap();
}

/// This test's own program, which has debug information, in a pack as a layer has it.
fn own_program(packs: &mut Packs) -> FileContent {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let size_bytes = bytes.len() as u64;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file.set_len(size_bytes.next_multiple_of(4096)).unwrap();
    let pack = packs.push(Pack::File(Arc::new(file)));
    let extent = BodyExtent {
        logical_offset: 0,
        pack_offset: 0,
        length: size_bytes,
    };
    FileContent {
        size_bytes,
        content: Content::Packed {
            pack,
            extents: [extent].into(),
        },
    }
}

fn size(tree: &Tree, path: &str) -> u64 {
    let id = tree.lookup(path.as_bytes()).unwrap();
    tree.inode(id).kind.file_size()
}

fn settings(exclude: &[&str], preserve: &[&str]) -> Settings {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Settings {
        exclude: words(exclude),
        preserve: words(preserve),
        ..Settings::default()
    }
}

#[test]
fn nothing_is_touched_that_was_not_asked_for() {
    let mut tree = Tree::new();
    for path in [
        "/var/log/syslog",
        "/tmp/x",
        "/usr/share/doc/a/README",
        "/var/cache/apt/pkgcache.bin",
    ] {
        put(&mut tree, path, FileContent::inline(*b"text"));
    }
    let before = tree.dump();
    let done = optimize(&Settings::default(), &mut tree, &mut Packs::new(), None).unwrap();
    assert_eq!(done, Optimized::default());
    assert_eq!(tree.dump(), before);
}

#[test]
fn each_rule_tells_what_it_saved_and_preserved_paths_win() {
    let mut tree = Tree::new();
    for path in [
        "/usr/share/doc/a/README",
        "/usr/share/doc/b/README",
        "/var/cache/apt/pkgcache.bin",
        "/srv/x.pyc",
        "/srv/keep/y.pyc",
    ] {
        put(&mut tree, path, FileContent::inline(*b"12345678"));
    }
    let settings = Settings {
        remove_docs: true,
        remove_cache: true,
        ..settings(&["*.pyc"], &["/usr/share/doc/b", "/srv/keep"])
    };
    let done = optimize(&settings, &mut tree, &mut Packs::new(), None).unwrap();
    let saved: Vec<_> = done
        .savings
        .iter()
        .map(|savings| (savings.rule.as_str(), savings.files, savings.bytes))
        .collect();
    // The directory /usr/share/doc/a goes with its file.
    assert_eq!(
        saved,
        [
            ("exclude_patterns", 1, 8),
            ("remove_docs", 2, 8),
            ("remove_cache", 1, 8)
        ]
    );
    for (path, stays) in [
        ("/usr/share/doc/a", false),
        ("/usr/share/doc/b/README", true),
        ("/var/cache/apt", true),
        ("/srv/x.pyc", false),
        ("/srv/keep/y.pyc", true),
    ] {
        assert_eq!(tree.lookup(path.as_bytes()).is_some(), stays, "{path}");
    }
    tree.check().unwrap();
}

#[test]
fn programs_are_stripped_under_all_their_names_unless_preserved_or_hashed() {
    let mut tree = Tree::new();
    let mut packs = Packs::new();
    let program = own_program(&mut packs);
    let whole = program.size_bytes;
    for path in ["/bin/tool", "/bin/kept", "/lib/libcrypto.so.3", "/lib/signed"] {
        put(&mut tree, path, program.clone());
    }
    let tool = tree.lookup(b"/bin/tool").unwrap();
    tree.put_link(b"/bin/alias", tool).unwrap();
    put(
        &mut tree,
        "/lib/.libcrypto.so.3.hmac",
        FileContent::inline(*b"hash"),
    );
    put(&mut tree, "/bin/script", FileContent::inline(*b"#!/bin/sh\n"));
    let signed = tree.lookup(b"/lib/signed").unwrap();
    let mut metadata = Metadata::root(0o755);
    metadata.xattrs.insert(b"security.ima".to_vec(), b"hash".to_vec());
    tree.set_metadata(signed, metadata);

    let settings = Settings {
        strip_debug_symbols: true,
        ..settings(&[], &["/bin/kept"])
    };
    let scratch = tempfile::tempfile().unwrap();
    let done = optimize(&settings, &mut tree, &mut packs, Some(scratch)).unwrap();
    let [savings] = done.savings.as_slice() else {
        panic!("{done:?}")
    };
    assert_eq!(savings.files, 1, "{done:?}");
    assert_eq!(savings.bytes, whole - size(&tree, "/bin/tool"));
    assert!(savings.bytes > 0);
    assert_eq!(size(&tree, "/bin/alias"), size(&tree, "/bin/tool"));
    for path in ["/bin/kept", "/lib/libcrypto.so.3", "/lib/signed"] {
        assert_eq!(size(&tree, path), whole, "{path}");
    }
    assert_eq!(done.notes.len(), 3, "{done:?}");
    tree.check().unwrap();

    // What is in the pack is what the plan makes.
    let InodeKind::File(content) = &tree.inode(tool).kind else {
        panic!()
    };
    let body = strip::Body {
        content,
        packs: &packs,
    };
    let mut bytes = vec![0; usize::try_from(content.size_bytes).unwrap()];
    body.read_exact_at(&mut bytes, 0).unwrap();
    let original = std::fs::read("/proc/self/exe").unwrap();
    let differing = bytes
        .iter()
        .zip(&original)
        .position(|(ours, theirs)| ours != theirs);
    assert_eq!(
        differing.map(|at| (32..48).contains(&at)),
        Some(true),
        "the first difference is the place of the section headers"
    );
}

#[test]
fn patterns_are_checked_before_they_are_used() {
    let check = |pattern: &str| check_patterns(&[pattern.to_owned()]);
    for fine in ["*.pyc", "/var/cache", "!keep", "a/**/b", "{a,b}"] {
        check(fine).unwrap();
    }
    for wrong in ["", "  ", "# comment", "[z-a]", "a\nb", &"x".repeat(1025)] {
        assert!(check(wrong).is_err(), "{wrong:?}");
    }
    // The costliest that there are: a list of them has to be small, however few they are.
    let costly = |n: usize| -> Vec<String> { (0..n).map(|i| format!("{}{i}", "?".repeat(200))).collect() };
    check_patterns(&costly(40)).unwrap();
    let error = check_patterns(&costly(41)).unwrap_err();
    assert!(error.message.contains("8192 bytes together"), "{error}");
}
