//! What this process knows of the blobs in the cache: sizes, last use, leases.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

use std::time::SystemTime;

use crate::cache::CacheStatistics;
use crate::digest::Digest;

#[derive(Default)]
pub(super) struct Index {
    blobs: HashMap<Digest, Entry>,
    /// Also of blobs that are still being downloaded.
    leases: HashMap<Digest, usize>,
    /// Parts that nobody works on, oldest first.
    parts: VecDeque<(PathBuf, u64)>,
    hits: u64,
    misses: u64,
}

struct Entry {
    size_bytes: u64,
    last_used: SystemTime,
    is_verified: bool,
}

impl Index {
    pub(super) fn insert(&mut self, digest: &Digest, size_bytes: u64, last_used: SystemTime) {
        let entry = self.blobs.entry(digest.clone()).or_insert(Entry {
            size_bytes,
            last_used,
            is_verified: false,
        });
        entry.size_bytes = size_bytes;
        entry.last_used = last_used;
    }

    pub(super) fn forget(&mut self, digest: &Digest) {
        self.blobs.remove(digest);
    }

    pub(super) fn is_verified(&self, digest: &Digest) -> bool {
        self.blobs.get(digest).is_some_and(|entry| entry.is_verified)
    }

    pub(super) fn mark_verified(&mut self, digest: &Digest) {
        if let Some(entry) = self.blobs.get_mut(digest) {
            entry.is_verified = true;
        }
    }

    pub(super) fn acquire(&mut self, digest: &Digest) {
        *self.leases.entry(digest.clone()).or_insert(0) += 1;
    }

    /// Whether this was the last lease of the blob.
    pub(super) fn release(&mut self, digest: &Digest) -> bool {
        let Some(count) = self.leases.get_mut(digest) else {
            return false;
        };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.leases.remove(digest);
        }
        is_last
    }

    /// Takes the least recently used blob without a lease out of the index, if the whole is over the limit.
    pub(super) fn take_oldest_over(&mut self, limit_bytes: u64) -> Option<(Digest, u64)> {
        if self.total() <= limit_bytes {
            return None;
        }
        let digest = self
            .blobs
            .iter()
            .filter(|(digest, _)| !self.leases.contains_key(*digest))
            .min_by_key(|(_, entry)| entry.last_used)
            .map(|(digest, _)| digest.clone())?;
        self.blobs.remove(&digest).map(|entry| (digest, entry.size_bytes))
    }

    pub(super) fn keep_part(&mut self, path: PathBuf, size_bytes: u64) {
        self.forget_part(&path);
        self.parts.push_back((path, size_bytes));
    }

    pub(super) fn forget_part(&mut self, path: &Path) {
        self.parts.retain(|(other, _)| other != path);
    }

    /// Takes the oldest part out, if all together are over the limit.
    pub(super) fn take_part_over(&mut self, limit_bytes: u64) -> Option<PathBuf> {
        let total = self
            .parts
            .iter()
            .fold(0_u64, |sum, (_, size_bytes)| sum.saturating_add(*size_bytes));
        if total <= limit_bytes {
            None
        } else {
            self.parts.pop_front().map(|(path, _)| path)
        }
    }

    pub(super) fn count(&mut self, hit: bool) {
        if hit {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
    }

    pub(super) fn statistics(&self) -> CacheStatistics {
        CacheStatistics {
            blobs: self.blobs.len(),
            bytes: self.total(),
            bytes_in_use: self
                .blobs
                .iter()
                .filter(|(digest, _)| self.leases.contains_key(*digest))
                .fold(0, |sum, (_, entry)| sum.saturating_add(entry.size_bytes)),
            hits: self.hits,
            misses: self.misses,
        }
    }

    fn total(&self) -> u64 {
        self.blobs
            .values()
            .fold(0, |sum, entry| sum.saturating_add(entry.size_bytes))
    }
}
