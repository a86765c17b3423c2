//! Blobs on disk, by digest.
//!
//! ```text
//! CACHE/blobs/sha256/HEX            a whole blob; appears by rename after its digest was right and it was synced
//! CACHE/blobs/sha256/HEX.sources    which repositories it was downloaded from, one per line; its mtime is the last use
//! CACHE/blobs/sha256/HEX-R.part     a download from registry R (a hash of its name) that can be resumed; whoever works on it
//!                                   holds a lock (flock) on it
//! CACHE/blobs/sha256/HEX-R.N.part   a second download of the same at the same time; never resumed
//! ```
//!
//! The sources are the reason why a blob can be shared between parties: one gets it from the cache only for a repository
//! that it really came from and that the party itself can read now.

mod index;
pub(crate) mod part;

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::cache::index::Index;
use crate::config::ClientConfig;
use crate::digest::{Algorithm, Digest};
use crate::error::FetchError;

/// A part that nobody has worked on for so long is not going to be resumed.
const STALE_PART: Duration = Duration::from_secs(24 * 60 * 60);

/// Parts that are kept to be resumed may take so much, and at most a quarter of the cache's limit: whoever starts large
/// downloads and drops them must not fill the disk.
const MAX_KEPT_PARTS_BYTES: u64 = 4 << 30;

/// A blob in more repositories than this forgets the others; they prove access with a request again.
const MAX_SOURCES: usize = 256;

/// Numbers of a client's blob cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// Whole blobs in the cache.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of those that are in use and cannot be removed now.
    pub bytes_in_use: u64,
    /// Layers opened from the cache since the client was made.
    pub hits: u64,
    /// Layers that had to be downloaded.
    pub misses: u64,
}

pub(crate) struct Cache {
    root: PathBuf,
    limit_bytes: Option<u64>,
    durable: bool,
    index: Mutex<Index>,
}

/// Keeps a blob from being removed. Shared by all that use it.
pub(crate) struct Lease {
    cache: Arc<Cache>,
    digest: Digest,
}

/// A whole blob in the cache.
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) size_bytes: u64,
    pub(crate) sources: BTreeSet<String>,
    /// Whether this process has hashed it.
    pub(crate) is_verified: bool,
    pub(crate) lease: Lease,
}

impl Cache {
    /// Opens the cache and removes what crashed processes left behind. Blocking.
    pub(crate) fn open(config: &ClientConfig) -> Result<Self, FetchError> {
        let cache = Self {
            root: config.cache_directory.clone(),
            limit_bytes: config.cache_limit_bytes,
            durable: config.durable,
            index: Mutex::default(),
        };
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = cache.directory(algorithm);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .and_then(|()| cache.sweep(algorithm, &directory))
                .map_err(|error| FetchError::io("failed to open the blob cache directory", error))?;
        }
        cache.evict(cache.limit_bytes);
        Ok(cache)
    }

    fn directory(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory(digest.algorithm()).join(digest.hex())
    }

    fn sources_path(&self, digest: &Digest) -> PathBuf {
        self.directory(digest.algorithm())
            .join(format!("{}.sources", digest.hex()))
    }

    /// Indexes whole blobs and removes stale parts.
    fn sweep(&self, algorithm: Algorithm, directory: &Path) -> io::Result<()> {
        let now = SystemTime::now();
        let mut index = self.lock_index();
        let mut parts = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Another process may remove or rename what was just listed.
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            if let Some(stem) = name.strip_suffix(".part") {
                let is_resumable = !stem.contains('.');
                let age = metadata
                    .modified()
                    .ok()
                    .and_then(|modified| now.duration_since(modified).ok());
                if !is_resumable || age.is_some_and(|age| age > STALE_PART) {
                    part::remove_if_abandoned(&entry.path());
                } else {
                    parts.push((age, entry.path(), metadata.len()));
                }
            } else if let Some(digest) = digest(algorithm, name) {
                let used =
                    std::fs::metadata(self.sources_path(&digest)).and_then(|metadata| metadata.modified());
                index.insert(&digest, metadata.len(), used.unwrap_or(SystemTime::UNIX_EPOCH));
            }
        }
        // Oldest first; what could not be told counts as old.
        parts.sort_by_key(|(age, _, _)| std::cmp::Reverse(age.unwrap_or(STALE_PART)));
        for (_, path, size_bytes) in parts {
            index.keep_part(path, size_bytes);
        }
        self.drop_parts_over_limit(&mut index);
        Ok(())
    }

    /// Whether the whole blob is there at this moment. Blocking.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// The whole blob, leased, if it is there. Blocking.
    pub(crate) fn find(self: &Arc<Self>, digest: &Digest) -> io::Result<Option<Found>> {
        let lease = self.lease(digest);
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lock_index().forget(digest);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let size_bytes = file.metadata()?.len();
        let now = SystemTime::now();
        if let Ok(sources) = File::open(self.sources_path(digest)) {
            // Only the order of removal hangs on this.
            let _ = sources.set_modified(now);
        }
        let is_verified = {
            let mut index = self.lock_index();
            index.insert(digest, size_bytes, now);
            index.is_verified(digest)
        };
        Ok(Some(Found {
            file,
            size_bytes,
            sources: self.sources(digest),
            is_verified,
            lease,
        }))
    }

    /// Notes that this process has hashed the blob and found it right.
    pub(crate) fn mark_verified(&self, digest: &Digest) {
        self.lock_index().mark_verified(digest);
    }

    /// Removes a blob that turned out to be damaged. Blocking.
    pub(crate) fn remove_damaged(&self, digest: &Digest) {
        tracing::warn!(%digest, "Removed a damaged blob from the cache");
        let mut index = self.lock_index();
        self.unlink(digest);
        index.forget(digest);
    }

    fn unlink(&self, digest: &Digest) {
        for path in [self.path(digest), self.sources_path(digest)] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, %digest, "Failed to remove a blob from the cache");
            }
        }
    }

    fn sources(&self, digest: &Digest) -> BTreeSet<String> {
        let mut text = String::new();
        // 256 lines of at most 520 bytes.
        let read = File::open(self.sources_path(digest))
            .and_then(|file| file.take(256 * 1024).read_to_string(&mut text));
        if read.is_ok() {
            text.lines().map(str::to_owned).collect()
        } else {
            BTreeSet::new()
        }
    }

    /// Records that the blob was seen whole in a repository (`REGISTRY REPOSITORY`). Blocking.
    pub(crate) fn add_source(&self, digest: &Digest, source: &str) -> io::Result<()> {
        // One writer of this process at a time; of two processes one may win, and the other's repository proves again.
        let _index = self.lock_index();
        let mut sources = self.sources(digest);
        if sources.len() >= MAX_SOURCES || !sources.insert(source.to_owned()) {
            return Ok(());
        }
        let text: String = sources.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let mut file = tempfile::Builder::new()
            .prefix(".sources-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .tempfile_in(self.directory(digest.algorithm()))?;
        file.write_all(text.as_bytes())?;
        file.persist(self.sources_path(digest))
            .map_err(|error| error.error)?;
        Ok(())
    }

    /// Opens a file to download into; see [`part`]. Blocking.
    ///
    /// What is left of a download is resumed from the same registry only: another one's users have not been shown a byte
    /// of it, and must not be, even if they cannot get it verified.
    pub(crate) fn open_part(&self, digest: &Digest, registry: &str) -> io::Result<part::Part> {
        let registry = Digest::sha256(registry.as_bytes());
        let stem = format!(
            "{}-{}",
            digest.hex(),
            registry.hex().get(..16).unwrap_or_default()
        );
        let part = part::Part::open(&self.directory(digest.algorithm()), &stem)?;
        self.lock_index().forget_part(part.path());
        Ok(part)
    }

    /// Keeps a part for a later download to resume, at the cost of older ones if there are too many. Blocking.
    pub(crate) fn keep_part(&self, part: part::Part) {
        if let Some((path, size_bytes)) = part.keep() {
            let mut index = self.lock_index();
            index.keep_part(path, size_bytes);
            self.drop_parts_over_limit(&mut index);
        }
    }

    fn drop_parts_over_limit(&self, index: &mut Index) {
        let limit = self.limit_bytes.map_or(MAX_KEPT_PARTS_BYTES, |limit| {
            (limit / 4).min(MAX_KEPT_PARTS_BYTES)
        });
        while let Some(path) = index.take_part_over(limit) {
            part::remove_if_abandoned(&path);
        }
    }

    /// Publishes a verified part under its digest. Blocking.
    pub(crate) fn publish(
        &self,
        part: part::Part,
        digest: &Digest,
        size_bytes: u64,
        sources: &[String],
    ) -> io::Result<()> {
        part.publish(&self.path(digest), self.durable)?;
        for source in sources {
            self.add_source(digest, source)?;
        }
        {
            let mut index = self.lock_index();
            index.insert(digest, size_bytes, SystemTime::now());
            index.mark_verified(digest);
        }
        self.evict(self.limit_bytes);
        Ok(())
    }

    pub(crate) fn lease(self: &Arc<Self>, digest: &Digest) -> Lease {
        self.lock_index().acquire(digest);
        Lease {
            cache: Arc::clone(self),
            digest: digest.clone(),
        }
    }

    /// Removes the least recently used blobs that nobody uses until the rest is within the limit. Blocking.
    pub(crate) fn evict(&self, limit_bytes: Option<u64>) -> u64 {
        let Some(limit_bytes) = limit_bytes else { return 0 };
        let mut freed = 0;
        loop {
            // Under the lock, so that nobody takes a lease on what is being removed.
            let mut index = self.lock_index();
            let Some((digest, size_bytes)) = index.take_oldest_over(limit_bytes) else {
                return freed;
            };
            self.unlink(&digest);
            freed += size_bytes;
        }
    }

    pub(crate) fn count(&self, hit: bool) {
        self.lock_index().count(hit);
    }

    pub(crate) fn statistics(&self) -> CacheStatistics {
        self.lock_index().statistics()
    }

    fn lock_index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_last = self.cache.lock_index().release(&self.digest);
        if is_last {
            self.cache.evict(self.cache.limit_bytes);
        }
    }
}

fn digest(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    format!("{algorithm}:{hex}").parse().ok()
}

#[cfg(test)]
mod tests;
