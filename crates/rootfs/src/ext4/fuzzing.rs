//! What the fuzz target runs, as a plain function that `cargo test` runs, too.

use std::{io, sync::Mutex};

use super::{ImageSink, plan};
use crate::{
    DeviceNumber, InodeKind, Metadata, Timestamp, Tree,
    image::{ImageError, ImageOptions, Profile},
    layer::BodyExtent,
    pack::{Pack, PackId, Packs},
    tree::{Children, Content, FileContent},
};

/// Makes a tree of what the bytes say, sound or not, and writes it if it can be written.
///
/// # Panics
/// When a tree is taken whose image has overlapping or misplaced parts, or is not as large as planned.
pub fn writer(data: &[u8]) {
    let mut input = Input(data);
    let mut options = ImageOptions::new([input.byte(); 32]);
    let choice = input.byte();
    options.profile = if choice.is_multiple_of(2) {
        Profile::ReadOnly
    } else {
        Profile::ReadWrite
    };
    options.verity = choice % 4 == 2;
    options.findings.chunks = choice % 8 >= 4;
    options.free_space_bytes = input.number(4);
    options.free_inodes = input.number(2);
    options.max_image_bytes = Some(1 << 31);
    let tree = tree(&mut input);
    let mut packs = Packs::new();
    packs.push(Pack::Memory(vec![1; 1 << 20].into()));
    let Ok(plan) = plan(&tree, &options) else { return };
    assert!(plan.size_bytes() <= 1 << 31, "the limit holds");
    let sink = Recorder::default();
    match plan.emit(&packs, &sink) {
        Ok(_) => {}
        Err(ImageError::MissingPack { .. }) => return,
        // A tree may name what is beyond the end of the pack, which is found when it is hashed.
        Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => return,
        Err(error) => panic!("a sink that does not fail: {error}"),
    }
    let mut writes = sink.writes.into_inner().expect("no writer panicked");
    writes.sort_unstable();
    assert!(
        writes.windows(2).all(|pair| pair[0].1 <= pair[1].0),
        "nothing is written twice"
    );
    assert!(
        writes.last().is_some_and(|last| last.1 <= plan.size_bytes()),
        "nothing lies outside"
    );
}

/// Reads numbers from bytes; zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self, n_bytes: usize) -> u64 {
        self.bytes(n_bytes)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of `items`, by a byte.
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::from(self.byte()) % items.len()]
    }
}

fn tree(input: &mut Input<'_>) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![Tree::ROOT];
    let mut others = Vec::new();
    while !input.0.is_empty() {
        let parent = input.pick(&directories);
        let length = usize::from(input.byte() % 40);
        let mut name = input.bytes(length).to_vec();
        if input.byte() > 250 {
            name.resize(300, b'n');
        }
        if tree.child(parent, &name).is_some() {
            continue;
        }
        let kind = match input.byte() % 8 {
            0 | 1 => InodeKind::Directory(Children::new()),
            2 | 3 => InodeKind::File(packed(input)),
            4 => InodeKind::File(FileContent::inline(vec![7; usize::from(input.byte()) * 40])),
            5 => InodeKind::Symlink(vec![b's'; usize::from(input.byte()) * 17].into()),
            6 => {
                let device = DeviceNumber {
                    major: u32::from(input.byte()) * 17,
                    minor: u32::from(input.byte()) * 4200,
                };
                InodeKind::BlockDevice(device)
            }
            _ => {
                if !others.is_empty() {
                    let id = input.pick(&others);
                    tree.attach(parent, &name, id);
                }
                continue;
            }
        };
        let is_directory = kind.is_directory();
        let metadata = metadata(input);
        let id = tree.allocate(metadata, kind);
        tree.attach(parent, &name, id);
        if is_directory {
            directories.push(id)
        } else {
            others.push(id)
        }
    }
    tree
}

fn packed(input: &mut Input<'_>) -> FileContent {
    let unit = input.pick(&[4096, 4096, 4096, 4095]);
    let count = input.byte() % 8;
    let extents: Vec<BodyExtent> = (0..count)
        .map(|nth| BodyExtent {
            logical_offset: (u64::from(nth) * 8 + u64::from(input.byte() % 16)) * unit,
            pack_offset: u64::from(input.byte()) * unit,
            length: u64::from(input.byte() % 8) * unit,
        })
        .collect();
    let size_bytes = input.pick(&[300_000, 1 << 40, 1 << 45, 8192]);
    let pack = PackId(u32::from(input.byte() > 250));
    FileContent {
        size_bytes,
        content: Content::Packed {
            pack,
            extents: extents.into(),
        },
    }
}

fn metadata(input: &mut Input<'_>) -> Metadata {
    let mtime = Timestamp {
        seconds: input.number(8).cast_signed(),
        nanoseconds: u32::from(input.byte()) * 5_000_000,
    };
    let mut metadata = Metadata {
        mtime,
        uid: u32::from(input.byte()) << 24,
        ..Metadata::root(0o777)
    };
    for _ in 0..input.byte() % 4 {
        let names: [&[u8]; 6] = [
            b"user.a",
            b"user.bb",
            b"trusted.c",
            b"security.capability",
            b"system.posix_acl_access",
            b"odd",
        ];
        let name = input.pick(&names).to_vec();
        metadata
            .xattrs
            .insert(name, vec![input.byte(); usize::from(input.byte()) * 17]);
    }
    metadata
}

/// Remembers what was written where.
#[derive(Default)]
struct Recorder {
    writes: Mutex<Vec<(u64, u64)>>,
}

impl Recorder {
    fn record(&self, offset: u64, length: u64) {
        self.writes
            .lock()
            .expect("no writer panicked")
            .push((offset, offset + length));
    }
}

impl ImageSink for Recorder {
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.record(offset, bytes.len() as u64);
        Ok(())
    }

    fn copy_from_pack(&self, _: &Pack, _: u64, image_offset: u64, length: u64) -> io::Result<()> {
        self.record(image_offset, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::corpus::{self, Seed};

    /// The bytes of an inode below the directory `parent`, with as many attributes as `xattrs` has.
    fn node(parent: u8, name: &[u8], kind: &[u8], xattrs: &[[u8; 3]]) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        let time = [0, 0, 0, 0, 0x65, 0, 0, 0, 1, 2];
        let count = [u8::try_from(xattrs.len()).unwrap()];
        let parts: [&[u8]; 7] = [
            &[parent, length],
            name,
            &[0],
            kind,
            &time,
            &count,
            xattrs.as_flattened(),
        ];
        parts.concat()
    }

    /// Trees that between them have every kind of inode, small enough for a fuzzer.
    fn seeds() -> Vec<Seed> {
        // Identity, profile, four bytes of free space, two of free inodes.
        let (read_only, read_write) = ([1, 0, 0, 0, 0, 0, 0, 0], [2, 1, 0, 0x40, 0, 0, 0, 100]);
        let directory = node(0, b"d", &[0], &[]);
        // Two extents of a block each in a file of 300,000 bytes.
        let packed = node(0, b"f", &[2, 0, 2, 0, 0, 1, 0, 1, 1, 0, 0], &[[0, 5, 1]]);
        let inline = node(1, b"i", &[4, 200], &[[3, 1, 2], [1, 9, 3]]);
        let symlinks = [node(0, b"s", &[5, 2], &[]), node(0, b"slow", &[5, 30], &[])].concat();
        let device = node(0, b"block", &[6, 4, 9], &[[2, 7, 200]]);
        // A hard link has neither attributes nor a kind of its own.
        let link = vec![0, 1, b'l', 0, 7, 0];
        let many: Vec<u8> = (b'A'..=b'Z')
            .flat_map(|name| node(0, &[name; 30], &[4, 1], &[]))
            .collect();
        vec![
            ("empty", read_only.to_vec()),
            (
                "kinds",
                [
                    &read_only[..],
                    &directory,
                    &packed,
                    &inline,
                    &symlinks,
                    &device,
                    &link,
                ]
                .concat(),
            ),
            ("writable", [&read_write[..], &directory, &packed, &link].concat()),
            ("many", [&read_write[..], &many].concat()),
        ]
    }

    #[test]
    fn seeds_and_corpus() {
        corpus::replay("writer", &seeds(), super::writer);
    }

    /// What the seeds are for: they are written, not refused, and have what they are said to have.
    #[test]
    fn seeds_are_the_trees_that_they_are_meant_to_be() {
        let found: Vec<_> = seeds()
            .iter()
            .map(|(name, seed)| {
                let tree = super::tree(&mut super::Input(&seed[8..]));
                assert!(
                    super::plan(&tree, &super::ImageOptions::new([0; 32])).is_ok(),
                    "{name}"
                );
                (*name, tree.usage().inodes, tree.walk().count())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("empty", 1, 1),
                ("kinds", 7, 8),
                ("writable", 3, 4),
                ("many", 27, 27)
            ]
        );
    }

    #[test]
    #[ignore = "writes into the source tree"]
    fn write_seeds() {
        corpus::write("writer", &seeds());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_a_tree_that_is_written_or_refused(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::writer(&data);
        }
    }
}
