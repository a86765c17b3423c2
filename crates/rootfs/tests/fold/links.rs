//! Traps 31 to 38: hard links.

use rootfs::fold::{FoldErrorKind, FoldLimits, Mode, NoteKind};

use crate::dsl::{BOTH, expect, expect_both, fold_with, layer, note, notes, refuse_both};

fn missing(target: &str) -> FoldErrorKind {
    FoldErrorKind::LinkTargetMissing {
        target: target.into(),
    }
}

fn directory(target: &str) -> FoldErrorKind {
    FoldErrorKind::LinkToDirectory {
        target: target.into(),
    }
}

fn itself(target: &str) -> FoldErrorKind {
    FoldErrorKind::LinkToItself {
        target: target.into(),
    }
}

/// The specification lets a reader fail here; nothing is lost by not failing.
#[test]
fn trap_31_target_in_a_lower_layer() {
    let layers = [layer().file("a", 1), layer().link("b", "a")];
    expect_both(&layers, &["a 1 [2 of a]", "b 1 [2 of a]"]);
    assert_eq!(notes(Mode::Oci, &layers), [note("b", NoteKind::LinkToLowerLayer)]);
    // Two layers down, and what the layer between did to the name counts.
    expect_both(
        &[layer().file("a", 1), layer().file("a", 2), layer().link("b", "a")],
        &["a 2 [2 of a]", "b 2 [2 of a]"],
    );
    refuse_both(
        &[
            layer().file("a", 1),
            layer().whiteout(".wh.a"),
            layer().link("b", "a"),
        ],
        "b",
        missing("a"),
    );
}

/// The lower file as it was before this layer's whiteouts, in either order: no data is lost.
#[test]
fn trap_32_target_whited_out_in_the_same_layer() {
    for upper in [
        layer().whiteout(".wh.a").link("b", "a"),
        layer().link("b", "a").whiteout(".wh.a"),
    ] {
        let layers = [layer().file("a", 1), upper];
        expect_both(&layers, &["b 1"]);
        assert_eq!(notes(Mode::Oci, &layers), [note("b", NoteKind::LinkToRemoved)]);
    }
    // Deep below an opaque directory, twice, and with the directory gone.
    let lower = layer().file("d/e/a", 1).file("d/e/x", 2);
    expect_both(
        &[
            lower.clone(),
            layer()
                .whiteout("d/.wh..wh..opq")
                .link("b", "d/e/a")
                .link("d/c", "d/e/a"),
        ],
        &["b 1 [2 of b]", "d/ implied", "d/c 1 [2 of b]"],
    );
    expect_both(
        &[lower.clone(), layer().whiteout(".wh.d").link("d/e/a", "d/e/x")],
        &["d/ implied", "d/e/ implied", "d/e/a 2"],
    );
    // What takes the name in the same layer is the target, and not what was there.
    expect_both(
        &[
            lower,
            layer().whiteout(".wh.d").link("b", "d/e/a").file("d/e/a", 9),
        ],
        &["b 9 [2 of b]", "d/ implied", "d/e/ implied", "d/e/a 9 [2 of b]"],
    );
    // A file that a link replaces can be what the link is to.
    expect_both(&[layer().file("d/f", 1), layer().link("d", "d/f")], &["d 1"]);
}

/// google/go-containerregistry #977 and #2002, apple/container #1797: the alias must keep inode and data.
#[test]
fn trap_33_the_first_name_goes_and_the_alias_stays() {
    let lower = layer()
        .file("a", 1)
        .xattr("user.k", "v")
        .link("b", "a")
        .xattr("user.k", "v");
    expect_both(&[lower.clone(), layer().whiteout(".wh.a")], &["b 1 user.k=v"]);
    expect_both(&[lower.clone(), layer().file("a", 9)], &["a 9", "b 1 user.k=v"]);
    expect_both(
        &[lower.clone(), layer().symlink("a", "b")],
        &["a -> b", "b 1 user.k=v"],
    );
    expect_both(&[lower, layer().whiteout(".wh..wh..opq").file("c", 2)], &["c 2"]);
}

/// Other tools refuse this. A link to what comes later is the later file, even when a lower layer has one too.
#[test]
fn trap_34_target_that_comes_later() {
    let layers = [layer().link("b", "a").file("a", 1)];
    expect_both(&layers, &["a 1 [2 of a]", "b 1 [2 of a]"]);
    assert_eq!(notes(Mode::Oci, &layers), [note("b", NoteKind::LinkBeforeTarget)]);
    expect_both(
        &[layer().file("a", 9), layer().link("b", "a").file("a", 1)],
        &["a 1 [2 of a]", "b 1 [2 of a]"],
    );
    // Of a target that is there twice, a link in between means the first.
    expect_both(
        &[layer().file("a", 1).link("b", "a").file("a", 2)],
        &["a 2", "b 1"],
    );
    // What takes the waiting link's place later in the layer replaces it, whole subtrees included.
    expect_both(
        &[layer().link("b", "a").file("b", 5).file("a", 1)],
        &["a 1", "b 5"],
    );
    expect_both(
        &[layer().link("d/b", "a").file("d", 5).file("a", 1)],
        &["a 1", "d 5"],
    );
    expect_both(
        &[layer().file("b", 5).link("b", "a").file("a", 1)],
        &["a 1 [2 of a]", "b 1 [2 of a]"],
    );
    // A link that nobody sees any more need not be satisfied.
    expect_both(&[layer().link("b", "nowhere").file("b", 5)], &["b 5"]);
}

/// umoci ignores the link's header; containerd gives it to the shared inode.
#[test]
fn trap_35_the_links_own_header() {
    let layers = [
        layer()
            .file("a", 1)
            .mode(0o600)
            .owner(1, 1)
            .xattr("user.a", "1")
            .xattr("user.b", "1"),
        layer()
            .link("b", "a")
            .mode(0o777)
            .owner(5, 5)
            .mtime(7, 8)
            .xattr("user.b", "2")
            .xattr("user.c", "2"),
    ];
    expect(
        Mode::Oci,
        &layers,
        &[
            "a 1 600 1:1 user.a=1 user.b=1 [2 of a]",
            "b 1 600 1:1 user.a=1 user.b=1 [2 of a]",
        ],
    );
    let shared = "777 5:5 @7.000000008 user.a=1 user.b=2 user.c=2 [2 of a]";
    expect(
        Mode::Docker,
        &layers,
        &[&format!("a 1 {shared}"), &format!("b 1 {shared}")],
    );
    assert_eq!(
        notes(Mode::Oci, &layers)[1],
        note("b", NoteKind::LinkMetadata { applied: false })
    );
    assert_eq!(
        notes(Mode::Docker, &layers)[1],
        note("b", NoteKind::LinkMetadata { applied: true })
    );
    // A header that says the same is nothing to speak of.
    assert_eq!(notes(Mode::Oci, &[layer().file("a", 1).link("b", "a")]), []);
    // A symbolic link's mode is not for a header to say.
    expect_both(
        &[layer().symlink("s", "x").link("t", "s").mode(0o777)],
        &["s -> x [2 of s]", "t -> x [2 of s]"],
    );
}

#[test]
fn trap_36_targets_of_every_kind() {
    expect_both(
        &[layer()
            .symlink("s", "x")
            .char("c", 1, 3)
            .block("b", 8, 0)
            .fifo("p")
            .link("s2", "s")
            .mode(0o777)
            .link("c2", "c")
            .link("b2", "b")
            .link("p2", "p")],
        &[
            "b block 8:0 [2 of b]",
            "b2 block 8:0 [2 of b]",
            "c char 1:3 [2 of c]",
            "c2 char 1:3 [2 of c]",
            "p fifo [2 of p]",
            "p2 fifo [2 of p]",
            "s -> x [2 of s]",
            "s2 -> x [2 of s]",
        ],
    );
    for upper in [
        layer().dir("d").link("b", "d"),
        layer().link("b", "d").dir("d"),
        layer().file("d/f", 1).link("b", "d"),
    ] {
        refuse_both(&[upper], "b", directory("d"));
    }
    refuse_both(&[layer().dir("d"), layer().link("b", "d")], "b", directory("d"));
    refuse_both(
        &[layer().dir("d"), layer().whiteout(".wh.d").link("b", "d")],
        "b",
        directory("d"),
    );
    for root in ["/", ".", "", "a/.."] {
        refuse_both(&[layer().link("b", root)], "b", directory(root));
    }
    refuse_both(&[layer().link("a", "a")], "a", itself("a"));
    refuse_both(&[layer().file("a", 1).link("a", "./a")], "a", itself("./a"));
    refuse_both(&[layer().file("a", 1), layer().link("a", "a")], "a", itself("a"));
    refuse_both(&[layer().link("b", "a")], "b", missing("a"));
    refuse_both(&[layer().link("a", "b").link("b", "a")], "a", itself("b"));
    refuse_both(
        &[layer().file("b", 1), layer().link("a", "b").link("b", "a")],
        "a",
        itself("b"),
    );
    refuse_both(
        &[layer()
            .link("x", "a")
            .link("a", "b")
            .link("b", "c")
            .link("c", "a")],
        "x",
        itself("a"),
    );
}

#[test]
fn trap_36_chains_in_any_order() {
    let expected = ["a 1 [4 of a]", "b 1 [4 of a]", "c 1 [4 of a]", "d 1 [4 of a]"];
    expect_both(
        &[layer().file("a", 1).link("b", "a").link("c", "b").link("d", "c")],
        &expected,
    );
    expect_both(
        &[layer().link("d", "c").link("c", "b").link("b", "a").file("a", 1)],
        &expected,
    );
    expect_both(
        &[layer().link("c", "b").link("d", "c").link("b", "a").file("a", 1)],
        &expected,
    );
    // A chain that ends in a lower layer, where the names in between are other files.
    let lower = layer().file("a", 1).file("b", 2).file("c", 3);
    expect_both(
        &[lower, layer().link("d", "c").link("c", "b").link("b", "a")],
        &expected,
    );
}

#[test]
fn trap_37_paths_of_targets() {
    let expected = ["a 1 [2 of a]", "d/", "d/b 1 [2 of a]"];
    for target in ["/a", "../../a", "d/../a", "./a", "//a/"] {
        expect_both(&[layer().file("a", 1).dir("d").link("d/b", target)], &expected);
    }
    // Relative to the root and not to the link.
    expect_both(
        &[layer().file("a", 1).file("d/a", 2).link("d/b", "a")],
        &["a 1 [2 of a]", "d/ implied", "d/a 2", "d/b 1 [2 of a]"],
    );
    // Parents that are symbolic links stay in the tree; the last component is not followed.
    let lower = layer()
        .file("real/f", 1)
        .symlink("abs", "/real")
        .symlink("up", "../../real")
        .symlink("s", "real/f");
    for target in ["abs/f", "up/f"] {
        expect_both(
            &[lower.clone(), layer().link("b", target)],
            &[
                "abs -> /real",
                "b 1 [2 of b]",
                "real/ implied",
                "real/f 1 [2 of b]",
                "s -> real/f",
                "up -> ../../real",
            ],
        );
    }
    expect_both(
        &[lower, layer().link("b", "s").mode(0o777)],
        &[
            "abs -> /real",
            "b -> real/f [2 of b]",
            "real/ implied",
            "real/f 1",
            "s -> real/f [2 of b]",
            "up -> ../../real",
        ],
    );
    refuse_both(
        &[layer().symlink("x", "x").link("b", "x/f")],
        "b",
        FoldErrorKind::SymlinkLoop,
    );
    refuse_both(&[layer().file("f", 1).link("b", "f/g")], "b", missing("f/g"));
    refuse_both(&[layer().link("b", "/etc/passwd")], "b", missing("/etc/passwd"));
}

/// ext4 counts 65,000 names of a file. A directory may have more subdirectories (`dir_nlink`).
#[test]
fn trap_38_as_many_names_as_ext4_can_count() {
    let linked =
        |count: u32| (1..count).fold(layer().file("a", 1), |layer, n| layer.link(format!("n{n}"), "a"));
    for mode in BOTH {
        let folded = fold_with(mode, FoldLimits::default(), &[linked(65_000)]).unwrap();
        assert_eq!(folded.tree.inode(folded.tree.lookup(b"a").unwrap()).names, 65_000);
        let error = fold_with(mode, FoldLimits::default(), &[linked(65_001)]).unwrap_err();
        assert_eq!(error.kind, FoldErrorKind::TooManyLinks { limit: 65_000 });
        // The same through links that wait, and over two layers.
        let error = fold_with(
            mode,
            FoldLimits::default(),
            &[linked(65_000), layer().link("one", "a")],
        )
        .unwrap_err();
        assert_eq!((error.layer, error.path), (2, b"one".to_vec()));
    }
    let directories = (0..70_000).fold(layer().dir("d"), |layer, n| layer.dir(format!("d/{n}")));
    assert!(fold_with(Mode::Oci, FoldLimits::default(), &[directories]).is_ok());
}
