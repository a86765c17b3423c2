//! The lines that parent and worker exchange.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    optimize::{Savings, Settings},
    options::{Backend, LayerMode, Profile},
};

/// Raised when the lines change: parent and worker are one binary, and a mismatch means that it was replaced while
/// the parent ran.
pub(crate) const PROTOCOL_VERSION: u32 = 4;

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) version: u32,
    pub(crate) job: Job,
}

/// What a worker is to do. Numbers are descriptors of the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    Index(IndexJob),
    Assemble(Box<AssembleJob>),
}

/// One layer's bytes to a pack and an index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct IndexJob {
    /// The layer as it came, compressed or not: a pipe while it arrives, the file when all of it is there.
    pub(crate) input: i32,
    /// Bytes of the layer as it came. What a file has behind them is not the layer's.
    pub(crate) input_bytes: u64,
    /// An empty file: the pack goes first, the index directly behind it.
    pub(crate) output: i32,
    pub(crate) max_output_bytes: u64,
    pub(crate) max_index_bytes: u64,
}

/// Layers to an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AssembleJob {
    /// Bottom first.
    pub(crate) layers: Vec<LayerInput>,
    pub(crate) mode: LayerMode,
    /// What is left out or made smaller, before anything is added.
    pub(crate) optimization: Settings,
    /// An empty file for content that optimization makes; taken only when it makes some.
    pub(crate) scratch: Option<i32>,
    /// In this order, after optimization.
    pub(crate) edits: Vec<Edit>,
    /// Paths of which the first that leads to a program is the image's own init; empty when nobody asks.
    pub(crate) init_candidates: Vec<String>,
    pub(crate) image: ImageRequest,
    pub(crate) backend: Backend,
    /// An empty directory for this worker alone, for the backend that stages its tree.
    pub(crate) staging_directory: Option<PathBuf>,
    /// An empty file.
    pub(crate) output: i32,
    /// An empty file for the list of what the parent is to copy.
    pub(crate) copies: i32,
    pub(crate) max_index_bytes: u64,
    /// A file with the leaf hashes of all packs, where the image gets a hash tree.
    pub(crate) leaves: Option<i32>,
}

/// A layer file: `index_offset` bytes of pack, then the index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerInput {
    pub(crate) descriptor: i32,
    pub(crate) index_offset: u64,
    pub(crate) index_length: u64,
    /// Where in the file of leaf hashes those of this pack are, and how many bytes.
    pub(crate) leaves: Option<(u64, u64)>,
}

/// A change of the finished tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Edit {
    /// A directory owned by root and dated 1970, with those above it, unless something is there already.
    EnsureDirectory { path: String, mode: u16 },
    /// An empty file, owned and dated likewise, unless something is there already or there is no place for it.
    EnsureFile { path: String },
    /// A file owned by root and dated 1970, with the directories above it; replaces what is there.
    PutFile {
        path: String,
        mode: u16,
        content: EditContent,
    },
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EditContent {
    /// From here.
    Text(String),
    /// From a descriptor, whole.
    Descriptor(i32),
}

/// [`rootfs::image::ImageOptions`] as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRequest {
    pub(crate) profile: Profile,
    pub(crate) free_space_bytes: u64,
    pub(crate) free_inodes: u64,
    pub(crate) max_image_bytes: Option<u64>,
    pub(crate) verity: bool,
    pub(crate) identity: [u8; 32],
}

/// Later lines of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// The input was whole and is what it claims to be: commit.
    Verified,
    /// It was not: leave everything and end.
    Abort,
}

/// The lines of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerEvent {
    /// The input was read to its end; the worker waits for [`Control::Verified`].
    Parsed,
    /// The layer file is complete.
    Indexed { pack_bytes: u64, index_bytes: u64 },
    /// A line for the log.
    Note { message: String },
    /// One rule of the optimization is done.
    Optimized { savings: Savings },
    /// The first of the candidates that is a program; `None` when none is.
    Init { path: Option<String> },
    /// The tree stands.
    Folded { inodes: u64 },
    /// The image is complete but for so many ranges that are in the list.
    Written {
        size_bytes: u64,
        copies: u64,
        inodes_used: u64,
        verity: Option<HashTree>,
    },
    /// The worker gave up; nothing follows.
    Failed { kind: FailureKind, message: String },
}

/// Where an image's hash tree is, and what is at its top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HashTree {
    pub(crate) root_hash: [u8; 32],
    /// Bytes of the file system before it.
    pub(crate) hash_offset: u64,
}

/// Why a worker gave up, so far as the parent treats it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// The layer is not well-formed.
    CorruptLayer,
    /// The image has what the builder does not do.
    Unsupported,
    /// A limit was reached.
    Limit,
    /// No space left.
    DiskFull,
    /// The file system of the output has no files that large.
    OutputTooLarge,
    /// The image writer cannot run here.
    BackendUnavailable,
    /// Anything else.
    Internal,
}
