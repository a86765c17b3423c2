//! Known vulnerabilities of unpackers. Most of them cannot be expressed here, because nothing of a layer is ever
//! looked up on the host; what remains to be shown is that the tree comes out as a careful unpacker would have it.

use rootfs::{
    Metadata,
    fold::{FoldErrorKind, Mode},
    layer::{Body, EntryKind},
    tree::FileContent,
};

use crate::dsl::{BOTH, expect, expect_both, fold, layer, refuse, refuse_both, show};

/// containerd 2.1.0 remembered which parents it had verified; a link that took a directory's place went unseen.
#[test]
fn cve_2025_47290_a_directory_becomes_a_link_between_two_entries() {
    let layers = [layer()
        .dir("d")
        .file("d/a", 1)
        .symlink("d", "/etc")
        .file("d/b", 2)];
    expect_both(&layers, &["d -> /etc", "etc/ implied", "etc/b 2"]);
}

/// umoci: an entry for the root that is a symbolic link replaced the target directory.
#[test]
fn cve_2021_29136_the_root_as_anything_but_a_directory() {
    for path in ["/.", "", ".", "./", "a/.."] {
        let refused = [
            layer().symlink(path, "/etc"),
            layer().file(path, 1),
            layer().link(path, "f"),
            layer().fifo(path),
            layer().char(path, 1, 3),
        ];
        for layer in refused {
            refuse_both(&[layer], path, FoldErrorKind::RootNotDirectory);
        }
    }
}

/// boxlite (RUSTSEC-2026-0148): a link out of the root, then a file below it, was written on the host.
#[test]
fn cve_2026_46703_a_file_below_a_link_that_leads_out() {
    for target in ["/tmp", "../../tmp", "/proc/self/root/tmp"] {
        for layers in [
            vec![layer().symlink("escape", target).file("escape/x", 1)],
            vec![layer().symlink("escape", target), layer().file("escape/x", 1)],
        ] {
            let tree = fold(Mode::Oci, &layers).tree;
            let expected = if target.contains("proc") {
                &b"proc/self/root/tmp/x"[..]
            } else {
                b"tmp/x"
            };
            assert!(tree.lookup(expected).is_some(), "{:?}", show(&tree));
        }
    }
}

/// tar-rs: a link, then a directory of the same name, and the mode went to what the link led to.
#[test]
fn cve_2026_33056_a_directory_over_a_link_changes_nothing_behind_it() {
    let expected = ["etc/ 700", "link/ 777"];
    expect_both(
        &[layer()
            .dir("etc")
            .mode(0o700)
            .symlink("link", "etc")
            .dir("link")
            .mode(0o777)],
        &expected,
    );
    expect_both(
        &[
            layer().dir("etc").mode(0o700).symlink("link", "etc"),
            layer().dir("link").mode(0o777),
        ],
        &expected,
    );
}

/// containers/storage read /etc/passwd of an image on the host, through a link or from a pipe. What builderd reads of
/// an image it looks up in the tree, where a pipe is no file and a link leads nowhere else.
#[test]
fn cve_2024_9676_files_that_builderd_reads_are_looked_up_in_the_tree() {
    let layers = [layer()
        .fifo("etc/passwd")
        .symlink("etc/group", "/proc/1/root/etc/group")];
    for mode in BOTH {
        let tree = fold(mode, &layers).tree;
        let passwd = tree.resolve(b"/etc/passwd").unwrap();
        assert!(!matches!(tree.inode(passwd).kind, rootfs::InodeKind::File(_)));
        assert!(tree.resolve(b"/etc/group").is_err());
    }
}

/// kaniko, oras-go, apko, docker cp, runc: something is added to an image after its links were made by the image.
#[test]
fn cve_2018_15664_and_others_what_is_added_later_stays_in_the_tree() {
    let links = layer()
        .symlink("etc", "/../../outside")
        .symlink("dev", "/")
        .symlink("resolv", "../../../etc/x");
    for mode in BOTH {
        let mut tree = fold(mode, std::slice::from_ref(&links)).tree;
        tree.create_directories(b"/etc", &Metadata::root(0o755)).unwrap();
        tree.put_file(b"/etc/hosts", Metadata::root(0o644), FileContent::inline(*b"x"))
            .unwrap();
        tree.put_file(b"/dev/console", Metadata::root(0o600), FileContent::inline(*b"x"))
            .unwrap();
        tree.put_file(b"/resolv", Metadata::root(0o644), FileContent::inline(*b"x"))
            .unwrap();
        tree.check().unwrap();
        for path in [&b"/outside/hosts"[..], b"/console", b"/resolv"] {
            assert!(tree.lookup(path).is_some(), "{:?}", show(&tree));
        }
    }
}

/// oras-go resolved a link's target against the working directory; others against the link's own.
#[test]
fn cve_2026_28406_and_others_link_targets_are_looked_up_in_the_image_only() {
    for target in [
        "/etc/hostname",
        "../../../../etc/hostname",
        "Cargo.toml",
        "proc/self/exe",
    ] {
        let kind = FoldErrorKind::LinkTargetMissing {
            target: target.into(),
        };
        refuse_both(&[layer().dir("d").link("d/x", target)], "d/x", kind);
    }
    // Through a link that leads out.
    let kind = FoldErrorKind::LinkTargetMissing {
        target: b"out/passwd".to_vec(),
    };
    refuse_both(
        &[layer().symlink("out", "/etc"), layer().link("x", "out/passwd")],
        "x",
        kind,
    );
}

/// CVE-2014-6407, -9356, -9357, CVE-2018-8115: absolute paths, climbing paths, links above links.
#[test]
fn cve_2014_9357_classic_ways_out() {
    expect_both(
        &[layer().file("/../../../etc/passwd", 1)],
        &["etc/ implied", "etc/passwd 1"],
    );
    expect_both(
        &[layer().file("a/../../../etc/passwd", 1)],
        &["etc/ implied", "etc/passwd 1"],
    );
    let links = layer()
        .symlink("l1", "..")
        .symlink("l2", "l1/..")
        .symlink("l3", "l2/../..");
    expect_both(
        &[links.file("l3/f", 1)],
        &["f 1", "l1 -> ..", "l2 -> l1/..", "l3 -> l2/../.."],
    );
    // Whiteouts as a way to delete: the name `..` was one in Docker's past.
    refuse_both(
        &[layer().file("d/f", 1), layer().whiteout("d/.wh...")],
        "d/.wh...",
        FoldErrorKind::EmptyWhiteout,
    );
    expect(
        Mode::Oci,
        &[
            layer().file("f", 1).symlink("up", "../.."),
            layer().whiteout("up/.wh.f"),
        ],
        &["up -> ../.."],
    );
}

/// CVE-2021-20291: a layer that made the unpacker wait for ever. Circles end with an error.
#[test]
fn cve_2021_20291_circles_end() {
    let circle = layer().symlink("a", "b/x").symlink("b", "a/x");
    refuse(
        Mode::Oci,
        &[circle.clone(), layer().whiteout("a/.wh.f")],
        "a/.wh.f",
        FoldErrorKind::SymlinkLoop,
    );
    refuse(
        Mode::Oci,
        &[circle.clone(), layer().file("b/f", 1)],
        "b/f",
        FoldErrorKind::SymlinkLoop,
    );
    let tree = fold(Mode::Oci, &[circle]).tree;
    assert!(tree.resolve(b"/a").is_err());
    assert_eq!(tree.lookup(b"/a/f"), None);
}

/// A name from a link's target gets no more than a name from a path.
#[test]
fn names_that_come_from_a_links_target_are_verified_too() {
    let long = "n".repeat(300);
    let path = "l/f";
    refuse(
        Mode::Oci,
        &[layer().symlink("l", &long), layer().file(path, 1)],
        path,
        FoldErrorKind::NameTooLong { length: 300 },
    );
    refuse_both(
        &[layer().symlink("l", ".wh.x").file(path, 1)],
        path,
        FoldErrorKind::WhiteoutDirectory,
    );
    let deep = "d/".repeat(300);
    refuse_both(
        &[layer().symlink("l", deep).file(path, 1)],
        path,
        FoldErrorKind::TooDeep { limit: 255 },
    );
}

/// A name cannot forge a line of the build's log.
#[test]
fn control_characters_of_names_do_not_reach_the_log() {
    let body = EntryKind::File(Body::default());
    let layers = [layer().entry("a\nlevel=error\x1b[31m/../b", 0o644, body)];
    let report = fold(Mode::Oci, &layers).report;
    assert!(
        report.notes[0]
            .to_string()
            .starts_with("layer 1: a\\nlevel=error\\u{1b}[31m/../b: the path has")
    );
}
