//! Traps 1 to 16: whiteouts and opaque markers.

use rootfs::fold::{FoldErrorKind, Mode, NoteKind};

use crate::dsl::{Layer, expect, expect_both, fold, layer, note, notes, refuse, refuse_both, show};

/// `d/old` and `d/sub/old` in a lower layer.
fn lower() -> Layer {
    layer()
        .dir("d")
        .file("d/old", 1)
        .dir("d/sub")
        .file("d/sub/old", 2)
}

/// "Whiteout files MUST only apply to resources in lower/parent layers." Docker's overlay fails or deletes `f`, which
/// is a loss of data and so not imitated.
#[test]
fn trap_01_whiteout_after_the_file_in_the_same_layer_keeps_the_file() {
    expect_both(
        &[layer().file("f", 1), layer().file("f", 2).whiteout(".wh.f")],
        &["f 2"],
    );
    expect_both(
        &[layer().file("f", 1), layer().whiteout(".wh.f").file("f", 2)],
        &["f 2"],
    );
    expect_both(&[layer().file("f", 2).whiteout(".wh.f")], &["f 2"]);
}

/// "`a/.wh..wh..opq` is applied first regardless of the ordering."
#[test]
fn trap_02_opaque_after_the_siblings_keeps_them() {
    let expected = ["d/", "d/new 9"];
    expect_both(
        &[
            lower(),
            layer().dir("d").file("d/new", 9).whiteout("d/.wh..wh..opq"),
        ],
        &expected,
    );
    expect_both(
        &[
            lower(),
            layer().dir("d").whiteout("d/.wh..wh..opq").file("d/new", 9),
        ],
        &expected,
    );
}

/// containerd without overlay forgets that `d/sub` is new because no entry names it, and deletes what is below.
#[test]
fn trap_03_opaque_after_a_file_whose_parents_have_no_entries() {
    expect_both(
        &[lower(), layer().file("d/sub/new", 9).whiteout("d/.wh..wh..opq")],
        &["d/", "d/sub/ implied", "d/sub/new 9"],
    );
}

/// Overlay brings `d/old` back, because the new directory is not opaque. The specification has only `d/new`.
#[test]
fn trap_04_whiteout_then_the_directory_anew() {
    expect_both(
        &[lower(), layer().whiteout(".wh.d").dir("d").file("d/new", 9)],
        &["d/", "d/new 9"],
    );
}

/// The same in the other order, where containerd fails.
#[test]
fn trap_05_the_directory_anew_then_its_whiteout() {
    expect_both(
        &[lower(), layer().dir("d").file("d/new", 9).whiteout(".wh.d")],
        &["d/", "d/new 9"],
    );
}

/// The second whiteout finds nothing, and that is no error in either order.
#[test]
fn trap_06_whiteout_of_a_directory_and_of_something_in_it() {
    expect_both(&[lower(), layer().whiteout(".wh.d").whiteout("d/.wh.old")], &[]);
    expect_both(&[lower(), layer().whiteout("d/.wh.old").whiteout(".wh.d")], &[]);
    expect_both(
        &[lower(), layer().whiteout(".wh.d").whiteout("d/.wh..wh..opq")],
        &[],
    );
}

#[test]
fn trap_07_whiteout_of_something_absent_does_nothing() {
    let layers = [
        layer().file("f", 1),
        layer()
            .whiteout(".wh.gone")
            .whiteout("no/where/.wh.x")
            .whiteout("f/.wh.x"),
    ];
    expect_both(&layers, &["f 1"]);
    expect_both(
        &[
            layer().file("f", 1),
            layer().whiteout("no/.wh..wh..opq").whiteout("f/.wh..wh..opq"),
        ],
        &["f 1"],
    );
}

/// "A `.wh.` file, without a basename ... SHOULD return an error." `.` and `..` are no names either: removing them
/// would remove the directory itself or its parent.
#[test]
fn trap_08_a_whiteout_of_nothing_is_an_error() {
    for path in [".wh.", "d/.wh.", "d/.wh..", "d/.wh..."] {
        refuse_both(
            &[lower(), layer().whiteout(path)],
            path,
            FoldErrorKind::EmptyWhiteout,
        );
    }
    // Three dots and more are ordinary names.
    expect_both(&[layer().file("...", 1), layer().whiteout(".wh....")], &[]);
}

/// The specification wants an empty regular file; all tools take anything.
#[test]
fn trap_09_a_whiteout_may_be_of_any_type() {
    let whiteouts = [
        layer().dir(".wh.f"),
        layer().symlink(".wh.f", "/etc"),
        layer().link(".wh.f", "nowhere"),
        layer().fifo(".wh.f"),
        layer().char(".wh.f", 1, 3),
        layer().file(".wh.f", 10),
    ];
    for whiteout in whiteouts {
        let layers = [layer().file("f", 1).file("g", 2), whiteout];
        expect_both(&layers, &["g 2"]);
        assert_eq!(notes(Mode::Oci, &layers), [note(".wh.f", NoteKind::WhiteoutType)]);
    }
}

/// Such a name cannot exist in an image. umoci and containerd make the directory; the specification leaves no room.
#[test]
fn trap_10_a_whiteout_name_in_the_middle_of_a_path() {
    let layers = [lower(), layer().file(".wh.d/child", 1).file("f", 3)];
    refuse(
        Mode::Oci,
        &layers,
        ".wh.d/child",
        FoldErrorKind::WhiteoutDirectory,
    );
    expect(
        Mode::Docker,
        &layers,
        &["d/", "d/old 1", "d/sub/", "d/sub/old 2", "f 3"],
    );
    assert_eq!(
        notes(Mode::Docker, &layers),
        [note(".wh.d/child", NoteKind::InWhiteout)]
    );
}

/// As Docker and containers/storage: nothing of it becomes a file, and `.wh..wh.plnk` holds targets of hard links.
#[test]
fn trap_11_what_aufs_left_at_the_root() {
    let layers = [
        layer().file("f", 1),
        layer()
            .dir(".wh..wh.plnk")
            .file(".wh..wh.plnk/12.34", 7)
            .file(".wh..wh.plnk/unused", 8)
            .file(".wh..wh.aufs", 0)
            .dir(".wh..wh.orph")
            .link("a", ".wh..wh.plnk/12.34")
            .link("b", "/.wh..wh.plnk/12.34"),
    ];
    expect_both(&layers, &["a 7 [2 of a]", "b 7 [2 of a]", "f 1"]);
    // The link may stand first, as any other.
    let before = [layer().link("a", ".wh..wh.plnk/1").file(".wh..wh.plnk/1", 7)];
    expect_both(&before, &["a 7"]);
    // Opaque at the root begins with the same bytes and still is what it is.
    expect_both(
        &[
            layer().file("f", 1),
            layer().whiteout(".wh..wh..opq").file("g", 2),
        ],
        &["g 2"],
    );
}

/// By the specification the whiteout removes what the link leads to. Docker puts a directory in place of the link.
#[test]
fn trap_12_whiteout_below_a_symbolic_link() {
    let lower = layer()
        .dir("real")
        .file("real/x", 1)
        .file("real/y", 2)
        .symlink("link", "real");
    let layers = [lower.clone(), layer().whiteout("link/.wh.x")];
    expect(Mode::Oci, &layers, &["link -> real", "real/", "real/y 2"]);
    expect(
        Mode::Docker,
        &layers,
        &["link/ implied", "real/", "real/x 1", "real/y 2"],
    );
    for mode in [Mode::Oci, Mode::Docker] {
        assert_eq!(
            notes(mode, &layers)[0],
            note("link/.wh.x", NoteKind::WhiteoutThroughSymlink)
        );
    }
    let opaque = [lower.clone(), layer().whiteout("link/.wh..wh..opq")];
    expect(Mode::Oci, &opaque, &["link -> real", "real/"]);
    // Whiteouts act on the lower layers as they are, so removing the link too changes nothing for `real`.
    for both in [
        layer().whiteout("link/.wh.x").whiteout(".wh.link"),
        layer().whiteout(".wh.link").whiteout("link/.wh.x"),
    ] {
        expect(Mode::Oci, &[lower.clone(), both], &["real/", "real/y 2"]);
    }
    // A link of the same layer does not exist for the lower layers.
    let lower = layer().dir("real").file("real/x", 1);
    expect_both(
        &[lower, layer().symlink("link", "real").whiteout("link/.wh.x")],
        &["link -> real", "real/", "real/x 1"],
    );
}

#[test]
fn trap_13_a_whiteout_removes_the_name_and_nothing_else() {
    let lower = layer()
        .dir("dir")
        .dir("dir/deep")
        .file("dir/deep/f", 1)
        .file("file", 2)
        .symlink("symlink", "file")
        .file("name", 3)
        .link("alias", "name");
    let whiteouts = layer()
        .whiteout(".wh.dir")
        .whiteout(".wh.symlink")
        .whiteout(".wh.name");
    expect_both(&[lower.clone(), whiteouts], &["alias 3", "file 2"]);
    expect_both(
        &[
            lower,
            layer().whiteout(".wh.dir").file("dir", 9),
            layer().whiteout(".wh.dir"),
        ],
        &[
            "alias 3 [2 of alias]",
            "file 2",
            "name 3 [2 of alias]",
            "symlink -> file",
        ],
    );
}

/// Overlay uses 0:0 as a whiteout; in a tar archive it is a device like any other.
#[test]
fn trap_14_a_character_device_0_0_is_a_device() {
    let layers = [layer().file("f", 1), layer().char("f", 0, 0)];
    expect_both(&layers, &["f char 0:0"]);
    assert_eq!(notes(Mode::Oci, &layers), [note("f", NoteKind::WhiteoutDevice)]);
}

/// google/go-containerregistry #1623 leaves them in.
#[test]
fn trap_15_whiteouts_in_the_lowest_layer_are_not_files() {
    expect_both(
        &[layer().file("f", 1).whiteout(".wh.g").whiteout("d/.wh..wh..opq")],
        &["f 1"],
    );
}

/// containerd #13030 unpacked layers in parallel, and each took itself for the lowest. Indexes are made one by one
/// here too, but whiteouts have no meaning before the fold, where every layer knows what is below.
#[test]
fn trap_16_whiteouts_of_every_layer_act() {
    let layers = [
        layer().file("a", 1).file("b", 2).file("c", 3),
        layer().whiteout(".wh.a"),
        layer().whiteout(".wh.b"),
    ];
    expect_both(&layers, &["c 3"]);
}

/// A whiteout name stands for a name of up to 255 bytes, so it has up to 259.
#[test]
fn the_longest_name_can_be_whited_out() {
    let name = "n".repeat(255);
    expect_both(
        &[layer().file(&name, 1), layer().whiteout(format!(".wh.{name}"))],
        &[],
    );
}

/// What one layer removed can come back in the next, and is new then.
#[test]
fn a_removed_name_can_return() {
    let tree = fold(
        Mode::Oci,
        &[lower(), layer().whiteout(".wh.d"), layer().file("d/new", 1)],
    )
    .tree;
    assert_eq!(show(&tree), ["d/ implied", "d/new 1"]);
}
