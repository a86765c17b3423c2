//! Crafted stacks of layers, and how other tools are known to differ on them.

use test_support::image::Layer;

/// Layers, and what is known of the tools.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) layers: Vec<Layer>,
    pub(crate) umoci: Expected,
    pub(crate) containerd: Expected,
}

/// How a tool compares with this crate.
pub(crate) enum Expected {
    Same,
    BothRefuse,
    /// Why.
    WeRefuse(#[expect(dead_code, reason = "for whoever reads the list")] &'static str),
    /// Why.
    TheyRefuse(#[expect(dead_code, reason = "for whoever reads the list")] &'static str),
    /// Why, and in what: theirs on the left.
    Differs(
        #[expect(dead_code, reason = "for whoever reads the list")] &'static str,
        &'static [&'static str],
    ),
}

use Expected::{BothRefuse, Differs, Same, TheyRefuse, WeRefuse};

fn layer() -> Layer {
    Layer::new()
}

fn case(name: &'static str, layers: impl Into<Vec<Layer>>, umoci: Expected, containerd: Expected) -> Case {
    Case {
        name,
        layers: layers.into(),
        umoci,
        containerd,
    }
}

pub(crate) fn all() -> Vec<Case> {
    let lower = || {
        layer()
            .directory("d", 0o755)
            .file("d/old", "old")
            .directory("d/sub", 0o755)
            .file("d/sub/old", "o")
    };
    let usr = || {
        layer()
            .directory("usr", 0o755)
            .directory("usr/lib", 0o755)
            .symlink("lib", "usr/lib")
    };
    vec![
        case(
            "one-of-everything",
            [everything()],
            Differs(
                "Go's tar reader takes a PAX record without a value for none",
                &["/d/attributes xattr:user.empty: nothing | "],
            ),
            Same,
        ),
        case(
            "whiteout-after-file",
            [layer().file("f", "1"), layer().file("f", "2").whiteout("f")],
            Same,
            TheyRefuse("making the whiteout fails because the file is there"),
        ),
        case(
            "whiteout-after-file-in-one-layer",
            [layer().file("f", "2").whiteout("f")],
            Same,
            Differs(
                "the whiteout replaces the file of its own layer: data loss",
                &["/f: nothing | file"],
            ),
        ),
        case(
            "opaque-after-sibling",
            [
                lower(),
                layer().directory("d", 0o755).file("d/new", "n").opaque("d"),
            ],
            Same,
            Same,
        ),
        case(
            "opaque-after-implied-parents",
            [lower(), layer().file("d/sub/new", "n").opaque("d")],
            Same,
            Differs(
                "copying the directory up dates it",
                &["/d mtime: now | 1577836800.000000000"],
            ),
        ),
        case(
            "whiteout-then-directory",
            [
                lower(),
                layer().whiteout("d").directory("d", 0o755).file("d/new", "n"),
            ],
            Same,
            Differs(
                "the new directory is not opaque, so the old content returns",
                &[
                    "/d/old: file | nothing",
                    "/d/sub: directory | nothing",
                    "/d/sub/old: file | nothing",
                ],
            ),
        ),
        case(
            "directory-then-whiteout",
            [
                lower(),
                layer().directory("d", 0o755).file("d/new", "n").whiteout("d"),
            ],
            Differs(
                "removing the old content dates the directory",
                &["/d mtime: now | 1577836800.000000000"],
            ),
            TheyRefuse("making the whiteout fails because the directory is there"),
        ),
        case(
            "whiteout-of-a-directory-and-in-it",
            [lower(), layer().whiteout("d").whiteout("d/old")],
            Same,
            TheyRefuse("the second whiteout's directory is a whiteout by then"),
        ),
        case(
            "whiteout-of-nothing-there",
            [lower(), layer().whiteout("gone").whiteout("d/gone")],
            Same,
            Differs(
                "copying the directory up dates it",
                &["/d mtime: now | 1577836800.000000000"],
            ),
        ),
        case(
            "bare-whiteout",
            [lower(), layer().file("d/.wh.", "")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "whiteout-of-a-link",
            [layer().file("f", "1").symlink("s", "f"), layer().whiteout("s")],
            Same,
            Same,
        ),
        case(
            "whiteout-below-a-link",
            [
                layer()
                    .file("real/x", "1")
                    .file("real/y", "2")
                    .symlink("link", "real"),
                layer().whiteout("link/x"),
            ],
            Same,
            Differs(
                "overlay shows the whiteout's name in a directory that hides no other",
                &["/link/x: nothing | nothing"],
            ),
        ),
        case(
            "whiteout-in-a-directory-that-is-not-there",
            [layer().file("f", "1"), layer().whiteout("x/y")],
            Same,
            Differs(
                "containerd makes the directories of a whiteout that hides nothing",
                &["/x: directory | nothing", "/x/y: nothing | nothing"],
            ),
        ),
        case(
            "whiteout-directory-typed",
            [
                layer().file("f", "1").file("g", "2"),
                layer().directory(".wh.f", 0o755),
            ],
            Same,
            Same,
        ),
        case(
            "whiteout-in-the-middle",
            [lower(), layer().file(".wh.d/child", "1").file("f", "2")],
            WeRefuse("the specification has no such names; umoci makes the directory"),
            Differs(
                "such names cannot exist in an image",
                &["/.wh.d: directory | nothing", "/.wh.d/child: file | nothing"],
            ),
        ),
        case(
            "aufs-remains",
            [layer()
                .file(".wh..wh.aufs", "")
                .directory(".wh..wh.plnk", 0o700)
                .file(".wh..wh.plnk/1.2", "x")
                .hard_link("a", ".wh..wh.plnk/1.2")],
            Differs(
                "umoci does not know AUFS",
                &[
                    "/.wh..wh.plnk: directory | nothing",
                    "/.wh..wh.plnk/1.2: file | nothing",
                    "/a names: 2 | 1",
                    "/a link: /.wh..wh.plnk/1.2 | nothing",
                ],
            ),
            Differs(
                "containerd does not know AUFS any more",
                &[
                    "/.wh..wh.plnk: directory | nothing",
                    "/.wh..wh.plnk/1.2: file | nothing",
                    "/a names: 2 | 1",
                    "/a link: /.wh..wh.plnk/1.2 | nothing",
                ],
            ),
        ),
        case(
            "device-0-0",
            [
                layer().file("f", "1"),
                layer().character_device("f", 0, 0).file("g", "2"),
            ],
            Same,
            Differs(
                "overlay takes the device for a whiteout",
                &["/f: nothing | character-device"],
            ),
        ),
        case(
            "directory-over-directory",
            [
                layer()
                    .directory("d", 0o700)
                    .owner(1, 2)
                    .xattr("user.old", "1")
                    .file("d/f", "1"),
                layer().directory("d", 0o750).xattr("user.new", "2"),
            ],
            Same,
            Same,
        ),
        case(
            "file-over-directory",
            [lower(), layer().file("d", "f")],
            Same,
            Same,
        ),
        case(
            "directory-over-file",
            [
                layer().file("d", "f"),
                layer().directory("d", 0o755).file("d/x", "1"),
            ],
            Same,
            Same,
        ),
        case(
            "link-over-directory",
            [lower(), layer().symlink("d", "elsewhere")],
            Same,
            Same,
        ),
        case(
            "file-over-a-name-of-three",
            [
                layer().file("a", "1").hard_link("b", "a").hard_link("c", "a"),
                layer().file("a", "9"),
            ],
            Same,
            Differs(
                "overlay counts the hidden name too",
                &["/b names: 3 | 2", "/c names: 3 | 2"],
            ),
        ),
        case("implied-parents", [layer().file("a/b/c", "1")], Same, Same),
        case(
            "implied-parent-is-a-file",
            [layer().file("a", "1"), layer().file("a/b", "2")],
            TheyRefuse("umoci 0.4 does not replace the file; later versions do"),
            Same,
        ),
        case(
            "below-a-lower-link",
            [usr(), layer().file("lib/x", "1")],
            Same,
            Same,
        ),
        case(
            "below-a-link-of-the-same-layer",
            [usr().file("lib/x", "1")],
            Same,
            Same,
        ),
        case(
            "directory-over-link",
            [
                usr().file("usr/lib/old", "1"),
                layer().directory("lib", 0o755).file("lib/x", "1"),
            ],
            Same,
            Same,
        ),
        case(
            "below-an-absolute-link",
            [
                layer().symlink("abs", "/tmp/x").symlink("up", "../../etc"),
                layer().file("abs/f", "1").file("up/g", "2"),
            ],
            Same,
            Same,
        ),
        case(
            "below-a-circle",
            [
                layer().symlink("a", "b").symlink("b", "a"),
                layer().file("a/f", "1"),
            ],
            BothRefuse,
            TheyRefuse("copying the parent up follows the circle; here the link is replaced, as any other"),
        ),
        case(
            "root-entry",
            [layer().directory("./", 0o700).owner(1, 2).file("f", "1")],
            Same,
            Same,
        ),
        case(
            "clamped-paths",
            [layer()
                .file("/abs", "1")
                .file("a/../b", "2")
                .file("../../esc", "3")],
            Same,
            Same,
        ),
        case(
            "odd-slashes",
            [layer().file("a//b", "1").file("./c", "2").directory("d//", 0o755)],
            Same,
            Same,
        ),
        case(
            "name-of-255-bytes",
            [layer().file("n".repeat(255), "1")],
            Same,
            Same,
        ),
        case(
            "name-of-256-bytes",
            [layer().file("n".repeat(256), "1")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "duplicates",
            [layer()
                .file("f", "1")
                .symlink("f", "x")
                .file("f", "3")
                .directory("d", 0o755)
                .file("d/x", "1")
                .directory("d", 0o700)],
            Same,
            Same,
        ),
        case(
            "closed-directory",
            [layer().directory("d", 0), layer().file("d/f", "1")],
            Same,
            Differs(
                "copying the directory up dates it",
                &["/d mtime: now | 1577836800.000000000"],
            ),
        ),
        case(
            "dates-of-parents",
            [
                layer().directory("d", 0o755).mtime(500, 0).file("d/old", "1"),
                layer().file("d/new", "2").whiteout("d/old"),
            ],
            Same,
            Differs(
                "copying the directory up dates it",
                &["/d mtime: now | 500.000000000"],
            ),
        ),
        case(
            "link-to-a-lower-layer",
            [layer().file("a", "1"), layer().hard_link("b", "a")],
            Same,
            TheyRefuse("the target is looked up in the layer's own directory"),
        ),
        case(
            "link-to-what-is-whited-out-before",
            [layer().file("a", "1"), layer().whiteout("a").hard_link("b", "a")],
            TheyRefuse("the target is gone; the specification is silent, and here no data is lost"),
            Differs("the link is to the whiteout itself", &["/b: nothing | file"]),
        ),
        case(
            "link-to-what-is-whited-out-after",
            [layer().file("a", "1"), layer().hard_link("b", "a").whiteout("a")],
            Same,
            TheyRefuse("the target is looked up in the layer's own directory"),
        ),
        case(
            "first-name-deleted",
            [layer().file("a", "1").hard_link("b", "a"), layer().whiteout("a")],
            Same,
            Differs(
                "overlay counts the hidden name too",
                &["/b names: 2 | 1", "/b link: /b | nothing"],
            ),
        ),
        case(
            "first-name-replaced",
            [layer().file("a", "1").hard_link("b", "a"), layer().file("a", "2")],
            Same,
            Differs(
                "overlay counts the hidden name too",
                &["/b names: 2 | 1", "/b link: /b | nothing"],
            ),
        ),
        case(
            "link-before-target",
            [layer().hard_link("b", "a").file("a", "1")],
            TheyRefuse("links are made in archive order"),
            TheyRefuse("links are made in archive order"),
        ),
        case(
            "link-with-its-own-header",
            [
                layer().file("a", "1").mode(0o600).owner(1, 1),
                layer()
                    .file("x", "1")
                    .mode(0o600)
                    .hard_link("y", "x")
                    .mode(0o777)
                    .owner(5, 5)
                    .mtime(7, 0),
            ],
            Same,
            Same,
        ),
        case(
            "link-to-link-device-pipe",
            [layer()
                .symlink("s", "x")
                .character_device("c", 1, 3)
                .fifo("p")
                .hard_link("s2", "s")
                .mode(0o777)
                .hard_link("c2", "c")
                .mode(0o644)
                .hard_link("p2", "p")
                .mode(0o644)],
            Same,
            Same,
        ),
        case(
            "link-to-a-directory",
            [layer().directory("d", 0o755).hard_link("b", "d")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "link-to-itself",
            [layer().hard_link("a", "a")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "link-to-the-root",
            [layer().hard_link("b", "/")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "link-to-nothing",
            [layer().hard_link("b", "a")],
            BothRefuse,
            BothRefuse,
        ),
        case(
            "link-with-an-absolute-target",
            [layer()
                .file("a", "1")
                .directory("d", 0o755)
                .hard_link("d/b", "/a")
                .hard_link("d/c", "../../a")],
            Same,
            Same,
        ),
        case(
            "link-through-a-link",
            [layer()
                .file("real/f", "1")
                .symlink("l", "/real")
                .hard_link("b", "l/f")],
            Same,
            Same,
        ),
        case(
            "directory-becomes-link-between",
            [layer()
                .directory("d", 0o755)
                .file("d/a", "1")
                .symlink("d", "/etc")
                .file("d/b", "2")],
            Same,
            Same,
        ),
        case(
            "link-then-directory",
            [layer()
                .directory("etc", 0o700)
                .symlink("l", "etc")
                .directory("l", 0o777)],
            Same,
            Same,
        ),
        case(
            "returning-name",
            [lower(), layer().whiteout("d"), layer().file("d/new", "1")],
            Same,
            Same,
        ),
    ]
}

/// Every type and attribute, in one layer and without anything to disagree about.
fn everything() -> Layer {
    layer()
        .directory("d", 0o1777)
        .owner(4_000_000_000, 70_000)
        .file("d/setuid", "x")
        .mode(0o6755)
        .owner(5, 6)
        .file("d/capable", "x")
        .mode(0o755)
        .file_capability(1 << 10)
        .file("d/attributes", "x")
        .xattr("user.nul", b"a\0=\xff")
        .xattr("user.empty", "")
        .symlink("s", "some where")
        .owner(7, 8)
        .character_device("c", 1, 3)
        .block_device("b", 8, 300)
        .fifo("p")
        .file(b"not utf-8 \xff", "x")
        .file("nanoseconds", "x")
        .mtime(1_600_000_000, 123_456_789)
        .file("empty", "")
        .file("large", vec![7; 300_000])
        .hard_link("d/again", "large")
        .pax_sparse_file("sparse", 1 << 20, &[(65_536, b"data")])
}
