//! Layer files, kept between builds.
//!
//! A layer file is what an index worker made of one blob: its pack, then its index. The cache is keyed by the digest of
//! the compressed blob, which oci-fetch verified outside of any worker, and by the version of the writer; never by a
//! `diff_id`, which is only a claim of the image's config.
//!
//! ```text
//! cache/packs/v1-1/sha256-0123…/layer        pack, then index
//!                               leaves     hashes of the pack's blocks, once a build has asked for them
//!                               entry.json   lengths, hash of the index, what is known of the layer
//!                               grant-89ab…  empty; one for each party that may use it
//!                               unsynced   link that names the boot in which the entry was made, until it is on disk
//! cache/packs/tmp/…                          not finished yet; swept at the start
//! ```
//!
//! An entry appears whole or not at all: it is made in `tmp` and renamed. Nobody waits for the disk: as long as the machine
//! runs, what was written is what is read. Only when it stops before the kernel has written everything out could a file be
//! torn; so a new entry says in which boot it was made, is not believed in another one, and loses that mark when a later
//! build finds it on disk. On use its lengths and the hash of its index are compared with the record; an entry that does not
//! fit is removed and made anew. The bodies in the pack are not hashed again on every use.
//!
//! An entry serves a build only under that build's own right to the blob: a *grant* records that this tenant, from this
//! repository, has once received the very bytes. A build without one fetches the blob first (which oci-fetch may answer
//! from its own cache, by its own rules) and then shares the entry.
//!
//! Entries in use hold a shared lock on their `entry.json`, so that the eviction of this or another process leaves them
//! alone. When the total is over the limit, the least recently used entries go first.

use std::{
    collections::HashMap,
    fs::{self, File, FileTimes},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use rootfs::{layer::LayerIndex, verity::LeafHashes};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Raised when the layout of an entry changes.
const ENTRY_FORMAT: u32 = 1;

/// Grants that an entry keeps; beyond, a build without one fetches the blob.
const MAX_GRANTS: usize = 1000;

/// Bytes of an entry's record.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Indexes that are read back at the same time. A hostile one takes memory up to its limit, so there must not be many.
const CHECKS: usize = 2;

const LAYER: &str = "layer";
const RECORD: &str = "entry.json";
const LEAVES: &str = "leaves";
const UNSYNCED: &str = "unsynced";

/// Changes with every start of the machine. random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// After that time an entry is most likely on disk, and waiting for it costs nothing: the kernel writes out after 30
/// seconds (`vm.dirty_expire_centisecs`).
const SETTLING: Duration = Duration::from_secs(60);

/// A directory of layer files. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PackCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: PathBuf,
    unfinished: PathBuf,
    /// `None`: nothing is kept.
    max_bytes: Option<u64>,
    /// `None` where the system does not say: entries are then on disk before they appear.
    boot: Option<String>,
    /// Who is making which entry right now.
    making: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    checks: Semaphore,
    /// Held while a directory for an unfinished layer file is made or looked for.
    begin: Mutex<()>,
}

/// What is known of a layer file, as kept in `entry.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: [u8; 32],
    pub(crate) uncompressed_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) index_bytes: u64,
    pub(crate) index_sha256: [u8; 32],
}

/// A layer file in use. The entry is not evicted before this is dropped.
#[derive(Debug)]
pub(crate) struct LayerFile {
    pub(crate) file: File,
    pub(crate) record: LayerRecord,
    /// Hashes of the pack's blocks, where they were asked for.
    pub(crate) leaves: Option<Arc<LeafHashes>>,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    /// A shared lock on the entry's record.
    Entry { directory: PathBuf, _lock: File },
    /// Not kept: the directory goes with the use.
    Own { _directory: TempDir, _lock: File },
}

/// What a lookup found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// A layer file that this build may use.
    Granted(LayerFile),
    /// A layer file for which this build has yet to prove its right to the blob.
    Ungranted(LayerFile),
    /// Nothing, or something damaged that was removed for the reason given.
    Missing { damaged: Option<String> },
}

/// By what right a build uses a blob: an opaque fingerprint of tenant and repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant(String);

impl Grant {
    pub(crate) fn new(isolation_key: &str, repository: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((isolation_key.len() as u64).to_le_bytes());
        hasher.update(isolation_key);
        hasher.update(repository);
        Self(hex::encode(hasher.finalize()))
    }

    fn file_name(&self) -> String {
        format!("grant-{}", self.0)
    }
}

impl std::fmt::Display for Grant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A layer file that is being made.
#[derive(Debug)]
pub(crate) struct Unfinished {
    directory: TempDir,
    file: File,
    /// Tells a sweep that somebody is at work. Not a lock of the file: that one is handed to a worker, and a worker may
    /// outlive a service that was killed by a moment.
    lock: File,
}

impl Unfinished {
    /// The file to write to, empty at first.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }
}

impl PackCache {
    /// The cache below `workspace`/cache/packs. Entries of other versions of the writer and what a crash left
    /// unfinished are removed; what another process is making at this moment is left alone.
    ///
    /// With `max_bytes` `None` nothing is kept: layer files live as long as the build that made them.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(workspace: &Path, max_bytes: Option<u64>) -> io::Result<Self> {
        let root = workspace.join("cache").join("packs");
        let version = format!("v{ENTRY_FORMAT}-{}", LayerIndex::FORMAT_VERSION);
        let unfinished = root.join("tmp");
        fs::create_dir_all(&unfinished)?;
        let inner = Inner {
            entries: root.join(&version),
            unfinished,
            max_bytes,
            boot: boot(),
            making: Mutex::new(HashMap::new()),
            checks: Semaphore::new(CHECKS),
            begin: Mutex::new(()),
        };
        fs::create_dir_all(&inner.entries)?;
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != "tmp" && name != *version {
                remove_directory(&entry.path());
            }
        }
        inner.sweep()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Waits until no other build of the same party makes a layer file of this blob; the guard keeps others waiting.
    /// Parties do not wait for each other: one's slow registry must not hold up another.
    pub(crate) async fn queue(&self, isolation_key: &str, blob: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let name = format!("{blob} {isolation_key}");
        let mutex = {
            let mut making = self.inner.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.retain(|_, mutex| mutex.strong_count() > 0);
            match making.get(&name).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(tokio::sync::Mutex::new(()));
                    making.insert(name, Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        mutex.lock_owned().await
    }

    /// Whether there is an entry for `blob` that the holder of `grant` may use; a [`lookup`](Self::lookup) may still find it
    /// damaged. Blocks.
    pub(crate) fn has(&self, blob: &str, grant: &Grant) -> bool {
        self.inner.max_bytes.is_some() && self.inner.directory(blob).join(grant.file_name()).exists()
    }

    /// Looks for a layer file made of `blob` (`sha256:…`) and checks it. Blocks.
    pub(crate) fn lookup(&self, blob: &str, grant: &Grant) -> io::Result<Lookup> {
        if self.inner.max_bytes.is_none() {
            return Ok(Lookup::Missing { damaged: None });
        }
        let directory = self.inner.directory(blob);
        match self.inner.open_entry(&directory) {
            Ok(file) if directory.join(grant.file_name()).exists() => Ok(Lookup::Granted(file)),
            Ok(file) => Ok(Lookup::Ungranted(file)),
            Err(Unusable::Absent) => Ok(Lookup::Missing { damaged: None }),
            Err(Unusable::Io(error)) => Err(error),
            Err(Unusable::Damaged(reason)) => {
                self.inner.discard(&directory);
                Ok(Lookup::Missing {
                    damaged: Some(reason),
                })
            }
        }
    }

    /// Notes that the holder of `grant` has received the blob's bytes. Blocks.
    pub(crate) fn add_grant(&self, blob: &str, grant: &Grant) -> io::Result<()> {
        add_grant(&self.inner.directory(blob), grant)
    }

    /// Waits for a turn to read an index back.
    pub(crate) async fn check_turn(&self) -> SemaphorePermit<'_> {
        self.inner
            .checks
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    /// A new, empty layer file. Blocks.
    pub(crate) fn begin(&self) -> io::Result<Unfinished> {
        // So that no sweep comes between the making of the directory and the lock in it.
        let _begin = self.inner.begin.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(&self.inner.unfinished)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.path().join(LAYER))?;
        let lock = File::open(directory.path())?;
        rustix::fs::flock(&lock, FlockOperation::LockShared)?;
        Ok(Unfinished {
            directory,
            file,
            lock,
        })
    }

    /// Makes an entry of a layer file that is complete and checked, and evicts what is too much. Blocks, but not for the
    /// disk.
    pub(crate) fn publish(
        &self,
        unfinished: Unfinished,
        blob: &str,
        record: LayerRecord,
        grant: &Grant,
    ) -> io::Result<LayerFile> {
        let Unfinished {
            directory,
            file: written,
            lock: at_work,
        } = unfinished;
        // From here on it is only read, and no worker is to get a descriptor that could write to it.
        let file = File::open(directory.path().join(LAYER))?;
        if self.inner.max_bytes.is_none() {
            let hold = Hold::Own {
                _directory: directory,
                _lock: at_work,
            };
            return Ok(LayerFile {
                file,
                record,
                leaves: None,
                hold,
            });
        }
        let record_path = directory.path().join(RECORD);
        fs::write(&record_path, serde_json::to_vec(&record)?)?;
        File::create(directory.path().join(grant.file_name()))?;
        let lock = File::options().read(true).write(true).open(&record_path)?;
        rustix::fs::flock(&lock, FlockOperation::LockShared)?;
        match &self.inner.boot {
            // A link is part of the directory's own changes, which reach the disk in order: no entry without its mark.
            Some(boot) => std::os::unix::fs::symlink(boot, directory.path().join(UNSYNCED))?,
            None => {
                written.sync_all()?;
                lock.sync_all()?;
                File::open(directory.path())?.sync_all()?;
            }
        }
        let target = self.inner.directory(blob);
        match fs::rename(directory.path(), &target) {
            Ok(()) => {
                // Moved away: there is nothing left to remove.
                let _ = directory.keep();
            }
            // Another party was faster. Ours holds the same and goes when its use ends.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                add_grant(&target, grant)?;
            }
            Err(error) => return Err(error),
        }
        let layer = LayerFile {
            file,
            record,
            leaves: None,
            hold: Hold::Entry {
                directory: target,
                _lock: lock,
            },
        };
        self.inner.evict()?;
        Ok(layer)
    }

    /// Adds the hashes of the pack's blocks, those that were kept beside it or new ones. This process makes them itself, as
    /// it takes no parsing: a guest trusts them. Blocks as long as it takes to read the pack, or until `is_unwanted`, which
    /// is an error.
    pub(crate) fn with_leaf_hashes(
        &self,
        mut layer: LayerFile,
        is_unwanted: impl Fn() -> bool + Sync,
    ) -> io::Result<LayerFile> {
        let pack_bytes = layer.record.pack_bytes;
        let kept = match &layer.hold {
            Hold::Entry { directory, .. } => Some(directory.join(LEAVES)),
            Hold::Own { .. } => None,
        };
        let leaves = match kept.as_deref().map(|path| read_leaves(path, pack_bytes)) {
            Some(Some(leaves)) => leaves,
            _ => {
                let leaves = LeafHashes::of_blocks(pack_bytes, |buffer, offset| {
                    if is_unwanted() {
                        return Err(io::Error::other("the leaf hashes are not wanted any more"));
                    }
                    layer.file.read_exact_at(buffer, offset)
                })?;
                if let Some(path) = kept
                    && let Err(error) = self.keep_leaves(&leaves, &path)
                {
                    tracing::warn!(%error, "Failed to keep the leaf hashes of a pack");
                }
                leaves
            }
        };
        layer.leaves = Some(Arc::new(leaves));
        Ok(layer)
    }

    /// A file that is torn by a crash has the wrong digest and is made again, so that it need not be synced.
    fn keep_leaves(&self, leaves: &LeafHashes, path: &Path) -> io::Result<()> {
        let mut file = {
            let _begin = self.inner.begin.lock().unwrap_or_else(PoisonError::into_inner);
            let file = tempfile::NamedTempFile::new_in(&self.inner.unfinished)?;
            rustix::fs::flock(file.as_file(), FlockOperation::LockShared)?;
            file
        };
        leaves.write_to(io::BufWriter::with_capacity(1 << 20, file.as_file_mut()))?;
        file.persist(path).map(drop).map_err(|error| error.error)
    }

    /// Evicts what is over the limit and not in use, and sweeps once more: what another process left when it was killed
    /// is not to wait for a restart of this one. Entries that have had the time to reach the disk lose their mark. Blocks.
    pub(crate) fn trim(&self) -> io::Result<()> {
        self.inner.sweep()?;
        self.inner.settle(SETTLING)?;
        self.inner.evict()
    }
}

impl Inner {
    fn directory(&self, blob: &str) -> PathBuf {
        // `sha256:0123…`: validated by oci-fetch, so no separator or dot can be in it.
        self.entries.join(blob.replace(':', "-"))
    }

    /// Takes an entry out of sight first, so that no one opens it half removed.
    fn discard(&self, directory: &Path) {
        let name = tempfile::Builder::new()
            .prefix("gone-")
            .tempdir_in(&self.unfinished);
        if let Ok(place) = name
            && let Err(error) = fs::rename(directory, place.path().join("entry"))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "Failed to remove a cache entry");
        }
        // The temporary directory is removed with everything in it.
    }

    /// Takes the mark off entries that have had it for `age` and are on disk.
    fn settle(&self, age: Duration) -> io::Result<()> {
        for directory in fs::read_dir(&self.entries)? {
            let directory = directory?.path();
            let mark = directory.join(UNSYNCED);
            let is_due = fs::symlink_metadata(&mark)
                .and_then(|mark| mark.modified())
                .is_ok_and(|made| made.elapsed().is_ok_and(|elapsed| elapsed >= age));
            if !is_due || !self.is_of_this_boot(&mark)? {
                continue;
            }
            let synced = [LAYER, RECORD, "."]
                .iter()
                .try_for_each(|name| File::open(directory.join(name))?.sync_all());
            match synced {
                Ok(()) => fs::remove_file(&mark).or_else(ignore_absent)?,
                // Evicted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, "A cache entry could not be written to the disk and is removed");
                    self.discard(&directory);
                }
            }
        }
        Ok(())
    }

    fn open_entry(&self, directory: &Path) -> Result<LayerFile, Unusable> {
        let entry = open_entry(directory)?;
        if self.is_of_this_boot(&directory.join(UNSYNCED))? {
            return Ok(entry);
        }
        Err(Unusable::Damaged(
            "the machine stopped before it was on disk for certain".to_owned(),
        ))
    }

    /// Whether an entry is on disk, or was made since the machine was started.
    fn is_of_this_boot(&self, mark: &Path) -> io::Result<bool> {
        match fs::read_link(mark) {
            Ok(made_in) => Ok(self.boot.as_ref().is_some_and(|boot| made_in == Path::new(boot))),
            Err(error) => ignore_absent(error).map(|()| true),
        }
    }

    fn evict(&self) -> io::Result<()> {
        let Some(max_bytes) = self.max_bytes else {
            return Ok(());
        };
        let mut entries = Vec::new();
        let mut total = 0;
        for directory in fs::read_dir(&self.entries)? {
            let directory = directory?.path();
            // Entries come and go beside us; one that is gone takes no space.
            let (Ok(layer), Ok(record)) = (
                fs::metadata(directory.join(LAYER)),
                fs::metadata(directory.join(RECORD)),
            ) else {
                continue;
            };
            let leaves = fs::metadata(directory.join(LEAVES)).map_or(0, |leaves| leaves.len());
            let bytes = layer.len() + record.len() + leaves;
            total += bytes;
            entries.push((
                record.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                bytes,
                directory,
            ));
        }
        entries.sort();
        for (_, bytes, directory) in entries {
            if total <= max_bytes {
                break;
            }
            let Ok(record) = File::open(directory.join(RECORD)) else {
                continue;
            };
            if rustix::fs::flock(&record, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            self.discard(&directory);
            total -= bytes;
        }
        Ok(())
    }

    /// Removes what crashed builds left unfinished.
    fn sweep(&self) -> io::Result<()> {
        let _begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
        for directory in fs::read_dir(&self.unfinished)? {
            let directory = directory?.path();
            let in_use = File::open(&directory).is_ok_and(|lock| {
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
            });
            if !in_use && directory.is_dir() {
                remove_directory(&directory);
            } else if !in_use {
                let _ = fs::remove_file(&directory);
            }
        }
        Ok(())
    }
}

enum Unusable {
    Absent,
    Damaged(String),
    Io(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Absent
        } else {
            Self::Io(error)
        }
    }
}

fn open_record(directory: &Path) -> Result<(File, LayerRecord), Unusable> {
    let path = directory.join(RECORD);
    let lock = File::options().read(true).write(true).open(&path)?;
    rustix::fs::flock(&lock, FlockOperation::LockShared).map_err(io::Error::from)?;
    // An eviction may have come between the two calls; then the path leads elsewhere or nowhere.
    let (ours, theirs) = (lock.metadata()?, fs::metadata(&path)?);
    if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
        return Err(Unusable::Absent);
    }
    let mut text = Vec::new();
    (&lock).take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
    let record = serde_json::from_slice(&text)
        .map_err(|error| Unusable::Damaged(format!("its record is not readable: {error}")))?;
    Ok((lock, record))
}

/// Names the time since the machine was started.
fn boot() -> Option<String> {
    let text = fs::read_to_string(BOOT_ID).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn ignore_absent(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

fn add_grant(directory: &Path, grant: &Grant) -> io::Result<()> {
    let grants = match fs::read_dir(directory) {
        Ok(names) => names.count(),
        // Evicted meanwhile: there is nothing to be granted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if grants < MAX_GRANTS {
        File::create(directory.join(grant.file_name()))?;
    }
    Ok(())
}

/// The leaf hashes that were kept, if they are whole and of this pack.
fn read_leaves(path: &Path, pack_bytes: u64) -> Option<LeafHashes> {
    let file = File::open(path).ok()?;
    LeafHashes::read_from(io::BufReader::with_capacity(1 << 20, file), pack_bytes).ok()
}

fn open_entry(directory: &Path) -> Result<LayerFile, Unusable> {
    let (lock, record) = open_record(directory)?;
    let file = match File::open(directory.join(LAYER)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Unusable::Damaged("its layer file is missing".to_owned()));
        }
        Err(error) => return Err(Unusable::Io(error)),
    };
    let length = file.metadata()?.len();
    let expected = record.pack_bytes.saturating_add(record.index_bytes);
    if length != expected {
        return Err(Unusable::Damaged(format!(
            "its layer file has {length} bytes, {expected} expected"
        )));
    }
    if hash_index(&file, record.pack_bytes)? != record.index_sha256 {
        return Err(Unusable::Damaged(
            "its index does not have the recorded hash".to_owned(),
        ));
    }
    // What was used last goes last; the time of change is the memory of that, also over a restart.
    lock.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
    Ok(LayerFile {
        file,
        record,
        leaves: None,
        hold: Hold::Entry {
            directory: directory.to_owned(),
            _lock: lock,
        },
    })
}

/// SHA-256 of what follows the pack in a layer file.
pub(crate) fn hash_index(file: &File, pack_bytes: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = pack_bytes;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hasher.finalize().into()),
            length => {
                hasher.update(&buffer[..length]);
                offset += length as u64;
            }
        }
    }
}

fn remove_directory(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "Failed to remove a stale directory of the pack cache");
    }
}

#[cfg(test)]
mod tests;
