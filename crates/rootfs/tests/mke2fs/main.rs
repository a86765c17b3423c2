//! The reference backend: what the kernel finds in its images is what the tree says.
//!
//! Needs root, loop devices and e2fsprogs; without them the tests say so and pass, unless `BUILDERD_REQUIRE_LAB=1`.

#![allow(clippy::unwrap_used, reason = "test code fails loudly")]

mod failures;
mod lab;

use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _};

use rootfs::{
    DeviceNumber, Metadata, Timestamp, Tree,
    ext4::Native,
    image::{ImageBackend, ImageError, ImageOptions, Profile},
    layer::{Body, BodyExtent, Entry, EntryKind, LayerIndex},
    listing::Listing,
    pack::{Pack, Packs},
    tree::FileContent,
};

use lab::{Lab, Mounted};

fn metadata(mode: u16) -> Metadata {
    Metadata {
        mtime: Timestamp::from_seconds(1_700_000_000),
        ..Metadata::root(mode)
    }
}

fn with_xattr(mut metadata: Metadata, name: &str, value: &[u8]) -> Metadata {
    metadata.xattrs.insert(name.into(), value.to_vec());
    metadata
}

/// One of everything.
fn full_tree() -> (Tree, Packs) {
    let mut tree = Tree::new();
    tree.set_metadata(
        Tree::ROOT,
        Metadata {
            uid: 3,
            gid: 4,
            ..metadata(0o751)
        },
    );
    tree.create_directories(b"/usr/bin", &metadata(0o755)).unwrap();
    tree.create_directories(
        b"/closed/sub",
        &Metadata {
            uid: 70_000,
            gid: 4_000_000_000,
            ..metadata(0)
        },
    )
    .unwrap();
    tree.put_file(
        b"/closed/sub/f",
        metadata(0),
        FileContent::inline(*b"in a closed directory"),
    )
    .unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let ping = with_xattr(
        Metadata {
            uid: 5,
            gid: 6,
            ..metadata(0o6755)
        },
        "security.capability",
        capability,
    );
    let ping = with_xattr(with_xattr(ping, "user.nul", b"a\0=\xff"), "trusted.t", b"t");
    let ping = tree
        .put_file(b"/usr/bin/ping", ping, FileContent::inline(vec![7; 10_000]))
        .unwrap();
    tree.put_link(b"/usr/bin/ping4", ping).unwrap();
    tree.put_link(b"/ping", ping).unwrap();
    tree.put_symlink(b"/bin", metadata(0o777), b"usr/bin").unwrap();
    tree.put_symlink(
        b"/slow",
        Metadata {
            uid: 9,
            gid: 9,
            ..metadata(0o777)
        },
        &[b's'; 500],
    )
    .unwrap();
    let device = DeviceNumber { major: 8, minor: 300 };
    tree.put_block_device(
        b"/block",
        with_xattr(metadata(0o660), "security.label", b"x"),
        device,
    )
    .unwrap();
    tree.put_character_device(b"/null", metadata(0o666), DeviceNumber { major: 1, minor: 3 })
        .unwrap();
    tree.put_character_device(b"/whiteout", metadata(0), DeviceNumber { major: 0, minor: 0 })
        .unwrap();
    tree.put_fifo(b"/pipe", metadata(0o600)).unwrap();
    tree.put_file(b"/not utf-8 \xff\n", metadata(0o644), FileContent::inline(*b""))
        .unwrap();
    tree.put_file(
        &[b"/", &[b'n'; 255][..]].concat(),
        metadata(0o1644),
        FileContent::inline(*b"n"),
    )
    .unwrap();
    // A POSIX ACL in the form of setxattr(2): user::rw-, user:1000:r--, group::r--, mask::r--, other::r--.
    let acl = [
        &[2_u8, 0, 0, 0][..],
        &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 4, 0, 0xe8, 3, 0, 0],
        &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    let with_acl = with_xattr(metadata(0o644), "system.posix_acl_access", &acl);
    tree.put_file(b"/acl", with_acl.clone(), FileContent::inline(*b"acl"))
        .unwrap();
    let default = with_xattr(metadata(0o755), "system.posix_acl_default", &acl);
    tree.create_directories(b"/acl-directory", &default).unwrap();
    let old = Metadata {
        mtime: Timestamp::from_seconds(-1000),
        ..metadata(0o600)
    };
    tree.put_file(b"/old", old, FileContent::inline(*b"before 1970"))
        .unwrap();

    // A file with holes at both ends and between, from a pack.
    let mut packs = Packs::new();
    let pack = packs.push(Pack::Memory(
        (1..=251_u8).cycle().take(40_960).collect::<Vec<_>>().into(),
    ));
    let body = Body {
        size: 5 << 20,
        extents: vec![
            BodyExtent {
                logical_offset: 1 << 20,
                pack_offset: 8192,
                length: 8192,
            },
            BodyExtent {
                logical_offset: 3 << 20,
                pack_offset: 0,
                length: 4096,
            },
        ],
    };
    let layer = LayerIndex {
        diff_id: [0; 32],
        uncompressed_size_bytes: 0,
        pack_size_bytes: 40_960,
        entries: vec![Entry {
            path: b"sparse".to_vec(),
            kind: EntryKind::File(body),
            metadata: metadata(0o644),
        }],
    };
    let mut folder = rootfs::fold::Folder::new(rootfs::fold::Mode::Oci, rootfs::fold::FoldLimits::default());
    folder.apply(&layer, pack).unwrap();
    let folded = folder.finish().tree;
    let sparse = folded.inode(folded.lookup(b"sparse").unwrap());
    let rootfs::InodeKind::File(content) = &sparse.kind else {
        panic!("it is a file")
    };
    tree.put_file(b"/sparse", sparse.metadata.clone(), content.clone())
        .unwrap();
    tree.check().unwrap();
    (tree, packs)
}

fn options(profile: Profile) -> ImageOptions {
    let mut options = ImageOptions::new([42; 32]);
    options.profile = profile;
    options.free_space_bytes = 16 << 20;
    options.free_inodes = 1000;
    options
}

#[test]
fn privileged_the_kernel_finds_what_the_tree_says() {
    let Some(lab) = Lab::new() else { return };
    let (tree, packs) = full_tree();
    for profile in [Profile::ReadWrite, Profile::ReadOnly] {
        let image = lab.image();
        let summary = lab
            .backend()
            .write(&tree, &packs, &options(profile), &image.open())
            .unwrap();
        assert_eq!(summary.size_bytes, image.open().metadata().unwrap().len());
        lab.fsck(&image);

        let mounted = Mounted::new(&lab, &image);
        let mut seen = Listing::of_directory(mounted.path()).unwrap();
        // Explained differences: the program's own directory, and nothing else.
        assert!(seen.lines.contains_key(&b"/lost+found"[..]));
        seen.remove(b"/lost+found");
        let expected = Listing::of_tree_with_content(&tree, &packs).unwrap();
        let differences: Vec<String> = seen
            .differences(&expected)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            differences,
            Vec::<String>::new(),
            "{profile:?}: left is the kernel's, right the tree's"
        );
        drop(mounted);

        // The holes are holes: 5 MiB with three blocks of data.
        use std::os::unix::fs::MetadataExt as _;
        assert!(image.open().metadata().unwrap().blocks() * 512 < summary.size_bytes / 2);
    }
    lab.assert_nothing_left();
}

/// What the backend loses, so that nobody relies on it: the list of its module documentation.
#[test]
fn privileged_known_losses() {
    let Some(lab) = Lab::new() else { return };
    let mut tree = Tree::new();
    let time = |seconds, nanoseconds| Metadata {
        mtime: Timestamp { seconds, nanoseconds },
        ..metadata(0o644)
    };
    tree.put_file(
        b"/nanoseconds",
        time(1_700_000_000, 123_456_789),
        FileContent::inline(*b""),
    )
    .unwrap();
    tree.put_file(b"/after-2038", time(5_000_000_000, 0), FileContent::inline(*b""))
        .unwrap();
    tree.create_directories(b"/lost+found", &metadata(0o755)).unwrap();
    tree.put_file(b"/lost+found/x", metadata(0o644), FileContent::inline(*b"x"))
        .unwrap();
    let link = tree.put_symlink(b"/link", metadata(0o777), b"x").unwrap();
    tree.put_link(b"/link2", link).unwrap();
    let image = lab.image();
    lab.backend()
        .write(&tree, &Packs::new(), &options(Profile::ReadOnly), &image.open())
        .unwrap();
    lab.fsck(&image);
    let mounted = Mounted::new(&lab, &image);
    let seen = Listing::of_directory(mounted.path()).unwrap();
    let expected = Listing::of_tree_with_content(&tree, &Packs::new()).unwrap();
    let differences: Vec<String> = seen
        .differences(&expected)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        differences,
        [
            "/after-2038 mtime: 705032704.000000000 | 5000000000.000000000",
            "/link names: 1 | 2",
            "/link link: nothing | /link",
            "/link2 names: 1 | 2",
            "/link2 link: nothing | /link",
            "/nanoseconds mtime: 1700000000.000000000 | 1700000000.123456789",
        ],
    );
}

/// One tree through both backends and the kernel: what one of them gets wrong, or both in different ways, shows here.
#[test]
fn privileged_the_two_backends_agree() {
    let Some(lab) = Lab::new() else { return };
    let (mut tree, packs) = full_tree();
    let dated = |seconds, nanoseconds| Metadata {
        mtime: Timestamp { seconds, nanoseconds },
        ..metadata(0o644)
    };
    for (path, seconds, nanoseconds) in [
        (&b"/nanoseconds"[..], 1_700_000_000, 123_456_789),
        (b"/after-2038", 5_000_000_000, 0),
    ] {
        tree.put_file(path, dated(seconds, nanoseconds), FileContent::inline(*b""))
            .unwrap();
    }
    let link = tree.put_symlink(b"/link", metadata(0o777), b"x").unwrap();
    tree.put_link(b"/link2", link).unwrap();

    let backends: [&dyn ImageBackend; 2] = [&lab.backend(), &Native];
    for profile in [Profile::ReadWrite, Profile::ReadOnly] {
        let [reference, native] = backends.map(|backend| {
            let image = lab.image();
            backend
                .write(&tree, &packs, &options(profile), &image.open())
                .unwrap();
            lab.fsck(&image);
            let mounted = Mounted::new(&lab, &image);
            Listing::of_directory(mounted.path()).unwrap()
        });
        // More than one entry of each kind, so that agreement means something.
        assert!(native.lines.len() > 25, "{}", native.lines.len());
        let differences: Vec<String> = reference
            .differences(&native)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            differences, EXPLAINED_DIFFERENCES,
            "{profile:?}: left is mke2fs', right the native writer's"
        );
    }
    lab.assert_nothing_left();
}

/// Where the reference backend loses something that the native writer keeps: whole seconds only, 32 bits of them, and a
/// symbolic link has one name. And `lost+found`, which both make: `mke2fs` takes the time 0 for none and so is told 1.
const EXPLAINED_DIFFERENCES: [&str; 7] = [
    "/after-2038 mtime: 705032704.000000000 | 5000000000.000000000",
    "/link names: 1 | 2",
    "/link link: nothing | /link",
    "/link2 names: 1 | 2",
    "/link2 link: nothing | /link",
    "/lost+found mtime: 1.000000000 | 0.000000000",
    "/nanoseconds mtime: 1700000000.000000000 | 1700000000.123456789",
];

#[test]
fn privileged_the_size_always_suffices() {
    let Some(lab) = Lab::new() else { return };
    let many_files = |count: u32, bytes: usize, name_length: usize| {
        let mut tree = Tree::new();
        for n in 0..count {
            let path = format!("/{n:0name_length$}");
            tree.put_file(
                path.as_bytes(),
                metadata(0o644),
                FileContent::inline(vec![1; bytes]),
            )
            .unwrap();
        }
        tree
    };
    let mut xattrs = Tree::new();
    for n in 0..500 {
        let metadata = with_xattr(metadata(0o755), "user.large", &vec![b'x'; 3000 + n]);
        xattrs
            .create_directories(format!("/d{n}").as_bytes(), &metadata)
            .unwrap();
    }
    let mut fragmented = Tree::new();
    let mut packs = Packs::new();
    let pack = packs.push(Pack::Memory(vec![1; 4096].into()));
    let extents: Vec<BodyExtent> = (0..5000)
        .map(|n| BodyExtent {
            logical_offset: n * 8192,
            pack_offset: 0,
            length: 4096,
        })
        .collect();
    let content = rootfs::tree::Content::Packed {
        pack,
        extents: extents.into(),
    };
    fragmented
        .put_file(
            b"/f",
            metadata(0o644),
            FileContent {
                size_bytes: 5000 * 8192,
                content,
            },
        )
        .unwrap();
    let cases = [
        ("nothing", Tree::new(), 0, 0),
        ("one block each", many_files(1000, 4096, 10), 0, 0),
        ("long names", many_files(1500, 1, 255), 0, 0),
        ("names of every rest", many_files(1000, 0, 250), 0, 0),
        ("one large file", many_files(1, 40 << 20, 1), 0, 0),
        ("large attributes", xattrs, 0, 0),
        ("many extents", fragmented, 0, 0),
        ("free space", many_files(10, 1, 1), 300 << 20, 50_000),
        ("many free inodes", Tree::new(), 0, 300_000),
    ];
    for (name, tree, free_space_bytes, free_inodes) in cases {
        for profile in [Profile::ReadWrite, Profile::ReadOnly] {
            let mut options = options(profile);
            (options.free_space_bytes, options.free_inodes) = (free_space_bytes, free_inodes);
            let image = lab.image();
            let result = lab.backend().write(&tree, &packs, &options, &image.open());
            let summary = result.unwrap_or_else(|error| panic!("{name}, {profile:?}: {error}"));
            assert_eq!(summary.inodes_used, 11 + tree.usage().inodes - 1, "{name}");
            lab.fsck(&image);
        }
    }
    lab.assert_nothing_left();
}

/// The hash tree after an image of this backend is the one that the image has when it is read.
#[test]
fn privileged_a_hash_tree_follows_when_asked_for() {
    let Some(lab) = Lab::new() else { return };
    let (tree, packs) = full_tree();
    let mut options = options(Profile::ReadOnly);
    options.verity = true;
    options.findings.sha256 = true;
    options.findings.chunks = true;
    let image = lab.image();
    let summary = lab
        .backend()
        .write(&tree, &packs, &options, &image.open())
        .unwrap();
    let verity = summary.verity.unwrap();
    let file = image.open();
    assert_eq!(file.metadata().unwrap().len(), summary.size_bytes);
    assert_eq!(verity.hash_offset + verity.hash_area_bytes, summary.size_bytes);
    assert_eq!(
        summary.chunks.unwrap(),
        rootfs::chunks::ChunkList::of_file(&file).unwrap()
    );
    assert!(summary.sha256.is_some());
    lab.fsck(&image);
    assert_eq!(rootfs::verity::append(&file, verity.hash_offset).unwrap(), verity);

    options.profile = Profile::ReadWrite;
    let error = lab
        .backend()
        .write(&tree, &packs, &options, &image.open())
        .unwrap_err();
    assert!(matches!(error, ImageError::Options { .. }), "{error}");
}

/// The image is named by its descriptor, so it need not have a name.
#[test]
fn privileged_an_unlinked_file_will_do() {
    let Some(lab) = Lab::new() else { return };
    let output: File = tempfile::tempfile_in(lab.path()).unwrap();
    let (tree, packs) = full_tree();
    lab.backend()
        .write(&tree, &packs, &options(Profile::ReadOnly), &output)
        .unwrap();
    let mut magic = [0; 2];
    output.read_exact_at(&mut magic, 1024 + 56).unwrap();
    assert_eq!(u16::from_le_bytes(magic), 0xef53);
    let _ = (&output).read(&mut magic);
}

/// Names and bodies that would mean something to a shell, to debugfs or to a path.
#[test]
fn privileged_names_are_only_names() {
    let Some(lab) = Lab::new() else { return };
    let mut tree = Tree::new();
    for name in [
        &b"-d"[..],
        b"$(touch x)",
        b"; rm -rf ~",
        b"`x`",
        b"a\\b",
        b"\"quoted\"",
        b"*",
        b"-\n-",
        b"...",
        b"links",
    ] {
        let path = [b"/", name].concat();
        tree.put_file(&path, metadata(0o644), FileContent::inline(name))
            .unwrap();
    }
    tree.put_symlink(b"/out", metadata(0o777), b"/etc").unwrap();
    tree.put_symlink(b"/up", metadata(0o777), b"../../../etc")
        .unwrap();
    let image = lab.image();
    lab.backend()
        .write(&tree, &Packs::new(), &options(Profile::ReadOnly), &image.open())
        .unwrap();
    lab.fsck(&image);
    let mounted = Mounted::new(&lab, &image);
    let mut seen = Listing::of_directory(mounted.path()).unwrap();
    seen.remove(b"/lost+found");
    assert_eq!(
        seen.differences(&Listing::of_tree_with_content(&tree, &Packs::new()).unwrap()),
        []
    );
}
