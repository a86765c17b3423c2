//! File contents: which blocks of which pack, and in which order they will stand in the image.
//!
//! The blocks of one pack stand together, in a region that starts on a chunk boundary (512 KiB), and each keeps the
//! place within a chunk that it has in the pack. Chunks of which nothing is needed are left out; within a chunk, what
//! is not needed is left free. So the chunks of a layer that two images have in common are equal, byte for byte, even
//! if one of them has lost some of the layer's files. When less than half of what is kept this way would be needed,
//! sharing is given up for that pack and its blocks stand without gaps, so that an image never has more holes of
//! this kind than data.

use crate::{
    ext4::{
        format::{BLOCK_BYTES, CHUNK_BLOCKS, position},
        inode::MAX_FILE_BYTES,
    },
    pack::PackId,
    tree::{Content, FileContent},
};

/// Where the bytes of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ext4) enum Source<'tree> {
    /// An offset in the region's pack.
    Pack(u64),
    /// Memory.
    Inline(&'tree [u8]),
}

/// A run of a file's content, block-aligned in the file and in its source.
#[derive(Clone, Copy, Debug)]
pub(in crate::ext4) struct BodyRun<'tree> {
    pub(in crate::ext4) source: Source<'tree>,
    pub(in crate::ext4) length_bytes: u64,
    /// First block within the file.
    pub(in crate::ext4) logical: u64,
    /// First block within the region.
    pub(in crate::ext4) place: u64,
    /// Row of the region.
    pub(in crate::ext4) region: u32,
}

impl BodyRun<'_> {
    pub(in crate::ext4) fn blocks(&self) -> u64 {
        self.length_bytes.div_ceil(BLOCK_BYTES)
    }
}

/// What comes from one pack, or, as the last region, from memory.
#[derive(Debug)]
pub(in crate::ext4) struct Region {
    /// `None` for content from memory.
    pub(in crate::ext4) pack: Option<PackId>,
    /// Blocks from the first to the last, with those that stay free.
    pub(in crate::ext4) blocks: u64,
    /// Rows of the runs, in the order of their places.
    pub(in crate::ext4) runs: Vec<u32>,
}

/// All file contents.
#[derive(Debug, Default)]
pub(in crate::ext4) struct Bodies<'tree> {
    pub(in crate::ext4) runs: Vec<BodyRun<'tree>>,
    pub(in crate::ext4) regions: Vec<Region>,
}

/// The region of a run before regions are known: packs have their number, and memory comes last.
const MEMORY: u32 = u32::MAX;

impl<'tree> Bodies<'tree> {
    /// Adds one file's runs.
    pub(in crate::ext4) fn add(&mut self, content: &'tree FileContent) -> Result<(), String> {
        let size = content.size_bytes;
        if size > MAX_FILE_BYTES {
            return Err(format!("it has {size} bytes, a file holds {MAX_FILE_BYTES}"));
        }
        match &content.content {
            Content::Inline(bytes) => {
                if bytes.len() as u64 != size {
                    return Err(format!(
                        "its size is {size}, its content has {} bytes",
                        bytes.len()
                    ));
                }
                if !bytes.is_empty() {
                    self.push(Source::Inline(bytes), size, 0, MEMORY);
                }
            }
            Content::Packed { pack, extents } => {
                if pack.0 == MEMORY {
                    return Err("its pack has no possible number".to_owned());
                }
                let mut end = 0;
                for extent in &**extents {
                    let start = extent.logical_offset;
                    let is_whole = extent.length.is_multiple_of(BLOCK_BYTES)
                        || start.checked_add(extent.length) == Some(size);
                    if !start.is_multiple_of(BLOCK_BYTES)
                        || !extent.pack_offset.is_multiple_of(BLOCK_BYTES)
                        || extent
                            .pack_offset
                            .checked_add(extent.length)
                            .is_none_or(|end| end > i64::MAX as u64)
                        || extent.length == 0
                        || start < end
                        || start.checked_add(extent.length).is_none_or(|end| end > size)
                        || !is_whole
                    {
                        return Err(format!(
                            "its content is not described by whole blocks in order: {extent:?}"
                        ));
                    }
                    end = start + extent.length;
                    self.push(
                        Source::Pack(extent.pack_offset),
                        extent.length,
                        start / BLOCK_BYTES,
                        pack.0,
                    );
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, source: Source<'tree>, length_bytes: u64, logical: u64, region: u32) {
        self.runs.push(BodyRun {
            source,
            length_bytes,
            logical,
            place: 0,
            region,
        });
    }

    /// Divides the runs into regions and gives each its place there.
    pub(in crate::ext4) fn arrange(&mut self) {
        let mut order: Vec<u32> = (0..position(self.runs.len())).collect();
        order.sort_unstable_by_key(|row| {
            let run = &self.runs[*row as usize];
            let offset = match run.source {
                Source::Pack(offset) => offset,
                Source::Inline(_) => 0,
            };
            (run.region, offset, *row)
        });
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let number = self.runs[*first as usize].region;
            let count = rest.partition_point(|row| self.runs[*row as usize].region == number);
            let (group, after) = rest.split_at(count);
            rest = after;
            let pack = (number != MEMORY).then_some(PackId(number));
            let (places, blocks, runs) = if pack.is_some() {
                arrange_pack(&self.runs, group)
            } else {
                one_after_another(&self.runs, group, 0)
            };
            for (row, place) in runs.iter().zip(places) {
                self.runs[*row as usize].place = place;
            }
            self.regions.push(Region { pack, blocks, runs });
        }
        // Only now, since the loop above tells regions apart by the packs' numbers.
        for (row, region) in self.regions.iter().enumerate() {
            for run in &region.runs {
                self.runs[*run as usize].region = position(row);
            }
        }
    }
}

/// Places, blocks of the region, and the runs in the order of their places.
type Arrangement = (Vec<u64>, u64, Vec<u32>);

fn one_after_another(runs: &[BodyRun<'_>], order: &[u32], first: u64) -> Arrangement {
    let mut next = first;
    let places = order
        .iter()
        .map(|row| {
            let place = next;
            next += runs[*row as usize].blocks();
            place
        })
        .collect();
    (places, next, order.to_vec())
}

/// Lays out one pack's runs, which come in pack order.
fn arrange_pack(runs: &[BodyRun<'_>], order: &[u32]) -> Arrangement {
    let mut places = Vec::with_capacity(order.len());
    let mut kept = Vec::with_capacity(order.len());
    // Runs that overlap what is already placed: two files that share blocks of the pack. ext4 cannot share blocks, so
    // they get copies, after everything else.
    let mut copies = Vec::new();
    let mut pack_end = 0;
    let mut needed = 0;
    // Chunks kept so far, and the pack's chunk after the last of them.
    let mut chunks = 0;
    let mut next_chunk = 0;
    let mut end = 0;
    for row in order {
        let run = &runs[*row as usize];
        let Source::Pack(offset) = run.source else {
            continue;
        };
        let start = offset / BLOCK_BYTES;
        if start < pack_end {
            copies.push(*row);
            continue;
        }
        pack_end = start + run.blocks();
        needed += run.blocks();
        let first_chunk = start / CHUNK_BLOCKS;
        let last_chunk = (pack_end - 1) / CHUNK_BLOCKS;
        chunks += last_chunk + 1 - next_chunk.max(first_chunk);
        next_chunk = last_chunk + 1;
        let place = (chunks - (last_chunk + 1 - first_chunk)) * CHUNK_BLOCKS + start % CHUNK_BLOCKS;
        end = place + run.blocks();
        places.push(place);
        kept.push(*row);
    }
    if needed * 2 < end {
        return one_after_another(runs, order, 0);
    }
    let (more_places, end, more) = one_after_another(runs, &copies, end);
    places.extend(more_places);
    kept.extend(more);
    (places, end, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(blocks: &[(u64, u64)]) -> (Vec<u64>, u64) {
        let runs: Vec<BodyRun<'_>> = blocks
            .iter()
            .map(|(start, length)| BodyRun {
                source: Source::Pack(start * BLOCK_BYTES),
                length_bytes: length * BLOCK_BYTES,
                logical: 0,
                place: 0,
                region: 0,
            })
            .collect();
        let order: Vec<u32> = (0..position(runs.len())).collect();
        let (places, end, _) = arrange_pack(&runs, &order);
        (places, end)
    }

    #[test]
    fn blocks_keep_their_place_within_a_chunk() {
        /// Name, runs as first block and length, expected places, expected end.
        type Case = (&'static str, &'static [(u64, u64)], &'static [u64], u64);
        let cases: [Case; 7] = [
            (
                "a whole pack",
                &[(0, 100), (100, 300), (400, 1)],
                &[0, 100, 400],
                401,
            ),
            ("a gap within a chunk", &[(0, 60), (100, 10)], &[0, 100], 110),
            ("a chunk left out", &[(0, 100), (300, 84)], &[0, 128 + 44], 256),
            ("a run over several chunks", &[(600, 400)], &[600 - 4 * 128], 488),
            (
                "two runs in the last chunk of the first",
                &[(0, 130), (140, 100)],
                &[0, 140],
                240,
            ),
            ("mostly gone", &[(10, 1), (300, 1), (600, 1)], &[0, 1, 2], 3),
            (
                "shared blocks",
                &[(0, 100), (50, 50), (100, 10)],
                &[0, 100, 110],
                160,
            ),
        ];
        for (name, blocks, expected, end) in cases {
            assert_eq!(places(blocks), (expected.to_vec(), end), "{name}");
        }
    }
}
