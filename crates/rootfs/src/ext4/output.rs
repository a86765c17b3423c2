//! Writing a plan: metadata, contents and the hash tree, and what is found out on the way.
//!
//! Nothing is read twice that is known already. The leaf hashes of metadata are taken as it is written, those of
//! contents from the packs' kept ones. The checksum of the whole file is computed in a second thread while contents are
//! copied, from the packs and not from the image: after a reflink the image's pages are in nobody's cache, the packs'
//! are. Metadata and the tree are read back, which is cheaper than to hold them.

use std::{
    io, panic,
    sync::{Mutex, PoisonError},
    thread,
};

use sha2::{Digest, Sha256};

use super::{
    format::{BLOCK, BLOCK_BYTES, index},
    plan::{BodyCopy, Plan},
    sink::ImageSink,
};
use crate::{
    chunks::{ChunkList, ChunkWriter},
    image::{Findings, ImageError},
    pack::{Pack, Packs},
    verity::{Geometry, Hash, Leaves, TreeWriter, Verity, hash_blocks, read_and_hash},
};

/// Bytes that are hashed at a time: little enough to stay in a processor's cache.
const HASH_BUFFER_BYTES: usize = 256 << 10;

/// What is known of an image once it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Emitted {
    /// The hash tree, where the plan has one.
    pub verity: Option<Verity>,
    /// SHA-256 of the whole file, where it was asked for.
    pub sha256: Option<[u8; 32]>,
    /// The chunks of the whole file, where they were asked for.
    pub chunks: Option<ChunkList>,
}

impl Plan<'_> {
    /// Writes the whole image, and the hash tree where the plan has one.
    ///
    /// # Errors
    /// `MissingPack`, before the first write, when `packs` lacks one; `Io` when a pack cannot be read or the sink
    /// fails. What was written until then stays in the sink.
    pub fn emit(&self, packs: &Packs, sink: &dyn ImageSink) -> Result<Emitted, ImageError> {
        self.emit_and_find(packs, sink, Findings::default())
    }

    /// Writes everything but the contents of files: the file system's structures, and the hash tree where the plan has
    /// one. What [`Plan::copies`] lists is left to the caller ([`ImageSink::copy_from_pack`]); the image is whole when all
    /// of it was copied.
    ///
    /// # Errors
    /// As [`Plan::emit`].
    pub fn emit_without_contents(
        &self,
        packs: &Packs,
        sink: &dyn ImageSink,
    ) -> Result<Option<Verity>, ImageError> {
        let parts = self.emit_structures(packs, sink, self.verity.is_some())?;
        let tree = self
            .verity
            .as_ref()
            .map(|geometry| parts.write_tree(geometry.clone(), false));
        let tree = tree.transpose().map_err(io_error("write the hash tree"))?;
        Ok(tree.map(|(verity, _)| verity))
    }

    /// Gives the image its length and the file system's structures.
    fn emit_structures<'a>(
        &self,
        packs: &'a Packs,
        sink: &'a dyn ImageSink,
        hashes: bool,
    ) -> Result<Parts<'a>, ImageError> {
        let copies = self.copies();
        if let Some(copy) = copies.iter().find(|copy| packs.get(copy.pack).is_none()) {
            return Err(ImageError::MissingPack { pack: copy.pack });
        }
        sink.set_len(self.size_bytes())
            .map_err(io_error("set the size of the image"))?;
        let recorder = Recorder::new(sink, hashes);
        self.emit_metadata(&recorder)?;
        Ok(Parts {
            copies,
            written: recorder.finish(),
            packs,
            sink,
        })
    }

    /// The same, and finds out what is asked for.
    ///
    /// # Errors
    /// As [`Plan::emit`]. For the checksum the sink must be able to [read back](ImageSink::read_back).
    pub fn emit_and_find(
        &self,
        packs: &Packs,
        sink: &dyn ImageSink,
        findings: Findings,
    ) -> Result<Emitted, ImageError> {
        let file_system_blocks = self.file_system_bytes() / BLOCK_BYTES;
        let parts = self.emit_structures(packs, sink, findings.chunks || self.verity.is_some())?;
        let hash_file_system = || parts.digest(Sha256::new(), 0, file_system_blocks);
        thread::scope(|scope| {
            let hasher = findings.sha256.then(|| {
                thread::Builder::new()
                    .name("image-digest".to_owned())
                    .spawn_scoped(scope, hash_file_system)
            });
            let (verity, area) = match &self.verity {
                Some(geometry) => {
                    let (verity, area) = parts
                        .write_tree(geometry.clone(), findings.chunks)
                        .map_err(io_error("write the hash tree"))?;
                    (Some(verity), area)
                }
                None => (None, Vec::new()),
            };
            parts.copy()?;
            let digest = match hasher {
                None => None,
                Some(Ok(thread)) => Some(
                    thread
                        .join()
                        .unwrap_or_else(|payload| panic::resume_unwind(payload)),
                ),
                // A sandbox may allow only one thread.
                Some(Err(_)) => Some(hash_file_system()),
            };
            let area = Parts {
                copies: Vec::new(),
                written: area,
                packs,
                sink,
            };
            let end = self.size_bytes() / BLOCK_BYTES;
            let sha256 = digest
                .map(|digest| area.digest(digest?, file_system_blocks, end))
                .transpose()
                .map_err(io_error("compute the checksum of the image"))?
                .map(|digest| digest.finalize().into());
            let chunks = findings
                .chunks
                .then(|| {
                    let mut chunks = ChunkWriter::new(self.size_bytes());
                    parts.leaves(0, file_system_blocks, &mut |leaves| chunks.push(leaves))?;
                    area.leaves(file_system_blocks, end, &mut |leaves| chunks.push(leaves))?;
                    Ok(chunks.finish())
                })
                .transpose()
                .map_err(io_error("hash the image's chunks"))?;
            Ok(Emitted {
                verity,
                sha256,
                chunks,
            })
        })
    }
}

pub(super) fn io_error(action: &'static str) -> impl Fn(io::Error) -> ImageError {
    move |source| ImageError::Io { action, source }
}

/// One write, in blocks.
struct Piece {
    first: u64,
    blocks: u64,
    /// Hashes of the blocks, where they were asked for.
    hashes: Vec<Hash>,
}

/// Remembers what was written where, and the hashes of it.
struct Recorder<'a> {
    sink: &'a dyn ImageSink,
    hashes: bool,
    pieces: Mutex<Vec<Piece>>,
}

impl<'a> Recorder<'a> {
    fn new(sink: &'a dyn ImageSink, hashes: bool) -> Self {
        Self {
            sink,
            hashes,
            pieces: Mutex::default(),
        }
    }

    /// What was written, in ascending order.
    fn finish(self) -> Vec<Piece> {
        let mut pieces = self.pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
        pieces.sort_unstable_by_key(|piece| piece.first);
        pieces
    }
}

impl ImageSink for Recorder<'_> {
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.sink.set_len(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES));
        self.sink.write_at(bytes, offset)?;
        let piece = Piece {
            first: offset / BLOCK_BYTES,
            blocks: bytes.len().div_ceil(BLOCK) as u64,
            hashes: if self.hashes {
                hash_blocks(bytes).collect()
            } else {
                Vec::new()
            },
        };
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push(piece);
        Ok(())
    }
}

/// What an image is made of.
struct Parts<'a> {
    /// Ascending in the image.
    copies: Vec<BodyCopy>,
    /// Ascending. Neither overlaps the other.
    written: Vec<Piece>,
    packs: &'a Packs,
    sink: &'a dyn ImageSink,
}

/// A run of blocks and where their bytes are.
enum Part<'a> {
    Zeros(u64),
    Written(&'a Piece),
    Copied(&'a BodyCopy),
}

impl Parts<'_> {
    /// Everything from block `from` to before block `to`, in order and without gaps.
    fn in_order(&self, from: u64, to: u64) -> impl Iterator<Item = Part<'_>> {
        let mut copies = self.copies.iter().peekable();
        let mut written = self.written.iter().peekable();
        let mut position = from;
        std::iter::from_fn(move || {
            let copy = copies.peek().map_or(to, |copy| copy.image_offset / BLOCK_BYTES);
            let piece = written.peek().map_or(to, |piece| piece.first);
            let next = copy.min(piece).min(to);
            if position < next {
                let gap = next - position;
                position = next;
                return Some(Part::Zeros(gap));
            }
            if position >= to {
                return None;
            }
            if piece < copy {
                let piece = written.next()?;
                position += piece.blocks;
                Some(Part::Written(piece))
            } else {
                let copy = copies.next()?;
                position += copy.length / BLOCK_BYTES;
                Some(Part::Copied(copy))
            }
        })
    }

    fn pack(&self, copy: &BodyCopy) -> io::Result<&Pack> {
        // `emit_and_find` has looked for all of them.
        self.packs
            .get(copy.pack)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn copy(&self) -> Result<(), ImageError> {
        for copy in &self.copies {
            let pack = self.packs.get(copy.pack);
            let pack = pack.ok_or(ImageError::MissingPack { pack: copy.pack })?;
            self.sink
                .copy_from_pack(pack, copy.pack_offset, copy.image_offset, copy.length)
                .map_err(io_error("copy the contents of files into the image"))?;
        }
        Ok(())
    }

    /// Continues a digest with the bytes of the blocks from `from` to before `to`.
    fn digest(&self, mut digest: Sha256, from: u64, to: u64) -> io::Result<Sha256> {
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        let mut add = |length: u64, read: &dyn Fn(&mut [u8], u64) -> io::Result<()>| {
            let mut done = 0;
            while done < length {
                let count =
                    usize::try_from(length - done).map_or(buffer.len(), |rest| rest.min(buffer.len()));
                read(&mut buffer[..count], done)?;
                digest.update(&buffer[..count]);
                done += count as u64;
            }
            Ok::<_, io::Error>(())
        };
        for part in self.in_order(from, to) {
            match part {
                Part::Zeros(blocks) => add(blocks * BLOCK_BYTES, &|bytes, _| {
                    // The buffer holds what came before.
                    bytes.fill(0);
                    Ok(())
                })?,
                Part::Written(piece) => {
                    let start = piece.first * BLOCK_BYTES;
                    add(piece.blocks * BLOCK_BYTES, &|bytes, offset| {
                        self.sink.read_back(bytes, start + offset)
                    })?;
                }
                Part::Copied(copy) => {
                    let pack = self.pack(copy)?;
                    add(copy.length, &|bytes, offset| {
                        pack.read_exact_at(bytes, copy.pack_offset + offset)
                    })?;
                }
            }
        }
        Ok(digest)
    }

    /// Passes on the leaf hashes of the blocks from `from` to before `to`.
    fn leaves(
        &self,
        from: u64,
        to: u64,
        take: &mut dyn FnMut(Leaves<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        for part in self.in_order(from, to) {
            match part {
                Part::Zeros(blocks) => take(Leaves::Zeros(blocks))?,
                Part::Written(piece) => take(Leaves::Hashes(&piece.hashes))?,
                Part::Copied(copy) => {
                    let (first, blocks) = (copy.pack_offset / BLOCK_BYTES, copy.length / BLOCK_BYTES);
                    match self.packs.leaf_hashes(copy.pack) {
                        Some(kept) => {
                            let run = kept.hashes().get(index(first)..index(first + blocks));
                            take(Leaves::Hashes(run.ok_or_else(|| too_few_leaves(copy))?))?;
                        }
                        None => {
                            let pack = self.pack(copy)?;
                            read_and_hash(
                                &|bytes: &mut [u8], offset| pack.read_exact_at(bytes, offset),
                                first,
                                blocks,
                                take,
                            )?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the hash tree of the file system; the second is what was written.
    fn write_tree(&self, geometry: Geometry, hashes: bool) -> io::Result<(Verity, Vec<Piece>)> {
        let recorder = Recorder::new(self.sink, hashes);
        let blocks = geometry.data_blocks;
        let mut tree = TreeWriter::new(geometry, &recorder);
        self.leaves(0, blocks, &mut |leaves| tree.push(leaves))?;
        let verity = tree.finish()?;
        Ok((verity, recorder.finish()))
    }
}

fn too_few_leaves(copy: &BodyCopy) -> io::Error {
    let reason = format!(
        "the leaf hashes of pack {} end before byte {} of it",
        copy.pack.0,
        copy.pack_offset + copy.length
    );
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
