//! What finished images there are, so that the same one is not made twice.
//!
//! Nothing of an image is kept here, only a record of where a build published it and what it was: the published file is
//! the cached one. So a record takes no space that anybody would have to pay for, an image that its tenant deletes is gone,
//! and storing costs a build nothing.
//!
//! ```text
//! cache/images/v1/<tenant>/<key>.json    where the image is, its size, its SHA-256
//! ```
//!
//! A record proves nothing. Whoever uses one copies the file and hashes what goes into the copy: a file that was changed since, by a
//! guest that wrote to it or by a failing disk, is not used. A record that is torn or leads nowhere is removed. Records
//! appear whole, by a rename, and are not synced: one that a crash takes is only an image that is made again.
//!
//! The key covers everything that decides an image's bytes: the digests of the blobs in order, the image's identity (what
//! the layers unpack to, the added files, the options) and the program that writes, by version, size and date. Blobs
//! and not only contents, because what a blob unpacks to is the word of the worker that unpacked it: hostile bytes can spoil
//! the images that are made of them and no others. Each tenant has a directory of its own.

use std::{
    ffi::OsString,
    fs::{self, File, FileTimes},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rootfs::{ext4::WRITER_VERSION, layer::LayerIndex};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::worker::HashTree;

/// Raised when the form of a record changes.
const VERSION: &str = "v1";

/// Records that a tenant has; beyond, those go that were not used for longest.
const MAX_RECORDS: usize = 256;

/// Bytes of a record: a path and some figures.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What a record is called until it is whole; an old one was left by a crash.
const UNFINISHED_PREFIX: &str = ".unfinished-";
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);

/// Records of finished images. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ImageCache {
    directory: Arc<Path>,
    /// Stands for the program that makes the images.
    writer: [u8; 32],
}

/// A finished image, as it was when it was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// An absolute path; bytes, as the system knows it.
    path: Vec<u8>,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: [u8; 32],
    pub(crate) verity: Option<HashTree>,
    /// Seconds and nanoseconds of the file's time of modification.
    modified: (i64, i64),
}

/// Which image of which tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageKey {
    tenant: String,
    image: String,
}

/// Whether the file of a record can be what it was.
#[derive(Debug)]
pub(crate) enum Found {
    /// It looks so: still there, of the same size and date. Only its hash can tell.
    Candidate(ImageRecord, File),
    /// There is none, or it is gone.
    Nothing,
    /// It was written to since.
    Changed,
}

impl ImageCache {
    /// The records below `workspace`/cache/images.
    ///
    /// # Errors
    /// When the directory cannot be made, or this process cannot look at its own program.
    pub fn open(workspace: &Path) -> io::Result<Self> {
        let root = workspace.join("cache").join("images");
        let directory = root.join(VERSION);
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name() != VERSION {
                // Records of another version; whoever else removes them at the same time is right, too.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        // A program of the same version with a defect mended makes other images.
        let program = fs::metadata("/proc/self/exe")?;
        let mut hasher = Sha256::new();
        hasher.update(env!("CARGO_PKG_VERSION"));
        hasher.update(WRITER_VERSION.to_le_bytes());
        hasher.update(u64::from(LayerIndex::FORMAT_VERSION).to_le_bytes());
        for figure in [program.mtime(), program.mtime_nsec()] {
            hasher.update(figure.to_le_bytes());
        }
        hasher.update(program.len().to_le_bytes());
        Ok(Self {
            directory: directory.into(),
            writer: hasher.finalize().into(),
        })
    }

    /// The key of the image with that identity, made of `blobs` (`sha256:…`, bottom first).
    pub(crate) fn key<'a>(
        &self,
        isolation_key: &str,
        blobs: impl IntoIterator<Item = &'a str>,
        identity: &[u8; 32],
        verity: bool,
    ) -> ImageKey {
        let mut hasher = Sha256::new();
        hasher.update(self.writer);
        hasher.update(identity);
        // The file system is the same with and without a hash tree, and so is its identity.
        hasher.update([u8::from(verity)]);
        for blob in blobs {
            hasher.update((blob.len() as u64).to_le_bytes());
            hasher.update(blob);
        }
        ImageKey {
            tenant: hex::encode(Sha256::digest(isolation_key)),
            image: hex::encode(hasher.finalize()),
        }
    }

    /// Looks for an image. What cannot be used any more is forgotten. Blocks.
    pub(crate) fn find(&self, key: &ImageKey) -> Found {
        let path = self.path(key);
        let Ok(record) = read_record(&path) else {
            self.forget(key);
            return Found::Nothing;
        };
        let Ok(file) = open_image(&record.path()) else {
            self.forget(key);
            return Found::Nothing;
        };
        match file.metadata() {
            Ok(found)
                if found.is_file()
                    && found.len() == record.size_bytes
                    && modified(&found) == record.modified =>
            {
                // What was used last goes last.
                let used = FileTimes::new().set_modified(SystemTime::now());
                let _ = File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_times(used));
                Found::Candidate(record, file)
            }
            _ => {
                self.forget(key);
                Found::Changed
            }
        }
    }

    /// Notes that the image lies at `path`. Blocks.
    pub(crate) fn remember(
        &self,
        key: &ImageKey,
        path: &Path,
        sha256: [u8; 32],
        verity: Option<HashTree>,
    ) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        let image = fs::symlink_metadata(&path)?;
        let record = ImageRecord {
            path: path.into_os_string().into_vec(),
            size_bytes: image.len(),
            sha256,
            verity,
            modified: modified(&image),
        };
        let directory = self.directory.join(&key.tenant);
        fs::create_dir_all(&directory)?;
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .tempfile_in(&directory)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        trim(&directory)
    }

    /// Drops the record of an image; the image itself is its tenant's and stays. Blocks.
    pub(crate) fn forget(&self, key: &ImageKey) {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "Failed to remove the record of an image");
            }
            _ => {}
        }
    }

    fn path(&self, key: &ImageKey) -> PathBuf {
        self.directory
            .join(&key.tenant)
            .join(format!("{}.json", key.image))
    }
}

impl ImageRecord {
    fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }
}

fn modified(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

fn read_record(path: &Path) -> io::Result<ImageRecord> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Something else may lie there by now: a symbolic link is not followed, a FIFO not waited for.
fn open_image(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Removes the records of a tenant that are too many, and what crashes left.
fn trim(directory: &Path) -> io::Result<()> {
    let mut records = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Records come and go beside us.
        let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else {
            continue;
        };
        if entry
            .file_name()
            .as_bytes()
            .starts_with(UNFINISHED_PREFIX.as_bytes())
        {
            if modified.elapsed().is_ok_and(|age| age > UNFINISHED_FOR) {
                let _ = fs::remove_file(entry.path());
            }
        } else {
            records.push((modified, entry.path()));
        }
    }
    records.sort();
    let too_many = records.len().saturating_sub(MAX_RECORDS);
    for (_, path) in &records[..too_many] {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
