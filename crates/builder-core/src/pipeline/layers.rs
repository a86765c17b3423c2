//! All layers of an image to layer files: from the cache, or pulled and indexed at the same time.

use std::{
    cmp::Reverse,
    fs::{File, Metadata},
    io::{self, BufReader, Read},
    os::{fd::OwnedFd, unix::fs::FileExt},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use oci_fetch::{Blob, LayerDescriptor};
use rootfs::layer::{LayerIndex, LayerLimits};
use tokio::sync::OwnedMutexGuard;
use tracing::Instrument as _;

use super::{
    Work, ahead,
    ahead::{Download, LAYERS_AHEAD},
    assemble::allocated_bytes,
    blocking,
    feed::{Fed, Input, feed},
    fetch,
    own::counted,
    progress::megabytes,
    stop::Reason,
};
use crate::{
    error::{BuildError, BuildErrorKind},
    event::{Component, Level},
    pack_cache::{Grant, LayerFile, LayerRecord, Lookup, Unfinished, hash_index},
    worker::{Control, IndexJob, Job, Session, WorkerEvent, WorkerLimits},
};

/// How often the size of the layer files on disk is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Memory that the index of one layer may take. An image of two million files needs half of it.
pub(super) const MAX_INDEX_BYTES: u64 = 512 << 20;

/// The level of isolation from which on a tenant has layer files of its own.
const OWN_PACKS_LEVEL: u8 = 3;

/// Descriptors of an index worker.
const INPUT: i32 = 3;
const OUTPUT: i32 = 4;

/// Sums over the layers of one build.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) uncompressed_bytes: AtomicU64,
    /// The same for the limit of the disk: of each layer what it says or what its file takes, whichever is more. A layer of
    /// small files takes more, and what a worker says is only what it says.
    pub(super) disk_bytes: AtomicU64,
    pub(super) pulled_bytes: AtomicU64,
    /// Of layer files that are being written at this moment.
    unfinished_bytes: AtomicU64,
}

/// What one unfinished layer file adds to [`Sums::unfinished_bytes`], until it is dropped.
struct Growing<'a> {
    sum: &'a AtomicU64,
    bytes: u64,
}

impl Growing<'_> {
    fn set(&mut self, bytes: u64) {
        self.sum
            .fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What a worker says of a finished layer file.
struct Indexed {
    pack_bytes: u64,
    index_bytes: u64,
}

/// Makes or finds the layer files of all layers, bottom first. When one layer fails, the others are ended; on return no
/// worker runs any more.
pub(super) async fn collect(work: &Work<'_>) -> Result<Vec<LayerFile>, BuildError> {
    let n_layers = work.image.layers.len();
    let in_parallel = work.config.layers_in_parallel.max(1);
    // What is at hand first, of that and of the rest the largest first: one that is begun last keeps one processor busy
    // when the others have nothing left to do.
    let mut order = Vec::with_capacity(n_layers);
    for (layer_idx, layer) in work.image.layers.iter().enumerate() {
        let is_absent = !ahead::is_at_hand(work, layer_idx).await?;
        order.push((is_absent, Reverse(layer.size_bytes), layer_idx));
    }
    order.sort_unstable();
    let order: Vec<usize> = order.into_iter().map(|(_, _, layer_idx)| layer_idx).collect();
    let mut before_their_turn = order.clone().into_iter().skip(in_parallel).map(|layer_idx| {
        let span = tracing::info_span!("layer", layer.index = layer_idx);
        ahead::begin(work, layer_idx).instrument(span)
    });
    let mut beginning: FuturesUnordered<_> = before_their_turn.by_ref().take(LAYERS_AHEAD).collect();
    let mut results = futures_util::stream::iter(order)
        .map(|layer_idx| {
            let span = tracing::info_span!("layer", layer.index = layer_idx);
            async move { (layer_idx, one_with_leaves(work, layer_idx).await) }.instrument(span)
        })
        .buffer_unordered(in_parallel);
    let mut files: Vec<Option<LayerFile>> = (0..n_layers).map(|_| None).collect();
    let mut first_error = None;
    loop {
        let ended = tokio::select! {
            ended = results.next() => ended,
            Some(()) = beginning.next() => continue,
        };
        let Some((layer_idx, result)) = ended else { break };
        beginning.extend(before_their_turn.next());
        match result {
            Ok(file) => files[layer_idx] = Some(file),
            Err(error) => {
                first_error.get_or_insert(error);
                // The others end at their next step; the loop goes on until the last one has.
                work.stop.stop(Reason::Failed);
            }
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(files.into_iter().flatten().collect()),
    }
}

/// A layer file, with the leaf hashes of its pack where the image gets a hash tree: while other layers still come in.
async fn one_with_leaves(work: &Work<'_>, layer_idx: usize) -> Result<LayerFile, BuildError> {
    let file = one(work, layer_idx).await?;
    if !work.request.target.has_verity() || work.stop.is_stopped() {
        return Ok(file);
    }
    let (cache, stop) = (work.config.packs.clone(), work.stop.clone());
    let hashed = counted(work, move || cache.with_leaf_hashes(file, || stop.is_stopped())).await?;
    hashed.map_err(|error| match work.stop.is_stopped() {
        true => work.stop.error(),
        false => BuildError::from_io("hash a layer's pack", error),
    })
}

async fn one(work: &Work<'_>, layer_idx: usize) -> Result<LayerFile, BuildError> {
    let layer = &work.image.layers[layer_idx];
    let blob_name = entry_name(work, layer);
    let name = format!("layer {} of {}", layer_idx + 1, work.image.layers.len());
    let cache = &work.config.packs;

    let queue = async { Ok(cache.queue(work.isolation_key, &blob_name).await) };
    let alone = work.stop.unless(queue).await?;
    let lookup = {
        let (cache, blob_name, grant) = (cache.clone(), blob_name.clone(), work.grant.clone());
        blocking(move || cache.lookup(&blob_name, &grant)).await?
    };
    match lookup.map_err(|error| BuildError::from_io("read the pack cache", error))? {
        Lookup::Granted(file) => {
            // Begun before somebody else had made it: what came in is counted already.
            if !work.ahead.give_up(layer_idx).await {
                work.progress.skip(layer.size_bytes);
            }
            reuse(work, layer, &name, file).await
        }
        Lookup::Ungranted(file) => {
            // The same bytes were indexed before, for somebody else. This build has to come by them on its own; where
            // they are here already, oci-fetch decides whether it has a right to them.
            let blob = ahead::open(work, layer_idx).await?.blob;
            let verified = async { blob.verified().await.map_err(|error| fetch::explain(&error)) };
            work.stop.unless(verified).await?;
            count_pulled(work, layer, &blob);
            let (cache, grant) = (cache.clone(), work.grant.clone());
            blocking(move || cache.add_grant(&blob_name, &grant))
                .await?
                .map_err(|error| BuildError::from_io("write to the pack cache", error))?;
            reuse(work, layer, &name, file).await
        }
        Lookup::Missing { damaged } => {
            if let Some(reason) = damaged {
                let message = format!("The cached pack of {name} was damaged and is made anew: {reason}");
                work.events()
                    .log(Level::Warn, Component::Extractor, message)
                    .await;
            }
            make(work, layer_idx, &name, blob_name, alone).await
        }
    }
}

/// What the layer is called in the pack cache. In a box of level 3 nothing is used that the worker of another tenant has
/// made: the entry is then the tenant's own.
pub(super) fn entry_name(work: &Work<'_>, layer: &LayerDescriptor) -> String {
    let isolation = work.config.launcher.isolation();
    if isolation.is_some_and(|isolation| isolation.sandbox_level >= OWN_PACKS_LEVEL) {
        format!("{}-{}", layer.digest, Grant::new(work.isolation_key, ""))
    } else {
        layer.digest.to_string()
    }
}

fn count_pulled(work: &Work<'_>, layer: &LayerDescriptor, blob: &Blob) {
    if blob.from_network() {
        work.sums
            .pulled_bytes
            .fetch_add(layer.size_bytes, Ordering::Relaxed);
    }
}

/// Takes a layer file from the cache.
async fn reuse(
    work: &Work<'_>,
    layer: &LayerDescriptor,
    name: &str,
    file: LayerFile,
) -> Result<LayerFile, BuildError> {
    accept(work, layer, name, &file.record)?;
    work.progress.advance(layer.size_bytes);
    let message = format!(
        "Took {name} from the pack cache: {} entries, {} uncompressed",
        file.record.entries,
        megabytes(file.record.uncompressed_bytes)
    );
    work.events()
        .log_with(
            Level::Info,
            Component::Extractor,
            message,
            [
                ("layer.digest", layer.digest.to_string()),
                ("layer.cached", "true".to_owned()),
            ],
        )
        .await;
    work.progress.layer_pulled().await;
    work.progress.layer_indexed().await;
    Ok(file)
}

/// Pulls and indexes a layer.
async fn make(
    work: &Work<'_>,
    layer_idx: usize,
    name: &str,
    blob_name: String,
    alone: OwnedMutexGuard<()>,
) -> Result<LayerFile, BuildError> {
    let layer = &work.image.layers[layer_idx];
    let Download { blob, begun } = ahead::open(work, layer_idx).await?;
    let writing = |error: io::Error| BuildError::from_io(&format!("write the pack of {name}"), error);
    let cache = work.config.packs.clone();
    let unfinished = blocking(move || cache.begin()).await?.map_err(writing)?;

    let indexed = index(work, layer, name, &blob, begun, &unfinished).await?;
    count_pulled(work, layer, &blob);

    let limits = index_limits(work);
    let (unfinished, checked) = {
        let _turn = work.config.packs.check_turn().await;
        counted(work, move || {
            let checked = check(unfinished.file(), &indexed, &limits);
            (unfinished, checked)
        })
        .await?
    };
    let record = checked.map_err(|reason| {
        BuildError::new(
            BuildErrorKind::Internal,
            format!("internal error: the worker that indexes {name} answered with garbage"),
        )
        .with_cause(reason)
    })?;
    accept(work, layer, name, &record)?;
    let message = format!(
        "Indexed {name}: {} entries, {} compressed, {} uncompressed",
        record.entries,
        megabytes(layer.size_bytes),
        megabytes(record.uncompressed_bytes)
    );
    let (cache, grant) = (work.config.packs.clone(), work.grant.clone());
    let file = blocking(move || cache.publish(unfinished, &blob_name, record, &grant))
        .await?
        .map_err(writing)?;
    drop(alone);
    work.events()
        .log_with(
            Level::Info,
            Component::Extractor,
            message,
            [
                ("layer.digest", layer.digest.to_string()),
                ("layer.cached", "false".to_owned()),
            ],
        )
        .await;
    work.progress.layer_indexed().await;
    Ok(file)
}

/// Compares a layer with what the image's configuration claims of it, and its size with what the build may use.
fn accept(
    work: &Work<'_>,
    layer: &LayerDescriptor,
    name: &str,
    record: &LayerRecord,
) -> Result<(), BuildError> {
    let expected = layer.diff_id.to_string();
    let actual = format!("sha256:{}", hex::encode(record.diff_id));
    if !expected.starts_with("sha256:") {
        return Err(BuildError::new(
            BuildErrorKind::UnsupportedImage,
            format!(
                "{name}: the image's configuration gives the diff_id {expected}, only sha256 is supported"
            ),
        ));
    }
    if expected != actual {
        return Err(BuildError::new(
            BuildErrorKind::DigestMismatch,
            format!(
                "{name}: the image's configuration gives the diff_id {expected}, but the content has {actual}"
            ),
        ));
    }
    work.sums
        .uncompressed_bytes
        .fetch_add(record.uncompressed_bytes, Ordering::Relaxed);
    let bytes = record
        .uncompressed_bytes
        .max(record.pack_bytes.saturating_add(record.index_bytes));
    let before = work.sums.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
    work.check_disk(before.saturating_add(bytes), "the layers, uncompressed")
}

fn index_limits(work: &Work<'_>) -> LayerLimits {
    let mut limits = LayerLimits::default();
    limits.max_index_bytes = max_index_bytes(work);
    if let Some(max_disk_bytes) = work.config.limits.max_disk_bytes {
        limits.max_output_bytes = limits.max_output_bytes.min(max_disk_bytes);
    }
    limits
}

/// A worker holds the index in memory while it is made, and serialised once more.
pub(super) fn max_index_bytes(work: &Work<'_>) -> u64 {
    work.config
        .limits
        .max_memory_bytes
        .map_or(MAX_INDEX_BYTES, |bytes| MAX_INDEX_BYTES.min(bytes / 2))
}

async fn index(
    work: &Work<'_>,
    layer: &LayerDescriptor,
    name: &str,
    blob: &Blob,
    begun: Instant,
    unfinished: &Unfinished,
) -> Result<Indexed, BuildError> {
    let starting = |error: io::Error| BuildError::internal("start a worker", error);
    let (theirs, input) = Input::open(blob).await.map_err(starting)?;
    let output = OwnedFd::from(unfinished.file().try_clone().map_err(starting)?);
    let mut limits = index_limits(work);
    if let Some(max_disk_bytes) = work.config.limits.max_disk_bytes {
        // What other layers have taken is gone.
        let finished = work.sums.disk_bytes.load(Ordering::Relaxed);
        limits.max_output_bytes = limits
            .max_output_bytes
            .min(max_disk_bytes.saturating_sub(finished));
    }
    let job = Job::Index(IndexJob {
        input: INPUT,
        input_bytes: blob.size_bytes(),
        output: OUTPUT,
        max_output_bytes: limits.max_output_bytes,
        max_index_bytes: limits.max_index_bytes,
    });
    let worker_limits = WorkerLimits {
        file_size_bytes: Some(limits.max_output_bytes.saturating_add(limits.max_index_bytes)),
        ..work.worker_limits()
    };
    let mut session = Session::start(
        &work.config.launcher,
        &work.config.alarms,
        format!("the worker that indexes {name}"),
        job,
        vec![(theirs, INPUT), (output, OUTPUT)],
        worker_limits,
    )
    .await?;

    let talk = work
        .stop
        .unless(converse(
            work,
            name,
            &mut session,
            (blob, begun),
            input,
            unfinished,
        ))
        .await;
    if talk.is_err() {
        session.kill();
    }
    let (usage, end) = session.finish().await;
    work.add_usage(usage).await;
    let indexed = talk?;
    match (end, indexed) {
        (Ok(()), Some(indexed)) => Ok(indexed),
        (Ok(()), None) => Err(BuildError::new(
            BuildErrorKind::Internal,
            format!("internal error: the worker that indexes {name} ended without a result"),
        )),
        (Err(error), _) => {
            // Bytes that were changed on the way look like a corrupt layer. Which of the two it is, the digest says.
            if *error.kind() == BuildErrorKind::CorruptLayer {
                let verified = async { blob.verified().await.map_err(|error| fetch::explain(&error)) };
                work.stop.unless(verified).await?;
            }
            let message = format!("{name} ({}): {error}", layer.digest);
            Err(BuildError::new(error.kind().clone(), message).with_cause(error))
        }
    }
}

/// Feeds the worker and listens to it, until it says nothing more.
async fn converse(
    work: &Work<'_>,
    name: &str,
    session: &mut Session,
    (blob, begun): (&Blob, Instant),
    input: Input,
    unfinished: &Unfinished,
) -> Result<Option<Indexed>, BuildError> {
    // How long a download took that had ended before its turn is not known.
    let began = matches!(input, Input::Pipe(_)).then_some(begun);
    let mut growing = Growing {
        sum: &work.sums.unfinished_bytes,
        bytes: 0,
    };
    let mut interval = tokio::time::interval(INTERVAL);
    let mut feeding = pin!(feed(work, blob, input));
    let mut is_feeding = true;
    let mut indexed = None;
    loop {
        tokio::select! {
            fed = &mut feeding, if is_feeding => {
                is_feeding = false;
                if fed? == Fed::Verified {
                    report_pulled(work, name, blob, began.map(|began| began.elapsed())).await;
                    work.progress.layer_pulled().await;
                    session.tell(Control::Verified).await;
                }
            }
            event = session.next_event() => match event? {
                Some(WorkerEvent::Indexed { pack_bytes, index_bytes }) => {
                    indexed = Some(Indexed { pack_bytes, index_bytes });
                }
                Some(WorkerEvent::Note { message }) => {
                    let message = format!("{name}: {message}");
                    work.events().log(Level::Info, Component::Extractor, message).await;
                }
                Some(_) => {}
                None => return Ok(indexed),
            },
            // Each worker is held to the limit by itself; several together would exceed it before one is done.
            _ = interval.tick() => {
                if let Ok(metadata) = unfinished.file().metadata() {
                    growing.set(taken(&metadata));
                }
                let finished = work.sums.disk_bytes.load(Ordering::Relaxed);
                let unfinished = work.sums.unfinished_bytes.load(Ordering::Relaxed);
                work.check_disk(finished.saturating_add(unfinished), "the layers, uncompressed,")?;
            }
        }
    }
}

/// What a file takes of the disk, or will when its holes are filled; blocks behind its end are among them.
fn taken(metadata: &Metadata) -> u64 {
    metadata.len().max(allocated_bytes(metadata))
}

/// A line for the log; a layer that was at hand was not pulled.
async fn report_pulled(work: &Work<'_>, name: &str, blob: &Blob, elapsed: Option<Duration>) {
    if !blob.from_network() {
        return;
    }
    let bytes = blob.size_bytes();
    let pulled = format!("Pulled {name}: {}", megabytes(bytes));
    let digest = ("layer.digest", blob.digest().to_string());
    let compressed = ("layer.compressed_bytes", bytes.to_string());
    let (level, component) = (Level::Info, Component::Puller);
    let Some(elapsed) = elapsed else {
        let metadata = [digest, compressed];
        return work.events().log_with(level, component, pulled, metadata).await;
    };
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX);
    let seconds = elapsed.as_secs_f64();
    let message = format!("{pulled} in {seconds:.1} s, {}/s", megabytes(rate));
    let metadata = [digest, compressed, ("layer.pull_ms", millis.to_string())];
    work.events().log_with(level, component, message, metadata).await;
}

/// Reads back what a worker wrote, as the hostile input that it may be.
fn check(file: &File, claimed: &Indexed, limits: &LayerLimits) -> Result<LayerRecord, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let expected = claimed.pack_bytes.saturating_add(claimed.index_bytes);
    if length != expected {
        return Err(format!(
            "the layer file has {length} bytes, the worker says {expected}"
        ));
    }
    let section = Section {
        file,
        offset: claimed.pack_bytes,
    }
    .take(claimed.index_bytes);
    let index = LayerIndex::read_from(BufReader::with_capacity(1 << 20, section), limits)
        .map_err(|error| error.to_string())?;
    if index.pack_size_bytes != claimed.pack_bytes {
        return Err(format!(
            "the pack has {} bytes, the index says {}",
            claimed.pack_bytes, index.pack_size_bytes
        ));
    }
    Ok(LayerRecord {
        diff_id: index.diff_id,
        uncompressed_bytes: index.uncompressed_size_bytes,
        entries: index.entries.len() as u64,
        pack_bytes: claimed.pack_bytes,
        index_bytes: claimed.index_bytes,
        index_sha256: hash_index(file, claimed.pack_bytes).map_err(|error| error.to_string())?,
    })
}

/// Reads a file from an offset on without moving the position that it shares with others.
struct Section<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}
