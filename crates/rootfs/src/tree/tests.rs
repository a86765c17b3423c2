use crate::{
    InodeKind, Metadata, Tree,
    tree::{Children, FileContent},
};

fn file(tree: &mut Tree, path: &str) {
    let mut parents = path.rsplitn(2, '/');
    parents.next();
    if let Some(parents) = parents.next() {
        tree.create_directories(parents.as_bytes(), &Metadata::root(0o755))
            .unwrap();
    }
    tree.put_file(path.as_bytes(), Metadata::root(0o644), FileContent::inline(*b"x"))
        .unwrap();
}

/// Byte order of whole paths, which is not the order of a walk that enters each directory as it meets it: `-`, `.` and
/// many more sort before the slash.
#[test]
fn a_walk_is_in_byte_order_of_the_paths() {
    let mut tree = Tree::new();
    for path in [
        "a/b",
        "a-b/c",
        "a-b.d",
        "a.b",
        "a/b-c",
        "a0",
        "ab",
        "a-/x/y",
        "a\x01",
        "b",
        "a/b0/c",
        "z/1/2/3/4",
    ] {
        // Directories and files of the same name cannot both be.
        file(&mut tree, path);
    }
    let walked: Vec<Vec<u8>> = tree.walk().map(|(path, _)| path).collect();
    let mut sorted = walked.clone();
    sorted.sort();
    assert_eq!(walked, sorted);
    assert_eq!(walked.len() as u64, tree.usage().names + 1);
    assert!(walked.contains(&b"z/1/2/3/4".to_vec()));
}

/// As deep as names of one byte go, and far beyond any path that the kernel takes: nothing may recurse.
#[test]
fn depth_costs_no_stack() {
    let mut tree = Tree::new();
    let mut directory = Tree::ROOT;
    for _ in 0..100_000 {
        let child = tree.allocate(Metadata::root(0o755), InodeKind::Directory(Children::new()));
        tree.attach(directory, b"d", child);
        directory = child;
    }
    assert_eq!(tree.usage().names, 100_000);
    tree.check().unwrap();
    assert_eq!(tree.walk().take(1000).count(), 1000);
    assert!(tree.remove(b"d").unwrap());
    assert_eq!((tree.usage().inodes, tree.len()), (1, 1));
    tree.check().unwrap();
}

#[test]
fn numbers_of_removed_inodes_are_used_again() {
    let mut tree = Tree::new();
    for round in 0..100 {
        file(&mut tree, &format!("d{round}/f"));
        assert!(tree.remove(format!("d{round}").as_bytes()).unwrap());
    }
    assert_eq!(tree.capacity(), 3);
    tree.check().unwrap();
}

/// A hard link of a layer can take up what the layer has removed: it stays until it is released.
#[test]
fn an_orphan_keeps_its_content_until_it_is_released() {
    let mut tree = Tree::new();
    file(&mut tree, "d/f");
    let id = tree.lookup(b"d/f").unwrap();
    let mut orphans = Vec::new();
    let removed = tree.detach(Tree::ROOT, b"d", &mut orphans);
    assert_eq!((removed.names, removed.bytes, orphans.len()), (2, 1, 2));
    tree.attach(Tree::ROOT, b"again", id);
    tree.release(orphans);
    tree.check().unwrap();
    assert_eq!(tree.lookup(b"again"), Some(id));
    assert_eq!(tree.len(), 2);
}

#[test]
fn a_broken_invariant_is_named() {
    let mut tree = Tree::new();
    file(&mut tree, "f");
    let id = tree.lookup(b"f").unwrap();
    tree.inode_mut(id).names = 2;
    assert_eq!(
        tree.check().unwrap_err().to_string(),
        "the tree is inconsistent: an inode says 2 names and has 1"
    );
}
