//! Why a layer could not be indexed.

use std::{fmt, io};

use super::{Compression, Limit};

/// A path in an error is cut to so many bytes, so that an error stays small whatever the layer says.
const SHOWN_PATH_BYTES: usize = 256;

/// Why a layer could not be indexed.
///
/// Offsets count bytes from the start of the stream that they name. A path is the one that the archive gives, cut to
/// 256 bytes, and empty where none is known yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Reading the layer failed.
    #[error("failed to read the layer")]
    Input(#[source] io::Error),
    /// Writing the pack failed.
    #[error("failed to write the pack")]
    Pack(#[source] io::Error),
    /// Compressed in a way that image layers are not.
    #[error("layers compressed with {name} are not supported")]
    UnsupportedCompression {
        /// The format's name.
        name: &'static str,
    },
    /// The compressed data is damaged.
    #[error("the {compression} data is corrupt at byte {offset}: {reason}")]
    CorruptCompression {
        /// The format.
        compression: Compression,
        /// Compressed bytes read before the damage was seen.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The compressed data ends too early.
    #[error("the {compression} data ends too early, after {offset} bytes")]
    TruncatedCompression {
        /// The format.
        compression: Compression,
        /// Compressed bytes there were.
        offset: u64,
    },
    /// The archive ends in the middle of an entry.
    #[error("the archive ends too early, after {offset} bytes, in {}", Shown(path))]
    TruncatedArchive {
        /// Decompressed bytes there were.
        offset: u64,
        /// The entry that is not complete.
        path: Vec<u8>,
    },
    /// The archive is not valid, or says something that could be read in two ways.
    #[error("the archive is malformed at byte {offset}, in {}", Shown(path))]
    Malformed {
        /// Where the header of the offending entry starts, in decompressed bytes.
        offset: u64,
        /// The entry.
        path: Vec<u8>,
        /// What is wrong.
        #[source]
        problem: TarProblem,
    },
    /// The layer asks for more than it may have.
    #[error("too much in the layer at {}{}: {limit}: {value}, {allowed} allowed", Shown(path), OfAttribute(attribute.as_deref()))]
    Limit {
        /// Which limit.
        limit: Limit,
        /// What the layer asks for, or as much of it as was seen.
        value: u64,
        /// The limit's value.
        allowed: u64,
        /// The entry.
        path: Vec<u8>,
        /// The extended attribute, where one is the cause.
        attribute: Option<Vec<u8>>,
    },
}

/// What a caller does differently for different [`LayerError`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerErrorKind {
    /// Reading the layer failed; the layer itself may be sound.
    Input,
    /// Writing the pack failed; the layer itself may be sound.
    Pack,
    /// The layer uses a compression that layers do not have.
    Unsupported,
    /// The compressed data is damaged.
    Corrupt,
    /// Compressed data or archive end too early.
    Truncated,
    /// The archive is not valid.
    Malformed,
    /// A limit was passed.
    Limit,
}

impl LayerError {
    /// Which sort of failure this is.
    #[must_use]
    pub fn kind(&self) -> LayerErrorKind {
        match self {
            Self::Input(_) => LayerErrorKind::Input,
            Self::Pack(_) => LayerErrorKind::Pack,
            Self::UnsupportedCompression { .. } => LayerErrorKind::Unsupported,
            Self::CorruptCompression { .. } => LayerErrorKind::Corrupt,
            Self::TruncatedCompression { .. } | Self::TruncatedArchive { .. } => LayerErrorKind::Truncated,
            Self::Malformed { .. } => LayerErrorKind::Malformed,
            Self::Limit { .. } => LayerErrorKind::Limit,
        }
    }
}

/// What is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// Neither the unsigned nor the signed sum of the header's bytes is the one it names.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A number is not one, or is out of the range of its field.
    #[error("the field {field} holds no valid number")]
    Number {
        /// The header field or PAX keyword.
        field: &'static str,
    },
    /// An entry type that has no place in a file system image.
    #[error("entries of type {:?} are not supported", char::from(*type_flag))]
    UnsupportedType {
        /// The header's type flag.
        type_flag: u8,
    },
    /// A PAX record that is not `length keyword=value newline`.
    #[error("a PAX record is malformed")]
    PaxRecord,
    /// A NUL byte where a path or a PAX keyword must not have one.
    #[error("{field} contains a NUL byte")]
    Nul {
        /// The header field or PAX keyword.
        field: &'static str,
    },
    /// A global PAX header that would rename, relink or resize every following entry.
    #[error("a global PAX header sets {field}")]
    GlobalOverride {
        /// The PAX keyword.
        field: &'static str,
    },
    /// The same extension twice before one entry. Readers disagree on which counts.
    #[error("two {what} stand before one entry")]
    RepeatedExtension {
        /// Which, in the plural.
        what: &'static str,
    },
    /// PAX and GNU extensions give one entry different names. Readers disagree on which counts.
    #[error("the PAX header and the GNU extension disagree on the {what}")]
    ConflictingNames {
        /// `path` or `link target`.
        what: &'static str,
    },
    /// An extended header that is followed by the end of the archive, or by a global header.
    #[error("an extended header belongs to no entry")]
    DanglingExtension,
    /// One zero block, then more. The end of an archive is two.
    #[error("a single zero block stands in the middle of the archive")]
    LoneZeroBlock,
    /// A sparse file's map makes no sense.
    #[error("the sparse map is malformed: {reason}")]
    SparseMap {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An extended attribute without a name, or with an undecodable name or value.
    #[error("an extended attribute is malformed")]
    Xattr,
    /// A link that names nothing.
    #[error("the link has no target")]
    EmptyLink,
    /// A device number that Linux cannot have on disk: more than 12 bits of major or 20 bits of minor.
    #[error("the device number {major}:{minor} is out of range")]
    DeviceNumber {
        /// The major number.
        major: u64,
        /// The minor number.
        minor: u64,
    },
}

/// What is wrong, before it is known where: the reader adds offset and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed(TarProblem),
    Limit {
        limit: Limit,
        value: u64,
        allowed: u64,
        attribute: Option<Vec<u8>>,
    },
}

impl Fault {
    /// `Ok` when `value` is within the limit.
    pub(super) fn check(limit: Limit, value: usize, allowed: u64) -> Result<(), Self> {
        let value = value as u64;
        if value <= allowed {
            Ok(())
        } else {
            Err(Self::Limit {
                limit,
                value,
                allowed,
                attribute: None,
            })
        }
    }

    /// The error for the entry `path` whose header is at `offset`.
    pub(super) fn at(self, offset: u64, path: &[u8]) -> LayerError {
        let path = cut(path);
        match self {
            Self::Malformed(problem) => LayerError::Malformed {
                offset,
                path,
                problem,
            },
            Self::Limit {
                limit,
                value,
                allowed,
                attribute,
            } => LayerError::Limit {
                limit,
                value,
                allowed,
                path,
                attribute: attribute.map(|name| cut(&name)),
            },
        }
    }
}

impl From<TarProblem> for Fault {
    fn from(problem: TarProblem) -> Self {
        Self::Malformed(problem)
    }
}

/// The part of a path that errors carry.
pub(super) fn cut(path: &[u8]) -> Vec<u8> {
    path[..path.len().min(SHOWN_PATH_BYTES)].to_vec()
}

/// A path as a person reads it, with everything escaped that could confuse a terminal or a log.
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "\"{}\"",
            String::from_utf8_lossy(self.0).escape_debug()
        )
    }
}

struct OfAttribute<'a>(Option<&'a [u8]>);

impl fmt::Display for OfAttribute<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(formatter, ", attribute {}", Shown(name)),
            None => Ok(()),
        }
    }
}
