//! The image in its place: hidden while it is written, hashed, then there at once with its metadata.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    num::NonZero,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::fs::{FlockOperation, SeekFrom as SparseSeek};
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::{Work, blocking, contents::Contents};
use crate::{
    build::ImageMetadata,
    error::{BuildError, BuildErrorKind},
};

/// Between name and random part of an unfinished file, so that a sweep knows it.
pub(crate) const UNFINISHED_MARK: &str = ".unfinished-";

/// Bytes that are hashed at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that the system is asked to have ready before they are hashed.
const READ_AHEAD_BYTES: u64 = 8 << 20;

/// An image that is being written. Dropping it removes it.
///
/// It is locked (flock(2)) as long as it or a worker writes it, so that the next draft for the same output can tell
/// what a killed process left behind from what somebody is writing.
#[derive(Debug)]
pub(super) struct Draft {
    image: NamedTempFile,
    output: PathBuf,
    directory: PathBuf,
    replace: bool,
}

impl Draft {
    /// A hidden, empty file in the directory of `output`. What is at `output` already has to be a regular file, and is
    /// replaced at the end only with `replace`. Blocks.
    pub(super) fn create(output: &Path, replace: bool) -> Result<Self, BuildError> {
        if output.file_name().is_none() || output.is_dir() {
            return Err(BuildError::new(
                BuildErrorKind::OutputNotWritable,
                "the output is not the name of a file",
            ));
        }
        let directory = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        check_place(output, "the output", replace)?;
        for path in sidecar_paths(output) {
            check_place(&path, "what lies beside the output", replace)?;
        }
        let creating = |error| unwritable("create the image", error);
        sweep(&directory, output).map_err(creating)?;
        let image = loop {
            let image = hidden_file(&directory, output).map_err(creating)?;
            rustix::fs::flock(image.as_file(), FlockOperation::LockExclusive)
                .map_err(|error| creating(error.into()))?;
            // Another draft's sweep may have come between the making and the lock.
            if image.as_file().metadata().map_err(creating)?.nlink() > 0 {
                break image;
            }
        };
        Ok(Self {
            image,
            output: output.to_owned(),
            directory,
            replace,
        })
    }

    pub(super) fn file(&self) -> &File {
        self.image.as_file()
    }

    /// Waits until what was written so far is on disk. An error is said here and by no later call: the system says it once
    /// (fsync(2)).
    pub(super) async fn sync(&self) -> Result<(), BuildError> {
        let failed = |error| unwritable("publish the image", error);
        let image = self.image.as_file().try_clone().map_err(failed)?;
        blocking(move || image.sync_all()).await?.map_err(failed)
    }

    /// Gives the image its name, with its metadata and its machine configuration beside it; all are on disk when this
    /// returns. Gives the path of the metadata. Blocks.
    ///
    /// After an error what was there before is there again.
    pub(super) fn publish(self, metadata: &ImageMetadata) -> Result<PathBuf, BuildError> {
        let failed = |error| unwritable("publish the image", error);
        self.image.as_file().sync_all().map_err(failed)?;
        let mut text = serde_json::to_vec_pretty(metadata)
            .map_err(|error| BuildError::internal("write the image's metadata", error))?;
        text.push(b'\n');
        let name = self.output.file_name().unwrap_or_default().to_string_lossy();
        let machine = crate::shape::machine(metadata, &name);
        check_place(&self.output, "the output", self.replace)?;
        let mut sidecars = Vec::new();
        for (path, content) in sidecar_paths(&self.output).into_iter().zip([text, machine]) {
            check_place(&path, "what lies beside the output", self.replace)?;
            let mut file = hidden_file(&self.directory, &path).map_err(failed)?;
            file.write_all(&content).map_err(failed)?;
            file.as_file().sync_all().map_err(failed)?;
            sidecars.push((path, file));
        }
        // The sidecars first: an image that is there has them. What they replace is kept until the image is there.
        let mut placed: Vec<(PathBuf, Option<TempPath>)> = Vec::new();
        let mut published = Ok(());
        for (path, file) in sidecars {
            published = match self.replace {
                true => keep_aside(&self.directory, &path),
                false => Ok(None),
            }
            .and_then(|former| match place(file, &path, self.replace) {
                Ok(()) => {
                    placed.push((path, former));
                    Ok(())
                }
                Err(error) => {
                    if let Some(former) = former {
                        let _ = former.persist(&path);
                    }
                    Err(error)
                }
            });
            if published.is_err() {
                break;
            }
        }
        let published = published.and_then(|()| place(self.image, &self.output, self.replace));
        if let Err(error) = published {
            for (path, former) in placed {
                let _ = fs::remove_file(&path);
                if let Some(former) = former {
                    let _ = former.persist(&path);
                }
            }
            return Err(failed(error));
        }
        drop(placed);
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
        Ok(metadata_path(&self.output))
    }
}

/// Whether a file may come to lie at `path`: nothing is there, or a regular file that is to be replaced. Never a device,
/// a symbolic link or a directory: writing to `/dev/null` must not make a file of it.
fn check_place(path: &Path, what: &str, replace: bool) -> Result<(), BuildError> {
    let refuse = |reason: &str| {
        let message = format!("{what} cannot be written: {reason}");
        Err(BuildError::new(BuildErrorKind::OutputNotWritable, message))
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => refuse("what is there is not a regular file"),
        Ok(_) if !replace => refuse("it is there already"),
        // What else is wrong with the place shows when a file is made in it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Gives a file its name.
fn place(file: NamedTempFile, path: &Path, replace: bool) -> io::Result<()> {
    let placed = if replace {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    placed.map(drop).map_err(|error| error.error)
}

/// Gives the file at `path`, if there is one, a hidden name that is dropped with what this returns.
fn keep_aside(directory: &Path, path: &Path) -> io::Result<Option<TempPath>> {
    let aside = hidden_file(directory, path)?.into_temp_path();
    match fs::rename(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what killed processes left of drafts for the same output: files with its hidden name that nobody has locked.
fn sweep(directory: &Path, output: &Path) -> io::Result<()> {
    let prefix = hidden_prefix(output);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Somebody else may be sweeping, too.
        let Ok(file) = File::open(entry.path()) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Where the metadata of an image lies: that of `rootfs.ext4` in `rootfs.metadata.json`; any other name keeps its ending.
#[must_use]
pub fn metadata_path(output: &Path) -> PathBuf {
    beside(output, ".metadata.json")
}

/// Where the machine configuration of an image lies: that for `rootfs.ext4` in `rootfs.firecracker.json`.
#[must_use]
pub fn machine_path(output: &Path) -> PathBuf {
    beside(output, ".firecracker.json")
}

/// Everything that is published with an image and goes with it.
#[must_use]
pub fn sidecar_paths(output: &Path) -> [PathBuf; 2] {
    [metadata_path(output), machine_path(output)]
}

fn beside(output: &Path, ending: &str) -> PathBuf {
    let stem = match output.extension() {
        Some(extension) if extension == "ext4" => output.file_stem(),
        _ => output.file_name(),
    };
    let mut name = stem.unwrap_or_default().to_owned();
    name.push(ending);
    output.with_file_name(name)
}

/// A file beside `target` under a name that is hidden and recognisable; its mode is what the umask makes of 0666, as
/// for any file that a program writes.
fn hidden_file(directory: &Path, target: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(&hidden_prefix(target))
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(directory)
}

/// What the hidden names of files that are to be `target` begin with.
fn hidden_prefix(target: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(UNFINISHED_MARK);
    prefix
}

fn unwritable(action: &str, error: io::Error) -> BuildError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BuildError::from_io(action, error),
        kind => {
            let reason = match kind {
                io::ErrorKind::NotFound => "there is no such directory".to_owned(),
                io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
                kind => kind.to_string(),
            };
            BuildError::new(
                BuildErrorKind::OutputNotWritable,
                format!("the output directory cannot be written to: failed to {action}: {reason}"),
            )
            .with_cause(without_path(error))
        }
    }
}

/// What the system said, without the name of a hidden file that `tempfile` adds to it: nobody asked for that one.
fn without_path(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|wrapped| wrapped.source());
    let code = inner
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    code.map_or(error, io::Error::from_raw_os_error)
}

/// Waits for work in a thread that counts in `done` and looks at `given_up`, which is set when the build is to end.
pub(super) async fn watched<T>(
    work: &Work<'_>,
    thread: impl Future<Output = Result<T, BuildError>>,
    done: &AtomicU64,
    given_up: &AtomicBool,
) -> Result<T, BuildError> {
    let mut thread = std::pin::pin!(thread);
    let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
    let stopped = work.stop.unless(std::future::pending::<Result<(), BuildError>>());
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            result = &mut thread => return result,
            Err(error) = &mut stopped => {
                // The thread looks at this after each piece; then nobody holds the image any more.
                given_up.store(true, Ordering::Relaxed);
                let _ = thread.await;
                return Err(error);
            }
            _ = interval.tick() => work.progress.set_done(done.load(Ordering::Relaxed)),
        }
    }
}

/// SHA-256 of an image of which `contents` are on the way into it, in hexadecimal. Of something else once it is given up.
pub(super) fn hash(
    image: &File,
    contents: &Contents,
    size_bytes: u64,
    done: &AtomicU64,
    given_up: &AtomicBool,
) -> io::Result<String> {
    let mut digest = ImageDigest::new(image, contents);
    digest.advance(size_bytes, done, given_up)?;
    Ok(digest.finish())
}

/// SHA-256 of an image, from its beginning to wherever it is known by then. Holes are not read, only hashed.
struct ImageDigest<'a> {
    image: &'a File,
    contents: &'a Contents,
    hasher: Sha256,
    buffer: Vec<u8>,
    zeros: Vec<u8>,
    offset: u64,
    /// Copies that lie below `offset`.
    copies_done: usize,
    /// Below here the system was asked to read what is to be hashed.
    asked_for: u64,
}

impl<'a> ImageDigest<'a> {
    fn new(image: &'a File, contents: &'a Contents) -> Self {
        Self {
            image,
            contents,
            hasher: Sha256::new(),
            buffer: vec![0; CHUNK_BYTES],
            zeros: vec![0; CHUNK_BYTES],
            offset: 0,
            copies_done: 0,
            asked_for: 0,
        }
    }

    /// Goes on to `end`, below which nothing but `contents` is missing from the image, or not quite as far once it is given up.
    fn advance(&mut self, end: u64, done: &AtomicU64, given_up: &AtomicBool) -> io::Result<()> {
        // Where the data that `offset` is in, or before, begins and ends.
        let mut data = self.offset..self.offset;
        while self.offset < end && !given_up.load(Ordering::Relaxed) {
            let next_copy = self.contents.copies.get(self.copies_done);
            if let Some(copy) = next_copy.filter(|copy| copy.image_offset == self.offset) {
                let pack = self.contents.pack(copy)?;
                let mut hashed = 0;
                while hashed < copy.length && !given_up.load(Ordering::Relaxed) {
                    let length = piece(copy.length - hashed);
                    pack.read_exact_at(&mut self.buffer[..length], copy.pack_offset + hashed)?;
                    self.hasher.update(&self.buffer[..length]);
                    hashed += length as u64;
                    done.store(self.offset + hashed, Ordering::Relaxed);
                }
                self.offset += copy.length;
                self.copies_done += 1;
                continue;
            }
            let stop = next_copy.map_or(end, |copy| copy.image_offset.min(end));
            if self.offset >= data.end {
                data = next_data(self.image, self.offset, stop)?;
            }
            let length = if self.offset < data.start {
                let length = piece(data.start - self.offset);
                self.hasher.update(&self.zeros[..length]);
                length
            } else {
                let length = piece(data.end - self.offset);
                self.ask_ahead(data.end);
                self.image
                    .read_exact_at(&mut self.buffer[..length], self.offset)?;
                self.hasher.update(&self.buffer[..length]);
                length
            };
            self.offset += length as u64;
            done.store(self.offset, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Has the system read what comes next, up to `end`, while this is hashed: pages that were shared by a reflink are in no
    /// cache.
    fn ask_ahead(&mut self, end: u64) {
        let wanted = end.min(self.offset + READ_AHEAD_BYTES);
        let from = self.asked_for.max(self.offset);
        // Half of it is left when more is asked for.
        if self.asked_for < wanted && from < self.offset + READ_AHEAD_BYTES / 2 {
            let length = NonZero::new(wanted - from);
            // Only a hint: it is read in any case.
            let _ = rustix::fs::fadvise(self.image, from, length, rustix::fs::Advice::WillNeed);
            self.asked_for = wanted;
        }
    }

    /// In hexadecimal.
    fn finish(self) -> String {
        hex::encode(self.hasher.finalize())
    }
}

/// Of what is left, as much as is hashed at once.
fn piece(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)
}

/// The next run of data at or behind `offset`. A file system that knows no holes says that all is data.
pub(super) fn next_data(mut image: &File, offset: u64, size_bytes: u64) -> io::Result<std::ops::Range<u64>> {
    let start = match rustix::fs::seek(image, SparseSeek::Data(offset)) {
        Ok(start) => start.min(size_bytes),
        // No data behind: lseek(2).
        Err(rustix::io::Errno::NXIO) => return Ok(size_bytes..size_bytes),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(image, SparseSeek::Hole(start))?.min(size_bytes);
    image.seek(SeekFrom::Start(0))?;
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn holes_hash_like_the_zeros_that_they_are() {
        let file = tempfile::tempfile().unwrap();
        let size = 5 * CHUNK_BYTES as u64 + 123;
        file.set_len(size).unwrap();
        file.write_all_at(b"in the middle", 2 * CHUNK_BYTES as u64 + 4096)
            .unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        let mut content = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();

        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        let all = Contents::default();
        let sum = hash(&file, &all, size, &done, &given_up).unwrap();
        assert_eq!(sum, hex::encode(Sha256::digest(&content)));
        assert_eq!(done.into_inner(), size);

        let empty = tempfile::tempfile().unwrap();
        empty.set_len(size).unwrap();
        let sum = hash(&empty, &all, size, &AtomicU64::new(0), &given_up).unwrap();
        assert_eq!(sum, hex::encode(Sha256::digest(vec![0; content.len()])));
    }

    #[test]
    fn contents_that_are_not_there_yet_are_hashed_from_their_packs() {
        let pack: Arc<[u8]> = (0..8 * 4096u32).map(|nth| (nth / 7).to_le_bytes()[0]).collect();
        let contents = Contents {
            copies: [(4096, 8192, 4096), (0, 12288, 4096), (8192, 1 << 20, 4 * 4096)]
                .map(|(pack_offset, image_offset, length)| rootfs::ext4::BodyCopy {
                    pack: rootfs::pack::PackId(0),
                    pack_offset,
                    image_offset,
                    length,
                })
                .to_vec(),
            packs: {
                let mut packs = rootfs::pack::Packs::new();
                packs.push(rootfs::pack::Pack::Memory(Arc::clone(&pack)));
                packs
            },
        };
        let size = (1 << 20) + 4 * 4096 + 10;
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(b"structures", 100).unwrap();
        file.write_all_at(b"between", 20000).unwrap();
        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        let sum = hash(&file, &contents, size, &done, &given_up).unwrap();
        assert_eq!(done.into_inner(), size);
        let mut whole = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut whole, 0).unwrap();
        whole[8192..12288].copy_from_slice(&pack[4096..8192]);
        whole[12288..16384].copy_from_slice(&pack[..4096]);
        whole[1 << 20..(1 << 20) + 4 * 4096].copy_from_slice(&pack[8192..6 * 4096]);
        assert_eq!(sum, hex::encode(Sha256::digest(&whole)));
    }

    #[test]
    fn a_digest_in_steps_is_that_of_the_whole() {
        let file = tempfile::tempfile().unwrap();
        let size = 40 * CHUNK_BYTES as u64 + 77;
        file.set_len(size).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&vec![7; 11 * CHUNK_BYTES], 3 * CHUNK_BYTES as u64 - 5)
            .unwrap();
        file.write_all_at(b"last", size - 4).unwrap();
        let all = Contents::default();
        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut digest = ImageDigest::new(&file, &all);
        for end in [
            0,
            1,
            4096,
            3 * CHUNK_BYTES as u64,
            3 * CHUNK_BYTES as u64,
            size - 1,
            size,
        ] {
            digest.advance(end, &done, &given_up).unwrap();
            assert_eq!(done.load(Ordering::Relaxed), end);
        }
        let mut content = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(digest.finish(), hex::encode(Sha256::digest(&content)));
    }

    #[test]
    fn metadata_and_machine_lie_beside_the_image() {
        for (image, stem) in [
            ("/a/build-1.ext4", "/a/build-1"),
            ("rootfs", "rootfs"),
            ("disk.img", "disk.img"),
        ] {
            let sidecars =
                ["metadata", "firecracker"].map(|kind| PathBuf::from(format!("{stem}.{kind}.json")));
            assert_eq!(sidecar_paths(Path::new(image)), sidecars, "{image}");
        }
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("x.ext4");
        drop(Draft::create(&output, false).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        let metadata = Draft::create(&output, false)
            .unwrap()
            .publish(&ImageMetadata::default())
            .unwrap();
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names, [output.clone(), machine_path(&output), metadata]);
    }

    fn publish(output: &Path, replace: bool) -> Result<PathBuf, BuildError> {
        Draft::create(output, replace)?.publish(&ImageMetadata::default())
    }

    #[test]
    fn only_regular_files_are_replaced_and_only_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("x.ext4");
        publish(&output, false).unwrap();
        let error = publish(&output, false).unwrap_err();
        assert!(error.to_string().ends_with("it is there already"), "{error}");
        publish(&output, true).unwrap();

        let link = directory.path().join("link.ext4");
        std::os::unix::fs::symlink(&output, &link).unwrap();
        for output in [Path::new("/dev/null"), &link] {
            let error = publish(output, true).unwrap_err();
            assert!(error.to_string().ends_with("not a regular file"), "{error}");
        }
        assert!(link.is_symlink());
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("x.ext4");
        let draft = Draft::create(&output, false).unwrap();
        fs::write(&output, b"of the user").unwrap();
        draft.publish(&ImageMetadata::default()).unwrap_err();
        assert_eq!(fs::read(&output).unwrap(), b"of the user");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_the_former_metadata() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("x.ext4");
        let metadata = publish(&output, false).unwrap();
        fs::write(&metadata, b"former").unwrap();
        let draft = Draft::create(&output, true).unwrap();
        // The last step fails: the draft's own name is gone.
        fs::remove_file(draft.image.path()).unwrap();
        draft.publish(&ImageMetadata::default()).unwrap_err();
        assert_eq!(fs::read(&metadata).unwrap(), b"former");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_is_being_written_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("x.ext4");
        let left = directory.path().join(".x.ext4.unfinished-killed");
        let other = directory.path().join(".y.ext4.unfinished-killed");
        fs::write(&left, b"half").unwrap();
        fs::write(&other, b"half").unwrap();
        let first = Draft::create(&output, false).unwrap();
        assert!(!left.exists());
        assert!(other.exists());
        let second = Draft::create(&output, false).unwrap();
        assert!(first.image.path().exists());
        drop((first, second));
    }

    #[test]
    fn an_output_that_cannot_be_is_refused_without_naming_paths() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        for output in [
            file.join("x.ext4"),
            directory.path().join("absent/x.ext4"),
            directory.path().to_owned(),
        ] {
            let error = Draft::create(&output, true).unwrap_err();
            assert_eq!(error.kind(), &BuildErrorKind::OutputNotWritable);
            assert!(!error.to_string().contains('/'), "{error}");
        }
    }
}
