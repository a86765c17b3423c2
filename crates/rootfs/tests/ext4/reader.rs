//! A second opinion: reads an image from scratch, sharing no code with the writer.
//!
//! It knows just enough of ext4 to list every path with everything that its inode says, extended attributes as they
//! stand on disk included, which no other reader at hand shows.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

pub(crate) struct Reader<'a> {
    file: &'a File,
    inodes_per_group: u32,
    inode_tables: Vec<u64>,
}

/// What an inode says, apart from its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) number: u32,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u16,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    /// Target of a symbolic link or number of a device.
    pub(crate) detail: String,
    /// By prefix number and name, with the bytes on disk.
    pub(crate) xattrs: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        let mut reader = Self {
            file,
            inodes_per_group: 0,
            inode_tables: Vec::new(),
        };
        let block = reader.block(0);
        let superblock = &block[1024..2048];
        assert_eq!(u16_at(superblock, 0x38), 0xef53);
        reader.inodes_per_group = u32_at(superblock, 0x28);
        let blocks = u64::from(u32_at(superblock, 4)) | u64::from(u32_at(superblock, 0x150)) << 32;
        let size = if u32_at(superblock, 0x60) & 0x80 == 0 {
            32
        } else {
            64
        };
        let groups = usize::try_from(blocks.div_ceil(32_768)).unwrap();
        let mut descriptors = vec![0; groups * size];
        file.read_exact_at(&mut descriptors, 4096).unwrap();
        reader.inode_tables = descriptors
            .chunks(size)
            .map(|bytes| {
                u64::from(u32_at(bytes, 8))
                    | if size == 64 {
                        u64::from(u32_at(bytes, 0x28)) << 32
                    } else {
                        0
                    }
            })
            .collect();
        reader
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.file.read_exact_at(&mut bytes, number * 4096).unwrap();
        bytes
    }

    fn inode(&self, number: u32) -> Vec<u8> {
        let group = (number - 1) / self.inodes_per_group;
        let index = (number - 1) % self.inodes_per_group;
        let mut bytes = vec![0; 256];
        let offset = self.inode_tables[group as usize] * 4096 + u64::from(index) * 256;
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Logical block, length, physical block of every extent, and the depth of the tree.
    pub(crate) fn extents(&self, number: u32) -> (Vec<(u32, u16, u64)>, u16) {
        let root = self.inode(number)[40..100].to_vec();
        let depth = u16_at(&root, 6);
        let mut nodes = vec![root];
        for _ in 0..depth {
            nodes = nodes
                .iter()
                .flat_map(|node| {
                    (0..usize::from(u16_at(node, 2))).map(|entry| {
                        let at = 12 + entry * 12;
                        self.block(u64::from(u32_at(node, at + 4)) | u64::from(u16_at(node, at + 8)) << 32)
                    })
                })
                .collect();
        }
        let mut extents = Vec::new();
        for node in nodes {
            assert_eq!((u16_at(&node, 0), u16_at(&node, 6)), (0xf30a, 0));
            for entry in 0..usize::from(u16_at(&node, 2)) {
                let at = 12 + entry * 12;
                let physical = u64::from(u32_at(&node, at + 8)) | u64::from(u16_at(&node, at + 6)) << 32;
                extents.push((u32_at(&node, at), u16_at(&node, at + 4), physical));
            }
        }
        (extents, depth)
    }

    /// A file's bytes; for files that fit into memory.
    pub(crate) fn content(&self, number: u32) -> Vec<u8> {
        let size = usize::try_from(self.stat(number).size).unwrap();
        let mut bytes = vec![0; size.next_multiple_of(4096)];
        for (logical, length, physical) in self.extents(number).0 {
            let start = logical as usize * 4096;
            let end = start + usize::from(length) * 4096;
            self.file
                .read_exact_at(&mut bytes[start..end], physical * 4096)
                .unwrap();
        }
        bytes.truncate(size);
        bytes
    }

    fn entries(&self, number: u32) -> Vec<(Vec<u8>, u32, u8)> {
        let mut entries = Vec::new();
        for (_, length, physical) in self.extents(number).0 {
            for nth in 0..u64::from(length) {
                let block = self.block(physical + nth);
                let mut at = 0;
                while at < 4096 {
                    let (inode, step) = (u32_at(&block, at), usize::from(u16_at(&block, at + 4)));
                    let name = block[at + 8..at + 8 + usize::from(block[at + 6])].to_vec();
                    if inode != 0 && name != b"." && name != b".." {
                        entries.push((name, inode, block[at + 7]));
                    }
                    assert!(step >= 8, "an entry of {step} bytes");
                    at += step;
                }
            }
        }
        entries
    }

    pub(crate) fn stat(&self, number: u32) -> Stat {
        let inode = self.inode(number);
        let mode = u16_at(&inode, 0);
        let size = u64::from(u32_at(&inode, 4)) | u64::from(u32_at(&inode, 108)) << 32;
        let extra = u32_at(&inode, 136);
        let detail = match mode & 0o170_000 {
            0o120_000 if size < 60 => inode[40..40 + usize::try_from(size).unwrap()]
                .escape_ascii()
                .to_string(),
            0o120_000 => {
                let block = self.block(self.extents(number).0[0].2);
                block[..usize::try_from(size).unwrap()].escape_ascii().to_string()
            }
            0o020_000 | 0o060_000 => {
                let (old, new) = (u32_at(&inode, 40), u32_at(&inode, 44));
                let (major, minor) = if old == 0 {
                    ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00))
                } else {
                    (old >> 8, old & 0xff)
                };
                format!("{major}:{minor}")
            }
            _ => String::new(),
        };
        // All four times are the same.
        for (seconds, more) in [(8, 140), (12, 132), (144, 148)] {
            assert_eq!(
                (u32_at(&inode, seconds), u32_at(&inode, more)),
                (u32_at(&inode, 16), extra)
            );
        }
        Stat {
            number,
            mode,
            uid: u32::from(u16_at(&inode, 2)) | u32::from(u16_at(&inode, 120)) << 16,
            gid: u32::from(u16_at(&inode, 24)) | u32::from(u16_at(&inode, 122)) << 16,
            size,
            links: u16_at(&inode, 26),
            seconds: i64::from(u32_at(&inode, 16).cast_signed()) + (i64::from(extra & 3) << 32),
            nanoseconds: extra >> 2,
            detail,
            xattrs: self.xattrs(&inode),
        }
    }

    fn xattrs(&self, inode: &[u8]) -> BTreeMap<(u8, Vec<u8>), Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        if u32_at(inode, 160) == 0xea02_0000 {
            collect(&inode[164..], 0, &mut xattrs);
        }
        let number = u64::from(u32_at(inode, 104)) | u64::from(u16_at(inode, 118)) << 32;
        if number != 0 {
            collect(&self.block(number), 32, &mut xattrs);
        }
        xattrs
    }

    /// Every path and what its inode says, directories before their children.
    pub(crate) fn list(&self) -> BTreeMap<Vec<u8>, Stat> {
        let mut paths = BTreeMap::from([(Vec::new(), self.stat(2))]);
        let mut work = vec![(Vec::new(), 2)];
        while let Some((path, number)) = work.pop() {
            for (name, child, file_type) in self.entries(number) {
                let path = [&path[..], b"/", &name].concat();
                let stat = self.stat(child);
                let expected = match stat.mode & 0o170_000 {
                    0o100_000 => 1,
                    0o040_000 => 2,
                    0o020_000 => 3,
                    0o060_000 => 4,
                    0o010_000 => 5,
                    _ => 7,
                };
                assert_eq!(file_type, expected, "{}", path.escape_ascii());
                if expected == 2 {
                    work.push((path.clone(), child));
                }
                assert!(paths.insert(path, stat).is_none(), "a name stands twice");
            }
        }
        paths
    }
}

fn collect(area: &[u8], first: usize, xattrs: &mut BTreeMap<(u8, Vec<u8>), Vec<u8>>) {
    let mut at = first;
    while u32_at(area, at) != 0 {
        let length = usize::from(area[at]);
        let (offset, size) = (usize::from(u16_at(area, at + 2)), u32_at(area, at + 8) as usize);
        let name = (area[at + 1], area[at + 16..at + 16 + length].to_vec());
        assert!(
            xattrs
                .insert(name, area[offset..offset + size].to_vec())
                .is_none(),
            "an attribute stands twice"
        );
        at += 16 + length.next_multiple_of(4);
    }
}
