//! Random trees.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

use proptest::prelude::*;
use rootfs::{DeviceNumber, Metadata, Timestamp, tree::FileContent};

use crate::{
    basics::{CAPABILITY, acl},
    expect::compare,
    reader::{Reader, Stat},
    support::{Fixture, Image, read_only, read_write, run},
};

/// One step in making a tree. Steps that the tree refuses are skipped.
#[derive(Clone, Debug)]
enum Step {
    Directory,
    Packed {
        pack: usize,
        blocks: Vec<u8>,
        tail: usize,
    },
    Inline(usize),
    Symlink(usize),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    Link(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Directory),
        6 => (0..3usize, prop::collection::vec(0..3u8, 0..30), 0..4096usize)
            .prop_map(|(pack, blocks, tail)| Step::Packed { pack, blocks, tail }),
        2 => (0..20_000usize).prop_map(Step::Inline),
        2 => (1..=4095usize).prop_map(Step::Symlink),
        1 => (0..4096u32, 0..1u32 << 20).prop_map(|(major, minor)| Step::Character(major, minor)),
        1 => (0..300u32, 0..300u32).prop_map(|(major, minor)| Step::Block(major, minor)),
        1 => Just(Step::Fifo),
        2 => any::<prop::sample::Index>().prop_map(|index| Step::Link(index.index(1000))),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec(), b"lost+found".to_vec()]),
        2 => prop::collection::vec(any::<u8>().prop_filter("allowed", |byte| *byte != 0 && *byte != b'/'), 1..=255)
            .prop_filter("no dots", |name| name != b"." && name != b".."),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    // Without the years that e2fsck takes for another encoding, see `basics.rs`.
    let seconds = prop_oneof![-(1i64 << 31)..1 << 31, any::<i64>(), 0..16_000_000_000i64]
        .prop_filter("e2fsck", |seconds| {
            !(10_737_418_240..12_884_901_888).contains(seconds)
        });
    let xattrs = prop::collection::btree_map(
        prop::sample::select(vec![
            "user.a",
            "user.bb",
            "user.ccc",
            "trusted.t",
            "security.s",
            "user.\u{e9}",
        ]),
        prop::collection::vec(any::<u8>(), 0..300),
        0..4,
    );
    let special = prop::sample::select(vec![
        None,
        Some((b"security.capability".to_vec(), CAPABILITY.to_vec())),
        Some((
            b"system.posix_acl_access".to_vec(),
            acl(&[(1, 7, 0), (2, 5, 77), (4, 5, 0), (16, 5, 0), (32, 0, 0)]),
        )),
    ]);
    (
        0..0o10_000u16,
        any::<u32>(),
        any::<u32>(),
        seconds,
        0..1_000_000_000u32,
        xattrs,
        special,
    )
        .prop_map(|(mode, uid, gid, seconds, nanoseconds, xattrs, special)| {
            let mut all: rootfs::Xattrs = xattrs
                .into_iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value))
                .collect();
            all.extend(special);
            Metadata {
                mode,
                uid,
                gid,
                mtime: Timestamp { seconds, nanoseconds },
                xattrs: all,
            }
        })
}

fn apply(fixture: &mut Fixture, paths: &[Vec<u8>], path: &[u8], step: &Step, metadata: Metadata) {
    let tree = &mut fixture.tree;
    // What the tree refuses, such as a file in place of a directory, is left out.
    let _refused = match step {
        Step::Directory => tree.create_directories(path, &metadata).err(),
        Step::Packed { pack, blocks, tail } => {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; 4096]).collect();
            bytes.truncate(bytes.len().saturating_sub(*tail));
            let content = fixture.store(*pack, &bytes);
            fixture.tree.put_file(path, metadata, content).err()
        }
        Step::Inline(length) => tree
            .put_file(path, metadata, FileContent::inline(vec![7; *length]))
            .err(),
        Step::Symlink(length) => tree.put_symlink(path, metadata, &vec![b's'; *length]).err(),
        Step::Character(major, minor) => tree
            .put_character_device(
                path,
                metadata,
                DeviceNumber {
                    major: *major,
                    minor: *minor,
                },
            )
            .err(),
        Step::Block(major, minor) => tree
            .put_block_device(
                path,
                metadata,
                DeviceNumber {
                    major: *major,
                    minor: *minor,
                },
            )
            .err(),
        Step::Fifo => tree.put_fifo(path, metadata).err(),
        Step::Link(index) => {
            let target = paths
                .get(index % paths.len().max(1))
                .and_then(|path| tree.lookup(path));
            target.and_then(|target| tree.put_link(path, target).err())
        }
    };
}

type Steps = Vec<(Vec<Vec<u8>>, Step, Metadata)>;

fn steps() -> impl Strategy<Value = Steps> {
    prop::collection::vec((prop::collection::vec(name(), 1..4), step(), metadata()), 0..60)
}

fn fixture_of(steps: Steps, is_readable: bool) -> Fixture {
    let mut fixture = Fixture::new();
    let mut paths = Vec::new();
    for (names, step, mut metadata) in steps {
        if is_readable {
            metadata.mtime.seconds &= 0x7fff_ffff;
        }
        let (_, parents) = names.split_last().unwrap();
        drop(
            fixture
                .tree
                .create_directories(&parents.join(&b'/'), &Metadata::root(0o755)),
        );
        let path = names.join(&b'/');
        apply(&mut fixture, &paths, &path, &step, metadata);
        paths.push(path);
    }
    fixture
}

/// Compares the attributes that our own reader sees with those that debugfs sees, names and bytes. The reader is
/// compared with the tree elsewhere.
fn compare_with_debugfs(image: &Image) {
    let stats: BTreeMap<u32, Stat> = Reader::new(&image.file)
        .list()
        .into_values()
        .map(|stat| (stat.number, stat))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let mut requests = String::new();
    let mut values = Vec::new();
    for (number, stat) in &stats {
        writeln!(requests, "ea_list <{number}>").unwrap();
        for ((prefix, suffix), value) in &stat.xattrs {
            let name = [prefix_name(*prefix), suffix].concat();
            let file = directory.path().join(values.len().to_string());
            // `-r`: as it stands on the disk, which for access control lists is another form.
            let name = String::from_utf8(name).unwrap();
            writeln!(requests, "ea_get -r -f {} <{number}> {name}", file.display()).unwrap();
            values.push((*number, name, file, value.clone()));
        }
    }
    let commands = directory.path().join("commands");
    fs::write(&commands, requests).unwrap();
    let Some(output) = run(Command::new("debugfs").arg("-f").arg(&commands).arg(image.path())) else {
        return;
    };
    // Names with other bytes than ASCII stand there in hexadecimal, so they are only counted: `NAME (LENGTH) = VALUE`.
    let text = String::from_utf8_lossy(&output.stdout);
    let listed = text.lines().filter(|line| line.starts_with("  ")).count();
    assert_eq!(
        listed,
        values.len(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (number, name, file, value) in values {
        let seen = fs::read(file).unwrap_or_else(|error| panic!("inode {number}, {name}: {error}: {text}"));
        assert_eq!(seen, value, "inode {number}, {name}");
    }
}

fn prefix_name(prefix: u8) -> &'static [u8] {
    match prefix {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => panic!("prefix {prefix} is not one that is written"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_are_clean_and_read_back(
        steps in steps(),
        // Whether all times are such that ext4-view reads the files, too.
        is_readable in any::<bool>(),
        free_space_bytes in prop_oneof![Just(None), (0..300u64 << 20).prop_map(Some)],
    ) {
        let fixture = fixture_of(steps, is_readable);
        let options = free_space_bytes.map_or_else(read_only, |bytes| read_write(bytes, bytes % 1000));
        let image = fixture.image(&options);
        compare(&fixture, &image);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn debugfs_sees_the_attributes_of_random_trees(steps in steps()) {
        compare_with_debugfs(&fixture_of(steps, false).image(&read_only()));
    }
}
