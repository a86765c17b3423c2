//! Which blocks are taken: a cursor that only moves forward, over a file system whose backup areas are spared.
//!
//! Group 1 and the groups whose numbers are powers of 3, 5 and 7 start with a copy of the superblock and of the group
//! descriptors (feature `sparse_super`, `ext4_bg_has_super` in `fs/ext4/balloc.c`). Around each copy a whole number of
//! 512 KiB chunks is spared. Data that is interrupted by a copy therefore continues at the same place of a chunk, and
//! chunks of one layer stay the same wherever in an image the layer lies.

use super::format::{BLOCKS_PER_GROUP, CHUNK_BLOCKS};

/// Consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) length: u64,
}

impl Run {
    pub(super) fn end(self) -> u64 {
        self.start + self.length
    }
}

/// Whether a group starts with a copy of the superblock. Group 0, which has the original, counts too.
pub(super) fn has_superblock(group: u64) -> bool {
    let is_power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || is_power_of(3) || is_power_of(5) || is_power_of(7)
}

/// The areas of the backups, as block numbers in ascending order. Each is `spared` blocks long, of which `used` are in
/// use.
#[derive(Clone, Debug)]
pub(super) struct Backups {
    groups: Vec<u64>,
    used: u64,
    spared: u64,
}

impl Backups {
    /// For a file system of so many groups, each backup having `used` blocks.
    pub(super) fn new(groups: u64, used: u64) -> Self {
        let groups = (1..groups).filter(|group| has_superblock(*group)).collect();
        Self {
            groups,
            used,
            spared: used.next_multiple_of(CHUNK_BLOCKS),
        }
    }

    /// The groups that have one, ascending, without group 0.
    pub(super) fn groups(&self) -> &[u64] {
        &self.groups
    }

    /// The used blocks of every backup.
    pub(super) fn used_runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.groups.iter().map(|group| Run {
            start: group * BLOCKS_PER_GROUP,
            length: self.used,
        })
    }

    /// The first area that ends after `block`: it covers `block` or comes later.
    fn area_from(&self, block: u64) -> Option<Run> {
        let first = self
            .groups
            .partition_point(|group| group * BLOCKS_PER_GROUP + self.spared <= block);
        self.groups.get(first).map(|group| Run {
            start: group * BLOCKS_PER_GROUP,
            length: self.spared,
        })
    }

    /// `block`, or the first block after the area that covers it.
    fn after(&self, block: u64) -> u64 {
        match self.area_from(block) {
            Some(area) if area.start <= block => area.end(),
            _ => block,
        }
    }

    /// `count` blocks from `start` on, without those of backup areas, as runs in ascending order.
    pub(super) fn pieces(&self, start: u64, count: u64) -> Pieces<'_> {
        Pieces {
            backups: self,
            next: start,
            left: count,
        }
    }

    /// The block that stands `distance` blocks after `start`, blocks of backup areas not counted.
    pub(super) fn nth(&self, start: u64, distance: u64) -> u64 {
        let mut next = self.after(start);
        let mut left = distance;
        while let Some(area) = self.area_from(next) {
            if next + left < area.start {
                break;
            }
            left -= area.start - next;
            next = area.end();
        }
        next + left
    }
}

/// See [`Backups::pieces`].
#[derive(Clone, Debug)]
pub(super) struct Pieces<'a> {
    backups: &'a Backups,
    next: u64,
    left: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let start = self.backups.after(self.next);
        let room = self
            .backups
            .area_from(start)
            .map_or(u64::MAX, |area| area.start - start);
        let length = self.left.min(room);
        self.next = start + length;
        self.left -= length;
        Some(Run { start, length })
    }
}

/// Hands out blocks in ascending order and remembers which.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    backups: &'a Backups,
    next: u64,
    used: Vec<Run>,
}

impl<'a> Cursor<'a> {
    /// Nothing taken yet.
    pub(super) fn new(backups: &'a Backups) -> Self {
        Self {
            backups,
            next: 0,
            used: Vec::new(),
        }
    }

    /// Where the next block would be.
    pub(super) fn position(&self) -> u64 {
        self.backups.after(self.next)
    }

    /// Takes `count` blocks and returns the first; [`Backups::pieces`] has the others.
    pub(super) fn take(&mut self, count: u64) -> u64 {
        let start = self.reserve(count);
        self.mark(start, count);
        start
    }

    /// Takes `count` blocks without a gap, all of them before or after a backup.
    pub(super) fn take_contiguous(&mut self, count: u64) -> u64 {
        let mut start = self.position();
        while let Some(area) = self.backups.area_from(start)
            && area.start < start + count
        {
            start = area.end();
        }
        self.next = start;
        self.take(count)
    }

    /// Moves on by `count` blocks without taking them and returns the first; [`Cursor::mark`] takes some of them.
    pub(super) fn reserve(&mut self, count: u64) -> u64 {
        let start = self.position();
        if let Some(last) = count.checked_sub(1) {
            self.next = self.backups.nth(start, last) + 1;
        }
        start
    }

    /// Takes blocks that were reserved.
    pub(super) fn mark(&mut self, start: u64, count: u64) {
        for run in self.backups.pieces(start, count) {
            match self.used.last_mut() {
                Some(last) if last.end() == run.start => last.length += run.length,
                _ => self.used.push(run),
            }
        }
    }

    /// Takes blocks of a reserved area, counted from its start.
    pub(super) fn mark_within(&mut self, area: u64, distance: u64, count: u64) {
        self.mark(self.backups.nth(area, distance), count);
    }

    /// Moves on to the next chunk.
    pub(super) fn align(&mut self) {
        self.next = self.next.next_multiple_of(CHUNK_BLOCKS);
    }

    /// The runs that were taken, in the order of taking.
    pub(super) fn finish(self) -> Vec<Run> {
        self.used
    }
}

/// Sorts runs and joins those that touch.
pub(super) fn merge(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.end() == run.start => last.length += run.length,
            _ => merged.push(run),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_stand_where_the_kernel_expects_them() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn blocks_are_counted_around_backups() {
        let backups = Backups::new(4, 20);
        let group = BLOCKS_PER_GROUP;
        let runs: Vec<Run> = backups.pieces(group - 10, 30).collect();
        assert_eq!(
            runs,
            [
                Run {
                    start: group - 10,
                    length: 10
                },
                Run {
                    start: group + 128,
                    length: 20
                }
            ]
        );
        assert_eq!(backups.nth(group - 10, 9), group - 1);
        assert_eq!(backups.nth(group - 10, 10), group + 128);
        assert_eq!(backups.nth(group + 5, 0), group + 128);
        let mut cursor = Cursor::new(&backups);
        assert_eq!(cursor.take(group - 10), 0);
        assert_eq!(cursor.take_contiguous(30), group + 128);
        assert_eq!(cursor.position(), group + 158);
    }
}
