//! The assemble job: layers become a tree, the tree is edited, the image is written.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use rootfs::{
    InodeKind, Metadata, Tree,
    ext4::{BodyCopy, ImageSink as _, Native},
    fold::{FoldErrorKind, FoldLimits, Folded, Folder, Mode, Report},
    image::{ImageBackend, ImageError, ImageOptions},
    layer::{LayerIndex, LayerLimits},
    mke2fs::Mke2fs,
    pack::{Pack, Packs},
    tree::FileContent,
    verity::LeafHashes,
};

use super::{
    child::{Events, Failure, Verdict},
    copies::{self, MAX_COPIES},
    descriptors::take,
    protocol::{
        AssembleJob, Edit, EditContent, FailureKind, HashTree, ImageRequest, LayerInput, WorkerEvent,
    },
};
use crate::{
    optimize::{OptimizeError, optimize},
    options::{Backend, LayerMode, Profile},
};

/// Notes of the fold on which the modes agree that go to the log; the rest is counted. Those on which they differ all go
/// there, up to what the parent reads of one worker.
const MAX_NOTES: usize = 200;

/// Notes of the fold on which the modes differ that go to the log; the rest is counted.
const MAX_DIFFERING_NOTES: usize = 3000;

/// Bytes of one file that an edit brings by descriptor.
const MAX_EDIT_BYTES: u64 = 256 << 20;

pub(super) fn run<W: Write>(
    job: &AssembleJob,
    verdict: &Verdict,
    events: &mut Events<W>,
) -> Result<(), Failure> {
    let mut packs = Packs::new();
    let Folded { mut tree, report } = fold(job, &mut packs)?;
    #[cfg(feature = "planted-hole")]
    for (_, id) in tree.walk() {
        if let InodeKind::Symlink(target) = &tree.inode(id).kind {
            super::hole::fall_in(target);
        }
    }
    note(&report, events)?;
    make_smaller(job, &mut tree, &mut packs, events)?;
    if !job.init_candidates.is_empty() {
        let path = job.init_candidates.iter().find(|path| is_program(&tree, path));
        events.send(&WorkerEvent::Init { path: path.cloned() })?;
    }
    for edit in &job.edits {
        apply(edit, &mut tree)?;
    }
    events.send(&WorkerEvent::Folded {
        inodes: tree.walk().count() as u64,
    })?;

    verdict.wait()?;
    let output = take(job.output).map_err(|error| Failure::from_io("take over a descriptor", &error))?;
    let options = options(&job.image);
    let (summary, n_copies) = match job.backend {
        Backend::Native => {
            let (summary, copies) = Native
                .write_without_contents(&tree, &packs, &options, &output)
                .map_err(|error| explain(&error))?;
            (summary, leave_to_parent(job, copies, &packs, &output)?)
        }
        Backend::Mke2fs => {
            let summary = mke2fs(job)?
                .write(&tree, &packs, &options, &output)
                .map_err(|error| explain(&error))?;
            (summary, 0)
        }
    };
    events.send(&WorkerEvent::Written {
        size_bytes: summary.size_bytes,
        copies: n_copies,
        inodes_used: summary.inodes_used,
        verity: summary.verity.map(|verity| HashTree {
            root_hash: verity.root_hash,
            hash_offset: verity.hash_offset,
        }),
    })
}

/// Lists what the parent is to copy: what lies in layers. The rest, and what a list has no room for, is copied here.
fn leave_to_parent(
    job: &AssembleJob,
    copies: Vec<BodyCopy>,
    packs: &Packs,
    output: &File,
) -> Result<u64, Failure> {
    let (mut listed, mut own): (Vec<_>, Vec<_>) = copies
        .into_iter()
        .partition(|copy| (copy.pack.0 as usize) < job.layers.len());
    own.extend(listed.drain(listed.len().min(MAX_COPIES)..));
    for copy in own {
        let pack = packs.get(copy.pack).expect("the writer has looked for all packs");
        output
            .copy_from_pack(pack, copy.pack_offset, copy.image_offset, copy.length)
            .map_err(|error| Failure::from_io("copy the contents of files into the image", &error))?;
    }
    let list = take(job.copies).map_err(|error| Failure::from_io("take over a descriptor", &error))?;
    copies::write(&listed, BufWriter::new(list))
        .map_err(|error| Failure::from_io("list what is to be copied", &error))?;
    Ok(listed.len() as u64)
}

fn fold(job: &AssembleJob, packs: &mut Packs) -> Result<Folded, Failure> {
    let mode = match job.mode {
        LayerMode::Oci => Mode::Oci,
        LayerMode::Docker => Mode::Docker,
    };
    let mut limits = LayerLimits::default();
    limits.max_index_bytes = limits.max_index_bytes.min(job.max_index_bytes);
    let leaves = job
        .leaves
        .map(take)
        .transpose()
        .map_err(|error| Failure::from_io("take over the leaf hashes", &error))?;
    let mut folder = Folder::new(mode, FoldLimits::default());
    for layer in &job.layers {
        let file = take(layer.descriptor).map_err(|error| Failure::from_io("take over a layer", &error))?;
        let index = read_index(&file, layer, &limits)?;
        let pack = packs.push(Pack::File(Arc::new(file)));
        if let (Some(leaves), Some(place)) = (&leaves, layer.leaves) {
            let hashes = read_leaves(leaves, place, index.pack_size_bytes)?;
            packs.set_leaf_hashes(pack, Arc::new(hashes));
        }
        folder.apply(&index, pack).map_err(|error| {
            let kind = match error.kind {
                FoldErrorKind::TooManyEntries { .. }
                | FoldErrorKind::TooDeep { .. }
                | FoldErrorKind::TooManyLinks { .. } => FailureKind::Limit,
                _ => FailureKind::CorruptLayer,
            };
            Failure::chained(kind, &error)
        })?;
    }
    Ok(folder.finish())
}

/// The parent has checked the file when it was made; it is checked again because that costs little and the tree is
/// built on it.
fn read_index(file: &File, layer: &LayerInput, limits: &LayerLimits) -> Result<LayerIndex, Failure> {
    let failed = |error: io::Error| Failure::from_io("read a layer's index", &error);
    let mut reader = file;
    reader.seek(SeekFrom::Start(layer.index_offset)).map_err(failed)?;
    let bounded = BufReader::with_capacity(1 << 20, reader.take(layer.index_length));
    let index = LayerIndex::read_from(bounded, limits)
        .map_err(|error| Failure::chained(FailureKind::Internal, &error))?;
    if index.pack_size_bytes > layer.index_offset {
        return Err(Failure::new(
            FailureKind::Internal,
            "a layer's index reaches beyond its pack",
        ));
    }
    Ok(index)
}

fn read_leaves(file: &File, (offset, length): (u64, u64), pack_bytes: u64) -> Result<LeafHashes, Failure> {
    let mut reader = file;
    reader
        .seek(SeekFrom::Start(offset))
        .map_err(|error| Failure::from_io("read leaf hashes", &error))?;
    LeafHashes::read_from(BufReader::with_capacity(1 << 20, reader.take(length)), pack_bytes)
        .map_err(|error| Failure::chained(FailureKind::Internal, &error))
}

fn note<W: Write>(report: &Report, events: &mut Events<W>) -> Result<(), Failure> {
    let (differing, others): (Vec<_>, Vec<_>) =
        report.notes.iter().partition(|note| note.kind.modes_differ());
    let total = report.notes.len() as u64 + report.notes_omitted;
    let differing = &differing[..differing.len().min(MAX_DIFFERING_NOTES)];
    let others = &others[..others.len().min(MAX_NOTES)];
    for note in differing.iter().chain(others) {
        events.send(&WorkerEvent::Note {
            message: note.to_string(),
        })?;
    }
    let shown = (differing.len() + others.len()) as u64;
    if total > shown {
        let message = format!(
            "{} more notes on entries of the layers are left out",
            total - shown
        );
        events.send(&WorkerEvent::Note { message })?;
    }
    Ok(())
}

/// Leaves out and strips what the job says, and tells what that saved.
fn make_smaller<W: Write>(
    job: &AssembleJob,
    tree: &mut Tree,
    packs: &mut Packs,
    events: &mut Events<W>,
) -> Result<(), Failure> {
    if job.optimization.is_nothing() {
        return Ok(());
    }
    let scratch = job.scratch.map(take).transpose();
    let scratch = scratch.map_err(|error| Failure::from_io("take over a descriptor", &error))?;
    let done = optimize(&job.optimization, tree, packs, scratch).map_err(|error| match error {
        OptimizeError::Io(error) => Failure::from_io("make a program smaller", &error),
        OptimizeError::Pattern(error) => Failure::chained(FailureKind::Unsupported, &error),
    })?;
    for message in done.notes.into_iter().take(MAX_NOTES) {
        events.send(&WorkerEvent::Note { message })?;
    }
    for savings in done.savings {
        events.send(&WorkerEvent::Optimized { savings })?;
    }
    Ok(())
}

/// Whether a path leads to a regular file that someone may execute, symbolic links followed.
fn is_program(tree: &Tree, path: &str) -> bool {
    tree.resolve(path.as_bytes()).is_ok_and(|id| {
        let inode = tree.inode(id);
        matches!(inode.kind, InodeKind::File(_)) && inode.metadata.mode & 0o111 != 0
    })
}

fn apply(edit: &Edit, tree: &mut Tree) -> Result<(), Failure> {
    let (path, mode, content) = match edit {
        Edit::EnsureDirectory { path, mode } => {
            if tree.lookup(path.as_bytes()).is_none() {
                tree.create_directories(path.as_bytes(), &Metadata::root(*mode))
                    .map_err(|error| Failure::chained(FailureKind::Unsupported, &error))?;
            }
            return Ok(());
        }
        Edit::EnsureFile { path } => {
            let (parent, _) = path.rsplit_once('/').unwrap_or_default();
            let metadata = Metadata::root(0o755);
            // A link that leads nowhere stays one: `lookup` does not follow the last name.
            if tree.lookup(path.as_bytes()).is_none()
                && tree.create_directories(parent.as_bytes(), &metadata).is_ok()
            {
                let content = FileContent::inline(Vec::new());
                tree.put_file(path.as_bytes(), Metadata::root(0o644), content)
                    .map_err(|error| Failure::chained(FailureKind::Unsupported, &error))?;
            }
            return Ok(());
        }
        Edit::PutFile { path, mode, content } => (path, mode, content),
    };
    let bytes = match content {
        EditContent::Text(text) => text.as_bytes().to_vec(),
        EditContent::Descriptor(number) => {
            read_whole(*number).map_err(|error| Failure::from_io("read a file to be added", &error))?
        }
    };
    let content = FileContent::inline(bytes);
    if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        tree.create_directories(parent.as_bytes(), &Metadata::root(0o755))
            .map_err(|error| Failure::chained(FailureKind::Unsupported, &error))?;
    }
    tree.put_file(path.as_bytes(), Metadata::root(*mode), content)
        .map_err(|error| Failure::chained(FailureKind::Unsupported, &error))?;
    Ok(())
}

fn read_whole(descriptor: i32) -> io::Result<Vec<u8>> {
    let mut file = take(descriptor)?;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MAX_EDIT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn mke2fs(job: &AssembleJob) -> Result<Mke2fs, Failure> {
    match &job.staging_directory {
        Some(directory) => Ok(Mke2fs::new(directory)),
        None => Err(Failure::new(
            FailureKind::Internal,
            "no staging directory was given",
        )),
    }
}

fn options(request: &ImageRequest) -> ImageOptions {
    let mut options = ImageOptions::new(request.identity);
    options.profile = match request.profile {
        Profile::ReadWrite => rootfs::image::Profile::ReadWrite,
        Profile::ReadOnly => rootfs::image::Profile::ReadOnly,
    };
    options.free_space_bytes = request.free_space_bytes;
    options.free_inodes = request.free_inodes;
    options.max_image_bytes = request.max_image_bytes;
    options.verity = request.verity;
    options
}

fn explain(error: &ImageError) -> Failure {
    match error {
        // A file system has its own idea of how large a file can be; ext4 on 4 KiB blocks stops at 16 TiB.
        ImageError::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => Failure::new(
            FailureKind::OutputTooLarge,
            "the image is larger than a file can be where it is to be written",
        ),
        ImageError::Io { action, source } => Failure::from_io(action, source),
        ImageError::TooLarge { .. } => Failure::chained(FailureKind::Limit, error),
        ImageError::Unrepresentable { .. } => Failure::chained(FailureKind::Unsupported, error),
        ImageError::Unavailable { .. } => Failure::chained(FailureKind::BackendUnavailable, error),
        _ => Failure::chained(FailureKind::Internal, error),
    }
}
