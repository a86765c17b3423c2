//! An index as a file.
//!
//! ```text
//! length  content                                   all numbers little endian
//!      8  magic "rfsindex"
//!      4  FORMAT_VERSION
//!     32  diff_id
//!      8  uncompressed size in bytes
//!      8  pack size in bytes
//!      8  number of entries
//!         then for each entry
//!      4    length of what follows
//!      …    path, kind and metadata, in postcard's encoding
//!     24    for each extent of a file: logical offset, pack offset, length
//!     32  SHA-256 over everything before
//! ```
//!
//! Entries are records of their own, and extents are not part of a record, so that a reader needs memory for what it has
//! checked and for one record. The digest finds damage; it proves nothing about where a file comes from, so every
//! invariant is checked as well.

use std::{
    borrow::Cow,
    io::{self, BufReader, BufWriter, Read, Write},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Body, BodyExtent, Entry, EntryKind, LayerIndex, LayerLimits, TarProblem,
    budget::{Budget, EXTENT_BYTES},
    error::{Fault, Shown, cut},
    limits::Limit,
    tar::{check_path, check_xattrs, checked_device},
};
use crate::{DeviceNumber, Metadata, pack::BLOCK_SIZE};

const MAGIC: [u8; 8] = *b"rfsindex";

/// Extents are read so many at a time.
const EXTENTS_PER_READ: usize = 1024;
const EXTENT_RECORD_BYTES: usize = 24;

/// Why an index could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Reading failed.
    #[error("failed to read the index")]
    Io(#[source] io::Error),
    /// The file does not begin as an index does.
    #[error("this is not a layer index")]
    NotAnIndex,
    /// Written in a format that this version does not read. The layer has to be indexed again.
    #[error(
        "the index has format version {found}, expected {}",
        LayerIndex::FORMAT_VERSION
    )]
    Version {
        /// The version it names.
        found: u32,
    },
    /// The file ends too early.
    #[error("the index ends too early")]
    Truncated,
    /// The digest at the end is not that of the content.
    #[error("the index is damaged: its digest is wrong")]
    Digest,
    /// Something follows the index.
    #[error("something follows the end of the index")]
    TrailingBytes,
    /// A size or number before the first entry makes no sense.
    #[error("the index as a whole is invalid")]
    Invalid(#[source] IndexProblem),
    /// An entry says what no layer can say.
    #[error("entry {number} of the index is invalid, {}", Shown(path))]
    InvalidEntry {
        /// Which entry, from 0.
        number: u64,
        /// Its path, cut to 256 bytes; empty where that cannot be read.
        path: Vec<u8>,
        /// What is wrong.
        #[source]
        problem: IndexProblem,
    },
}

/// Which invariant an index breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// A record cannot be decoded, or is longer than its content.
    #[error("a record cannot be decoded")]
    Encoding,
    /// The pack's size is no multiple of the block size.
    #[error("the size of the pack is not a multiple of 4096")]
    PackSize,
    /// The mode has bits that are not permissions.
    #[error("the mode has bits beyond 7777")]
    Mode,
    /// Nanoseconds that are a second or more.
    #[error("the time has a billion nanoseconds or more")]
    Nanoseconds,
    /// An extent is empty, not aligned, out of order, or reaches beyond file or pack.
    #[error("an extent is empty, not aligned, out of order, or beyond the end of file or pack")]
    Extent,
    /// What would be an error in an archive, too.
    #[error(transparent)]
    Entry(TarProblem),
    /// More than the limits allow.
    #[error("too much: {limit}: {value}, {allowed} allowed")]
    Limit {
        /// Which limit.
        limit: Limit,
        /// What the index asks for.
        value: u64,
        /// The limit's value.
        allowed: u64,
    },
}

impl From<Fault> for IndexProblem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(problem) => Self::Entry(problem),
            Fault::Limit {
                limit,
                value,
                allowed,
                ..
            } => Self::Limit {
                limit,
                value,
                allowed,
            },
        }
    }
}

/// An entry's record.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    path: &'a [u8],
    kind: RecordKind<'a>,
    metadata: Cow<'a, Metadata>,
}

#[derive(Serialize, Deserialize)]
enum RecordKind<'a> {
    Directory,
    File { size: u64, extents: u64 },
    Symlink(&'a [u8]),
    HardLink(&'a [u8]),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

impl LayerIndex {
    /// The format that [`write_to`](Self::write_to) writes, the only one that [`read_from`](Self::read_from) reads.
    ///
    /// Changes whenever the same layer would be indexed differently, so that a cache which has it in its keys never
    /// mixes two.
    pub const FORMAT_VERSION: u32 = 1;

    /// Writes the index. The same index gives the same bytes.
    ///
    /// # Errors
    /// What `output` reports.
    pub fn write_to(&self, output: impl Write) -> io::Result<()> {
        let mut output = Digesting {
            inner: BufWriter::with_capacity(128 * 1024, output),
            digest: Sha256::new(),
        };
        output.write_all(&MAGIC)?;
        output.write_all(&Self::FORMAT_VERSION.to_le_bytes())?;
        output.write_all(&self.diff_id)?;
        for number in [
            self.uncompressed_size_bytes,
            self.pack_size_bytes,
            self.entries.len() as u64,
        ] {
            output.write_all(&number.to_le_bytes())?;
        }
        let mut buffer = Vec::new();
        for entry in &self.entries {
            buffer.clear();
            buffer = postcard::to_extend(&record(entry), buffer).map_err(io::Error::other)?;
            let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
            output.write_all(&length.to_le_bytes())?;
            output.write_all(&buffer)?;
            if let EntryKind::File(body) = &entry.kind {
                for extent in &body.extents {
                    for number in [extent.logical_offset, extent.pack_offset, extent.length] {
                        output.write_all(&number.to_le_bytes())?;
                    }
                }
            }
        }
        let Digesting { mut inner, digest } = output;
        inner.write_all(&digest.finalize())?;
        inner.flush()
    }

    /// Reads an index back, up to the end of `input`, and checks everything: that it is whole, within `limits`, and that
    /// every invariant of [`Entry`], [`Body`] and [`BodyExtent`] holds. `input` may be hostile. Whether the pack is as
    /// long as the index says is for the caller to see.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn read_from(input: impl Read, limits: &LayerLimits) -> Result<Self, IndexError> {
        let mut input = Digesting {
            inner: BufReader::with_capacity(128 * 1024, input),
            digest: Sha256::new(),
        };
        if input.array::<8>()? != MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        let found = u32::from_le_bytes(input.array()?);
        if found != Self::FORMAT_VERSION {
            return Err(IndexError::Version { found });
        }
        let diff_id = input.array()?;
        let uncompressed_size_bytes = u64::from_le_bytes(input.array()?);
        let pack_size_bytes = u64::from_le_bytes(input.array()?);
        let n_entries = u64::from_le_bytes(input.array()?);
        for (limit, value, allowed) in [
            (
                Limit::OutputBytes,
                uncompressed_size_bytes,
                limits.max_output_bytes,
            ),
            (Limit::OutputBytes, pack_size_bytes, limits.max_output_bytes),
            (Limit::Entries, n_entries, limits.max_entries),
        ] {
            within(limit, value, allowed).map_err(IndexError::Invalid)?;
        }
        if pack_size_bytes % BLOCK_SIZE != 0 {
            return Err(IndexError::Invalid(IndexProblem::PackSize));
        }
        let mut entries = Vec::new();
        let mut reader = EntryReader {
            input: &mut input,
            limits,
            budget: Budget::new(limits),
            pack_size_bytes,
            buffer: Vec::new(),
        };
        for number in 0..n_entries {
            entries.push(reader.entry(number)?);
        }
        let Digesting { mut inner, digest } = input;
        let mut stated = [0; 32];
        inner.read_exact(&mut stated).map_err(end_or_failure)?;
        if stated != <[u8; 32]>::from(digest.finalize()) {
            return Err(IndexError::Digest);
        }
        match inner.read_exact(&mut [0]) {
            Ok(()) => return Err(IndexError::TrailingBytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(IndexError::Io(error)),
        }
        Ok(Self {
            diff_id,
            uncompressed_size_bytes,
            pack_size_bytes,
            entries,
        })
    }
}

fn record(entry: &Entry) -> Record<'_> {
    Record {
        path: &entry.path,
        kind: match &entry.kind {
            EntryKind::Directory => RecordKind::Directory,
            EntryKind::File(body) => RecordKind::File {
                size: body.size,
                extents: body.extents.len() as u64,
            },
            EntryKind::Symlink(target) => RecordKind::Symlink(target),
            EntryKind::HardLink(target) => RecordKind::HardLink(target),
            EntryKind::CharacterDevice(number) => RecordKind::CharacterDevice(*number),
            EntryKind::BlockDevice(number) => RecordKind::BlockDevice(*number),
            EntryKind::Fifo => RecordKind::Fifo,
        },
        metadata: Cow::Borrowed(&entry.metadata),
    }
}

/// Reads entries, one record after the other.
struct EntryReader<'r, R> {
    input: &'r mut Digesting<R>,
    limits: &'r LayerLimits,
    budget: Budget,
    pack_size_bytes: u64,
    buffer: Vec<u8>,
}

impl<R: Read> EntryReader<'_, R> {
    fn entry(&mut self, number: u64) -> Result<Entry, IndexError> {
        let invalid = |path: &[u8], problem| IndexError::InvalidEntry {
            number,
            path: cut(path),
            problem,
        };
        let length = u32::from_le_bytes(self.input.array()?);
        if u64::from(length) > self.max_record_bytes() {
            return Err(invalid(&[], IndexProblem::Encoding));
        }
        // Grows as bytes arrive: a length alone reserves nothing.
        self.buffer.clear();
        self.input.append(u64::from(length), &mut self.buffer)?;
        let (record, rest) = postcard::take_from_bytes::<Record<'_>>(&self.buffer)
            .map_err(|_| invalid(&[], IndexProblem::Encoding))?;
        if !rest.is_empty() {
            return Err(invalid(record.path, IndexProblem::Encoding));
        }
        let (kind, n_extents) = match record.kind {
            RecordKind::Directory => (EntryKind::Directory, 0),
            RecordKind::File { size, extents } => (
                EntryKind::File(Body {
                    size,
                    extents: Vec::new(),
                }),
                extents,
            ),
            RecordKind::Symlink(target) => (EntryKind::Symlink(target.to_vec()), 0),
            RecordKind::HardLink(target) => (EntryKind::HardLink(target.to_vec()), 0),
            RecordKind::CharacterDevice(number) => (EntryKind::CharacterDevice(number), 0),
            RecordKind::BlockDevice(number) => (EntryKind::BlockDevice(number), 0),
            RecordKind::Fifo => (EntryKind::Fifo, 0),
        };
        let mut entry = Entry {
            path: record.path.to_vec(),
            kind,
            metadata: record.metadata.into_owned(),
        };
        check_entry(&entry, self.limits).map_err(|problem| invalid(&entry.path, problem))?;
        self.budget
            .charge_entry(&entry)
            .and_then(|()| self.budget.charge(n_extents.saturating_mul(EXTENT_BYTES)))
            .map_err(|fault| invalid(&entry.path, fault.into()))?;
        if let EntryKind::File(body) = &mut entry.kind {
            body.extents = self.extents(n_extents)?;
            check_extents(body, self.pack_size_bytes).map_err(|problem| invalid(&entry.path, problem))?;
        }
        Ok(entry)
    }

    /// What the longest valid record can have: path, target and xattrs, where each attribute may cost its one byte and
    /// two lengths of up to three bytes, and a little for everything else.
    fn max_record_bytes(&self) -> u64 {
        let paths = self.limits.max_path_bytes.saturating_mul(2);
        paths
            .saturating_add(self.limits.max_xattrs_bytes.saturating_mul(8))
            .saturating_add(1024)
    }

    fn extents(&mut self, count: u64) -> Result<Vec<BodyExtent>, IndexError> {
        let mut extents = Vec::new();
        let mut left = count;
        while left > 0 {
            let now = left.min(EXTENTS_PER_READ as u64);
            self.buffer.clear();
            self.input
                .append(now * EXTENT_RECORD_BYTES as u64, &mut self.buffer)?;
            let (numbers, _) = self.buffer.as_chunks::<8>();
            let (records, _) = numbers.as_chunks::<3>();
            extents.extend(records.iter().map(|record| {
                let [logical_offset, pack_offset, length] = record.map(u64::from_le_bytes);
                BodyExtent {
                    logical_offset,
                    pack_offset,
                    length,
                }
            }));
            left -= now;
        }
        extents.shrink_to_fit();
        Ok(extents)
    }
}

/// Whether an entry keeps what [`Entry`] promises, extents apart.
fn check_entry(entry: &Entry, limits: &LayerLimits) -> Result<(), IndexProblem> {
    check_path(&entry.path, limits)?;
    match &entry.kind {
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => {
            if target.is_empty() {
                return Err(IndexProblem::Entry(TarProblem::EmptyLink));
            }
            if target.contains(&0) {
                return Err(IndexProblem::Entry(TarProblem::Nul { field: "link target" }));
            }
            within(Limit::PathBytes, target.len() as u64, limits.max_path_bytes)?;
        }
        EntryKind::File(body) => within(Limit::FileSizeBytes, body.size, limits.max_file_size_bytes)?,
        EntryKind::CharacterDevice(DeviceNumber { major, minor })
        | EntryKind::BlockDevice(DeviceNumber { major, minor }) => {
            let (major, minor) = (u64::from(*major), u64::from(*minor));
            if checked_device(major, minor).is_none() {
                return Err(IndexProblem::Entry(TarProblem::DeviceNumber { major, minor }));
            }
        }
        EntryKind::Directory | EntryKind::Fifo => {}
    }
    if entry.metadata.mode > 0o7777 {
        return Err(IndexProblem::Mode);
    }
    if entry.metadata.mtime.nanoseconds >= 1_000_000_000 {
        return Err(IndexProblem::Nanoseconds);
    }
    Ok(check_xattrs(&entry.metadata.xattrs, limits)?)
}

/// Whether a body keeps what [`Body`] and [`BodyExtent`] promise.
fn check_extents(body: &Body, pack_size_bytes: u64) -> Result<(), IndexProblem> {
    let mut end = 0;
    for extent in &body.extents {
        let aligned = extent.logical_offset % BLOCK_SIZE == 0 && extent.pack_offset % BLOCK_SIZE == 0;
        let logical_end = extent
            .logical_offset
            .checked_add(extent.length)
            .filter(|end| *end <= body.size);
        let pack_end = extent
            .length
            .checked_next_multiple_of(BLOCK_SIZE)
            .and_then(|length| extent.pack_offset.checked_add(length))
            .filter(|end| *end <= pack_size_bytes);
        let (Some(logical_end), Some(_)) = (logical_end, pack_end) else {
            return Err(IndexProblem::Extent);
        };
        let whole_blocks = extent.length % BLOCK_SIZE == 0 || logical_end == body.size;
        if !aligned || !whole_blocks || extent.length == 0 || extent.logical_offset < end {
            return Err(IndexProblem::Extent);
        }
        end = logical_end;
    }
    Ok(())
}

fn within(limit: Limit, value: u64, allowed: u64) -> Result<(), IndexProblem> {
    if value <= allowed {
        Ok(())
    } else {
        Err(IndexProblem::Limit {
            limit,
            value,
            allowed,
        })
    }
}

/// Hashes what passes.
struct Digesting<T> {
    inner: T,
    digest: Sha256,
}

impl<W: Write> Digesting<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Digesting<R> {
    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], IndexError> {
        let mut bytes = [0; LENGTH];
        self.inner.read_exact(&mut bytes).map_err(end_or_failure)?;
        self.digest.update(bytes);
        Ok(bytes)
    }

    /// Appends exactly `count` bytes to an empty buffer.
    fn append(&mut self, count: u64, buffer: &mut Vec<u8>) -> Result<(), IndexError> {
        let read = (&mut self.inner)
            .take(count)
            .read_to_end(buffer)
            .map_err(IndexError::Io)?;
        if (read as u64) < count {
            return Err(IndexError::Truncated);
        }
        self.digest.update(&buffer);
        Ok(())
    }
}

fn end_or_failure(error: io::Error) -> IndexError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        IndexError::Truncated
    } else {
        IndexError::Io(error)
    }
}

#[cfg(test)]
mod tests;
