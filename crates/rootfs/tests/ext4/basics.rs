//! One image with everything in it, and the limits of each thing.

use rootfs::{
    DeviceNumber, Metadata, Timestamp, Tree,
    ext4::plan,
    image::{ImageError, ImageOptions},
    layer::BodyExtent,
    pack::PackId,
    tree::{Content, FileContent},
};

use std::process::Command;

use crate::{
    expect::compare,
    reader::Reader,
    support::{Fixture, Image, all_kinds, metadata, read_only, read_write, run, skip},
};

/// An ACL as tar and `getxattr` have it.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// A file capability, version 2: `cap_net_bind_service=ep`.
pub(crate) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree that uses everything the format has a form for.
pub(crate) fn everything() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.directory("etc/deep/er", 0o755);
    fixture.directory("empty", 0o1777);
    fixture.file(b"etc/passwd", 0, b"root:x:0:0:root:/root:/bin/sh\n");
    fixture.file(b"etc/empty", 0, b"");
    fixture.file(b"etc/block", 0, &[1; 4096]);
    fixture.file(b"etc/two blocks", 1, &[2; 4097]);
    fixture.inline(b"etc/inline", &[3; 9000]);
    let mut holes = vec![0; 40 * 4096 + 17];
    for block in [3, 4, 9, 12, 20, 30, 39] {
        holes[block * 4096] = 0xff;
    }
    fixture.file(b"etc/holes", 1, &holes);
    fixture.file(b"etc/all zero", 1, &[0; 100_000]);
    let id = fixture.file(b"etc/linked", 1, b"one inode");
    fixture.tree.put_link(b"etc/deep/link", id).unwrap();
    fixture.tree.put_link(b"etc/deep/er/link", id).unwrap();
    fixture.file(b"etc/\xff\xfe not UTF-8", 0, b"bytes");
    fixture.file(&[b"etc/".as_slice(), &[b'n'; 255]].concat(), 0, b"long name");

    for length in [1, 59, 60, 61, 4095] {
        let path = format!("etc/symlink {length}");
        fixture
            .tree
            .put_symlink(path.as_bytes(), metadata(0o777, 1, 2, 3, 4), &vec![b'x'; length])
            .unwrap();
    }
    let device = |major, minor| DeviceNumber { major, minor };
    fixture
        .tree
        .put_character_device(b"etc/null", Metadata::root(0o666), device(1, 3))
        .unwrap();
    fixture
        .tree
        .put_block_device(b"etc/disk", Metadata::root(0o660), device(8, 300))
        .unwrap();
    fixture
        .tree
        .put_character_device(b"etc/last", Metadata::root(0o600), device(4095, 1_048_575))
        .unwrap();
    fixture
        .tree
        .put_fifo(
            b"etc/pipe",
            metadata(0o620, 4_000_000_000, 70_000, -1, 999_999_999),
        )
        .unwrap();

    let times = [
        i64::MIN,
        -(1 << 31),
        -1,
        0,
        1 << 31,
        1 << 32,
        15_032_385_535,
        i64::MAX,
    ];
    for (index, seconds) in times.into_iter().enumerate() {
        let content = fixture.store(0, b"time");
        let path = format!("etc/time {index}");
        fixture
            .tree
            .put_file(
                path.as_bytes(),
                metadata(0o4755, 0, 0, seconds, 123_456_789),
                content,
            )
            .unwrap();
    }
    let many: Vec<(String, Vec<u8>)> = (0..30)
        .map(|nth| (format!("user.{nth}"), vec![b'v'; nth * 3]))
        .collect();
    let owner = (1, 6, u32::MAX);
    let access = acl(&[
        owner,
        (2, 7, 1000),
        (4, 4, u32::MAX),
        (8, 1, 5),
        (16, 7, u32::MAX),
        (32, 4, u32::MAX),
    ]);
    let default = acl(&[owner, (4, 4, u32::MAX), (32, 4, u32::MAX)]);
    let sets: [(&str, Vec<(String, Vec<u8>)>); 5] = [
        (
            "capability",
            vec![("security.capability".into(), CAPABILITY.to_vec())],
        ),
        ("acl", vec![("system.posix_acl_access".into(), access.clone())]),
        ("block", many.clone()),
        ("the same block", many),
        (
            "both",
            vec![
                ("user.small".into(), vec![1; 8]),
                ("trusted.large".into(), vec![2; 4000]),
            ],
        ),
    ];
    for (path, xattrs) in sets {
        let content = fixture.store(1, path.as_bytes());
        let mut metadata = metadata(0o664, 0, 0, 1_700_000_000, 0);
        metadata.xattrs = xattrs
            .into_iter()
            .map(|(name, value)| (name.into_bytes(), value))
            .collect();
        fixture
            .tree
            .put_file(format!("etc/xattr {path}").as_bytes(), metadata, content)
            .unwrap();
    }
    let mut directory = Metadata::root(0o2775);
    directory
        .xattrs
        .insert(b"system.posix_acl_access".to_vec(), access);
    directory
        .xattrs
        .insert(b"system.posix_acl_default".to_vec(), default);
    directory.xattrs.insert(b"user.empty".to_vec(), Vec::new());
    fixture.tree.create_directories(b"acl", &directory).unwrap();
    fixture
}

#[test]
fn an_empty_tree_is_an_image() {
    for (name, options) in all_kinds() {
        println!("{name}");
        let fixture = Fixture::new();
        let image = fixture.image(&options);
        compare(&fixture, &image);
    }
}

#[test]
fn everything_reads_back_as_it_was_meant() {
    for (name, options) in all_kinds() {
        println!("{name}");
        let fixture = everything();
        let image = fixture.image(&options);
        compare(&fixture, &image);
    }
}

#[test]
fn debugfs_sees_the_attributes() {
    let fixture = everything();
    let image = fixture.image(&read_only());
    let Some(list) = image.debugfs("ea_list \"/etc/xattr both\"") else {
        return;
    };
    assert!(
        list.contains("user.small (8) = 01 01 01 01") && list.contains("trusted.large (4000)"),
        "{list}"
    );
    let Some(list) = image.debugfs("ea_list \"/etc/xattr acl\"") else {
        return;
    };
    // Shown as it stands on disk: version 1, and ids for named entries only.
    assert!(
        list.contains("system.posix_acl_access (36) = 01 00 00 00 01 00 06 00 02 00 07 00 e8 03"),
        "{list}"
    );
    let Some(list) = image.debugfs("ea_list \"/etc/xattr the same block\"") else {
        return;
    };
    assert_eq!(list.matches("user.").count(), 30, "{list}");
}

#[test]
fn equal_attribute_blocks_are_shared_up_to_the_kernels_limit() {
    let mut fixture = Fixture::new();
    for nth in 0..2100 {
        let mut metadata = Metadata::root(0o644);
        metadata.xattrs.insert(b"user.label".to_vec(), vec![7; 500]);
        let path = format!("{nth:04}");
        fixture
            .tree
            .put_file(path.as_bytes(), metadata, FileContent::inline(*b""))
            .unwrap();
    }
    let image = fixture.image(&read_only());
    compare(&fixture, &image);
}

#[test]
fn the_trees_own_lost_and_found_is_kept() {
    for (path, is_directory) in [("lost+found/kept", true), ("lost+found", false)] {
        let mut fixture = Fixture::new();
        fixture.directory("a", 0o755);
        if is_directory {
            fixture.directory("lost+found", 0o750);
        }
        fixture.file(path.as_bytes(), 0, b"mine");
        let image = fixture.image(&read_only());
        compare(&fixture, &image);
        if is_directory {
            assert_eq!(Reader::new(&image.file).list()[&b"/lost+found"[..]].number, 11);
        }
    }
}

#[test]
fn what_ext4_cannot_hold_is_refused_with_its_path() {
    let file = |extents: &[(u64, u64, u64)], size_bytes| {
        let extents: Vec<BodyExtent> = extents
            .iter()
            .map(|(logical_offset, pack_offset, length)| BodyExtent {
                logical_offset: *logical_offset,
                pack_offset: *pack_offset,
                length: *length,
            })
            .collect();
        FileContent {
            size_bytes,
            content: Content::Packed {
                pack: PackId(0),
                extents: extents.into(),
            },
        }
    };
    let with_xattr = |name: &[u8], length| {
        let mut metadata = Metadata::root(0o644);
        metadata.xattrs.insert(name.to_vec(), vec![0; length]);
        metadata
    };
    let plain = || Metadata::root(0o644);
    let cases: [(&str, Metadata, FileContent, &str); 9] = [
        ("16 TiB", plain(), file(&[], 1 << 44), "17592186044416"),
        (
            "an extent that is not aligned",
            plain(),
            file(&[(1, 0, 4096)], 8192),
            "whole blocks",
        ),
        (
            "a pack offset that is not aligned",
            plain(),
            file(&[(0, 7, 4096)], 8192),
            "whole blocks",
        ),
        (
            "extents out of order",
            plain(),
            file(&[(4096, 0, 4096), (0, 4096, 4096)], 8192),
            "whole blocks",
        ),
        (
            "an extent beyond the end",
            plain(),
            file(&[(0, 0, 8192)], 4097),
            "whole blocks",
        ),
        (
            "part of a block within the file",
            plain(),
            file(&[(0, 0, 100)], 4097),
            "whole blocks",
        ),
        (
            "a large attribute",
            with_xattr(b"user.large", 4100),
            file(&[], 0),
            "user.large",
        ),
        (
            "an attribute without a place",
            with_xattr(b"system.nfs4_acl", 4),
            file(&[], 0),
            "system.nfs4_acl",
        ),
        (
            "a broken ACL",
            with_xattr(b"system.posix_acl_access", 4),
            file(&[], 0),
            "system.posix_acl_access",
        ),
    ];
    for (name, metadata, content, expected) in cases {
        let mut fixture = Fixture::new();
        fixture.directory("some/where", 0o755);
        fixture
            .tree
            .put_file(b"some/where/odd", metadata, content)
            .unwrap();
        match plan(&fixture.tree, &read_only()) {
            Err(ImageError::Unrepresentable { path, reason }) => {
                assert_eq!(path, b"/some/where/odd", "{name}");
                assert!(reason.contains(expected), "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let mut fixture = Fixture::new();
    let device = DeviceNumber {
        major: 4096,
        minor: 0,
    };
    fixture.tree.put_block_device(b"disk", plain(), device).unwrap();
    let error = plan(&fixture.tree, &read_only()).unwrap_err();
    assert!(
        error.to_string().contains("/disk") && error.to_string().contains("4096:0"),
        "{error}"
    );
}

#[test]
fn a_limit_is_checked_before_anything_is_written() {
    let mut fixture = Fixture::new();
    fixture.file(b"file", 0, &[1; 100_000]);
    let needed = fixture.plan(&read_only()).size_bytes();
    let limit = |bytes| {
        let mut options = read_only();
        options.max_image_bytes = Some(bytes);
        options
    };
    assert!(plan(&fixture.tree, &limit(needed)).is_ok());
    match plan(&fixture.tree, &limit(needed - 1)) {
        Err(ImageError::TooLarge {
            needed_bytes,
            limit_bytes,
        }) => {
            assert_eq!((needed_bytes, limit_bytes), (needed, needed - 1));
        }
        other => panic!("{other:?}"),
    }
    for options in [
        read_write(u64::MAX, 0),
        read_write(0, u64::MAX),
        read_write(u64::MAX, u64::MAX),
    ] {
        assert!(
            matches!(plan(&Tree::new(), &options), Err(ImageError::TooLarge { .. })),
            "{options:?}"
        );
    }
}

#[test]
fn free_space_and_inodes_are_what_was_asked_for() {
    let group = 128 << 20;
    let bytes = [
        0,
        1,
        4096,
        3 << 20,
        group - 4096 * 700,
        group - 4096,
        group,
        group + 1,
        2 * group,
        9 * group + 5,
    ];
    for free_space_bytes in bytes {
        for free_inodes in [0, 1, 1000, 40_000] {
            let fixture = Fixture::new();
            let options = read_write(free_space_bytes, free_inodes);
            let plan = fixture.plan(&options);
            assert!(plan.free_inodes() >= free_inodes);
            let asked = free_space_bytes.div_ceil(4096);
            // Nothing is aligned in an empty tree, so there is more only where the last group's minimum brings it:
            // inodes that need more groups than blocks do.
            if free_inodes < 32_000 {
                let more = plan.free_blocks() - asked;
                assert!(
                    more == 0 || plan.size_bytes() % group == 4096,
                    "{more} blocks more than {asked}"
                );
            }
            assert!(plan.free_blocks() >= asked);
            if free_inodes != 1 {
                fixture.image(&options);
            }
        }
    }
}

#[test]
fn a_read_only_image_has_nothing_to_spare() {
    let mut fixture = Fixture::new();
    fixture.inline(b"file", &[1; 128 * 4096]);
    let plan = fixture.plan(&read_only());
    // The only gap is the one before the contents' first chunk.
    assert!(plan.free_blocks() < 128, "{}", plan.free_blocks());
    assert!(plan.free_inodes() < 16, "{}", plan.free_inodes());
}

#[test]
fn identity_decides_uuid_and_nothing_else_does() {
    let fixture = everything();
    let uuid = |identity: u8, profile: &ImageOptions| {
        let mut options = profile.clone();
        options.identity = [identity; 32];
        fixture.plan(&options).uuid()
    };
    let [(_, first), (_, second), _] = all_kinds();
    assert_eq!(uuid(1, &first), uuid(1, &second));
    assert_ne!(uuid(1, &first), uuid(2, &first));
    let uuid = uuid(1, &first);
    assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2), "version 8 of RFC 9562");
}

#[test]
fn times_before_1970_and_far_ahead_survive() {
    let mut fixture = Fixture::new();
    let id = fixture.file(b"file", 0, b"x");
    let mtime = Timestamp {
        seconds: -1,
        nanoseconds: 750_000_000,
    };
    fixture.tree.set_metadata(
        id,
        Metadata {
            mtime,
            ..Metadata::root(0o600)
        },
    );
    let image = fixture.image(&read_only());
    let Some(text) = image.debugfs("stat file") else {
        return skip("debugfs is missing");
    };
    assert!(text.contains("mtime: 0xffffffff:b2d05e00"), "{text}");
}

/// e2fsck takes times from 2310-04-04 to 2378-04-22 for times before 1970 that an old kernel encoded wrongly
/// (`check_inode_extra_negative_epoch`). The kernel reads them as they are, so they are written as they are.
#[test]
fn e2fsck_doubts_the_24th_century_and_nothing_around_it() {
    for (seconds, is_doubted) in [
        (10_737_418_239, false),
        (10_737_418_240, true),
        (12_884_901_888, false),
    ] {
        let mut fixture = Fixture::new();
        let id = fixture.inline(b"file", b"x");
        fixture.tree.set_metadata(id, metadata(0o600, 0, 0, seconds, 5));
        let image = Image::create();
        fixture
            .plan(&read_only())
            .emit(&fixture.packs(), &image.file)
            .unwrap();
        assert_eq!(Reader::new(&image.file).list()[&b"/file"[..]].seconds, seconds);
        let Some(output) = run(Command::new("e2fsck").arg("-fn").arg(image.path())) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text.contains("beyond 2310-04-04 are likely pre-1970"),
            is_doubted,
            "{seconds}: {text}"
        );
    }
}
