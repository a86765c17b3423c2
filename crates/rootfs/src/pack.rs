//! Packs: the bodies of one layer's files, 4 KiB-aligned, zero blocks left out.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use crate::verity::LeafHashes;

/// Block size of packs and of the images made from them, in bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// Names one pack of a [`Packs`]: its position there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u32);

/// One layer's bodies: a file or memory, read at any offset by many threads at once.
#[derive(Clone)]
pub enum Pack {
    /// A pack file. The writer may reflink or `copy_file_range` from it.
    File(Arc<File>),
    /// A pack in memory, for tests and for small trees made by code.
    Memory(Arc<[u8]>),
}

impl fmt::Debug for Pack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => formatter.debug_tuple("File").field(file).finish(),
            Self::Memory(bytes) => formatter
                .debug_struct("Memory")
                .field("bytes", &bytes.len())
                .finish(),
        }
    }
}

impl Pack {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the pack ends before the buffer is full; whatever the read reports otherwise.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let end = start
                    .checked_add(buffer.len())
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// Whether all bytes are zero. Looks at 64 bytes at a time: data is told from the first few, and zeros at the speed of
/// vector instructions.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// The packs that a tree's files refer to, and the leaf hashes of those that have some.
#[derive(Clone, Debug, Default)]
pub struct Packs {
    packs: Vec<(Pack, Option<Arc<LeafHashes>>)>,
}

impl Packs {
    /// No packs: enough for a tree whose files all carry their content inline.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pack and says under which name files refer to it.
    ///
    /// # Panics
    /// Beyond 2^32 packs.
    pub fn push(&mut self, pack: Pack) -> PackId {
        let id = PackId(u32::try_from(self.packs.len()).expect("fewer than 2^32 packs"));
        self.packs.push((pack, None));
        id
    }

    /// Gives a pack its leaf hashes, so that [`verity`](crate::verity) and [`chunks`](crate::chunks) need not read it.
    /// They are believed: with wrong ones the image's hash tree is wrong.
    ///
    /// # Panics
    /// When there is no pack of that name.
    pub fn set_leaf_hashes(&mut self, id: PackId, hashes: Arc<LeafHashes>) {
        self.packs[id.0 as usize].1 = Some(hashes);
    }

    /// The leaf hashes of the pack of that name, if it was given some.
    #[must_use]
    pub fn leaf_hashes(&self, id: PackId) -> Option<&LeafHashes> {
        self.packs.get(id.0 as usize)?.1.as_deref()
    }

    /// The pack of that name, if there is one.
    #[must_use]
    pub fn get(&self, id: PackId) -> Option<&Pack> {
        Some(&self.packs.get(id.0 as usize)?.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_and_memory_read_alike() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut packs = Packs::new();
        let in_file = packs.push(Pack::File(Arc::new(file)));
        let in_memory = packs.push(Pack::Memory(bytes.clone().into()));
        for id in [in_file, in_memory] {
            let pack = packs.get(id).unwrap();
            for (offset, length, expected) in [
                (0, 256, Some(&bytes[..])),
                (100, 3, Some(&[100, 101, 102][..])),
                (256, 0, Some(&[][..])),
                (255, 2, None),
                (1 << 40, 1, None),
            ] {
                let mut buffer = vec![0; length];
                let result = pack.read_exact_at(&mut buffer, offset);
                match expected {
                    Some(expected) => {
                        result.unwrap();
                        assert_eq!(buffer, expected, "{id:?} at {offset}");
                    }
                    None => assert_eq!(
                        result.unwrap_err().kind(),
                        io::ErrorKind::UnexpectedEof,
                        "{id:?} at {offset}"
                    ),
                }
            }
        }
        assert!(packs.get(PackId(2)).is_none());
    }
}
