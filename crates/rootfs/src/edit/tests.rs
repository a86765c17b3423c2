use super::{EditErrorKind, Excludes};
use crate::{DeviceNumber, Metadata, Tree, tree::FileContent};

fn dir() -> Metadata {
    Metadata::root(0o755)
}

fn content(size: usize) -> FileContent {
    FileContent::inline(vec![b'x'; size])
}

fn put(tree: &mut Tree, path: &str, size: usize) {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    tree.create_directories(parent.as_bytes(), &dir()).unwrap();
    tree.put_file(path.as_bytes(), Metadata::root(0o644), content(size))
        .unwrap();
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.check().unwrap();
    tree.walk()
        .skip(1)
        .map(|(path, _)| String::from_utf8(path).unwrap())
        .collect()
}

/// An image as an image can be: links that lead out, in circles, to nothing, and to files.
fn crooked() -> Tree {
    let mut tree = Tree::new();
    put(&mut tree, "real/f", 1);
    for (path, target) in [
        ("up", "../../../real"),
        ("absolute", "/real"),
        ("circle", "circle"),
        ("dangling", "/new/place"),
        ("tofile", "real/f"),
        ("chain", "up/../absolute"),
    ] {
        tree.put_symlink(path.as_bytes(), Metadata::root(0o777), target.as_bytes())
            .unwrap();
    }
    tree
}

#[test]
fn links_on_the_way_are_followed_inside_the_tree() {
    let tree = crooked();
    let f = tree.lookup(b"real/f");
    assert!(f.is_some());
    for path in [
        "/up/f",
        "absolute/f",
        "chain/f",
        "//real/./f",
        "real/../../real/f",
        "up/../real/f",
    ] {
        assert_eq!(tree.lookup(path.as_bytes()), f, "{path}");
    }
    assert_ne!(tree.lookup(b"tofile"), f, "the last component is not followed");
    assert_eq!(tree.resolve(b"tofile").ok(), f);
    for (path, kind) in [
        ("circle", EditErrorKind::SymlinkLoop),
        ("circle/f", EditErrorKind::SymlinkLoop),
        ("dangling", EditErrorKind::NotFound),
        ("nothing", EditErrorKind::NotFound),
        ("nothing/..", EditErrorKind::NotFound),
        ("real/f/g", EditErrorKind::NotDirectory),
        ("real/f/..", EditErrorKind::NotDirectory),
    ] {
        assert_eq!(tree.resolve(path.as_bytes()).unwrap_err().kind, kind, "{path}");
    }
    assert_eq!(tree.resolve(b"/").ok(), Some(Tree::ROOT));
    assert_eq!(tree.resolve(b"../..").ok(), Some(Tree::ROOT));
}

#[test]
fn directories_are_made_where_links_lead() {
    let mut tree = crooked();
    let made = tree
        .create_directories(b"up/a/b", &Metadata::root(0o700))
        .unwrap();
    assert_eq!(tree.lookup(b"real/a/b"), Some(made));
    assert_eq!(tree.inode(made).metadata.mode, 0o700);
    // What is there stays as it is.
    assert_eq!(tree.create_directories(b"real/a/b", &dir()).unwrap(), made);
    assert_eq!(tree.inode(made).metadata.mode, 0o700);
    // Where a link leads to nothing yet, all of that is made, as for a working directory in a container.
    let x = tree.create_directories(b"dangling/x", &dir()).unwrap();
    assert_eq!(tree.lookup(b"new/place/x"), Some(x));
    assert_eq!(
        tree.create_directories(b"tofile/x", &dir()).unwrap_err().kind,
        EditErrorKind::NotDirectory
    );
    assert_eq!(
        tree.create_directories(b"circle/x", &dir()).unwrap_err().kind,
        EditErrorKind::SymlinkLoop
    );
    assert_eq!(tree.create_directories(b"/", &dir()).unwrap(), Tree::ROOT);
    assert_eq!(
        tree.create_directories(&[b'n'; 256], &dir()).unwrap_err().kind,
        EditErrorKind::InvalidLength
    );
    assert_eq!(
        tree.create_directories(b"a\0b", &dir()).unwrap_err().kind,
        EditErrorKind::NulByte
    );
    tree.check().unwrap();
}

#[test]
fn a_file_replaces_anything_but_a_directory() {
    let mut tree = crooked();
    let fifo = tree.put_fifo(b"pipe", Metadata::root(0o600)).unwrap();
    tree.put_link(b"pipe2", fifo).unwrap();
    let file = tree.put_file(b"pipe", Metadata::root(0o644), content(3)).unwrap();
    assert_eq!(tree.lookup(b"pipe"), Some(file));
    assert_eq!(tree.inode(fifo).names, 1);
    // A link at the end is replaced; what it led to stays.
    tree.put_file(b"tofile", Metadata::root(0o644), content(5))
        .unwrap();
    assert_eq!(tree.inode(tree.lookup(b"real/f").unwrap()).kind.file_size(), 1);
    for path in ["real", "/", "..", "real/."] {
        let kind = tree
            .put_file(path.as_bytes(), dir(), content(0))
            .unwrap_err()
            .kind;
        assert_eq!(kind, EditErrorKind::IsDirectory, "{path}");
    }
    assert_eq!(
        tree.put_file(b"no/f", dir(), content(0)).unwrap_err().kind,
        EditErrorKind::NotFound
    );
    assert_eq!(
        tree.put_symlink(b"s", dir(), b"").unwrap_err().kind,
        EditErrorKind::InvalidLength
    );
    assert_eq!(
        tree.put_symlink(b"s", dir(), b"a\0").unwrap_err().kind,
        EditErrorKind::NulByte
    );
    tree.put_character_device(
        b"null",
        Metadata::root(0o666),
        DeviceNumber { major: 1, minor: 3 },
    )
    .unwrap();
    tree.check().unwrap();
}

#[test]
fn links_share_the_inode() {
    let mut tree = crooked();
    let f = tree.lookup(b"real/f").unwrap();
    tree.put_link(b"again", f).unwrap();
    tree.put_link(b"again", f).unwrap();
    assert_eq!(tree.inode(f).names, 2);
    tree.set_metadata(f, Metadata::root(0o100_600));
    assert_eq!(tree.inode(f).metadata.mode, 0o600);
    assert_eq!(
        tree.put_link(b"d", Tree::ROOT).unwrap_err().kind,
        EditErrorKind::IsDirectory
    );
    assert_eq!(
        tree.put_link(b"real", f).unwrap_err().kind,
        EditErrorKind::IsDirectory
    );
    tree.check().unwrap();
}

#[test]
fn a_removal_takes_the_name_and_what_is_below_it() {
    let mut tree = crooked();
    assert!(tree.remove(b"tofile").unwrap());
    assert!(tree.lookup(b"real/f").is_some());
    assert!(!tree.remove(b"tofile").unwrap());
    assert!(!tree.remove(b"nothing/x").unwrap());
    assert!(tree.remove(b"up/f").unwrap());
    assert_eq!(tree.lookup(b"real/f"), None);
    assert!(tree.remove(b"real").unwrap());
    assert_eq!(tree.remove(b"/").unwrap_err().kind, EditErrorKind::Root);
    assert_eq!(
        tree.remove(b"circle/x").unwrap_err().kind,
        EditErrorKind::SymlinkLoop
    );
    tree.check().unwrap();
}

fn documents() -> Tree {
    let mut tree = Tree::new();
    for (path, size) in [
        ("usr/share/doc/a/README", 100),
        ("usr/share/doc/a/copyright", 10),
        ("usr/share/doc/b/README.gz", 200),
        ("usr/share/man/man1/x.1", 50),
        ("var/cache/apt/x.deb", 1000),
        ("home/doc/keep", 7),
        ("a.pyc", 1),
        ("usr/lib/b.pyc", 2),
    ] {
        put(&mut tree, path, size);
    }
    tree
}

#[test]
fn patterns_leave_out_and_preserve_patterns_win() {
    let mut tree = documents();
    let patterns = [
        "/usr/share/doc/",
        "*.pyc  ",
        "/var/cache/*",
        "nothing",
        "# comment",
        "",
    ];
    let excludes = Excludes::new(patterns, ["copyright", "/usr/lib/b.pyc"]).unwrap();
    let excluded = excludes.apply(&mut tree);
    assert_eq!(
        paths(&tree),
        [
            "home",
            "home/doc",
            "home/doc/keep",
            "usr",
            "usr/lib",
            "usr/lib/b.pyc",
            "usr/share",
            "usr/share/doc",
            "usr/share/doc/a",
            "usr/share/doc/a/copyright",
            "usr/share/man",
            "usr/share/man/man1",
            "usr/share/man/man1/x.1",
            "var",
            "var/cache",
        ]
    );
    let savings: Vec<_> = excluded
        .rules
        .iter()
        .map(|rule| (rule.pattern.as_str(), rule.names, rule.bytes))
        .collect();
    assert_eq!(
        savings,
        [
            ("/usr/share/doc/", 3, 300),
            ("*.pyc  ", 1, 1),
            ("/var/cache/*", 2, 1000),
            ("nothing", 0, 0),
            ("# comment", 0, 0),
            ("", 0, 0),
        ]
    );
    assert_eq!(excluded.names_preserved, 2);
}

#[test]
fn the_syntax_is_that_of_gitignore() {
    for (pattern, gone) in [
        ("doc/", &["home/doc", "usr/share/doc"][..]),
        ("/doc/", &[]),
        (
            "usr/**/README*",
            &["usr/share/doc/a/README", "usr/share/doc/b/README.gz"],
        ),
        ("x.[0-9]", &["usr/share/man/man1/x.1"]),
        ("README", &["usr/share/doc/a/README"]),
        ("keep/", &[]),
        ("\\*.pyc", &[]),
    ] {
        let mut tree = documents();
        let before = paths(&tree);
        let _ = Excludes::new([pattern], []).unwrap().apply(&mut tree);
        let left = paths(&tree);
        let expected: Vec<_> = before
            .into_iter()
            .filter(|path| {
                !gone
                    .iter()
                    .any(|gone| path == gone || path.starts_with(&format!("{gone}/")))
            })
            .collect();
        assert_eq!(left, expected, "{pattern}");
    }
    // A later pattern takes back an earlier one.
    let mut tree = documents();
    let _ = Excludes::new(["README*", "!README.gz"], [])
        .unwrap()
        .apply(&mut tree);
    assert!(tree.lookup(b"usr/share/doc/b/README.gz").is_some());
    assert!(tree.lookup(b"usr/share/doc/a/README").is_none());
}

#[test]
fn names_that_are_not_utf_8_and_links_are_matched_as_names() {
    let mut tree = crooked();
    tree.put_file(b"\xff.log", dir(), content(1)).unwrap();
    let excluded = Excludes::new(["*.log", "/up/"], []).unwrap().apply(&mut tree);
    assert_eq!(tree.lookup(b"\xff.log"), None);
    // `up` is a link to a directory and not one.
    assert_eq!(excluded.rules[1].names, 0);
    assert!(tree.lookup(b"up").is_some());
}

/// A file counts where its last name goes.
#[test]
fn bytes_of_a_file_with_two_names_are_saved_once() {
    let mut tree = Tree::new();
    put(&mut tree, "a", 10);
    let a = tree.lookup(b"a").unwrap();
    tree.put_link(b"b", a).unwrap();
    let excluded = Excludes::new(["a"], []).unwrap().apply(&mut tree);
    assert_eq!((excluded.rules[0].names, excluded.rules[0].bytes), (1, 0));
    let excluded = Excludes::new(["b"], []).unwrap().apply(&mut tree);
    assert_eq!((excluded.rules[0].names, excluded.rules[0].bytes), (1, 10));
}

#[test]
fn a_pattern_that_cannot_be_read_is_named() {
    for pattern in ["[z-a]", "a{b", "two\nlines"] {
        assert_eq!(Excludes::new(["fine", pattern], []).unwrap_err().pattern, pattern);
        assert_eq!(Excludes::new([], [pattern]).unwrap_err().pattern, pattern);
    }
}

#[test]
fn preserved_inodes_are_those_below_what_matches_and_their_other_names() {
    let mut tree = Tree::new();
    put(&mut tree, "keep/deep/a", 1);
    put(&mut tree, "other/b", 1);
    put(&mut tree, "other/c", 1);
    let c = tree.lookup(b"other/c").unwrap();
    tree.put_link(b"keep/linked", c).unwrap();

    let excludes = Excludes::new([], ["/keep", "nothing"]).unwrap();
    let preserved = excludes.preserved(&tree);
    for (path, expected) in [
        ("keep", true),
        ("keep/deep", true),
        ("keep/deep/a", true),
        ("other/c", true),
        ("other", false),
        ("other/b", false),
    ] {
        let id = tree.lookup(path.as_bytes()).unwrap();
        assert_eq!(preserved.contains(&id), expected, "{path}");
    }
    assert!(Excludes::new(["keep"], []).unwrap().preserved(&tree).is_empty());
}

#[test]
fn only_files_take_other_content() {
    let mut tree = Tree::new();
    put(&mut tree, "d/f", 3);
    let (d, f) = (tree.lookup(b"d").unwrap(), tree.lookup(b"d/f").unwrap());
    assert!(tree.set_content(f, content(7)));
    assert!(!tree.set_content(d, content(7)));
    assert_eq!(tree.usage().file_bytes, 7);
    tree.check().unwrap();
}
