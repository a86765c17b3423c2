//! Traps 17 to 30: replacement, implied parents, paths.

use rootfs::fold::{FoldErrorKind, Mode, NoteKind};

use crate::dsl::{BOTH, expect, expect_both, fold, layer, note, notes, refuse, refuse_both, show};

/// "The existing path's attributes MUST be replaced", and the children stay. containerd without overlay keeps old
/// extended attributes.
#[test]
fn trap_17_directory_over_directory_replaces_all_attributes() {
    let lower = layer()
        .dir("d")
        .mode(0o700)
        .owner(1, 2)
        .xattr("user.old", "1")
        .file("d/f", 1);
    let upper = layer().dir("d").mode(0o750).mtime(5, 6).xattr("user.new", "2");
    expect_both(&[lower, upper], &["d/ 750 @5.000000006 user.new=2", "d/f 1"]);
}

/// Removed and made anew, without a whiteout. Several writers fail here.
#[test]
fn trap_18_anything_over_anything_of_another_type() {
    let lower = layer()
        .dir("d")
        .file("d/f", 1)
        .file("x", 2)
        .symlink("s", "d")
        .fifo("p");
    expect_both(
        &[lower.clone(), layer().file("d", 9)],
        &["d 9", "p fifo", "s -> d", "x 2"],
    );
    expect_both(
        &[lower.clone(), layer().symlink("d", "x")],
        &["d -> x", "p fifo", "s -> d", "x 2"],
    );
    expect_both(
        &[lower.clone(), layer().dir("x").file("x/y", 3)],
        &["d/", "d/f 1", "p fifo", "s -> d", "x/", "x/y 3"],
    );
    expect_both(
        &[lower.clone(), layer().file("s", 4)],
        &["d/", "d/f 1", "p fifo", "s 4", "x 2"],
    );
    expect_both(
        &[lower.clone(), layer().char("p", 1, 3)],
        &["d/", "d/f 1", "p char 1:3", "s -> d", "x 2"],
    );
    expect_both(
        &[lower, layer().link("d", "x")],
        &["d 2 [2 of d]", "p fifo", "s -> d", "x 2 [2 of d]"],
    );
}

/// A file that replaces one is a new inode: other names keep the old content and count one name less.
#[test]
fn trap_19_file_over_file_leaves_the_other_names_alone() {
    let lower = layer().file("a", 1).link("b", "a").link("c", "a");
    expect_both(
        &[lower, layer().file("a", 9)],
        &["a 9", "b 1 [2 of b]", "c 1 [2 of b]"],
    );
}

/// 0755, 0:0 and a constant time. Other tools take the current time or the parent's owner: neither is reproducible.
#[test]
fn trap_20_implied_parents_are_plain() {
    let layers = [
        layer().dir("a").owner(5, 5).mode(0o700),
        layer().file("a/b/c/f", 1),
    ];
    expect_both(
        &layers,
        &["a/ 700 5:5", "a/b/ implied", "a/b/c/ implied", "a/b/c/f 1"],
    );
    // An entry that comes later in the same layer has its say.
    expect_both(
        &[layer().file("a/f", 1).dir("a").mode(0o700)],
        &["a/ 700", "a/f 1"],
    );
}

#[test]
fn trap_21_an_implied_parent_that_is_a_file_is_replaced() {
    for lower in [layer().file("a", 1), layer().fifo("a"), layer().char("a", 1, 3)] {
        let layers = [lower, layer().file("a/f", 2)];
        expect_both(&layers, &["a/ implied", "a/f 2"]);
        for mode in BOTH {
            assert_eq!(notes(mode, &layers), [note("a/f", NoteKind::ParentReplaced)]);
        }
    }
}

/// The merged /usr: the biggest difference between the specification and what Docker shows.
#[test]
fn trap_22_an_implied_parent_that_is_a_symbolic_link_of_a_lower_layer() {
    let layers = [
        layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib"),
        layer().file("lib/x", 1),
    ];
    expect(
        Mode::Oci,
        &layers,
        &["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x 1"],
    );
    expect(
        Mode::Docker,
        &layers,
        &["lib/ implied", "lib/x 1", "usr/", "usr/lib/"],
    );
    assert_eq!(
        notes(Mode::Oci, &layers),
        [note("lib/x", NoteKind::ParentIsSymlink { followed: true })]
    );
    assert_eq!(
        notes(Mode::Docker, &layers),
        [note("lib/x", NoteKind::ParentIsSymlink { followed: false })]
    );
    // A link of the same layer is followed in both: containerd unpacks a layer into one directory.
    let same = [layer()
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/x", 1)];
    expect_both(&same, &["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x 1"]);
}

/// All tools replace the link; what it led to is hidden, which is worth a note.
#[test]
fn trap_23_an_explicit_directory_over_a_symbolic_link() {
    let layers = [
        layer()
            .dir("usr/lib")
            .file("usr/lib/old", 1)
            .symlink("lib", "usr/lib"),
        layer().dir("lib").file("lib/x", 2),
    ];
    expect_both(
        &layers,
        &["lib/", "lib/x 2", "usr/ implied", "usr/lib/", "usr/lib/old 1"],
    );
    for mode in BOTH {
        assert_eq!(notes(mode, &layers), [note("lib", NoteKind::SymlinkReplaced)]);
    }
}

/// Absolute targets and `..` stay in the tree. Missing directories on the way are made there.
#[test]
fn trap_24_parents_that_are_absolute_climbing_or_circular_links() {
    let out = layer().symlink("abs", "/tmp/x").symlink("up", "../../../../etc");
    let layers = [out, layer().file("abs/f", 1).file("up/g", 2)];
    expect(
        Mode::Oci,
        &layers,
        &[
            "abs -> /tmp/x",
            "etc/ implied",
            "etc/g 2",
            "tmp/ implied",
            "tmp/x/ implied",
            "tmp/x/f 1",
            "up -> ../../../../etc",
        ],
    );
    expect(
        Mode::Docker,
        &layers,
        &["abs/ implied", "abs/f 1", "up/ implied", "up/g 2"],
    );

    let circle = layer()
        .symlink("a", "b")
        .symlink("b", "a")
        .symlink("self", "self/x");
    for path in ["a/f", "self/f"] {
        let layers = [circle.clone(), layer().file(path, 1)];
        refuse(Mode::Oci, &layers, path, FoldErrorKind::SymlinkLoop);
        fold(Mode::Docker, &layers);
    }
    refuse_both(
        &[layer().symlink("a", "a").file("a/f", 1)],
        "a/f",
        FoldErrorKind::SymlinkLoop,
    );

    // Forty links are followed, the forty-first is not.
    let chain = |length: u32| {
        (0..length).fold(layer().dir("d0"), |layer, n| {
            layer.symlink(format!("d{}", n + 1), format!("d{n}"))
        })
    };
    let tree = fold(Mode::Oci, &[chain(40), layer().file("d40/f", 1)]).tree;
    assert!(show(&tree).contains(&"d0/f 1".to_owned()));
    refuse(
        Mode::Oci,
        &[chain(41), layer().file("d41/f", 1)],
        "d41/f",
        FoldErrorKind::SymlinkLoop,
    );
}

/// umoci applies it, containerd and Docker do not, so that a 0700 root does not lock out other users.
#[test]
fn trap_25_an_entry_for_the_root() {
    for path in ["./", ".", "/", "", "a/..", "/../"] {
        let layers = [layer()
            .dir(path)
            .mode(0o700)
            .owner(1, 2)
            .xattr("user.a", "b")
            .file("f", 1)];
        expect(Mode::Oci, &layers, &["/ 700 1:2 user.a=b", "f 1"]);
        expect(Mode::Docker, &layers, &["f 1"]);
        assert!(notes(Mode::Oci, &layers).contains(&note(path, NoteKind::Root { applied: true })));
        assert!(notes(Mode::Docker, &layers).contains(&note(path, NoteKind::Root { applied: false })));
    }
}

/// Lexically, before any symbolic link, and never above the root.
#[test]
fn trap_26_absolute_paths_and_parent_references() {
    let layers = [
        layer().dir("d").symlink("link", "d/deep/er"),
        layer()
            .file("/abs", 1)
            .file("a/../b", 2)
            .file("../../esc", 3)
            .file("link/../c", 4),
    ];
    expect_both(
        &layers,
        &["abs 1", "b 2", "c 4", "d/", "esc 3", "link -> d/deep/er"],
    );
    let expected = ["a/../b", "../../esc", "link/../c"].map(|path| note(path, NoteKind::ParentReference));
    assert_eq!(notes(Mode::Oci, &layers), expected);
}

#[test]
fn trap_27_slashes_dots_and_lengths() {
    expect_both(
        &[layer().file("a//b", 1).file("./c", 2).file("d/./e/", 3)],
        &["a/ implied", "a/b 1", "c 2", "d/ implied", "d/e 3"],
    );
    let longest = "n".repeat(255);
    assert_eq!(
        show(&fold(Mode::Oci, &[layer().file(&longest, 1)]).tree),
        [format!("{longest} 1")]
    );
    let too_long = "n".repeat(256);
    refuse_both(
        &[layer().file(&too_long, 1)],
        &too_long,
        FoldErrorKind::NameTooLong { length: 256 },
    );
    refuse_both(&[layer().file("a\0b", 1)], "a\0b", FoldErrorKind::NulByte);
    refuse_both(&[layer().symlink("a", "b\0c")], "a", FoldErrorKind::NulByte);
    refuse_both(
        &[layer().file("f", 1).link("a", "f\0")],
        "a",
        FoldErrorKind::NulByte,
    );

    // Sixteen names of 255 bytes with a slash before each make 4,096 bytes.
    let longest = format!("/{}", vec!["n".repeat(255); 16].join("/"));
    fold(Mode::Oci, &[layer().file(&longest, 1)]);
    let too_long = format!("/{longest}");
    let kind = FoldErrorKind::PathTooLong {
        length: 4097,
        limit: 4096,
    };
    refuse_both(&[layer().file(&too_long, 1)], &too_long, kind);
    expect_both(&[layer().file(format!("{}f", "/".repeat(4095)), 1)], &["f 1"]);
}

/// "MUST NOT include duplicate entries", and if a layer does, the last one wins as with any tar.
#[test]
fn trap_28_duplicates() {
    let layers = [layer()
        .file("f", 1)
        .dir("d")
        .file("d/x", 2)
        .dir("d")
        .mode(0o700)
        .symlink("f", "x")
        .file("f", 3)];
    expect_both(&layers, &["d/ 700", "d/x 2", "f 3"]);
    let expected = ["d", "f", "f"].map(|path| note(path, NoteKind::Duplicate));
    assert_eq!(notes(Mode::Oci, &layers), expected);
    expect_both(&[layer().dir("d").file("d/x", 1).file("d", 2)], &["d 2"]);
    expect_both(&[layer().file("d", 2).file("d/x", 1)], &["d/ implied", "d/x 1"]);
}

/// Only those who write into directories can trip over this.
#[test]
fn trap_29_a_directory_without_permissions_still_takes_entries() {
    expect_both(
        &[
            layer().dir("d").mode(0),
            layer().file("d/f", 1).file("d/sub/g", 2),
        ],
        &["d/ 0", "d/f 1", "d/sub/ implied", "d/sub/g 2"],
    );
}

/// A host directory would be dated now; a tree keeps what the layers say.
#[test]
fn trap_30_changes_below_do_not_date_a_directory() {
    expect_both(
        &[
            layer().dir("d").mtime(500, 0).file("d/old", 1),
            layer().file("d/new", 2).whiteout("d/.wh.old"),
        ],
        &["d/ @500.000000000", "d/new 2"],
    );
}
