//! One layer as code.

use super::{
    Compression, digest,
    tar::{self, Header, LongNames},
};

/// What stands at one place of the archive.
#[derive(Clone, Debug)]
enum Item {
    Entry {
        header: Header,
        body: Vec<u8>,
        extension: Vec<u8>,
    },
    GlobalRecords(Vec<(Vec<u8>, Vec<u8>)>),
    Bytes(Vec<u8>),
}

/// One layer as code: entries in archive order, each said by one call.
///
/// The calls that describe an entry ([`mode`](Self::mode), [`owner`](Self::owner), [`mtime`](Self::mtime),
/// [`xattr`](Self::xattr), …) speak of the entry that was added last and panic when there is none: a mistake in a
/// test, not a case. Paths are taken byte for byte and are not checked: absolute ones, `..` and empty ones are what
/// some tests are about. Entries are owned by root and dated 2020-01-01 unless told otherwise.
#[derive(Clone, Debug)]
#[must_use = "each call gives the extended value back"]
pub struct Layer {
    items: Vec<Item>,
    long_names: LongNames,
    end_blocks: usize,
}

/// 2020-01-01T00:00:00Z, so that a time that was lost (1970) or made up (now) shows.
const DEFAULT_SECONDS: i64 = 1_577_836_800;

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// A layer without entries: two blocks of zeros.
    pub const fn new() -> Self {
        Self {
            items: Vec::new(),
            long_names: LongNames::Pax,
            end_blocks: 2,
        }
    }

    /// A directory.
    pub fn directory(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.entry(b'5', path, b"", mode, Vec::new())
    }

    /// A regular file of mode 0644.
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', path, b"", 0o644, content.as_ref().to_vec())
    }

    /// A symbolic link.
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(b'2', path, target, 0o777, Vec::new())
    }

    /// A hard link to another path of the archive or of a lower layer.
    pub fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(b'1', path, target, 0o644, Vec::new())
    }

    /// A character device of mode 0600.
    pub fn character_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(b'3', path, b"", 0o600, Vec::new())
            .change(|header| header.device = (major, minor))
    }

    /// A block device of mode 0600.
    pub fn block_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(b'4', path, b"", 0o600, Vec::new())
            .change(|header| header.device = (major, minor))
    }

    /// A named pipe of mode 0644.
    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(b'6', path, b"", 0o644, Vec::new())
    }

    /// Hides `path` of the lower layers: the file `.wh.NAME` beside it.
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let name_at = path
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1);
        let marker = [&path[..name_at], b".wh.", &path[name_at..]].concat();
        self.file(marker, b"")
    }

    /// Hides everything that the lower layers have in `directory`: the file `.wh..wh..opq` in it. An empty path means
    /// the root.
    pub fn opaque(self, directory: impl AsRef<[u8]>) -> Self {
        let directory = directory.as_ref();
        let separator: &[u8] = if directory.is_empty() || directory.ends_with(b"/") {
            b""
        } else {
            b"/"
        };
        self.file([directory, separator, b".wh..wh..opq"].concat(), b"")
    }

    /// A file with holes as GNU tar writes it by default: type `S`, the map in the header (and in extension blocks
    /// behind it, past four runs). `size` is the file's size with holes; runs are `(offset, bytes)` in order.
    ///
    /// # Panics
    /// When a run other than the last has a length that is no multiple of 512: readers disagree on those.
    pub fn gnu_sparse_file(self, path: impl AsRef<[u8]>, size: u64, runs: &[(u64, &[u8])]) -> Self {
        let body = sparse_body(runs);
        // The run of no bytes at the end is GNU tar's way to say how far the last hole reaches.
        let mut map: Vec<(u64, u64)> = runs
            .iter()
            .map(|&(offset, bytes)| (offset, bytes.len() as u64))
            .collect();
        map.push((size, 0));
        let (in_header, rest) = map.split_at(map.len().min(4));
        let mut layer = self.entry(b'S', path, b"", 0o644, body).change(|header| {
            header.patches.push((257, b"ustar  \0".to_vec()));
            header.patches.push((386, sparse_map(in_header)));
            header.patches.push((482, vec![u8::from(!rest.is_empty())]));
            header.patches.push((483, octal(size)));
        });
        let n_blocks = rest.len().div_ceil(21);
        if let Some(Item::Entry { extension, .. }) = layer.items.last_mut() {
            for (block_idx, runs) in rest.chunks(21).enumerate() {
                let mut block = sparse_map(runs);
                block.resize(504, 0);
                block.push(u8::from(block_idx + 1 < n_blocks));
                tar::append_padded(extension, &block);
            }
        }
        layer
    }

    /// A file with holes as GNU tar writes it in PAX archives (sparse format 1.0): the map at the start of the body.
    ///
    /// # Panics
    /// As [`gnu_sparse_file`](Self::gnu_sparse_file) does.
    pub fn pax_sparse_file(self, path: impl AsRef<[u8]>, size: u64, runs: &[(u64, &[u8])]) -> Self {
        let path = path.as_ref();
        let runs_and_end = runs
            .iter()
            .map(|&(offset, bytes)| (offset, bytes.len()))
            .chain([(size, 0)]);
        let numbers = runs_and_end.flat_map(|(offset, length)| [offset.to_string(), length.to_string()]);
        let map: String = std::iter::once((runs.len() + 1).to_string())
            .chain(numbers)
            .map(|number| number + "\n")
            .collect();
        let mut body = Vec::new();
        tar::append_padded(&mut body, map.as_bytes());
        body.extend(sparse_body(runs));
        let name_at = path
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1);
        let placeholder = [&path[..name_at], b"GNUSparseFile.0/", &path[name_at..]].concat();
        self.entry(b'0', placeholder, b"", 0o644, body)
            .pax_record("GNU.sparse.major", "1")
            .pax_record("GNU.sparse.minor", "0")
            .pax_record("GNU.sparse.name", path)
            .pax_record("GNU.sparse.realsize", size.to_string())
    }

    /// Permission bits of the last entry. Written as they are, type bits included.
    pub fn mode(self, mode: u32) -> Self {
        self.change(|header| header.mode = mode)
    }

    /// Owner and group of the last entry.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.change(|header| (header.uid, header.gid) = (uid, gid))
    }

    /// Time of modification of the last entry: seconds since 1970 (negative before) plus nanoseconds, which count
    /// forward.
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        self.change(|header| (header.seconds, header.nanoseconds) = (seconds, nanoseconds))
    }

    /// An extended attribute of the last entry, as the PAX record `SCHILY.xattr.NAME`.
    pub fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax_record([b"SCHILY.xattr.", name.as_ref()].concat(), value)
    }

    /// `security.capability` of the last entry: version 2, effective, with these permitted bits
    /// (`capabilities(7)`; `cap_net_raw` is bit 13).
    pub fn file_capability(self, permitted: u64) -> Self {
        let [low, high] = [permitted & 0xffff_ffff, permitted >> 32];
        let words = [0x0200_0001, low, 0, high, 0];
        let value: Vec<u8> = words
            .iter()
            .flat_map(|word| word.to_le_bytes().into_iter().take(4))
            .collect();
        self.xattr("security.capability", value)
    }

    /// Any PAX record for the last entry.
    pub fn pax_record(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.change(|header| {
            header
                .records
                .push((key.as_ref().to_vec(), value.as_ref().to_vec()))
        })
    }

    /// PAX records for every entry from here on (type `g`).
    pub fn global_pax_record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.items.push(Item::GlobalRecords(vec![(
            key.as_ref().to_vec(),
            value.as_ref().to_vec(),
        )]));
        self
    }

    /// Another type flag for the last entry (`0` to `7`, `g`, `x`, or anything).
    pub fn type_flag(self, type_flag: u8) -> Self {
        self.change(|header| header.type_flag = type_flag)
    }

    /// The header of the last entry claims this size; its body stays as it is.
    pub fn claimed_size(self, size: u64) -> Self {
        self.change(|header| header.claimed_size = Some(size))
    }

    /// The header of the last entry has a checksum that is off by one.
    pub fn wrong_checksum(self) -> Self {
        self.change(|header| header.wrong_checksum = true)
    }

    /// Overwrites bytes of the last entry's header. The checksum is made afterwards.
    ///
    /// # Panics
    /// When the bytes reach beyond the header's 512.
    pub fn header_bytes(self, offset: usize, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_vec();
        assert!(offset + bytes.len() <= 512, "a tar header has 512 bytes");
        self.change(|header| header.patches.push((offset, bytes)))
    }

    /// Bytes at this place of the archive, as they are, without padding.
    pub fn raw_bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.items.push(Item::Bytes(bytes.as_ref().to_vec()));
        self
    }

    /// How names of more than 100 bytes are written, in the whole layer.
    pub const fn long_names(mut self, long_names: LongNames) -> Self {
        self.long_names = long_names;
        self
    }

    /// How many blocks of zeros end the archive: two in an honest one.
    pub const fn end_blocks(mut self, blocks: usize) -> Self {
        self.end_blocks = blocks;
        self
    }

    /// The archive.
    #[must_use]
    pub fn to_tar(&self) -> Vec<u8> {
        let mut output = Vec::new();
        for item in &self.items {
            match item {
                Item::Entry {
                    header,
                    body,
                    extension,
                } if extension.is_empty() => {
                    tar::append(&mut output, header, body, self.long_names);
                }
                Item::Entry {
                    header,
                    body,
                    extension,
                } => {
                    // The size field counts the data alone, the extension blocks stand between header and data.
                    let header = Header {
                        claimed_size: Some(body.len() as u64),
                        ..header.clone()
                    };
                    tar::append(&mut output, &header, &[], self.long_names);
                    tar::append_padded(&mut output, extension);
                    tar::append_padded(&mut output, body);
                }
                Item::GlobalRecords(records) => tar::append_pax(&mut output, b'g', records),
                Item::Bytes(bytes) => output.extend(bytes),
            }
        }
        output.resize(output.len() + 512 * self.end_blocks, 0);
        output
    }

    /// The archive, packed.
    #[must_use]
    pub fn compress(&self, compression: Compression) -> Vec<u8> {
        compression.pack(&self.to_tar())
    }

    /// The digest of the archive before it is packed.
    #[must_use]
    pub fn diff_id(&self) -> String {
        digest(&self.to_tar())
    }

    fn entry(
        mut self,
        type_flag: u8,
        path: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        mode: u32,
        body: Vec<u8>,
    ) -> Self {
        let header = Header {
            path: path.as_ref().to_vec(),
            type_flag,
            mode,
            seconds: DEFAULT_SECONDS,
            link: link.as_ref().to_vec(),
            ..Header::default()
        };
        self.items.push(Item::Entry {
            header,
            body,
            extension: Vec::new(),
        });
        self
    }

    fn change(mut self, edit: impl FnOnce(&mut Header)) -> Self {
        let last = self.items.iter_mut().rev().find_map(|item| match item {
            Item::Entry { header, .. } => Some(header),
            Item::GlobalRecords(_) | Item::Bytes(_) => None,
        });
        edit(last.expect("an entry has to be added before it can be described"));
        self
    }
}

fn sparse_body(runs: &[(u64, &[u8])]) -> Vec<u8> {
    let (_, all_but_last) = runs.split_last().unwrap_or((&(0, b""), &[]));
    assert!(
        all_but_last.iter().all(|(_, bytes)| bytes.len() % 512 == 0),
        "a run ends within a block"
    );
    runs.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
}

/// Pairs of 12-byte octal numbers.
fn sparse_map(runs: &[(u64, u64)]) -> Vec<u8> {
    runs.iter()
        .flat_map(|&(offset, length)| [octal(offset), octal(length)].concat())
        .collect()
}

fn octal(value: u64) -> Vec<u8> {
    format!("{value:011o}\0").into_bytes()
}
