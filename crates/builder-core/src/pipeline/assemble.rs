//! The image itself: layer files, added files and options to a worker, an ext4 image back.

use std::{
    fs::{File, Metadata},
    io::{self, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    sync::atomic::Ordering,
    time::Duration,
};

use super::{
    Work, blocking,
    contents::Contents,
    layers::max_index_bytes,
    progress::{Phase, megabytes},
};
use crate::{
    error::{BuildError, BuildErrorKind},
    event::{Component, Level},
    optimize::{Rule, Savings},
    pack_cache::LayerFile,
    request::Backend,
    shape::{AddedContent, Shape, identity},
    worker::{
        AssembleJob, Control, Edit, EditContent, HashTree, ImageRequest, Job, LayerInput, MAX_DESCRIPTOR,
        Session, WorkerEvent, WorkerLimits, read_copies,
    },
};

/// Descriptors of an assemble worker: the image, the init, scratch space, the leaf hashes, the list of what is to be
/// copied, then the layers.
const OUTPUT: i32 = 3;
const BINARY: i32 = 4;
const SCRATCH: i32 = 5;
const LEAVES: i32 = 6;
const COPIES: i32 = 7;
const FIRST_LAYER: i32 = 8;

/// Layers that there are descriptors for. Docker makes at most 127, oci-fetch takes 128.
pub(super) const MAX_LAYERS: usize = (MAX_DESCRIPTOR - FIRST_LAYER) as usize;

/// What an inode takes in ext4's tables.
const INODE_BYTES: u64 = 256;

/// The largest journal, 1 GiB, and what the last group of blocks may have too much.
const MAX_HOLES_BYTES: u64 = (1 << 30) + (128 << 20);

/// How often the size of the image on disk is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// A finished image.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) size_bytes: u64,
    /// What it takes on disk.
    pub(super) allocated_bytes: u64,
    pub(super) verity: Option<HashTree>,
    /// What the optimization saved, rule by rule.
    pub(super) savings: Vec<Savings>,
    /// With the strategy CUSTOM, the image's own init; `None` when there is none.
    pub(super) init: Option<String>,
}

/// What a worker has told.
#[derive(Default)]
struct Told {
    /// Of the image, and how many ranges of it have yet to be copied.
    written: Option<(u64, u64)>,
    verity: Option<HashTree>,
    savings: Vec<Savings>,
    init: Option<String>,
}

impl Written {
    /// From what the file system says of the file.
    pub(super) fn new(size_bytes: u64, found: &Metadata, verity: Option<HashTree>) -> Self {
        Self {
            size_bytes,
            allocated_bytes: allocated_bytes(found),
            savings: Vec::new(),
            init: None,
            verity,
        }
    }

    /// Looks again at what the file takes on disk.
    pub(super) fn measure(&mut self, image: &File) -> Result<(), BuildError> {
        let found = image
            .metadata()
            .map_err(|error| BuildError::from_io("look at the image", error))?;
        self.allocated_bytes = allocated_bytes(&found);
        Ok(())
    }
}

/// What a file takes of the disk: st_blocks counts 512 bytes each, whatever the file system. stat(2).
pub(super) fn allocated_bytes(found: &Metadata) -> u64 {
    found.blocks().saturating_mul(512)
}

/// Stands for everything that decides the content of the image; see [`identity`].
pub(super) fn identity_of(work: &Work<'_>, layers: &[LayerFile], shape: &Shape) -> [u8; 32] {
    let diff_ids: Vec<[u8; 32]> = layers.iter().map(|layer| layer.record.diff_id).collect();
    identity(&diff_ids, &shape.files, &shape.optimization, &work.request.target)
}

/// Writes the image into `output`, an empty file, but for the contents that are given back.
pub(super) async fn write(
    work: &Work<'_>,
    layers: &[LayerFile],
    shape: &Shape,
    output: &File,
) -> Result<(Written, Contents), BuildError> {
    let pack_bytes: u64 = layers.iter().map(|layer| layer.record.pack_bytes).sum();
    work.progress.begin(Phase::Write, pack_bytes).await;

    let target = &work.request.target;
    let starting = |error: io::Error| BuildError::internal("start a worker", error);
    let mut descriptors = vec![(OwnedFd::from(output.try_clone().map_err(starting)?), OUTPUT)];
    let edits = edits(shape, &mut descriptors).map_err(starting)?;
    let places = leaves(layers, target.has_verity(), &mut descriptors).map_err(starting)?;
    let mut inputs = Vec::with_capacity(layers.len());
    for ((layer, descriptor), place) in layers.iter().zip(FIRST_LAYER..).zip(&places) {
        descriptors.push((layer.file.try_clone().map_err(starting)?.into(), descriptor));
        inputs.push(LayerInput {
            descriptor,
            index_offset: layer.record.pack_bytes,
            index_length: layer.record.index_bytes,
            leaves: *place,
        });
    }
    let list = sandbox::data_memory("builderd-copies").map_err(starting)?;
    descriptors.push((list.try_clone().map_err(starting)?.into(), COPIES));
    let staging = match work.config.backend {
        Backend::Native => None,
        Backend::Mke2fs => {
            let parent = work.config.staging_directory.clone();
            let made = blocking(move || {
                tempfile::Builder::new()
                    .prefix("staging-")
                    .permissions(std::fs::Permissions::from_mode(0o700))
                    .tempdir_in(parent)
            });
            Some(
                made.await?
                    .map_err(|error| BuildError::from_io("make a staging directory", error))?,
            )
        }
    };
    let scratch = if shape.optimization.strip_debug_symbols {
        let parent = work.config.staging_directory.clone();
        let file = blocking(move || tempfile::tempfile_in(parent)).await?;
        let file = file.map_err(|error| BuildError::from_io("make a scratch file", error))?;
        descriptors.push((file.try_clone().map_err(starting)?.into(), SCRATCH));
        Some(file)
    } else {
        None
    };
    let max_image_bytes = max_image_bytes(work);
    let job = Job::Assemble(Box::new(AssembleJob {
        layers: inputs,
        mode: target.layer_mode,
        optimization: shape.optimization.clone(),
        scratch: scratch.as_ref().map(|_| SCRATCH),
        edits,
        init_candidates: shape.init_candidates(),
        image: ImageRequest {
            profile: target.profile,
            free_space_bytes: target.free_space_bytes,
            free_inodes: target.free_inodes,
            max_image_bytes,
            verity: target.has_verity(),
            identity: identity_of(work, layers, shape),
        },
        backend: work.config.backend,
        staging_directory: staging.as_ref().map(|directory| directory.path().to_owned()),
        output: OUTPUT,
        copies: COPIES,
        max_index_bytes: max_index_bytes(work),
        leaves: target.has_verity().then_some(LEAVES),
    }));
    let name = "the worker that writes the image";
    let mut session = Session::start(
        &work.config.launcher,
        &work.config.alarms,
        name.to_owned(),
        job,
        descriptors,
        WorkerLimits {
            file_size_bytes: max_image_bytes,
            ..work.worker_limits()
        },
    )
    .await?;

    let talk = converse(work, &mut session, output, scratch.as_ref());
    let talk = work.stop.unless(talk).await;
    if talk.is_err() {
        session.kill();
    }
    let (usage, end) = session.finish().await;
    work.add_usage(usage).await;
    if let Some(staging) = staging
        && let Err(error) = blocking(move || staging.close()).await?
    {
        tracing::warn!(%error, "Failed to remove a staging directory");
    }
    let told = talk?;
    end?;
    let garbage = |reason: String| {
        BuildError::new(
            BuildErrorKind::Internal,
            format!("internal error: {name} answered with garbage"),
        )
        .with_cause(reason)
    };
    let (size_bytes, n_copies) = told.written.ok_or_else(|| garbage("no size".to_owned()))?;
    let found = output
        .metadata()
        .map_err(|error| BuildError::from_io("look at the image", error))?;
    if found.len() != size_bytes {
        return Err(garbage(format!(
            "the image has {} bytes, the worker says {size_bytes}",
            found.len()
        )));
    }
    if let Some(limit) = max_image_bytes
        && size_bytes > limit
    {
        return Err(garbage(format!(
            "the image has {size_bytes} bytes, {limit} were allowed"
        )));
    }
    let verity = told.verity;
    if verity.is_some() != target.has_verity() {
        return Err(garbage("a hash tree is not where it should be".to_owned()));
    }
    if let Some(tree) = verity
        && rootfs::verity::hash_area_bytes(tree.hash_offset)
            .and_then(|area| area.checked_add(tree.hash_offset))
            != Some(size_bytes)
    {
        let offset = tree.hash_offset;
        return Err(garbage(format!(
            "no hash tree fits between {offset} and {size_bytes}"
        )));
    }
    let written = Written {
        savings: told.savings,
        init: told.init,
        ..Written::new(size_bytes, &found, verity)
    };
    let packs: Vec<u64> = layers.iter().map(|layer| layer.record.pack_bytes).collect();
    let copies = read_copies(&list, n_copies, &packs, size_bytes).map_err(garbage)?;
    // Before the disk is filled with them; most file systems take as much for them as they have.
    let to_come: u64 = copies.iter().map(|copy| copy.length).sum();
    work.check_image(written.allocated_bytes + to_come)?;
    let contents = Contents::new(copies, layers).map_err(starting)?;
    Ok((written, contents))
}

/// How large the image's file can become with what is left of the build's disk: the worker compares it with the size that it
/// has planned before it writes anything, and cannot write beyond it (RLIMIT_FSIZE). It is more than what may be allocated,
/// because free space, the journal, unused inodes and free blocks' bitmaps are holes.
fn max_image_bytes(work: &Work<'_>) -> Option<u64> {
    let limits = &work.config.limits;
    let by_disk = limits.max_disk_bytes.map(|limit| {
        let target = &work.request.target;
        let left = limit.saturating_sub(work.sums.disk_bytes.load(Ordering::Relaxed));
        let unused_inodes = target.free_inodes.saturating_mul(INODE_BYTES);
        let contents = left
            .saturating_add(target.free_space_bytes)
            .saturating_add(unused_inodes);
        contents
            .saturating_add(contents / 16)
            .saturating_add(MAX_HOLES_BYTES)
    });
    [limits.max_image_bytes, by_disk].into_iter().flatten().min()
}

/// The leaf hashes of all packs one behind the other in a file without a name; where those of each layer are.
fn leaves(
    layers: &[LayerFile],
    wanted: bool,
    descriptors: &mut Vec<(OwnedFd, i32)>,
) -> io::Result<Vec<Option<(u64, u64)>>> {
    if !wanted {
        return Ok(vec![None; layers.len()]);
    }
    let mut memory = sandbox::data_memory("builderd-leaves")?;
    let mut places = Vec::with_capacity(layers.len());
    let mut offset = 0;
    for layer in layers {
        places.push(match &layer.leaves {
            Some(leaves) => {
                leaves.write_to(&memory)?;
                let end = memory.stream_position()?;
                let place = (offset, end - offset);
                offset = end;
                Some(place)
            }
            None => None,
        });
    }
    descriptors.push((memory.into(), LEAVES));
    Ok(places)
}

/// The added files, large ones as descriptors.
fn edits(shape: &Shape, descriptors: &mut Vec<(OwnedFd, i32)>) -> io::Result<Vec<Edit>> {
    let mut edits: Vec<Edit> = shape
        .directories
        .iter()
        .map(|&(path, mode)| Edit::EnsureDirectory {
            path: path.to_owned(),
            mode,
        })
        .collect();
    edits.extend(shape.working_directory.iter().map(|path| Edit::EnsureDirectory {
        path: path.clone(),
        mode: 0o755,
    }));
    edits.extend(shape.mount_points.iter().map(|&path| Edit::EnsureFile {
        path: path.to_owned(),
    }));
    for file in &shape.files {
        let content = match &file.content {
            AddedContent::Text(text) => EditContent::Text(text.clone()),
            AddedContent::Binary(bytes) => {
                let mut memory = sandbox::data_memory("builderd-init")?;
                memory.write_all(bytes)?;
                descriptors.push((memory.into(), BINARY));
                EditContent::Descriptor(BINARY)
            }
        };
        edits.push(Edit::PutFile {
            path: file.path.to_owned(),
            mode: file.mode,
            content,
        });
    }
    Ok(edits)
}

/// Listens to the worker until it says nothing more.
async fn converse(
    work: &Work<'_>,
    session: &mut Session,
    image: &File,
    scratch: Option<&File>,
) -> Result<Told, BuildError> {
    // Every layer was verified before this worker was started.
    session.tell(Control::Verified).await;
    let mut interval = tokio::time::interval(INTERVAL);
    let mut told = Told::default();
    loop {
        tokio::select! {
            event = session.next_event() => match event? {
                Some(WorkerEvent::Note { message }) => {
                    work.events().log(Level::Info, Component::Writer, message).await;
                }
                Some(WorkerEvent::Folded { inodes }) => {
                    let message = format!("Folded {} layers to {inodes} names", work.image.layers.len());
                    work.events().log(Level::Info, Component::Writer, message).await;
                }
                Some(WorkerEvent::Written { size_bytes, copies, inodes_used, verity }) => {
                    told.written = Some((size_bytes, copies));
                    told.verity = verity;
                    let message = format!("Wrote the image: {}, {inodes_used} inodes in use", megabytes(size_bytes));
                    work.events().log(Level::Info, Component::Writer, message).await;
                }
                // Each rule once, whatever a worker says.
                Some(WorkerEvent::Optimized { savings })
                    if told.savings.iter().all(|known| known.rule != savings.rule) =>
                {
                    told.savings.push(savings);
                    log_savings(work, &savings).await;
                }
                Some(WorkerEvent::Init { path }) => told.init = path,
                Some(_) => {}
                None => return Ok(told),
            },
            _ = interval.tick() => {
                let taken = |file: &File| file.metadata().map_or(0, |metadata| allocated_bytes(&metadata));
                let image_bytes = taken(image);
                work.progress.set_done(image_bytes);
                // The worker compares what it has planned with the limits, and its word is not taken for it.
                work.check_image(image_bytes.saturating_add(scratch.map_or(0, taken)))?;
            }
        }
    }
}

async fn log_savings(work: &Work<'_>, savings: &Savings) {
    let Savings { rule, files, bytes } = *savings;
    let what = match rule {
        Rule::StripDebugSymbols => "files made smaller by",
        _ => "names left out,",
    };
    work.events()
        .log_with(
            Level::Info,
            Component::Optimizer,
            format!("Applied {rule}: {files} {what} {}", megabytes(bytes)),
            [
                ("optimization.rule", rule.to_string()),
                ("optimization.files", files.to_string()),
                ("optimization.bytes", bytes.to_string()),
            ],
        )
        .await;
}
